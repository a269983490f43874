"""From a dialled number to what happens with the call.

Exact numbers win, then patterns in the order written. A pattern is a regular
expression for the whole number; `\\1`…`\\9` in a template stand for its groups
and `\\0` for the whole number. Dialled numbers come from strangers, so patterns
are limited to what matches in bounded time (`compile_pattern`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from config.schema import Action, Barge, DialOut, Listen, RingAgent, Whisper
from config.values import MAX_DIALLED

TEMPLATES = ("agent", "dial", "listen", "whisper", "barge")
"""Keys of actions whose text may hold groups of the pattern."""

MAX_PATTERN = 256
MAX_PATHS = 300_000
"""Upper bound of the ways in which a pattern may try one number; some ten milliseconds at worst."""

_REFERENCE = re.compile(r"\\([0-9])")


class PatternError(ValueError):
    """A pattern cannot be used; the text says why and what would do."""


@dataclass(frozen=True, slots=True)
class Match:
    """What to do with a call.

    Attributes:
        number: the entry that matched, as written in the document.
        action: with the templates expanded.
    """

    number: str
    action: Action


class DialPlan:
    """The document's numbers, ready to be asked.

    Raises:
        PatternError: a pattern cannot be used (a loaded document has none such).
    """

    def __init__(self, numbers: Mapping[str, Action]) -> None:
        self._exact = {number: Match(number, action) for number, action in numbers.items() if not is_pattern(number)}
        self._patterns = [
            (compile_pattern(number), number, action) for number, action in numbers.items() if is_pattern(number)
        ]

    def match(self, dialled: str) -> Match | None:
        """Find the entry for a dialled number, or None. Nothing is raised, whatever was dialled."""
        if len(dialled) > MAX_DIALLED:
            return None
        exact = self._exact.get(dialled)
        if exact is not None:
            return exact
        for pattern, number, action in self._patterns:
            found = pattern.fullmatch(dialled)
            if found is not None:
                return Match(number, expand(action, found))
        return None


class NumberSet:
    """Numbers that a list of the document means: exact ones, beginnings (`+254*`) and patterns (after `~`).

    Raises:
        PatternError: a pattern cannot be used (a loaded document has none such).
    """

    def __init__(self, entries: Iterable[str]) -> None:
        entries = tuple(entries)
        self._patterns = tuple(compile_pattern(entry) for entry in entries if is_pattern(entry))
        plain = [entry for entry in entries if not is_pattern(entry)]
        self._beginnings = tuple(entry[:-1] for entry in plain if entry.endswith("*"))
        self._exact = frozenset(entry for entry in plain if not entry.endswith("*"))

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, str) or len(number) > MAX_DIALLED:
            return False
        return (
            number in self._exact
            or number.startswith(self._beginnings)
            or any(pattern.fullmatch(number) is not None for pattern in self._patterns)
        )


def is_pattern(number: str) -> bool:
    """Whether an entry of the document is a pattern rather than an exact number."""
    return number.startswith("~")


def template(action: Action) -> str | None:
    """The part of an action that may hold `\\1`, or None."""
    match action:
        case (
            RingAgent(agent=text) | DialOut(dial=text) | Listen(listen=text) | Whisper(whisper=text) | Barge(barge=text)
        ):
            return text
        case _:
            return None


def references(text: str) -> frozenset[int]:
    """Numbers of the groups that a template names."""
    return frozenset(int(number) for number in _REFERENCE.findall(text))


def expand(action: Action, found: re.Match[str]) -> Action:
    """Fill the groups of a match into an action's template; a group that took no part is empty."""
    text = template(action)
    if text is None or "\\" not in text:
        return action
    filled = _REFERENCE.sub(lambda reference: found[int(reference[1])] or "", text)
    field = next(name for name in TEMPLATES if name in type(action).model_fields)
    return action.model_copy(update={field: filled})


def compile_pattern(number: str) -> re.Pattern[str]:
    """Compile an entry that begins with `~`.

    Raises:
        PatternError: not a regular expression, or one that could take too long.
    """
    text = number.removeprefix("~")
    if not text:
        raise PatternError("the pattern is empty; write one after the ~, like ~7(\\d{4})")
    if len(text) > MAX_PATTERN:
        raise PatternError(f"the pattern is longer than {MAX_PATTERN} characters; split it into several numbers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # the meaning of some brackets is about to change
            pattern = re.compile(text, re.ASCII)
    except (re.error, OverflowError, RecursionError) as exc:
        raise PatternError(f"not a regular expression: {exc}; write one like ~7(\\d{{4}})") from None
    except FutureWarning as exc:
        raise PatternError(
            f"not a clear regular expression: {exc}; put a backslash before special characters"
        ) from None
    if _Cost(text).total() > MAX_PATHS:
        raise PatternError(
            "the pattern could take very long on some numbers; "
            "repeat characters rather than groups, and use at most three of * + {m,n}"
        )
    return pattern


class _Cost:
    """Bounds in how many ways a pattern that compiles can try a number of MAX_DIALLED characters.

    Ways multiply along a sequence, add up over alternatives, and a repeated
    group takes them to the power of its repetitions.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def total(self) -> float:
        return self._alternatives()

    def _alternatives(self) -> float:
        ways = self._sequence()
        while self._peek() == "|":
            self._at += 1
            ways += self._sequence()
        return ways

    def _sequence(self) -> float:
        ways = 1.0
        while self._peek() not in ("", "|", ")"):
            inner = self._item()
            low, high = self._repeat()
            ways = min(ways * _power(inner, high) * (high - low + 1), math.inf)
        return ways

    def _item(self) -> float:
        character = self._take()
        if character == "\\":
            escaped = self._take()
            if escaped.isdigit() and escaped != "0":
                raise PatternError("the pattern refers to its own group; use \\1 only in what the number does")
            return 1.0
        if character == "[":
            self._character_class()
            return 1.0
        if character == "(":
            if self._peek() == "?":
                if self._text[self._at : self._at + 2] != "?:":
                    raise PatternError("(?…) is not supported in patterns, apart from (?:…); use plain groups")
                self._at += 2
            ways = self._alternatives()
            self._take()  # the closing bracket; the pattern compiles, so it is there
            return ways
        return 1.0

    def _character_class(self) -> None:
        if self._peek() == "^":
            self._at += 1
        first = True
        while first or self._peek() != "]":
            first = False
            if self._take() == "\\":
                self._take()
        self._take()

    def _repeat(self) -> tuple[int, int]:
        """Least and greatest count after an item."""
        bounds = {"*": (0, MAX_DIALLED), "+": (1, MAX_DIALLED), "?": (0, 1)}.get(self._peek())
        if bounds is not None:
            self._at += 1
        else:
            found = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}").match(self._text, self._at)
            if found is None or not (found[1] or found[2]):
                return 1, 1
            self._at = found.end()
            low = min(int(found[1] or 0), MAX_DIALLED)
            high = min(int(found[3]), MAX_DIALLED) if found[3] else MAX_DIALLED if found[2] else low
            bounds = (low, high)
        if self._peek() in ("?", "+"):  # lazy or possessive
            self._at += 1
        return bounds

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        self._at += 1
        return character


def _power(ways: float, times: int) -> float:
    if ways <= 1:
        return 1.0
    return math.inf if times * math.log(ways) > 700 else ways**times
