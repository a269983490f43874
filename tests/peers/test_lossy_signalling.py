"""Calls through a real murima over UDP that loses 20 % both ways and reorders: each ends once, none stays.

With SIPp, whose calls all want to be answered, and with phones on our own stack that cancel, refuse, let it
ring and hang up from either side. 150 and 100 calls in the ordinary suite; `make prove` (MURIMA_PROVE=1) makes
1,000 of each and waits until the last transaction has gone. With `--log-cli-level INFO` the figures are shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from adapters.sip.dialogs.session import EndReason, Session, SessionAnswered, SessionEnded, SessionState
from adapters.sip.endpoint import Event, SessionIncoming
from tests.native_rig import Phone
from tests.peers.lossy import LossyLink
from tests.peers.murima import MurimaProcess
from tests.peers.remains import count, database_connected, nothing_left, processes
from tests.peers.sipp import Sipp
from tests.ports import free_port, loopback_address

log = logging.getLogger("murima.tests.lossy")

PROVE = os.environ.get("MURIMA_PROVE") == "1"
CALLS = 1000 if PROVE else 150
RATE = 25.0
AGENTS = 120
# The last who hangs up may repeat its BYE for 32 s, after a 200 that was repeated as long.
SETTLES_S = 80.0


def config(carrier: str, agents: tuple[str, int]) -> dict[str, object]:
    ids = [f"a{index:04}" for index in range(AGENTS)]
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [
            {
                "id": agent,
                "name": agent,
                "password": "secret",
                "contact": f"sip:{agent}@{agents[0]}:{agents[1]}",
                "auto_ready": True,
            }
            for agent in ids
        ],
        "queues": [
            {
                "id": "bench",
                "strategy": "longest_idle",
                "members": ids,
                "ring_timeout_s": 15,
                "wrap_up_s": 0,
                "music": None,
                "no_answer": "ready",
            }
        ],
        "numbers": {"500": {"queue": "bench"}},
    }


class Log:
    """What murima says of its calls, by call."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.seen: dict[str, Counter[str]] = {}
        self._socket = socket
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            self.seen.setdefault(event["call_id"], Counter())[event["name"]] += 1

    async def close(self) -> None:
        await self._socket.close()
        await self._reading


async def follow(murima: MurimaProcess) -> Log:
    ticket = (await murima.post("/api/v1/events/ticket"))["data"]["ticket"]
    assert murima.http is not None
    names = "call.started,offer.made,call.ended"
    return Log(await murima.http.ws_connect(f"{murima.base_url}/api/v1/events?names={names}&ticket={ticket}"))


@pytest.mark.timeout(CALLS / RATE + 4 * SETTLES_S)
async def test_calls_complete_or_fail_cleanly(tmp_path: Path) -> None:
    document: dict[str, object] = {}  # the addresses in it are known when the links are there
    murima = MurimaProcess(document, tmp_path / "murima", rtp_ports=1200)
    caller_at, agents_at = ((address, free_port(address)) for address in (loopback_address(), loopback_address()))
    async with (
        LossyLink(murima.sip, caller_at, seed=1) as carrier,
        LossyLink(murima.sip, agents_at, seed=2) as floor,
    ):
        document.update(config(carrier.phone_seen[0], floor.phone_seen))
        async with murima:
            await murima.login()
            await database_connected(murima)
            events = await follow(murima)
            await count(murima)  # opens the connection over which it is asked for later
            files = tuple(murima.open_files(pid) for pid in processes(murima))
            began = time.monotonic()
            async with Sipp(
                tmp_path / "agents",
                "uas_lossy",
                address=agents_at[0],
                port=agents_at[1],
                calls=100 * CALLS,
                ring_ms=300,
                timeout_s=CALLS / RATE + 4 * SETTLES_S,
                trace=False,
                patient=True,
            ):
                async with Sipp(
                    tmp_path / "callers",
                    "uac_lossy",
                    remote="{}:{}".format(*carrier.murima_seen),
                    address=caller_at[0],
                    port=caller_at[1],
                    calls=CALLS,
                    rate=RATE,
                    talk_ms=2500,
                    timeout_s=CALLS / RATE + 2 * SETTLES_S,
                    trace=False,
                    patient=True,
                ) as callers:
                    result = await callers.result()
                called_s = time.monotonic() - began
                await nothing_left(murima, files, SETTLES_S)
                settled_s = time.monotonic() - began - called_s
                if PROVE:
                    async with asyncio.timeout(SETTLES_S):
                        while (await count(murima)).late:  # noqa: ASYNC110 - can only be asked for
                            await asyncio.sleep(0.5)
                gone_s = time.monotonic() - began - called_s
                await events.close()
    figures = (
        f"{CALLS} calls: {result.succeeded} completed, {result.failed} failed, in {called_s:.1f} s; "
        f"nothing left {settled_s:.1f} s later (transactions {gone_s:.1f} s, if waited for); "
        f"towards the callers {dict(carrier.counts)}, towards the agents {dict(floor.counts)}; "
        f"offers {len(floor.dialogs['murima'])}"
    )
    log.info(figures)
    for link in (carrier, floor):
        assert 0.15 < link.counts["lost"] / link.counts["sent"] < 0.25, figures
        assert link.counts["late"], figures
    assert result.succeeded + result.failed == CALLS == len(carrier.dialogs["phone"]), figures
    assert result.failed <= CALLS * 0.01, figures  # all eight INVITEs of one call, or all answers, are lost
    assert result.succeeded <= len(events.seen) <= CALLS, figures  # none doubled
    for call in events.seen.values():
        assert call["call.started"] == call["call.ended"] == 1, figures
    # Each offer is one dialog with an agent; an INVITE of which nothing at all arrived is not on our list.
    offers = sum(call["offer.made"] for call in events.seen.values())
    assert result.succeeded <= len(floor.dialogs["murima"]) <= offers, figures


