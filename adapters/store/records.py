"""Looking up interactions in PostgreSQL, and making them again from the event log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TypeVar

import asyncpg

from adapters.store import statements
from adapters.store.recorder import connect
from casebridge.interactions import Interaction
from engine.events import CallId
from engine.operations import Page, RecordsUnavailableError

T = TypeVar("T")

_COLUMNS = tuple(f.name for f in fields(Interaction))
_JSON = frozenset({"statistics", "explanation"})
# filter name → column and how the two are compared
_FILTERS = {
    "call_id": "call_id =",
    "queue": "queue_id =",
    "agent": "agent_id =",
    "caller": "caller =",
    "dialled": "dialled =",
    "cause": "cause =",
    "from": "started_at >=",
    "to": "started_at <",
}
_SORTS = frozenset(
    {"started_at", "ended_at", "caller", "dialled", "queue_id", "agent_id", "cause"}
    | {"duration_s", "wait_s", "talk_s", "hold_s"}
)
_MOST_ROWS = 100
_MOST_PAGES = 1_000_000


class PostgresRecords:
    """`engine.operations.Records` and `casebridge.interactions.InteractionStore` on PostgreSQL.

    One connection, opened when first needed and after each failure; questions
    are asked one after the other.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def interactions(
        self, *, filters: Mapping[str, str], sort: str, descending: bool, page: int, limit: int
    ) -> Page:
        """One page, the newest `started_at` first among equals.

        Args:
            filters: any of call_id, queue, agent, caller, dialled, cause (equal to), from and to
                (ISO 8601 times of the start, from ≤ start < to; UTC when they name no zone).
            sort: a time, a duration, or caller, dialled, queue_id, agent_id, cause.
            page: from 1.
            limit: rows a page, 1 to 100.

        Raises:
            ValueError: an unknown filter or sort field, a time that is none, a page or limit out of range.
            RecordsUnavailableError: the database cannot be asked now.
        """
        where, values = _where(filters)
        if sort not in _SORTS:
            raise ValueError(f"cannot sort by {sort!r}; possible are {', '.join(sorted(_SORTS))}")
        if not 1 <= limit <= _MOST_ROWS:
            raise ValueError(f"limit must be 1 to {_MOST_ROWS}")
        if not 1 <= page <= _MOST_PAGES:
            raise ValueError(f"page must be 1 to {_MOST_PAGES}")
        order = f"{sort} {'DESC' if descending else 'ASC'} NULLS LAST"
        if sort == "started_at":  # never null; this form is the one that the index serves
            order = f"{sort} {'DESC' if descending else 'ASC'}"
        else:
            order += ", started_at DESC"
        count_query = f"SELECT count(*) FROM interactions{where}"  # noqa: S608 - built from our own tables only
        query = f"""
            SELECT {", ".join(_COLUMNS)} FROM interactions{where} ORDER BY {order}, call_id LIMIT {limit}
            OFFSET {(page - 1) * limit}
        """  # noqa: S608 - built from our own tables and checked integers only

        async def ask(connection: asyncpg.Connection) -> Page:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                total = await connection.fetchval(count_query, *values)
                rows = await connection.fetch(query, *values)
            return Page([_row(r) for r in rows], int(total))

        return await self._ask(ask)

    async def upsert(self, interactions: Sequence[Interaction]) -> None:
        """Insert or replace by call id. Raises RecordsUnavailableError."""
        await self._ask(lambda connection: statements.upsert(connection, interactions))

    async def rebuild(self, call_id: CallId) -> Interaction | None:
        """Fold the call's logged events again, store and return the result; None without events.

        Also for a call that an engine's end cut short: its interaction then has no `ended_at`.

        Raises:
            RecordsUnavailableError: the database cannot be asked now.
        """

        async def fold(connection: asyncpg.Connection) -> Interaction | None:
            async with connection.transaction():
                built = await statements.folded(connection, [call_id])
                await statements.upsert(connection, built)
            return built[0] if built else None

        return await self._ask(fold)

    async def close(self) -> None:
        """Let go of the connection."""
        async with self._turn:
            self._drop()

    async def _ask(self, question: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                if self._connection is not None and self._connection.is_closed():
                    self._connection = None
                try:
                    if self._connection is None:
                        self._connection = await connect(self._url, self._timeout_s)
                    return await question(self._connection)
                except BaseException:
                    self._drop()  # whatever state it is in: the next question starts afresh
                    raise
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise RecordsUnavailableError(f"the database cannot be asked now: {exc or type(exc).__name__}") from exc

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _where(filters: Mapping[str, str]) -> tuple[str, list[object]]:
    conditions: list[str] = []
    values: list[object] = []
    for name, text in filters.items():
        if name not in _FILTERS:
            raise ValueError(f"there is no filter {name!r}; possible are {', '.join(sorted(_FILTERS))}")
        if "\0" in text:
            raise ValueError(f"the filter {name} holds a NUL character")
        values.append(_time(name, text) if name in ("from", "to") else text)
        conditions.append(f"{_FILTERS[name]} ${len(values)}")
    return (" WHERE " + " AND ".join(conditions) if conditions else ""), values


def _time(name: str, text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be an ISO 8601 time such as 2026-01-31T08:00:00Z, not {text!r}") from None


def _row(record: asyncpg.Record) -> dict[str, object]:
    row: dict[str, object] = {}
    for column in _COLUMNS:
        value = record[column]
        if isinstance(value, datetime):
            value = value.isoformat()
        elif column in _JSON and value is not None:
            value = json.loads(value)
        row[column] = value
    return row
