"""From YAML text to plain values, with the line and column of each.

YAML 1.2 core schema: `yes` and `on` are text, `0o17` is octal, dates are text.
Beyond it, we refuse what turns into accidents: duplicate keys, keys that are
not text, tags, merge keys, and aliases that expand without bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from config.problems import Key, KeyPath, Problem, key_text, shown

MAX_BYTES = 4 << 20
MAX_VALUES = 500_000
MAX_DEPTH = 32
_MAX_OPEN_BRACKETS = 500

Value = None | bool | int | float | str | list[Any] | dict[str, Any]

_BRACKET = re.compile(r"[\[\]{}]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,4000}|0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FLOAT_WORD = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_STR_TAG = "tag:yaml.org,2002:str"
_CORE_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "value", "merge")
)


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed text.

    Attributes:
        value: plain values; mapping keys are text.
        positions: (line, column) of each key path: of the key in a mapping, of
            the item in a list, 1-based.
    """

    value: Value
    positions: Mapping[KeyPath, tuple[int, int]]

    def position(self, path: KeyPath) -> tuple[int, int]:
        """Where `path` stands; of its nearest ancestor if it is absent."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))


def parse(text: str) -> tuple[Source, list[Problem]]:
    """Read YAML; problems are collected, and the source holds what could be read.

    Nothing is raised, whatever the text.
    """
    if len(text) > MAX_BYTES:
        return Source(None, {}), [
            _whole(f"the document is larger than {MAX_BYTES >> 20} MiB", "split it or shorten it")
        ]
    deep = _bracket_depth_exceeded(text)
    if deep is not None:
        line, column = text.count("\n", 0, deep) + 1, deep - text.rfind("\n", 0, deep)
        return Source(None, {}), [_too_deep((), line, column)]
    try:
        root = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as exc:
        return Source(None, {}), [_syntax(exc)]
    except RecursionError:
        return Source(None, {}), [_too_deep((), 0, 0)]
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError) as exc:
        # The parser lets plain Python errors out for some broken texts.
        reason = shown(str(exc).splitlines()[0] if str(exc) else type(exc).__name__, 120)
        return Source(None, {}), [_whole(f"this is not YAML 1.2: {reason}", "correct the text")]
    reader = _Reader()
    value = reader.read(root, ()) if root is not None else None
    return Source(value, reader.positions), reader.problems


def _bracket_depth_exceeded(text: str) -> int | None:
    """Where more brackets are open than any document needs; the parser's time grows with their square.

    Counted without regard to quotes: a right text stays far below the limit either way.
    """
    depth = 0
    for found in _BRACKET.finditer(text):
        depth = depth + 1 if found[0] in "[{" else max(depth - 1, 0)
        if depth > _MAX_OPEN_BRACKETS:
            return found.start()
    return None


def _whole(message: str, remedy: str) -> Problem:
    return Problem("", 0, 0, message, remedy)


def _too_deep(path: KeyPath, line: int, column: int) -> Problem:
    return Problem(
        key_text(path[:4]), line, column, "lists and mappings are nested too deep", "the format needs no such depth"
    )


def _syntax(exc: MarkedYAMLError) -> Problem:
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    problem = shown(" ".join(str(exc.problem or exc.context or "broken text").split()), 120)
    if "tab" in problem or "\\t" in problem:
        remedy = "indent with spaces, not tabs"
    elif "expected a single document" in problem or "but found another document" in problem:
        remedy = "keep one document in the file, without a second ---"
    else:
        remedy = "look for a missing quote, colon, comma or bracket, or a wrong indent, here or just above"
    return Problem("", line, column, f"this is not YAML 1.2: {problem}", remedy)


class _Reader:
    """Builds values from the composed nodes; stops expanding when the budget is spent."""

    def __init__(self) -> None:
        self.positions: dict[KeyPath, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self._values = 0
        self._ancestors: list[int] = []
        self._full = False

    def read(self, node: Node, path: KeyPath) -> Value:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.positions.setdefault(path, (line, column))
        self._values += 1
        if self._full:
            return None
        if self._values > MAX_VALUES:
            self._full = True
            self._problem(path, node, f"the document holds more than {MAX_VALUES} values", "use fewer aliases (*name)")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._ancestors:
            self._problem(path, node, "an alias (*name) stands inside what it names", "write the value out")
            return None
        if len(self._ancestors) >= MAX_DEPTH:
            self.problems.append(_too_deep(path, line, column))
            self._full = True
            return None
        self._ancestors.append(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
        finally:
            self._ancestors.pop()
        self._problem(path, node, "this kind of value is not supported", "write text, a number, a list or a mapping")
        return None

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            inner: tuple[Key, ...] = (*path, key)
            if key in result:
                first = self.positions[inner][0]
                self._problem(inner, key_node, f"the key stands twice, first in line {first}", "remove one of the two")
                continue
            self.positions[inner] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self.read(value_node, inner)
        return result

    def _key(self, node: Node, path: KeyPath) -> str | None:
        if not isinstance(node, ScalarNode):
            self._problem(path, node, "a list or a mapping cannot be a key", "write the key as text")
            return None
        key = self._scalar(node, path)
        if isinstance(key, str):
            if key == "<<" and not node.style:
                self._problem(path, node, "merge keys (<<) are not part of YAML 1.2", "write the keys out")
                return None
            return key
        word = shown(node.value)
        self._problem((*path, word), node, f"the key {word or 'null'} is not text", f'put it in quotes: "{word}"')
        return None

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Value:
        text = str(node.value)
        tag = str(node.tag)
        if tag not in _CORE_TAGS:
            self._problem(path, node, f"the tag {shown(tag)} is not supported", "write the plain value")
            return None
        if node.style or tag == _STR_TAG:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text):
            return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _FLOAT_WORD.fullmatch(text):
            return float(text.replace(".", "").lower())
        return text

    def _problem(self, path: KeyPath, node: Node, message: str, remedy: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(key_text(path), mark.line + 1, mark.column + 1, message, remedy))
