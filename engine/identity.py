"""Ids that sort by time and never repeat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32, lower case: safe in URLs and file names

IdSource = Callable[[], str]
"""Makes the next id. Handed in wherever ids are made, so that tests can count."""


_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)  # 10 bits each
_TIME_SHIFTS = range(40, -1, -10)
_RANDOM_SHIFTS = range(70, -1, -10)
_BATCH = 64  # random parts drawn at once: asking the kernel costs as much as writing one
_randoms: list[str] = []
_last: tuple[int, str] = (0, "")  # a millisecond and its text: a call makes several ids within one


def new_id() -> str:
    """A ULID: 48 bits of milliseconds, then 80 random bits; 26 characters that sort by creation time."""
    global _last  # noqa: PLW0603 - one clock, one cache
    now_ms = time.time_ns() // 1_000_000
    made_ms, text = _last
    if made_ms != now_ms:
        text = "".join([_PAIRS[now_ms >> shift & 1023] for shift in _TIME_SHIFTS])
        _last = now_ms, text
    try:
        return text + _randoms.pop()
    except IndexError:
        drawn = os.urandom(10 * _BATCH)
        values = [int.from_bytes(drawn[at : at + 10]) for at in range(0, len(drawn), 10)]
        _randoms.extend("".join([_PAIRS[value >> shift & 1023] for shift in _RANDOM_SHIFTS]) for value in values)
        return text + _randoms.pop()
