"""The fuzzer's targets on what it starts from, on what once broke them, and on a little chance."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.dialogs import dialogs
from tests.fuzz.seeds import HERE, seeds
from tests.fuzz.sip import NAMES
from tests.fuzz.targets import TARGETS


def test_every_target_has_seeds() -> None:
    assert tuple(TARGETS) == NAMES
    assert all(seeds(name) for name in NAMES)
    assert {path.name for path in (HERE / "found").iterdir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_what_was_found_break_nothing(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_seeds_break_nothing(name: str) -> None:
    chance = random.Random(4475)
    known = seeds(name)
    for _ in range(400):
        data = bytearray(chance.choice(known))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randrange(5)] = chance.randbytes(chance.randrange(4))
        TARGETS[name](bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_course_of_a_dialog_ends(course: bytes) -> None:
    dialogs(course)
