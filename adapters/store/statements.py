"""The SQL that writes events and interactions, and what it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields

import asyncpg

from adapters.store.journal import Entry
from adapters.store.wire import decode, encode_interactions
from casebridge.interactions import FOLDED_NAMES, Interaction, fold
from engine.events import CallId, LogEvent

log = logging.getLogger("murima.store")

_COLUMNS = tuple(f.name for f in fields(Interaction))
_COLUMN_LIST = ", ".join(_COLUMNS)

_EVENTS = """
    INSERT INTO events (event_id, at, name, call_id, agent_id, queue_id, facts)
    SELECT b ->> 'event_id', (b ->> 'at')::timestamptz, n, b ->> 'call_id', b ->> 'agent_id', b ->> 'queue_id',
           b - '{event_id,at,call_id,agent_id,queue_id}'::text[]
    FROM unnest($1::text[], $2::jsonb[]) AS t (n, b)
    ON CONFLICT DO NOTHING
"""

_UPSERT = f"""
    INSERT INTO interactions ({_COLUMN_LIST})
    SELECT {_COLUMN_LIST} FROM jsonb_populate_recordset(NULL::interactions, %s::jsonb)
    ON CONFLICT (call_id) DO UPDATE SET {", ".join(f"{c} = EXCLUDED.{c}" for c in _COLUMNS if c != "call_id")}
"""  # noqa: S608 - the columns are the fields of our own dataclass

# Both in one statement: one round trip, one transaction.
_BOTH = f"WITH logged AS ({_EVENTS}) {_UPSERT % '$3'}"
_ONLY_INTERACTIONS = _UPSERT % "$1"

_OF_CALLS = """
    SELECT call_id, name, (facts || jsonb_build_object('event_id', event_id, 'at', at, 'call_id', call_id,
           'agent_id', agent_id, 'queue_id', queue_id))::text
    FROM events WHERE call_id = ANY($1::text[]) AND name = ANY($2::text[])
"""


async def write(
    connection: asyncpg.Connection, entries: Sequence[Entry], interactions: Sequence[Interaction] = ()
) -> None:
    """Insert events and upsert interactions, together; safe to repeat.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: nothing was written, or all was
            and the answer got lost.
    """
    if interactions:
        names, bodies = [e.name for e in entries], [e.body for e in entries]
        await connection.execute(_BOTH, names, bodies, encode_interactions(list(interactions)))
    elif entries:
        await connection.execute(_EVENTS, [e.name for e in entries], [e.body for e in entries])


async def upsert(connection: asyncpg.Connection, interactions: Sequence[Interaction]) -> None:
    """Insert or replace interactions."""
    if interactions:
        await connection.execute(_ONLY_INTERACTIONS, encode_interactions(list(interactions)))


async def folded(connection: asyncpg.Connection, call_ids: Iterable[CallId]) -> list[Interaction]:
    """The interactions of these calls, from their logged events."""
    events: dict[str, list[LogEvent]] = {}
    for call_id, name, body in await connection.fetch(_OF_CALLS, list(call_ids), list(FOLDED_NAMES)):
        event = decode(name, body)
        if event is not None:
            events.setdefault(call_id, []).append(event)
    interactions: list[Interaction] = []
    for call_id, found in events.items():
        try:
            built = fold(found)
        except (TypeError, ValueError):  # one odd call must not keep the others from being written
            log.exception("store.cannot_fold", extra={"call_id": call_id})
            continue
        if built is not None:
            interactions.append(built)
    return interactions
