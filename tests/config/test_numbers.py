from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.numbers import DialPlan, Match, PatternError, compile_pattern
from config.schema import Action, AnswerSilence, Barge, EchoBack, Listen, RingAgent, ToQueue, Whisper

PLAN: dict[str, Action] = {
    r"~7(\d{4})": RingAgent(agent=r"a\1"),
    r"~7(\d{4})0*": EchoBack(echo=True),
    "70001": ToQueue(queue="vip"),
    r"~6(\d)?(\d{3})": RingAgent(agent=r"b\1-\2", record=True),
    r"~8(\d{4})": Listen(listen=r"a\1"),
    r"~91(\d{4})": Whisper(whisper=r"a\1"),
    r"~92(\d{4})": Barge(barge=r"\0"),
    "*97": AnswerSilence(answer="silence"),
}


@pytest.mark.parametrize(
    ("dialled", "expected"),
    [
        ("70001", Match("70001", ToQueue(queue="vip"))),  # exact before patterns written earlier
        ("70002", Match(r"~7(\d{4})", RingAgent(agent="a0002"))),  # the first pattern of two that fit
        ("700020", Match(r"~7(\d{4})0*", EchoBack(echo=True))),
        ("6123", Match(r"~6(\d)?(\d{3})", RingAgent(agent="b-123", record=True))),  # a group without part is empty
        ("80007", Match(r"~8(\d{4})", Listen(listen="a0007"))),
        ("910007", Match(r"~91(\d{4})", Whisper(whisper="a0007"))),
        ("920007", Match(r"~92(\d{4})", Barge(barge="920007"))),
        ("*97", Match("*97", AnswerSilence(answer="silence"))),
        ("7000", None),
        ("x70002", None),  # the whole number, not a part of it
        ("70002\n", None),
        ("7०००२", None),  # digits are ASCII digits
        ("", None),
        ("~7(\\d{4})", None),  # a pattern cannot be dialled
        ("7" * 65, None),
    ],
)
def test_match(dialled: str, expected: Match | None) -> None:
    assert DialPlan(PLAN).match(dialled) == expected


@given(st.text(max_size=80))
def test_any_number_is_answered(dialled: str) -> None:
    DialPlan(PLAN).match(dialled)


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+", r"(a*)*", r"(a|a)*", r"(a|ab)(c|bcd)(d*)(e?)\w*\w*\w*", r"\d*\d*\d*\d*", r"(\d{1,9}){9}",
     r"(?=7)7", r"(7)\1", r"(", r"[", r"*", r"", "7" * 257, r"(?i)a", "[[a]", "(" * 200],
)  # fmt: skip
def test_patterns_that_cannot_be_used_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="; "):
        compile_pattern(f"~{pattern}")


@pytest.mark.parametrize(
    "pattern", [r"7(\d{4})", r"\+?49\d{3,15}", r"(00|\+)(49|41)(\d+)", r"[0-9]*#", r"(?:1|2){1}x", r"a{,3}", r"[]a]b"]
)
def test_ordinary_patterns_are_allowed(pattern: str) -> None:
    assert compile_pattern(f"~{pattern}").pattern == pattern


ATOMS = st.sampled_from(["1", ".", r"\d", "[0-9]", "(1|11)", "(1*)", "(?:1?)", "(11)"])
REPEATS = st.sampled_from(["", "", "?", "*", "+", "{2}", "{0,4}", "*?"])


@given(st.lists(st.tuples(ATOMS, REPEATS), min_size=1, max_size=7))
def test_allowed_patterns_answer_soon(parts: list[tuple[str, str]]) -> None:
    try:
        pattern = compile_pattern("~" + "".join(map("".join, parts)) + "x")
    except PatternError:
        return
    start = time.process_time()
    assert pattern.fullmatch("1" * 64) is None
    assert time.process_time() - start < 0.25


@given(st.text(alphabet="ab1()[]{}|*+?\\d,^$.-0", max_size=20))
def test_any_pattern_compiles_or_is_refused(text: str) -> None:
    reason = "; "
    try:
        assert isinstance(compile_pattern(f"~{text}"), re.Pattern)
    except PatternError as exc:
        reason = str(exc)
    assert "; " in reason
