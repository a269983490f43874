"""A sorted collection: what waits, and who is free, in the order in which they will be taken."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])

_BLOCK = 128  # keys a block holds before it is split at twice this size


class Ordered(Generic[K]):
    """Distinct keys in ascending order, kept in blocks of bounded length.

    Adding, removing, finding the first and finding a key's place cost two
    binary searches and a move inside one block. A heap with lazy deletion would
    be no faster here, and could neither say the place of a key nor list the
    runners-up.
    """

    __slots__ = ("_blocks", "_lasts", "_size")

    def __init__(self) -> None:
        self._blocks: list[list[K]] = []
        self._lasts: list[K] = []  # the last key of each block
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[K]:
        for block in self._blocks:
            yield from block

    def __contains__(self, key: K) -> bool:
        at = bisect_left(self._lasts, key)
        if at == len(self._blocks):
            return False
        block = self._blocks[at]
        return block[bisect_left(block, key)] == key

    def add(self, key: K) -> None:
        """Insert a key that is not there yet."""
        self._size += 1
        if not self._blocks:
            self._blocks.append([key])
            self._lasts.append(key)
            return
        at = bisect_left(self._lasts, key)
        if at == len(self._blocks):
            at -= 1
            self._blocks[at].append(key)
            self._lasts[at] = key
        else:
            insort(self._blocks[at], key)
        block = self._blocks[at]
        if len(block) > 2 * _BLOCK:
            self._blocks[at : at + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._lasts.insert(at, block[_BLOCK - 1])

    def remove(self, key: K) -> None:
        """Take a key out.

        Raises:
            KeyError: it is not there.
        """
        at = bisect_left(self._lasts, key)
        if at == len(self._blocks):
            raise KeyError(key)
        block = self._blocks[at]
        index = bisect_left(block, key)
        if block[index] != key:
            raise KeyError(key)
        del block[index]
        self._size -= 1
        if not block:
            del self._blocks[at]
            del self._lasts[at]
        elif index == len(block):
            self._lasts[at] = block[-1]

    def first(self) -> K:
        """The lowest key.

        Raises:
            IndexError: there is none.
        """
        return self._blocks[0][0]

    def after(self, key: K) -> Iterator[K]:
        """The keys above `key`, which need not be there itself."""
        at = bisect_right(self._lasts, key)
        if at == len(self._blocks):
            return
        block = self._blocks[at]
        yield from islice(block, bisect_right(block, key), None)
        for block in islice(self._blocks, at + 1, None):
            yield from block

    def rank(self, key: K) -> int:
        """How many keys are below `key`."""
        at = bisect_left(self._lasts, key)
        below = sum(map(len, islice(self._blocks, at)))
        return below if at == len(self._blocks) else below + bisect_left(self._blocks[at], key)
