"""Kamailio between the phones and murima, in both directions: it records its route, so all requests go through it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.peers.interop import all_of, assert_heard, office, until_call_is
from tests.peers.kamailio import Kamailio, Passed
from tests.peers.murima import MurimaProcess
from tests.peers.parties import party
from tests.ports import free_port, loopback_address


async def call_through_proxy(
    folder: Path, caller_make: str, agent_make: str, holder_hangs_up: str, between: str
) -> None:
    """A caller behind the proxy calls an agent behind it; one of the two holds, takes back, and hangs up.

    Args:
        folder: an empty folder of its own.
        caller_make, agent_make: of the phones, which speak UDP.
        holder_hangs_up: "caller" or "agent".
        between: what the proxy and murima speak, "udp" or "tcp".
    """
    proxy_address = loopback_address()
    proxy_port = free_port(proxy_address)
    config = office("a0001")
    config["agents"][0]["contact"] = f"sip:a0001@{proxy_address}:{proxy_port};transport={between}"
    config |= {
        "sip": {"trunks": [{"name": "proxy", "match": [proxy_address]}]},
        "queues": [{"id": "support", "members": ["a0001"], "wrap_up_s": 0}],
        "numbers": {"500": {"queue": "support"}},
    }
    async with (
        MurimaProcess(config, folder / "murima") as murima,
        party(agent_make, folder / "agent", "a0001", variant=1) as agent,
        Kamailio(
            folder / "proxy",
            murima.remote,
            address=proxy_address,
            port=proxy_port,
            phones={"a0001": agent.uri},
            transport=between,
        ) as proxy,
        party(
            caller_make, folder / "caller", "0700111222", variant=2, domain="pbx.local", proxy=proxy.remote
        ) as caller,
    ):
        await murima.login()
        holder, other = (caller, agent) if holder_hangs_up == "caller" else (agent, caller)
        await caller.dial("sip:500@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await holder.hold()
        await until_call_is(murima, "held", "a0001")
        await holder.resume()
        await until_call_is(murima, "talking", "a0001")
        await asyncio.gather(caller.say_again(), agent.say_again())
        await holder.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(holder.words, other.heard())
        if holder.keeps_after_hold:
            assert_heard(other.words, holder.heard())

        passed = proxy.passed()
        assert {request.kind for request in passed} == {"initial", "dialog"}
        sources = {"caller": _address(caller.uri), "agent": _address(agent.uri)}
        holder_address = sources[holder_hangs_up]
        for request in (
            Passed("initial", "INVITE", sources["caller"]),
            Passed("initial", "INVITE", murima.address),
            Passed("dialog", "ACK", sources["caller"]),
            Passed("dialog", "ACK", murima.address),
            Passed("dialog", "INVITE", holder_address),  # hold and resume
            Passed("dialog", "BYE", holder_address),
            Passed("dialog", "BYE", murima.address),
        ):
            assert request in passed, f"{request} did not pass: {passed}"


def _address(uri: str) -> str:
    return uri.partition("@")[2].partition(":")[0]


@pytest.mark.parametrize("between", ["udp", "tcp"])
async def test_requests_of_a_call_stay_on_the_recorded_route(tmp_path: Path, between: str) -> None:
    await all_of(
        call_through_proxy(tmp_path / "1", "pjsua", "linphone", "agent", between),
        call_through_proxy(tmp_path / "2", "baresip", "pjsua", "caller", between),
    )
