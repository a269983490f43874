"""The sorted collection against a sorted list."""

from __future__ import annotations

import bisect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import ordered
from routing.ordered import Ordered


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=120), st.integers(1, 4))
def test_behaves_like_a_sorted_list(steps: list[tuple[bool, int]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "_BLOCK", block)  # so that blocks split and vanish
        keys: Ordered[tuple[int]] = Ordered()
        expected: list[tuple[int]] = []
        for add, number in steps:
            key = (number,)
            if add and key not in expected:
                keys.add(key)
                bisect.insort(expected, key)
            elif not add and key in expected:
                keys.remove(key)
                expected.remove(key)
            elif not add:
                with pytest.raises(KeyError):
                    keys.remove(key)
            assert (key in keys) == (key in expected)
            assert list(keys) == expected
            assert len(keys) == len(expected)
            assert list(keys.after(key)) == [k for k in expected if k > key]
            assert keys.rank(key) == bisect.bisect_left(expected, key)
            if expected:
                assert keys.first() == expected[0]


def test_many_keys_in_random_order() -> None:
    numbers = list(range(5000))
    random.Random(5).shuffle(numbers)
    keys: Ordered[tuple[int]] = Ordered()
    for number in numbers:
        keys.add((number,))
    assert [k[0] for k in keys] == sorted(numbers)
    assert keys.rank((3210,)) == 3210
    for number in numbers[:4000]:
        keys.remove((number,))
    assert [k[0] for k in keys] == sorted(numbers[4000:])


def test_an_empty_collection_has_no_first() -> None:
    with pytest.raises(IndexError):
        Ordered[tuple[int]]().first()
