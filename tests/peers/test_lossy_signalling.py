"""Calls through a real murima over UDP that loses 20 % both ways and reorders: each ends once, none stays.

150 calls in the ordinary suite; `make prove` (MURIMA_PROVE=1) makes 1,000 and waits until the last
transaction has gone. With `--log-cli-level INFO` the figures are shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

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
