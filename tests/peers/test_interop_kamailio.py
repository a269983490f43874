"""Kamailio between the phones and murima, in both directions: it records its route, so all requests go through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.interop import all_of, assert_heard, office, until_call_is
from tests.peers.kamailio import Kamailio, Passed
from tests.peers.murima import MurimaProcess
from tests.peers.parties import party
from tests.ports import free_port, loopback_address

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Site:
    """A proxy with an agent's phone behind it, who is called by 7 and the digits of the id.

    Attributes:
        agent: the agent's id.
        between: what the proxy and murima speak, "udp" or "tcp"; the phones speak UDP.
        address, port: of the proxy.
    """

    agent: str
    between: str
    address: str
    port: int

    @property
    def number(self) -> str:
        return f"7{self.agent[1:]}"


def _site(agent: str, between: str) -> Site:
    address = loopback_address()
    return Site(agent, between, address, free_port(address))


SITES = (_site("a0001", "udp"), _site("a0002", "udp"), _site("a0003", "tcp"), _site("a0004", "tcp"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    config = office(
        *(site.agent for site in SITES),
        sip={"trunks": [{"name": site.agent, "match": [site.address]} for site in SITES]},
        numbers={"~7(\\d{4})": {"agent": "a\\1"}},
    )
    for agent, site in zip(config["agents"], SITES, strict=True):
        agent["contact"] = f"sip:{site.agent}@{site.address}:{site.port};transport={site.between}"
    async with MurimaProcess(config, tmp_path_factory.mktemp("murima")) as running:
        await running.login()
        yield running


async def call_through_proxy(
    murima: MurimaProcess, site: Site, folder: Path, caller_make: str, agent_make: str, who_holds: str
) -> None:
    """A caller behind the proxy calls the agent behind it; one of the two holds, takes back, and hangs up."""
    async with (
        party(agent_make, folder / "agent", site.agent, variant=1) as agent,
        Kamailio(
            folder / "proxy",
            murima.remote,
            address=site.address,
            port=site.port,
            phones={site.agent: agent.uri},
            transport=site.between,
        ) as proxy,
        party(
            caller_make, folder / "caller", "0700111222", variant=2, domain="pbx.local", proxy=proxy.remote
        ) as caller,
    ):
        holder, other = (caller, agent) if who_holds == "caller" else (agent, caller)
        await caller.dial(f"sip:{site.number}@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await holder.hold()
        await until_call_is(murima, "held", site.agent)
        await holder.resume()
        await until_call_is(murima, "talking", site.agent)
        await asyncio.gather(caller.say_again(), agent.say_again())
        await holder.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(holder.words, other.heard())
        if holder.keeps_after_hold:
            assert_heard(other.words, holder.heard())

        passed = proxy.passed()
        assert {request.kind for request in passed} == {"initial", "dialog"}
        sources = {"caller": _address(caller.uri), "agent": _address(agent.uri)}
        for request in (
            Passed("initial", "INVITE", sources["caller"]),
            Passed("initial", "INVITE", murima.address),
            Passed("dialog", "ACK", sources["caller"]),
            Passed("dialog", "ACK", murima.address),
            Passed("dialog", "INVITE", sources[who_holds]),
            Passed("dialog", "BYE", sources[who_holds]),
            Passed("dialog", "BYE", murima.address),
        ):
            assert request in passed, f"{request} did not pass: {passed}"


def _address(uri: str) -> str:
    return uri.partition("@")[2].partition(":")[0]


async def test_requests_of_a_call_stay_on_the_recorded_route(tmp_path: Path, murima: MurimaProcess) -> None:
    udp, other_udp, tcp, other_tcp = SITES
    await all_of(
        call_through_proxy(murima, udp, tmp_path / "1", "pjsua", "linphone", "agent"),
        call_through_proxy(murima, other_udp, tmp_path / "2", "baresip", "pjsua", "caller"),
        call_through_proxy(murima, tcp, tmp_path / "3", "linphone", "baresip", "caller"),
        call_through_proxy(murima, other_tcp, tmp_path / "4", "pjsua", "pjsua", "agent"),
    )
