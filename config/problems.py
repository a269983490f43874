"""What is wrong with a configuration, told so that a person can put it right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Key = str | int
KeyPath = tuple[Key, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right (or, as a warning, to look at).

    Attributes:
        key: where, like `queues[0].members[1]`; empty for the whole document.
        line: 1-based, 0 when no line applies.
        column: 1-based, 0 when no line applies.
        message: what is wrong.
        remedy: what would be right.
    """

    key: str
    line: int
    column: int
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: " if self.line else ""
        key = f"{self.key}: " if self.key else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{key}{self.message}{remedy}"


class ConfigurationError(Exception):
    """The configuration cannot be used; `problems` says why, in the order of the lines."""

    def __init__(self, path: Path | None, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(describe(path, self.problems)))


def describe(path: Path | None, problems: Iterable[Problem], *, kind: str = "") -> list[str]:
    """One line a problem, `FILE:LINE:COLUMN: KEY: MESSAGE; REMEDY`, as compilers write them."""
    name = "configuration" if path is None else str(path)
    prefix = f"{kind}: " if kind else ""
    lines = []
    for problem in problems:
        separator = ":" if problem.line else ": "
        where = f"{problem.line}:{problem.column}: " if problem.line else ""
        text = str(problem).removeprefix(where)
        lines.append(f"{name}{separator}{where}{prefix}{text}")
    return lines


def key_text(path: KeyPath) -> str:
    """Write a key path for people: `sip.trunks[0].match`, `numbers["500"].queue`."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f'["{shown(key)}"]'
    return text


def shown(value: object, limit: int = 60) -> str:
    """A value of the document within a message: one line, bounded."""
    text = str(value)
    text = "".join(character if character.isprintable() else "�" for character in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


def did_you_mean(word: str, known: Iterable[str], what: str) -> str:
    """The remedy for a word that is not known: the closest one, or what there is."""
    words = sorted(known)
    close = difflib.get_close_matches(word[:64], words, n=1, cutoff=0.6) or [
        known_word for known_word in words if len(word) > 2 and known_word.startswith(word)
    ]
    if close:
        return f'did you mean "{close[0]}"?'
    if not words:
        return f"the document has no {what} yet"
    listed = ", ".join(words[:12]) + (", …" if len(words) > 12 else "")
    return f"known {what}: {listed}"