MIXED = 1000 if PROVE else 100


class Crowd(Phone):
    """Many phones in one: callers, or agents; each call of theirs goes another way."""

    def __init__(self, host: str, seed: int) -> None:
        super().__init__(host)
        self.chance = random.Random(seed)
        self.came: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.ends: dict[str, list[EndReason]] = {}
        self._loop = asyncio.get_running_loop()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, SessionIncoming):
            self.came[event.session.sip_call_id] += 1
            self.be_called(event.session)
        elif isinstance(event, SessionAnswered):
            self.answers[event.session.sip_call_id] += 1
            self.later(1, 3, self.hang_up, event.session)
        elif isinstance(event, SessionEnded):
            self.ends.setdefault(event.session.sip_call_id, []).append(event.reason)
        else:
            super()._on_event(event)

    def later(self, first_s: float, last_s: float, what: Callable[[Session], None], session: Session) -> None:
        self._loop.call_later(self.chance.uniform(first_s, last_s), what, session)

    def be_called(self, session: Session) -> None:
        self.ring(session)
        chance = self.chance.random()
        if chance < 0.75:
            self.later(0.1, 2, self.take, session)
        elif chance < 0.9:
            self.later(0, 2, lambda session: self.refuse(session, 486), session)
        # else it rings until the caller gives up

    def take(self, session: Session) -> None:
        answer = self.answer_to(session.offered)
        self.transport.carry_out(self.endpoint.answer(session, answer, self.now))
        if self.chance.random() < 0.5:
            self.later(1, 3, self.hang_up, session)

    def dial(self, uri: str) -> str:
        session = self.call(uri)
        if self.chance.random() < 0.2:
            self.later(0, 2, self.hang_up, session)
        self.later(6, 8, self.give_up, session)
        return session.sip_call_id

    def give_up(self, session: Session) -> None:
        if session.state is SessionState.CALLING:
            self.hang_up(session)

    async def settled(self) -> None:
        """Until no session is left."""
        async with asyncio.timeout(SETTLES_S):
            while self.endpoint.sessions:  # noqa: ASYNC110 - nothing announces the last BYE
                await asyncio.sleep(0.1)


@pytest.mark.timeout(MIXED / RATE + 4 * SETTLES_S)
async def test_calls_of_every_kind_end_once(tmp_path: Path) -> None:
    document: dict[str, object] = {}
    murima = MurimaProcess(document, tmp_path / "murima", rtp_ports=1200)
    callers, agents = Crowd(loopback_address(), 1), Crowd(loopback_address(), 2)
    await callers.start()
    await agents.start()
    async with (
        LossyLink(murima.sip, (callers.host, callers.port), seed=3) as carrier,
        LossyLink(murima.sip, (agents.host, agents.port), seed=4) as floor,
    ):
        document.update(config(carrier.phone_seen[0], floor.phone_seen))
        document["numbers"] = {r"~7(\d{4})": {"agent": r"a\1"}}
        async with murima:
            await murima.login()
            await database_connected(murima)
            events = await follow(murima)
            await count(murima)
            files = tuple(murima.open_files(pid) for pid in processes(murima))
            made = []
            began = time.monotonic()
            for index in range(MIXED):
                made.append(callers.dial("sip:7{:04}@{}:{}".format(index % AGENTS, *carrier.murima_seen)))
                await asyncio.sleep(1 / RATE)
            await callers.settled()
            await agents.settled()
            await nothing_left(murima, files, SETTLES_S)
            took_s = time.monotonic() - began
            await events.close()
    await callers.transport.close()
    await agents.transport.close()
    reasons = Counter(str(reason) for ends in callers.ends.values() for reason in ends)
    figures = (
        f"{MIXED} calls of every kind in {took_s:.1f} s: {len(callers.answers)} answered, {len(agents.came)} came to "
        f"agents; ends {dict(reasons)}; towards the callers {dict(carrier.counts)}, agents {dict(floor.counts)}"
    )
    log.info(figures)
    assert set(callers.ends) == set(made), figures
    assert set(agents.ends) == set(agents.came), figures
    assert all(len(ends) == 1 for crowd in (callers, agents) for ends in crowd.ends.values()), figures
    assert max(agents.came.values()) == max(callers.answers.values()) == 1, figures  # none doubled
    assert len(callers.answers) <= len(agents.came) <= len(events.seen) <= MIXED, figures
    assert len(callers.answers) > MIXED * 0.4, figures
    assert EndReason.BROKEN not in reasons, figures
    for call in events.seen.values():
        assert call["call.started"] == call["call.ended"] == 1, figures
