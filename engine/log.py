"""Structured logs on the standard library: a fixed event name, facts as fields.

    log = logging.getLogger("murima.queue")
    log.info("queue.answered", extra={"call_id": call_id, "queue": queue_id, "wait_s": 12.4})

On a terminal a record is a coloured line for people, otherwise one JSON object
a line. Personal data is masked (`engine.privacy`), in exception text too, and
an event that repeats in a flood collapses to a count.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TextIO

from engine.privacy import mask, mask_field

EVENTS_PER_SECOND: Final = 50
"""How often one event is written within a second; more are counted."""

_MAX_KEYS: Final = 1_000
_MAX_TRACEBACK: Final = 20_000

_call_id: ContextVar[str | None] = ContextVar("call_id", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS: Mapping[int, str] = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_encode = json.JSONEncoder(default=str).encode  # made once: json.dumps would make one a line
_RESET, _FAINT, _BOLD = "\x1b[0m", "\x1b[2m", "\x1b[1m"


@contextmanager
def call_context(call_id: str) -> Iterator[None]:
    """Put a call's id on every record written within (and in tasks started within)."""
    token = _call_id.set(call_id)
    try:
        yield
    finally:
        _call_id.reset(token)


def configure(
    level: str | int = "info",
    stream: TextIO | None = None,
    force_json: bool | None = None,  # noqa: FBT001 - read once, by name
) -> None:
    """Send all logs of this process to `stream` (default: stderr), replacing what was set before.

    Args:
        level: debug, info, warning, error or critical.
        stream: a text stream.
        force_json: True or False instead of looking whether the stream is a terminal.

    Raises:
        ValueError: there is no such level.
    """
    stream = sys.stderr if stream is None else stream
    number = level if isinstance(level, int) else logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is not a log level; give debug, info, warning, error or critical")
    as_json = not stream.isatty() if force_json is None else force_json
    handler = Handler(stream, JsonFormatter() if as_json else HumanFormatter(colour=stream.isatty()))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(number)
    # Libraries log each message or query at debug level, with personal data in their own words.
    for name in ("asyncio", "aiohttp", "alembic", "sqlalchemy", "asyncpg"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(capture=True)
    # Facts that no format of ours shows; the search for the calling line walks the stack for each record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # "Optimization" in the library's own documentation
    logging.raiseExceptions = False  # a closed stream is no reason for a flood on another


# --- floods -------------------------------------------------------------------------------

Key = tuple[str, int]


@dataclass(slots=True)
class _Window:
    began: float
    written: int = 0
    held_back: int = 0


class Flood:
    """Lets each key through `limit` times a second, and counts the rest. Pure: the time is handed in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._windows: dict[Key, _Window] = {}
        self._holding: set[Key] = set()

    @property
    def holding(self) -> bool:
        """Whether anything is held back."""
        return bool(self._holding)

    def admit(self, key: Key, now: float) -> bool:
        """Whether this occurrence is to be written."""
        window = self._windows.get(key)
        if window is None or (now - window.began >= 1.0 and not window.held_back):
            if window is None and len(self._windows) >= _MAX_KEYS:
                self._forget(now)
            window = self._windows[key] = _Window(now)
        if window.written < self._limit:
            window.written += 1
            return True
        window.held_back += 1
        self._holding.add(key)
        return False

    def due(self, now: float, *, everything: bool = False) -> list[tuple[Key, int]]:
        """Counts to report: of windows that are over (or of all), each once."""
        if not self._holding:
            return []
        over = [key for key in self._holding if everything or now - self._windows[key].began >= 1.0]
        counts = [(key, self._windows[key].held_back) for key in over]
        for key in over:
            self._holding.discard(key)
            del self._windows[key]
        return counts

    def _forget(self, now: float) -> None:
        """Make room: drop windows that are over, or all that hold nothing back."""
        old = [key for key, window in self._windows.items() if key not in self._holding and now - window.began >= 1.0]
        for key in old or [key for key in self._windows if key not in self._holding]:
            del self._windows[key]


class Handler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, within bounds."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter, limit: int = EVENTS_PER_SECOND) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._flood = Flood(limit)

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if self._flood.holding:
            self._report(now)
        if record.levelno >= logging.CRITICAL or self._flood.admit((str(record.msg)[:200], record.levelno), now):
            super().emit(record)

    def close(self) -> None:
        """Write the counts that are still held, then close."""
        self.acquire()
        try:
            self._report(time.monotonic(), everything=True)
        finally:
            self.release()
        super().close()

    def _report(self, now: float, *, everything: bool = False) -> None:
        for (event, level), count in self._flood.due(now, everything=everything):
            fields = {"name": "murima.log", "levelno": level, "levelname": logging.getLevelName(level)}
            record = logging.makeLogRecord({**fields, "msg": "log.repeated", "repeated": event, "count": count})
            super().emit(record)


# --- formats ------------------------------------------------------------------------------


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The facts of a record, masked, the call id first."""
    fields: dict[str, object] = {}
    call_id = getattr(record, "call_id", None) or _call_id.get()
    if call_id:
        fields["call_id"] = str(call_id)
    for name, value in vars(record).items():
        if name not in _STANDARD and name not in fields and not name.startswith("_"):
            fields[name] = None if value is None else mask_field(name, value)
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    text = "\n".join(parts)
    if len(text) > _MAX_TRACEBACK:
        text = text[: _MAX_TRACEBACK // 2] + "\n…\n" + text[-_MAX_TRACEBACK // 2 :]
    return mask(text)


@lru_cache(maxsize=4)
def _second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, msg, then the facts; ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        milliseconds = int(record.created * 1000)
        seconds, fraction = divmod(milliseconds, 1000)
        entry: dict[str, object] = {
            "time": f"{_second(seconds)}.{fraction:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": mask(record.getMessage()),
        }
        for name, value in fields_of(record).items():
            entry[f"{name}_" if name in entry else name] = value
        trace = _trace(self, record) if record.exc_info or record.stack_info else ""
        if trace:
            entry["error_" if "error" in entry else "error"] = trace
        return _encode(entry)


class HumanFormatter(logging.Formatter):
    """A line for people: local time, level, event, facts."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname.lower():<8}"
        event = _one_line(mask(record.getMessage()))
        facts = " ".join(
            f"{self._paint(_FAINT, f'{name}=')}{_fact(value)}" for name, value in fields_of(record).items()
        )
        line = f"{self._paint(_FAINT, at)} {self._paint(_COLOURS.get(record.levelno, ''), level)} "
        line += self._paint(_BOLD, event) + (f"  {facts}" if facts else "")
        trace = _trace(self, record) if record.exc_info or record.stack_info else ""
        if trace:
            line += "\n" + "\n".join(f"    {_one_line(part)}" for part in trace.split("\n"))
        return line

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour and colour else text


def _fact(value: object) -> str:
    if isinstance(value, str):
        plain = value and value.isprintable() and not any(character in ' "=' for character in value)
        return value if plain else f'"{_one_line(value)}"'
    return _one_line(json.dumps(value, default=str, ensure_ascii=False))


def _one_line(text: str) -> str:
    """Escape what would break the line or drive the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
