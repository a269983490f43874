"""The database is down at the start, and is killed in mid-call: calls go on, and no record is lost or doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.audio import align_and_correlate
from tests.peers.murima import MurimaProcess
from tests.peers.process import PeerError
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipPhone
from tests.ports import loopback_address
from tests.postgres import TestServer
from tests.speech import RATE, speech

CARRIER = loopback_address()
CONFIG = {
    "sip": {"trunks": [{"name": "carrier", "match": [CARRIER]}]},
    "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
    "numbers": {"600": {"answer": "silence"}, "602": {"echo": True}},
}


@pytest.fixture
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestServer]:
    """A database that is not running yet."""
    server = TestServer(tmp_path / "postgres")
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def events_seen(murima: MurimaProcess) -> AsyncIterator[list[dict[str, Any]]]:
    """Every event that happens meanwhile, as the event stream tells it."""
    seen: list[dict[str, Any]] = []
    ticket = (await murima.post("/api/v1/events/ticket"))["data"]["ticket"]
    assert murima.http is not None

    async def listen(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            seen.append(json.loads(message.data))  # noqa: PERF401 - the test reads on meanwhile

    async with murima.http.ws_connect(f"{murima.base_url}/api/v1/events?ticket={ticket}") as socket:
        task = asyncio.ensure_future(listen(socket))
        yield seen
        task.cancel()


async def short_call(murima: MurimaProcess, phone: SipPhone) -> None:
    call = phone.dial("600", murima.sip)
    await call.answered()
    await call.hang_up()


async def all_ended(murima: MurimaProcess, count: int) -> None:
    """Wait until the database has this many finished calls; a database on its way back answers 503."""

    async def finished() -> bool:
        try:
            document = await murima.get("/api/v1/interactions?limit=100")
        except PeerError:
            return False
        return sum(row["ended_at"] is not None for row in document["data"]) == count

    async with asyncio.timeout(20):
        while not await finished():  # noqa: ASYNC110 - it can only be asked
            await asyncio.sleep(0.1)


async def test_calls_and_records_outlive_the_database(tmp_path: Path, server: TestServer, bank: RtpBank) -> None:
    async with (
        MurimaProcess(CONFIG, tmp_path / "murima", environment={"MURIMA_DATABASE_URL": server.url}) as murima,
        SipPhone("1000", bank, address=CARRIER) as phone,
    ):
        # Down at the start: ready all the same, for calls need no database.
        await murima.login()
        async with events_seen(murima) as seen:
            await short_call(murima, phone)
            with pytest.raises(PeerError, match="503"):
                await murima.get("/api/v1/interactions")
            assert "murima_database_connected 0" in await murima.metrics()
            await asyncio.to_thread(server.start)
            await all_ended(murima, 1)

            # Killed in mid-call.
            talking = phone.dial("602", murima.sip)
            await talking.answered()
            await short_call(murima, phone)
            await asyncio.to_thread(server.kill)
            for _ in range(5):
                await short_call(murima, phone)
            said = speech(1.0, variant=11)
            talking.rtp.say(said)
            await talking.rtp.until_quiet()
            assert align_and_correlate(said, talking.rtp.heard(), RATE).correlation >= 0.95
            assert not talking.end_reason
            await asyncio.to_thread(server.start)
            await talking.hang_up()
            await all_ended(murima, 8)
            events = {event["id"] for event in seen}
        assert len(events) >= 8 * 3  # started, answered, ended, and more
        kept = await stored_events(server.url, events)
    assert len(kept) == len(set(kept))
    # Away twice, said twice, not once for each attempt or event.
    assert murima.log().count("store.database_away") <= 4


async def stored_events(url: str, awaited: set[str]) -> list[str]:
    """Return the ids of all events once those awaited are among them; there are 8 calls, no more and no less."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(5):
            while True:
                kept = [str(row["event_id"]) for row in await connection.fetch("SELECT event_id FROM events")]
                if awaited <= set(kept):
                    break
                await asyncio.sleep(0.1)
        assert await connection.fetchval("SELECT count(*) FROM interactions") == 8
        return kept
    finally:
        await connection.close()
