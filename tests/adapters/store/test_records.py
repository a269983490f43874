"""Looking up interactions: filters, order, pages, and a database that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from adapters.store import schema
from adapters.store.records import PostgresRecords
from casebridge.interactions import fold
from engine.operations import Page, RecordsUnavailableError
from tests.logged_calls import START, queued_call
from tests.postgres import TestServer

AWAY = "postgresql://nobody@/none?host=/nonexistent"


@pytest.fixture
async def records(url: str) -> AsyncIterator[PostgresRecords]:
    """Twelve calls, an hour apart; even ones in queue bench with a0001, odd ones in expert with a0002."""
    await asyncio.to_thread(schema.upgrade, url)
    found = PostgresRecords(url)
    built = []
    for n in range(12):
        queue, agent = ("expert", "a0002") if n % 2 else ("bench", "a0001")
        built.append(fold(queued_call(f"c{n:02}", start=START + timedelta(hours=n), queue=queue, agent=agent)))
    await found.upsert([b for b in built if b is not None])
    yield found
    await found.close()


async def ask(records: PostgresRecords, filters: dict[str, str], **more: object) -> Page:
    wanted: dict[str, object] = {"sort": "started_at", "descending": True, "page": 1, "limit": 100} | more
    return await records.interactions(filters=filters, **wanted)  # type: ignore[arg-type]  # the tests give wrong ones too


def names(page: Page) -> list[str]:
    return [str(r["call_id"]) for r in page.rows]


async def test_pages_hold_all_once(records: PostgresRecords) -> None:
    pages = [await ask(records, {}, page=n, limit=5) for n in (1, 2, 3, 4)]
    assert [p.total for p in pages] == [12] * 4
    assert [name for p in pages for name in names(p)] == [f"c{n:02}" for n in reversed(range(12))]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"call_id": "c03"}, 1),
        ({"queue": "expert"}, 6),
        ({"agent": "a0001", "queue": "bench"}, 6),
        ({"agent": "a0001", "queue": "expert"}, 0),
        ({"caller": "0151", "dialled": "500", "cause": "normal"}, 12),
        ({"caller": "' OR 1=1 --"}, 0),
        ({"from": "2026-03-04T11:00:00Z"}, 10),
        ({"from": "2026-03-04T12:00:00+01:00", "to": "2026-03-04T13:00"}, 2),
        ({"to": "2026-03-04"}, 0),
    ],
)
async def test_filters(records: PostgresRecords, filters: dict[str, str], expected: int) -> None:
    page = await ask(records, filters)
    assert (page.total, len(page.rows)) == (expected, expected)


async def test_order_is_the_asked_one_and_rows_are_json_ready(records: PostgresRecords) -> None:
    page = await ask(records, {}, sort="queue_id", descending=False)
    assert names(page)[:2] == ["c10", "c08"]
    first = (await ask(records, {"call_id": "c00"})).rows[0]
    assert first["started_at"] == START.isoformat()
    assert first["explanation"] == {"rule": "longest_idle"}
    statistics = first["statistics"]
    assert isinstance(statistics, list)
    assert statistics[0]["codec"] == "PCMU"


@pytest.mark.parametrize(
    ("filters", "more"),
    [
        ({"colour": "red"}, {}),
        ({"from": "yesterday"}, {}),
        ({"to": "0001-01-01T00:00:00+14:00"}, {}),
        ({"caller": "a\0b"}, {}),
        ({}, {"sort": "explanation"}),
        ({}, {"sort": "started_at; DROP TABLE events"}),
        ({}, {"limit": 0}),
        ({}, {"limit": 101}),
        ({}, {"page": 0}),
        ({}, {"page": 10**30}),
    ],
)
async def test_what_cannot_be_asked(filters: dict[str, str], more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        await ask(PostgresRecords(AWAY), filters, **more)


async def test_database_away(tmp_path: object) -> None:
    with pytest.raises(RecordsUnavailableError, match="cannot be asked now"):
        await ask(PostgresRecords(f"postgresql://x@/x?host={tmp_path}"), {})


async def test_database_without_tables_yet(url: str) -> None:
    records = PostgresRecords(url)
    with pytest.raises(RecordsUnavailableError):
        await ask(records, {})
    await asyncio.to_thread(schema.upgrade, url)
    assert (await ask(records, {})).total == 0
    await records.close()


async def test_a_lost_connection_is_made_again(records: PostgresRecords, url: str) -> None:
    assert (await ask(records, {})).total == 12
    other = await asyncpg.connect(url)
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> $2 AND datname = $1"
    await other.fetch(query, await other.fetchval("SELECT current_database()"), other.get_server_pid())
    await other.close()
    for _ in range(2):  # the first question may be the one that notices
        try:
            page = await ask(records, {})
        except RecordsUnavailableError:
            continue
    assert page.total == 12


async def test_a_frozen_database_is_given_up_in_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = TestServer(tmp_path_factory.mktemp("frozen"))
    await asyncio.to_thread(server.start)
    try:
        await asyncio.to_thread(schema.upgrade, server.url)
        records = PostgresRecords(server.url, timeout_s=0.3)
        assert (await ask(records, {})).total == 0
        with server.frozen():
            with pytest.raises(RecordsUnavailableError):
                await ask(records, {})
            with pytest.raises(RecordsUnavailableError):
                await ask(records, {})
        records = PostgresRecords(server.url)
        assert (await ask(records, {})).total == 0
        await records.close()
    finally:
        await asyncio.to_thread(server.stop)
