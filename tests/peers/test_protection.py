"""A running murima keeps guessers off, and refuses calls in time when more come than it can serve."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.peers.murima import MurimaProcess
from tests.peers.sipp import Sipp, run_sipp
from tests.peers.wire import Wire, credentials
from tests.ports import loopback_address

log = logging.getLogger(__name__)

RATE = 1500  # calls a second: more than one core serves
CALLS = 4 * RATE
ADMIN = {"username": "admin", "password": "secret", "role": "administrator"}


def config(**sip: object) -> dict[str, Any]:
    return {
        "drain_s": 1,
        "sip": sip,
        "users": [ADMIN],
        "agents": [{"id": "a0001", "password": "secret"}],
        "numbers": {"600": {"answer": "silence"}, "112": {"answer": "silence"}},
    }


async def figures(murima: MurimaProcess, name: str) -> float:
    """Sum of a metric over its labels."""
    found = re.findall(rf"^murima_{name}(?:{{[^}}]*}})? (\S+)$", await murima.metrics(), re.MULTILINE)
    return sum(map(float, found))


async def none_left(murima: MurimaProcess, name: str) -> None:
    """Wait until a figure is 0."""
    async with asyncio.timeout(60):
        while await figures(murima, name):  # noqa: ASYNC110 - figures are read, they do not tell
            await asyncio.sleep(0.1)


async def registered(murima: MurimaProcess, wire: Wire, password: str) -> int:
    """The final status of a REGISTER with this password."""
    uri = f"sip:{murima.remote}"
    to = f"sip:a0001@{murima.remote}"
    challenge = await wire.ask(wire.request("REGISTER", uri, user="a0001", to=to), murima.sip)
    assert challenge.status == 401
    proof = credentials(challenge, "REGISTER", uri, "a0001", password)
    answer = await wire.ask(wire.request("REGISTER", uri, user="a0001", to=to, headers=[proof]), murima.sip)
    assert answer.status is not None
    return answer.status


async def test_a_guesser_is_not_heard_until_the_ban_ends_or_is_lifted(tmp_path: Path) -> None:
    document = config(guard={"trusted": [], "failures": 3, "ban_s": 2})
    guesser, phone = loopback_address(), loopback_address()
    async with MurimaProcess(document, tmp_path / "murima") as murima, Wire(guesser) as wire, Wire(phone) as other:
        await murima.login()
        for guess in range(3):
            assert await registered(murima, wire, f"guess{guess}") == 401
        question = wire.request("OPTIONS", f"sip:{murima.remote}")
        with pytest.raises(TimeoutError):
            await wire.ask(question, murima.sip, timeout_s=0.3)
        assert await registered(murima, other, "secret") == 200
        (ban,) = (await murima.get("/api/v1/sip/bans"))["data"]
        assert (ban["address"], ban["reason"]) == (guesser, "passwords")
        assert ban["dropped"] >= 1
        async with asyncio.timeout(10):  # the ban ends by itself
            while True:
                try:
                    answer = await wire.ask(question, murima.sip, timeout_s=0.2)
                    break
                except TimeoutError:
                    continue
        assert answer.status == 200
        for guess in range(3):
            await registered(murima, wire, f"guess{guess}")
        with pytest.raises(TimeoutError):
            await wire.ask(question, murima.sip, timeout_s=0.3)
        await murima.delete(f"/api/v1/sip/bans/{guesser}")
        assert (await wire.ask(question, murima.sip)).status == 200
        assert await figures(murima, "sip_guard_bans_total") == 2
        assert await figures(murima, "sip_guard_banned") == 0
        lines = [line for line in murima.log().splitlines() if "sip.banned" in line]
        assert len(lines) == 2


@pytest.mark.timeout(180)
async def test_calls_beyond_the_capacity_are_refused_and_the_others_served_at_once(tmp_path: Path) -> None:
    carrier = loopback_address()
    document = config(trunks=[{"name": "carrier", "match": [carrier]}])
    async with MurimaProcess(document, tmp_path / "murima", rtp_ports=8000) as murima:
        await murima.login()
        async with Sipp(
            tmp_path / "flood",
            "uac_load",
            remote=murima.remote,
            service="600",
            address=carrier,
            calls=CALLS,
            rate=RATE,
            at_once=20_000,
            talk_ms=0,
            timeout_s=60,
            trace=False,
            times=True,
        ) as flood:
            result = await flood.result()
        served = result.succeeded - result.refused
        waits_ms = sorted(result.waits_ms)
        said = (
            f"{CALLS} calls at {RATE}/s: {served} served (in {waits_ms[len(waits_ms) // 2]:.0f} ms, 95 % in "
            f"{waits_ms[len(waits_ms) * 95 // 100]:.0f} ms), {result.refused} refused with 503, "
            f"{result.failed} failed, {result.retransmissions} repetitions"
        )
        log.info(said)
        assert result.refused > CALLS // 20, said
        assert served > CALLS // 20, said
        assert waits_ms[len(waits_ms) // 2] < 2000, said
        assert result.failed <= CALLS // 1000, f"{said}\n{result.errors[-3000:]}"
        assert await figures(murima, "sip_overload_begun_total") >= 1
        assert await figures(murima, "sip_overload_refused_total") >= result.refused
        # Nothing is stuck, and calls are served as ever. What SIPp lost of our answers it forgot: without
        # an ACK such calls end after 32 s.
        await murima.until("/api/v1/calls", lambda answer: answer["data"] == [], timeout_s=60)
        await none_left(murima, "sip_overload_limited")
        after = await run_sipp(
            tmp_path / "after",
            "uac_load",
            murima.remote,
            service="600",
            address=carrier,
            calls=20,
            rate=200,
            talk_ms=100,
        )
        assert (after.status, after.succeeded, after.refused) == (0, 20, 0)
        await none_left(murima, "sip_dialogs")


async def test_a_burst_of_calls_is_served_whole(tmp_path: Path) -> None:
    carrier = loopback_address()
    document = config(trunks=[{"name": "carrier", "match": [carrier]}])
    async with MurimaProcess(document, tmp_path / "murima", rtp_ports=400) as murima:
        result = await run_sipp(
            tmp_path / "burst",
            "uac_load",
            murima.remote,
            service="600",
            address=carrier,
            calls=50,
            rate=1000,
            talk_ms=200,
        )
        assert (result.status, result.succeeded, result.refused) == (0, 50, 0)


async def test_listeners_offer_their_own_algorithms(tmp_path: Path) -> None:
    document = config(digest={"algorithms": ["SHA-256", "MD5"]})
    async with MurimaProcess(document, tmp_path / "murima") as murima, Wire(loopback_address()) as wire:
        uri = f"sip:{murima.remote}"
        answer = await wire.ask(wire.request("REGISTER", uri, user="a0001"), murima.sip)
        offered = [re.findall(r"algorithm=([\w-]+)", value)[0] for value in answer.all("www-authenticate")]
        assert offered == ["SHA-256", "MD5"]
        assert await registered(murima, wire, "secret") == 200
