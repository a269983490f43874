"""Ids that sort by time and never repeat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32, lower case: safe in URLs and file names

IdSource = Callable[[], str]
"""Makes the next id. Handed in wherever ids are made, so that tests can count."""


_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)  # 10 bits each
_SHIFTS = range(120, -1, -10)


def new_id() -> str:
    """A ULID: 48 bits of milliseconds, then 80 random bits; 26 characters that sort by creation time."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    pairs = _PAIRS
    return "".join([pairs[value >> shift & 1023] for shift in _SHIFTS])
