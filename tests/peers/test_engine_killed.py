"""Processes killed with calls up: the audio goes on, what died comes back, and nothing is left over."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.audio import align_and_correlate, correlate_unslipped, load_wav, save_wav
from tests.peers.baresip import Baresip
from tests.peers.murima import PROGRAM, MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError, PeerProcess
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipCall, SipPhone
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech

log = logging.getLogger("murima.tests.engine_killed")

TALK_S = 8.0
GRACE_S = 2
LONGEST_GAP_MS = 60.0
KILLS = 3
AGENTS = ("a0001", "a0002", "a0003")


@pytest.fixture
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


def config(carriers: list[str], contacts: dict[str, str]) -> dict[str, Any]:
    agents = []
    for name in AGENTS:
        agent: dict[str, object] = {"id": name, "name": name, "password": "secret", "auto_ready": True}
        agents.append({**agent, "contact": contacts[name]} if name in contacts else agent)
    return {
        "drain_s": 1,
        "media": {"orphan_grace_s": GRACE_S},
        "sip": {"trunks": [{"name": "carrier", "match": carriers}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": agents,
        "queues": [{"id": "bench", "members": list(AGENTS), "ring_timeout_s": 15, "wrap_up_s": 0, "music": None}],
        "numbers": {"500": {"queue": "bench"}, r"~6(\d{4})": {"agent": r"a\1", "record": True}},
    }


async def agent_states(murima: MurimaProcess, wanted: dict[str, str]) -> None:
    def fits(document: dict[str, list[dict[str, str]]]) -> bool:
        states = {agent["id"]: agent["state"] for agent in document["data"]}
        return all(states[name] == state for name, state in wanted.items())

    await murima.until("/api/v1/agents", fits)


async def rings(phone: SipPhone) -> SipCall:
    async with asyncio.timeout(5):
        return await phone.incoming.get()


async def connected(caller: SipPhone, number: str, agent: SipPhone, murima: MurimaProcess) -> tuple[SipCall, SipCall]:
    """Dial, and wait until audio flows both ways."""
    call = caller.dial(number, murima.sip)
    taken = await rings(agent)
    await call.answered()
    await hear_each_other(call, taken)
    return call, taken


async def hear_each_other(one: SipCall, other: SipCall) -> None:
    """Wait until packets arrive at both."""
    before = one.rtp.received, other.rtp.received
    async with asyncio.timeout(5):
        while one.rtp.received == before[0] or other.rtp.received == before[1]:  # noqa: ASYNC110  # a thread counts
            await asyncio.sleep(0.02)


async def finished_recording(murima: MurimaProcess, call_id: str) -> Path:
    path = murima.data / "recordings" / f"{call_id}.wav"
    async with asyncio.timeout(10):
        while not path.exists():  # noqa: ASYNC110  # the file system does not tell
            await asyncio.sleep(0.05)
    return path


def our_call_id(call: SipCall) -> str:
    assert call.request is not None
    return call.request.get("x-murima-call-id")


async def kill_engine(murima: MurimaProcess) -> tuple[float, float]:
    """Kill the engine and wait until murima is ready again; returns when (monotonic)."""
    engine = murima.engine_pid()
    killed_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    await changed_pid(engine, murima.engine_pid)
    await murima.ready()
    return killed_at, time.monotonic()


async def changed_pid(old: int, find: Any) -> int:
    """Wait until a process was replaced by another; returns its id."""
    async with asyncio.timeout(15):
        while True:
            try:
                pid = int(find())
            except PeerError:
                pid = old
            if pid != old:
                return pid
            await asyncio.sleep(0.02)  # processes can only be looked for


async def test_calls_outlive_the_engine(tmp_path: Path, bank: RtpBank) -> None:
    """A pjsua2 caller and a baresip agent talk on; gaps are measured at a pair of phones of our own."""
    carrier, measured, seats = loopback_address(), loopback_address(), loopback_address()
    said = {name: speech(TALK_S, variant) for variant, name in enumerate(["caller", "agent", "one", "other"])}
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as other,
        SipPhone("a0003", bank, address=seats, port=free_port(seats)) as third,
        SipPhone("2000", bank, address=measured) as one,
        MurimaProcess(
            config([carrier, measured], {"a0002": other.uri, "a0003": third.uri}),
            tmp_path / "murima",
        ) as murima,
        Baresip(
            tmp_path / "agent",
            "a0001",
            address=loopback_address(),
            domain="pbx.local",
            proxy=murima.remote,
            password="secret",
            register=True,
        ) as agent,
        Pjsua(tmp_path / "caller", "1000", address=carrier) as caller,
    ):
        await murima.login()
        started = time.monotonic()
        call = await caller.dial(murima.uri("60001"))
        await caller.expect("call", state="confirmed", code=200)
        await agent.expect("call_established")
        (shown,) = (await murima.get("/api/v1/calls"))["data"]
        foreign_id = str(shown["id"])
        ours, theirs = await connected(one, "60002", other, murima)

        await caller.play(call, save_wav(tmp_path / "caller.wav", said["caller"], RATE))
        await agent.play(save_wav(tmp_path / "agent.wav", said["agent"], RATE))
        ours.rtp.say(said["one"])
        theirs.rtp.say(said["other"])
        await asyncio.sleep(1.5)  # into the speech
        workers = murima.worker_pids()
        kills = [await kill_engine(murima) for _ in range(KILLS)]

        # The agents of the calls that go on are busy; the next caller reaches the one who is not.
        await murima.login()
        await agent_states(murima, {"a0001": "talking", "a0002": "talking", "a0003": "ready"})
        fresh, taken = await connected(one, "500", third, murima)
        waiting = one.dial("500", murima.sip)
        await waiting.answered()  # by the queue; no agent is left

        await ours.rtp.until_quiet()
        await theirs.rtp.until_quiet()
        assert murima.worker_pids() == workers
        # Other processes may stop the worker for a moment, too; a gap that the kill makes comes each time.
        gaps = [max(end.rtp.longest_gap_ms(*kill) for end in (ours, theirs)) for kill in kills]
        back_s = [ready_at - killed_at for killed_at, ready_at in kills]
        figures = f"longest gap after each kill {gaps} ms, ready again after {back_s} s"
        log.info(figures)
        assert min(gaps) <= LONGEST_GAP_MS, figures
        assert max(gaps) <= 4 * LONGEST_GAP_MS, figures
        assert min(back_s) <= 3.0, figures
        for spoken, end in ((said["one"], theirs), (said["other"], ours)):
            assert end.rtp.lost() == 0
            assert correlate_unslipped(spoken, end.rtp.heard(), RATE).correlation >= 0.99

        # Nobody talked to was offered a second call.
        assert other.incoming.empty()
        with pytest.raises(PeerError, match="did not within"):
            await agent.expect("call_incoming", 0.1, remotedisplayname="2000")
        await waiting.hang_up()
        await fresh.hang_up()
        assert await taken.ended() == "bye"

        # One phone of each call falls silent: the worker ends the call.
        silent_since = time.monotonic()
        await caller.hang_up(call)
        await caller.expect("call", state="disconnected")
        await ours.hang_up()
        await agent_states(murima, {"a0001": "ready", "a0002": "ready", "a0003": "ready"})
        assert time.monotonic() - silent_since >= GRACE_S - 0.5
        await theirs.hang_up()  # nobody has told it
        document = await murima.until("/api/v1/interactions", lambda document: document["pagination"]["total"] == 4)
        rows = {row["call_id"]: row for row in document["data"]}
        for call_id in (foreign_id, our_call_id(theirs)):
            row = rows[call_id]
            assert (row["cause"], row["ended_by"], row["recording_error"]) == ("normal", "system", None)
            assert TALK_S <= row["talk_s"] <= row["duration_s"] <= time.monotonic() - started
            assert row["recording_ms"] >= TALK_S * 1000
            assert sorted(leg["party"] for leg in row["statistics"]) == ["agent", "caller"]
        assert murima.open_udp_ports() == set()
        for call_id, left, right in (
            (foreign_id, said["caller"], said["agent"]),
            (our_call_id(theirs), said["one"], said["other"]),
        ):
            sound, _ = load_wav(await finished_recording(murima, call_id))
            assert align_and_correlate(left, sound[:, 0], RATE).correlation >= 0.95
            assert align_and_correlate(right, sound[:, 1], RATE).correlation >= 0.95
        await agent.hang_up()
        await agent.expect("call_closed")
        heard = agent.heard(), caller.heard()
    assert align_and_correlate(said["caller"], heard[0], RATE).correlation >= 0.95
    assert align_and_correlate(said["agent"], heard[1], RATE).correlation >= 0.95


async def test_a_killed_worker_ends_its_calls_and_is_replaced(tmp_path: Path, bank: RtpBank) -> None:
    carrier, seats = loopback_address(), loopback_address()
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as agent,
        SipPhone("2000", bank, address=carrier) as caller,
        MurimaProcess(config([carrier], {"a0002": agent.uri}), tmp_path / "murima") as murima,
    ):
        await murima.login()
        await database(murima, ok=True)
        call, taken = await connected(caller, "60002", agent, murima)
        (worker,) = murima.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert await call.ended() == "bye"
        assert await taken.ended() == "bye"
        await changed_pid(worker, lambda: murima.worker_pids()[0])
        await murima.ready()
        await agent_states(murima, {"a0002": "ready"})
        call, taken = await connected(caller, "60002", agent, murima)
        await call.hang_up()
        assert await taken.ended() == "bye"
        document = await murima.until("/api/v1/interactions", lambda document: document["pagination"]["total"] == 2)
        assert [row["cause"] for row in document["data"]] == ["normal", "failed"]
        assert "worker" in document["data"][1]["recording_error"]
        assert murima.open_udp_ports() == set()


async def test_a_worker_killed_with_a_carried_on_call_keeps_nobody_busy(tmp_path: Path, bank: RtpBank) -> None:
    """First the engine, then the worker that carries the call on."""
    carrier, seats = loopback_address(), loopback_address()
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as agent,
        SipPhone("2000", bank, address=carrier) as caller,
        MurimaProcess(config([carrier], {"a0002": agent.uri}), tmp_path / "murima") as murima,
    ):
        await murima.login()
        call, taken = await connected(caller, "60002", agent, murima)
        await kill_engine(murima)
        await murima.login()
        await agent_states(murima, {"a0002": "talking"})
        (worker,) = murima.worker_pids()
        os.kill(worker, signal.SIGKILL)
        await changed_pid(worker, lambda: murima.worker_pids()[0])
        await agent_states(murima, {"a0002": "ready"})
        await murima.until("/api/v1/interactions", lambda document: document["pagination"]["total"] == 1)
        await asyncio.gather(call.hang_up(), taken.hang_up())


async def test_calls_go_on_while_the_database_dies_and_nothing_is_forgotten(tmp_path: Path, bank: RtpBank) -> None:
    carrier, seats = loopback_address(), loopback_address()
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as agent,
        SipPhone("2000", bank, address=carrier) as caller,
        MurimaProcess(config([carrier], {"a0002": agent.uri}), tmp_path / "murima") as murima,
    ):
        await murima.login()
        await database(murima, ok=True)
        before = await connected(caller, "60002", agent, murima)
        postmaster = int((murima.data / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        killed_at = time.monotonic()
        await before[0].hang_up()
        assert await before[1].ended() == "bye"
        during = await connected(caller, "60002", agent, murima)
        await database(murima, ok=True)
        assert max(end.rtp.longest_gap_ms(killed_at) for end in during) <= 500.0
        await during[0].hang_up()
        assert await during[1].ended() == "bye"
        document = await murima.until("/api/v1/interactions", lambda document: document["pagination"]["total"] == 2)
        assert [row["cause"] for row in document["data"]] == ["normal", "normal"]
        assert all(row["talk_s"] > 0 and row["agent_id"] == "a0002" for row in document["data"])
        assert int((murima.data / "postgres" / "postmaster.pid").read_text().split()[0]) != postmaster


async def logged(murima: MurimaProcess, event: str) -> None:
    async with asyncio.timeout(5):
        while event not in murima.log():  # noqa: ASYNC110  # a file does not tell
            await asyncio.sleep(0.02)


async def database(murima: MurimaProcess, *, ok: bool) -> None:
    """Wait until readiness tells that the database answers, or does not."""

    def told(document: dict[str, Any]) -> bool:
        return any(part["name"] == "database" and part["ok"] is ok for part in document["data"]["components"])

    await murima.until("/readyz", told, timeout_s=30.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_calls_end_then_ends_them(tmp_path: Path, bank: RtpBank, number: signal.Signals) -> None:
    carrier, seats = loopback_address(), loopback_address()
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as agent,
        SipPhone("a0003", bank, address=seats, port=free_port(seats)) as other,
        SipPhone("2000", bank, address=carrier) as caller,
        MurimaProcess(config([carrier], {"a0002": agent.uri, "a0003": other.uri}), tmp_path / "murima") as murima,
    ):
        call, taken = await connected(caller, "60002", agent, murima)
        first, second = await connected(caller, "500", other, murima)
        waiting = caller.dial("500", murima.sip)
        await waiting.answered()
        asked_at = time.monotonic()
        os.kill(murima.pid, number)
        await logged(murima, "engine.draining")
        await first.hang_up()  # this one ends by itself
        assert await second.ended() == "bye"
        late = caller.dial("60003", murima.sip)
        assert await late.ended() == "refused"
        assert late.status == 503
        assert await call.ended() == "bye"
        assert await taken.ended() == "bye"
        assert await waiting.ended() == "bye"
        assert time.monotonic() - asked_at >= 0.9  # the drain time
        assert await murima.wait(20) == 0
        recorded = list((murima.data / "recordings").iterdir())
        assert [path.name for path in recorded] == [f"{our_call_id(taken)}.wav"]


async def test_two_murimas_do_not_share_a_data_folder(tmp_path: Path, bank: RtpBank) -> None:
    carrier, seats = loopback_address(), loopback_address()
    async with (
        SipPhone("a0002", bank, address=seats, port=free_port(seats)) as agent,
        SipPhone("2000", bank, address=carrier) as caller,
        MurimaProcess(config([carrier], {"a0002": agent.uri}), tmp_path / "murima") as murima,
    ):
        call, taken = await connected(caller, "60002", agent, murima)
        second = PeerProcess("second murima", tmp_path / "second.log")
        await second.start([PROGRAM, "serve", "--config", murima.config_file, "--data", murima.data])
        assert await second.wait(20) == 1
        assert second.log.read_text() == (
            f"another murima (process {murima.pid}) already serves {murima.data}; "
            "stop it, or give another folder with --data\n"
        )
        await hear_each_other(call, taken)
        await call.hang_up()
        assert await taken.ended() == "bye"
