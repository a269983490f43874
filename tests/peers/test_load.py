"""Fifty calls with speech at once through one media worker: nothing is lost inside, every recording is complete.

8 s of speech in the ordinary suite; `make prove` (MURIMA_PROVE=1) talks for 60 s. With
`--log-cli-level INFO` the figures are shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.audio import Samples, correlate_unslipped, load_wav
from tests.peers.murima import MurimaProcess
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipCall, SipPhone
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech

log = logging.getLogger("murima.tests.load")

CALLS = 50
TALK_S = 60.0 if os.environ.get("MURIMA_PROVE") == "1" else 8.0
# Both ends, the worker and the engine share the machine; a jitter buffer of a phone bridges this much.
LONGEST_GAP_MS = 120.0


@dataclass
class Pair:
    """A call: its two ends, and what each says."""

    caller: SipCall
    agent: SipCall
    said: tuple[Samples, Samples]
    before: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    def directions(self) -> tuple[tuple[SipCall, SipCall], tuple[SipCall, SipCall]]:
        return (self.caller, self.agent), (self.agent, self.caller)

    def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """For each direction: packets sent, packets that arrived."""
        (a, b), (c, d) = self.directions()
        return (a.rtp.sent, len(b.rtp.arrivals())), (c.rtp.sent, len(d.rtp.arrivals()))

    def send(self, *, on: bool) -> None:
        self.caller.rtp.sending = self.agent.rtp.sending = on


def config(carrier: str, agents: list[SipPhone]) -> dict[str, object]:
    """The first half of the agents serves the queue, the others have numbers of their own."""
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [
            {"id": phone.user, "name": phone.user, "password": "secret", "contact": phone.uri, "auto_ready": True}
            for phone in agents
        ],
        "queues": [
            {
                "id": "bench",
                "strategy": "longest_idle",
                "members": [phone.user for phone in agents[: CALLS // 2]],
                "ring_timeout_s": 15,
                "wrap_up_s": 0,
                "music": None,
                "record": True,
            }
        ],
        "numbers": {"500": {"queue": "bench"}, r"~6(\d{4})": {"agent": r"a\1", "record": True}},
    }


async def connect(murima: MurimaProcess, carrier: SipPhone, agents: list[SipPhone]) -> list[tuple[SipCall, SipCall]]:
    """Call all agents; returns who talks to whom, which the caller's number in the agent's INVITE tells."""
    dialled: dict[str, SipCall] = {}
    numbers = ["500" if index < CALLS // 2 else f"6{phone.user[1:]}" for index, phone in enumerate(agents)]
    for index, number in enumerate(numbers):
        carrier.user = f"1{index:03}"
        dialled[carrier.user] = carrier.dial(number, murima.sip)
    for call in dialled.values():
        await call.answered()
    taken = await asyncio.gather(*(asyncio.wait_for(phone.incoming.get(), 10) for phone in agents))
    pairs = []
    for call in taken:
        assert call.request is not None
        number = call.request.get("from").partition("sip:")[2].partition("@")[0]
        pairs.append((dialled.pop(number), call))
    await murima.until(
        "/api/v1/calls?limit=100", lambda document: [call["state"] for call in document["data"]] == ["talking"] * CALLS
    )
    return pairs


@pytest.mark.timeout(TALK_S + 240)  # all 100 ears and 100 recorded sides are compared with what was said
async def test_fifty_calls_lose_nothing(tmp_path: Path) -> None:
    carrier_address, agent_address = loopback_address(), loopback_address()
    with RtpBank() as bank:
        async with AsyncExitStack() as stack:
            agents = [
                await stack.enter_async_context(
                    SipPhone(f"a{index:04}", bank, address=agent_address, port=free_port(agent_address))
                )
                for index in range(CALLS)
            ]
            carrier = await stack.enter_async_context(SipPhone("1000", bank, address=carrier_address))
            murima = await stack.enter_async_context(
                MurimaProcess(config(carrier_address, agents), tmp_path / "murima", rtp_ports=4 * CALLS)
            )
            await murima.login()
            connected = await connect(murima, carrier, agents)
            talking_since = time.monotonic()
            pairs = [
                Pair(caller, agent, (speech(TALK_S, 2 * index), speech(TALK_S, 2 * index + 1)))
                for index, (caller, agent) in enumerate(connected)
            ]
            assert len(murima.worker_pids()) == 1
            late_ms = await speak(pairs, bank)
            for pair in pairs:
                for (sender, receiver), (sent, arrived), (sent_before, arrived_before) in zip(
                    pair.directions(), pair.counts(), pair.before, strict=True
                ):
                    # Exactly as many as were sent, none missing in the sequence, each with its contents.
                    assert arrived - arrived_before == sent - sent_before >= TALK_S * 50
                    assert receiver.rtp.lost() == 0
                    said = pair.said[0] if sender is pair.caller else pair.said[1]
                    assert correlate_unslipped(said, receiver.rtp.heard(), RATE).correlation >= 0.99
            for pair in pairs:
                await pair.caller.hang_up()
            talked_s = time.monotonic() - talking_since
            for pair in pairs:
                assert await pair.agent.ended() == "bye"
            await murima.until("/api/v1/calls", lambda document: document["data"] == [])
            worst = await check_recordings(murima, pairs, talked_s)
            assert murima.open_udp_ports() == set()
            figures = (
                f"{CALLS} calls, {TALK_S:g} s of speech each way: "
                f"{sum(sent for pair in pairs for sent, _ in pair.counts())} packets sent, lost 0; "
                f"longest gap {max(gaps(pairs)):.1f} ms, median of the longest {np.median(gaps(pairs)):.1f} ms "
                f"(senders late by up to {late_ms:.1f} ms); "
                f"{CALLS} recordings, worst correlation {worst:.4f}"
            )
            log.info(figures)
            assert max(gaps(pairs)) <= LONGEST_GAP_MS + late_ms, figures


async def speak(pairs: list[Pair], bank: RtpBank) -> float:
    """Let all talk at once, counting from a moment when nothing was under way; returns how late senders were, in ms."""
    for pair in pairs:
        pair.send(on=False)
        pair.caller.rtp.say(pair.said[0])
        pair.agent.rtp.say(pair.said[1])
    await asyncio.sleep(0.2)  # what is under way arrives
    for pair in pairs:
        pair.before = pair.counts()
    bank.latest_ms = 0.0
    for pair in pairs:
        pair.send(on=True)
    for pair in pairs:
        await pair.caller.rtp.until_quiet(TALK_S + 30)
    for pair in pairs:
        await pair.agent.rtp.until_quiet()
        pair.send(on=False)
    late_ms = bank.latest_ms
    await asyncio.sleep(0.2)  # what is under way arrives
    return late_ms


def gaps(pairs: list[Pair]) -> list[float]:
    """The longest time between two arrivals at each ear, of what was said after the count began."""
    found = []
    for pair in pairs:
        for receiver, (_, before) in ((pair.agent, pair.before[0]), (pair.caller, pair.before[1])):
            begin_s = receiver.rtp.arrivals()[before].at_s
            found.append(receiver.rtp.longest_gap_ms(begin_s))
    return found


async def check_recordings(murima: MurimaProcess, pairs: list[Pair], talked_s: float) -> float:
    """Every call has its recording, both sides in it from the first to the last word; returns the worst match."""
    folder = murima.data / "recordings"
    paths = {}
    for pair in pairs:
        assert pair.agent.request is not None
        call_id = pair.agent.request.get("x-murima-call-id")
        paths[call_id] = (folder / f"{call_id}.wav", pair)
    async with asyncio.timeout(20):
        while {path.name for path in folder.iterdir()} != {path.name for path, _ in paths.values()}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the file system does not tell
    assert len(paths) == CALLS
    matches = []
    for path, pair in paths.values():
        sound, rate = load_wav(path)
        assert rate == RATE
        assert TALK_S <= sound.shape[0] / rate <= talked_s + 1.0
        matches += [correlate_unslipped(pair.said[side], sound[:, side], rate).correlation for side in (0, 1)]
    assert min(matches) >= 0.95
    return min(matches)
