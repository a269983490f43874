"""Timers in a heap; the event loop needs one, for the earliest deadline of all heaps."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something with at most one deadline at a time.

    Attributes:
        scheduled_at: kept by the schedule: the time of the item's entry, or None.
    """

    scheduled_at: float | None

    def deadline(self) -> float | None:
        """Monotonic seconds, or None."""


ItemT = TypeVar("ItemT", bound=Timed)

_SWEEP_FROM = 1024  # entries; fewer are not worth it


class Schedule(Generic[ItemT]):
    """A heap of items by deadline.

    An item has one entry, which may be earlier than its deadline has become
    meanwhile: it is put back when it comes up. So moving a deadline back or
    dropping it, as nearly every timer of SIP ends, costs nothing. Entries without
    a deadline are swept out whenever the heap has doubled: a timer of half an
    hour does not keep an item that ended long ago.

    Attributes:
        first: nothing is due before this time (infinity: at all); `next_at` brings it up to date.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ItemT]] = []
        self._order = count()
        self.first = inf
        self._sweep_at = _SWEEP_FROM

    def __len__(self) -> int:
        return len(self._heap)

    def update(self, item: ItemT) -> None:
        """Take in an item, or its changed deadline."""
        deadline = item.deadline()
        if deadline is not None and (item.scheduled_at is None or deadline < item.scheduled_at):
            item.scheduled_at = deadline
            heappush(self._heap, (deadline, next(self._order), item))
            if deadline < self.first:
                self.first = deadline
            if len(self._heap) > self._sweep_at:
                self._sweep()

    def next_at(self) -> float | None:
        """When `due` should be asked next: not after the earliest deadline."""
        heap = self._heap
        while heap:
            at, _, item = heap[0]
            if item.scheduled_at == at:
                if item.deadline() is not None:
                    self.first = at
                    return at
                item.scheduled_at = None
            heappop(heap)
        self.first = inf
        return None

    def _sweep(self) -> None:
        """Drop the entries that mean nothing any more."""
        kept = []
        for entry in self._heap:
            at, _, item = entry
            if item.scheduled_at == at:
                if item.deadline() is None:
                    item.scheduled_at = None
                else:
                    kept.append(entry)
        heapify(kept)
        self._heap[:] = kept  # in place: `due` may be at work on it
        self._sweep_at = max(_SWEEP_FROM, 2 * len(kept))

    def due(self, now: float) -> Iterator[ItemT]:
        """Take out the items whose deadline has come. The caller acts on each, then calls `update`."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, item = heappop(heap)
            if item.scheduled_at != at:
                continue  # it was moved forward and has an earlier entry, already taken
            item.scheduled_at = None
            deadline = item.deadline()
            if deadline is not None and deadline <= now:
                yield item
            else:
                self.update(item)
