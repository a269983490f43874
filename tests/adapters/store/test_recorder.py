"""The recorder against a real server that is down, killed, frozen or back again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import asyncpg
import pytest

from adapters.store.journal import line
from adapters.store.recorder import EventRecorder, Limits
from adapters.store.records import PostgresRecords
from adapters.store.wire import encode
from casebridge.interactions import Interaction, InteractionBuilder, fold
from engine.bus import EventBus
from engine.events import CallEnded, CallId, CallStarted, LogEvent, OfferMade, Party
from tests.logged_calls import queued_call
from tests.postgres import ROOT, TestServer

QUICK = Limits(window_s=0.02, connect_s=1.0, statement_s=0.5, first_backoff_s=0.02, longest_backoff_s=0.2)
IN_TIME = 30.0


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """A server of this module's own, to kill and freeze."""
    with TestServer.started(tmp_path_factory.mktemp("fragile")) as server:
        yield server


async def stored_events(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [r["event_id"] for r in await connection.fetch("SELECT event_id FROM events ORDER BY event_id")]
    finally:
        await connection.close()


async def stored_calls(url: str) -> dict[str, dict[str, object]]:
    records = PostgresRecords(url)
    try:
        page = await records.interactions(filters={}, sort="started_at", descending=True, page=1, limit=100)
        return {str(r["call_id"]): dict(r) for r in page.rows}
    finally:
        await records.close()


async def until_away(recorder: EventRecorder) -> None:
    async with asyncio.timeout(IN_TIME):
        while recorder.health().ok:  # noqa: ASYNC110 - health is a snapshot, as a monitor would take it
            await asyncio.sleep(0.02)


def ids(*calls: list[LogEvent]) -> list[str]:
    return sorted(e.event_id for call in calls for e in call)


def same(row: dict[str, object], call: list[LogEvent]) -> bool:
    """Whether a stored row is what the call's events make."""
    built = fold(call)
    assert built is not None
    return all(_plain(getattr(built, name)) == value for name, value in row.items())


def _plain(value: object) -> object:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


async def test_calls_are_stored_as_they_are_folded(url: str, tmp_path: Path) -> None:
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    bus = EventBus()
    bus.subscribe(recorder.record)
    calls = [queued_call(f"c{n}") for n in range(20)]
    await recorder.start()
    for step in zip(*calls, strict=True):
        for event in step:
            bus.publish(event)
        await asyncio.sleep(0)
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert recorder.health().ok
    assert not recorder.health().critical
    assert await stored_events(url) == ids(*calls)
    rows = await stored_calls(url)
    assert len(rows) == 20
    assert all(same(rows[f"c{n}"], call) for n, call in enumerate(calls))
    assert recorder.counters()["events_recorded_total"] == 280
    await recorder.close()
    assert (tmp_path / "events.journal").stat().st_size == 0


async def test_what_is_rebuilt_is_what_was_stored(url: str, tmp_path: Path) -> None:
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    call = queued_call("c1")
    for event in call:
        recorder.record(event)
    unfinished = queued_call("c2")[:5]
    for event in unfinished:
        recorder.record(event)
    await recorder.close(IN_TIME)
    records = PostgresRecords(url)
    before = await stored_calls(url)
    assert set(before) == {"c1"}
    assert _utc(await records.rebuild(CallId("c1"))) == fold(call)
    assert await stored_calls(url) == before
    assert _utc(await records.rebuild(CallId("c2"))) == fold(unfinished)  # an engine's end cut it short
    assert (await stored_calls(url))["c2"]["ended_at"] is None
    assert await records.rebuild(CallId("unknown")) is None
    await records.close()


def _utc(built: Interaction | None) -> Interaction | None:
    """JSON has one zone for UTC; the tests have datetime's own."""
    if built is None:
        return None
    times = {name: value.astimezone(UTC) for name in ("started_at", "answered_at", "ended_at")
             if (value := getattr(built, name)) is not None}  # fmt: skip
    return replace(built, **times)


async def test_a_late_fact_of_a_call_no_longer_in_memory_completes_its_row(url: str, tmp_path: Path) -> None:
    call = queued_call("c1")
    first = EventRecorder(url, tmp_path, limits=QUICK)
    await first.start()
    for event in call[:-2]:
        first.record(event)
    await first.close(IN_TIME)
    second = EventRecorder(url, tmp_path, limits=QUICK)
    await second.start()
    for event in call[-2:]:
        second.record(event)
    await second.close(IN_TIME)
    assert same((await stored_calls(url))["c1"], call)


async def test_database_down_at_start(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "server")
    recorder = EventRecorder(server.url, tmp_path / "journal", limits=QUICK)
    await recorder.start()
    calls = [queued_call(f"c{n}") for n in range(3)]
    for event in calls[0] + calls[1]:
        recorder.record(event)
    await asyncio.sleep(0.1)  # some attempts to connect
    health = recorder.health()
    assert not health.ok
    assert "wait in the journal" in health.detail
    assert recorder.counters()["journal_waiting_bytes"] > 0
    await asyncio.to_thread(server.start)
    try:
        for event in calls[2]:
            recorder.record(event)
        async with asyncio.timeout(IN_TIME):
            await recorder.settled()
        assert recorder.health().ok
        assert await stored_events(server.url) == ids(*calls)
        assert all(same(row, queued_call(name)) for name, row in (await stored_calls(server.url)).items())
        await recorder.close()
    finally:
        await asyncio.to_thread(server.stop)


async def test_server_killed_in_mid_stream(fragile: TestServer, tmp_path: Path) -> None:
    url = await asyncio.to_thread(fragile.new_database)
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    calls = [queued_call(f"c{n}") for n in range(60)]
    for n, call in enumerate(calls):
        for event in call:
            recorder.record(event)
        await asyncio.sleep(0.005)
        if n == 20:
            await asyncio.to_thread(fragile.kill)
        if n == 40:
            assert not recorder.health().ok
            await asyncio.to_thread(fragile.start)
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert recorder.health().ok
    assert await stored_events(url) == ids(*calls)
    rows = await stored_calls(url)
    assert len(rows) == 60
    assert all(same(rows[f"c{n}"], call) for n, call in enumerate(calls))
    assert recorder.counters()["events_lost_total"] == 0
    await recorder.close()


async def test_a_frozen_server_holds_up_nothing(fragile: TestServer, tmp_path: Path) -> None:
    url = await asyncio.to_thread(fragile.new_database)
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    await recorder.settled()
    calls = [queued_call(f"c{n}") for n in range(10)]
    loop = asyncio.get_running_loop()
    with fragile.frozen():
        slowest = 0.0
        for call in calls:
            before = loop.time()
            for event in call:
                recorder.record(event)
            await asyncio.sleep(0)
            slowest = max(slowest, loop.time() - before)
        await until_away(recorder)
        assert slowest < 0.25
        assert recorder.counters()["journal_waiting_bytes"] > 0
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert await stored_events(url) == ids(*calls)
    assert len(await stored_calls(url)) == 10
    await recorder.close()


async def test_close_does_not_wait_for_a_frozen_server(fragile: TestServer, tmp_path: Path) -> None:
    url = await asyncio.to_thread(fragile.new_database)
    recorder = EventRecorder(url, tmp_path, limits=replace(QUICK, statement_s=60.0))
    await recorder.start()
    await recorder.settled()
    call = queued_call("c1")
    with fragile.frozen():
        for event in call:
            recorder.record(event)
        async with asyncio.timeout(5):
            await recorder.close(0.3)
    assert (tmp_path / "events.journal").stat().st_size > 0
    again = EventRecorder(url, tmp_path, limits=QUICK)
    await again.start()
    await again.close(IN_TIME)
    assert await stored_events(url) == ids(call)
    assert same((await stored_calls(url))["c1"], call)


async def test_engine_killed_loses_nothing_it_recorded(url: str, tmp_path: Path) -> None:
    """The process dies by kill -9, one turn of the loop after the last event, before any batch is sent."""
    program = (
        "import asyncio, os, signal, sys, pathlib\n"
        "from adapters.store.recorder import EventRecorder, Limits\n"
        "from tests.logged_calls import queued_call\n"
        "async def main():\n"
        "    recorder = EventRecorder(sys.argv[1], pathlib.Path(sys.argv[2]), limits=Limits(window_s=60))\n"
        "    await recorder.start()\n"
        "    for n in range(5):\n"
        "        for event in queued_call(f'c{n}'): recorder.record(event)\n"
        "        await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, url, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    calls = [queued_call(f"c{n}") for n in range(5)]
    assert await stored_events(url) == ids(*calls)
    assert len(await stored_calls(url)) == 5
    await recorder.close()


async def test_the_same_journal_replayed_again_changes_nothing(url: str, tmp_path: Path) -> None:
    call = queued_call("c1")
    kept = b"".join(line(e.name, encode(e)) for e in call) + b"torn by a cra"
    for _ in range(3):
        (tmp_path / "events.journal").write_bytes(kept)
        recorder = EventRecorder(url, tmp_path, limits=QUICK)
        await recorder.start()
        async with asyncio.timeout(IN_TIME):
            await recorder.settled()
        assert recorder.counters()["journal_damaged_total"] == 1
        assert recorder.counters()["journal_bytes"] == 0
        await recorder.close()
        assert await stored_events(url) == ids(call)
        assert same((await stored_calls(url))["c1"], call)


async def test_a_long_outage_is_kept_on_disk_not_in_memory(url: str, tmp_path: Path) -> None:
    recorder = EventRecorder("postgresql://nobody@/none?host=/nonexistent", tmp_path, limits=QUICK)
    await recorder.start()
    calls = [queued_call(f"c{n}") for n in range(600)]
    for call in calls:
        for event in call:
            recorder.record(event)
        await asyncio.sleep(0)
    counters = recorder.counters()
    assert counters["events_waiting"] < 8400 // 2
    assert counters["events_lost_total"] == 0
    await recorder.close(1)
    again = EventRecorder(url, tmp_path, limits=QUICK)
    await again.start()
    async with asyncio.timeout(IN_TIME):
        await again.settled()
    assert await stored_events(url) == ids(*calls)
    assert again.counters()["events_replayed_total"] == 8400
    await again.close()


async def test_what_the_database_refuses_does_not_hold_up_the_rest(url: str, tmp_path: Path) -> None:
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    good, bad = queued_call("good"), queued_call("bad")
    for event in [*good, *bad]:
        too_large = isinstance(event, CallEnded) and event.call_id == "bad"
        recorder.record(replace(event, status=10**12) if too_large and isinstance(event, CallEnded) else event)
    impossible = replace(good[0], event_id="year", at=good[0].at.replace(tzinfo=None))
    recorder.record(impossible)
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert await stored_events(url) == sorted([*ids(good, bad), "year"])
    assert set(await stored_calls(url)) == {"good"}
    assert recorder.counters()["events_rejected_total"] >= 1
    await recorder.close()


async def test_an_event_the_database_cannot_take_is_set_aside(url: str, tmp_path: Path) -> None:
    call = queued_call("c1")
    poison = b'{"event_id":"poison","at":"no time at all"}'
    lines = [line(e.name, encode(e)) for e in call]
    (tmp_path / "events.journal").write_bytes(b"".join([*lines[:7], line("call.started", poison), *lines[7:]]))
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    await recorder.close()
    assert await stored_events(url) == ids(call)
    assert same((await stored_calls(url))["c1"], call)
    assert (tmp_path / "rejected.journal").read_bytes() == line("call.started", poison)


async def test_names_and_explanations_with_odd_contents_are_stored(url: str, tmp_path: Path) -> None:
    call = queued_call("c1")
    odd = Party("\udcff12", "nul \0 and 'quote' {brace} \\u0000 ☎")
    events = [replace(e, caller=odd) if isinstance(e, CallStarted) else e for e in call]
    strange = {"nan": float("nan"), "object": Path("x"), "set": {1}}
    events = [replace(e, explanation=strange) if isinstance(e, OfferMade) else e for e in events]
    recorder = EventRecorder(url, tmp_path, limits=QUICK)
    await recorder.start()
    for event in events:
        recorder.record(event)
    await recorder.close(IN_TIME)
    assert await stored_events(url) == ids(call)
    row = (await stored_calls(url))["c1"]
    assert row["explanation"] == {"nan": None, "object": "x", "set": [1]}
    assert "☎" in str(row["caller_name"])


async def test_without_a_journal_events_are_held_in_memory(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = EventRecorder(url, tmp_path / "file", limits=QUICK)
    await recorder.start()
    call = queued_call("c1")
    for event in call:
        recorder.record(event)
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert "cannot be written" in recorder.health().detail
    assert await stored_events(url) == ids(call)
    await recorder.close()


async def test_a_full_journal_bounds_memory_and_counts_the_loss(tmp_path: Path) -> None:
    limits = replace(QUICK, journal_bytes=10_000)
    recorder = EventRecorder("postgresql://nobody@/none?host=/nonexistent", tmp_path, limits=limits)
    await recorder.start()
    for n in range(700):
        for event in queued_call(f"c{n}"):
            recorder.record(event)
        await asyncio.sleep(0)
    counters = recorder.counters()
    assert counters["journal_bytes"] <= 10_000
    assert counters["events_waiting"] <= 5_000
    assert counters["events_lost_total"] > 0
    await recorder.close(1)
    recorder.record(queued_call("after")[0])  # harmless


async def test_a_journal_that_was_full_still_reaches_the_database_whole(fragile: TestServer, tmp_path: Path) -> None:
    url = await asyncio.to_thread(fragile.new_database)
    recorder = EventRecorder(url, tmp_path, limits=replace(QUICK, journal_bytes=20_000))
    await recorder.start()
    await recorder.settled()
    calls = [queued_call(f"c{n}") for n in range(30)]
    with fragile.frozen():
        for call in calls:
            for event in call:
                recorder.record(event)
            await asyncio.sleep(0)
        await until_away(recorder)
    async with asyncio.timeout(IN_TIME):
        await recorder.settled()
    assert await stored_events(url) == ids(*calls)
    rows = await stored_calls(url)
    assert all(same(rows[f"c{n}"], call) for n, call in enumerate(calls))
    await recorder.close()


async def test_an_idle_recorder_arms_no_timer(url: str, tmp_path: Path) -> None:
    recorder = EventRecorder(url, tmp_path, limits=QUICK, builder=InteractionBuilder())
    await recorder.start()
    for event in queued_call("c1"):
        recorder.record(event)
    await recorder.settled()
    flushes = recorder.counters()["database_flushes_total"]
    spent = os.times()
    await asyncio.sleep(0.3)
    assert recorder.counters()["database_flushes_total"] == flushes
    assert os.times().user - spent.user <= 0.1
    await recorder.close()
    shutil.rmtree(tmp_path)
