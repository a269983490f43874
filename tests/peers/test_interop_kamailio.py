"""Kamailio between the phones and murima, in both directions: it records its route, so all requests go through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.certificates import Authority
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
        registers: the phone registers through the proxy; otherwise the agent has a fixed contact at the proxy.
        between: what the proxy and murima speak, "udp", "tcp" or "tls"; the phones speak UDP.
        address, port, tls_port: of the proxy.
    """

    agent: str
    between: str
    address: str
    port: int
    tls_port: int
    registers: bool

    @property
    def contact(self) -> str:
        """Where murima calls the agent."""
        port = self.tls_port if self.between == "tls" else self.port
        return f"sip:{self.agent}@{self.address}:{port};transport={self.between}"

    @property
    def number(self) -> str:
        return f"7{self.agent[1:]}"


def _site(agent: str, between: str, *, registers: bool = False) -> Site:
    address = loopback_address()
    port = free_port(address, span=2)
    return Site(agent, between, address, port, port + 1, registers)


SITES = (
    _site("a0001", "udp"),
    _site("a0002", "udp", registers=True),
    _site("a0003", "tcp"),
    _site("a0004", "tls"),
)


class Server(NamedTuple):
    """murima, and the files for proxies that speak TLS with it."""

    murima: MurimaProcess
    tls_remote: str
    authority: Authority


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("murima")
    address = loopback_address()
    port = free_port(address, span=2)
    authority = Authority(folder)
    files = authority.issue(address, file="murima")
    config = office(
        *(site.agent for site in SITES),
        sip={
            "listen": [f"udp:{address}:{port}", f"tcp:{address}:{port}", f"tls:{address}:{port + 1}"],
            "tls": {
                "certificate": files.certificate.name,
                "key": files.key.name,
                "ca": authority.root.name,
                "client_certificate": "required",
            },
            "trunks": [{"name": site.agent, "match": [site.address]} for site in SITES],
        },
        numbers={"~7(\\d{4})": {"agent": "a\\1"}},
    )
    for agent, site in zip(config["agents"], SITES, strict=True):
        if not site.registers:
            agent["contact"] = site.contact
    murima = MurimaProcess(config, folder, address=address)
    murima.sip_port = port
    async with murima:
        await murima.login()
        yield Server(murima, f"{address}:{port + 1}", authority)


async def call_through_proxy(
    server: Server, site: Site, folder: Path, caller_make: str, agent_make: str, who_holds: str
) -> None:
    """A caller behind the proxy calls the agent behind it; one of the two holds, takes back, and hangs up."""
    murima = server.murima
    tls: dict[str, Any] = {}
    if site.between == "tls":
        files = server.authority.issue(site.address, file="proxy")
        tls = {"tls_port": site.tls_port, "certificate": files, "ca": server.authority.root}
    login: dict[str, Any] = {}
    if site.registers:
        proxy_at = f"{site.address}:{site.port}"
        login = {"domain": "pbx.local", "proxy": proxy_at, "password": "secret", "register": True}
    agent = party(agent_make, folder / "agent", site.agent, variant=1, **login)
    async with (
        Kamailio(
            folder / "proxy",
            server.tls_remote if tls else murima.remote,
            address=site.address,
            port=site.port,
            phones={} if site.registers else {site.agent: agent.uri},
            transport=site.between,
            **tls,
        ) as proxy,
        agent,
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


async def test_requests_of_a_call_stay_on_the_recorded_route(tmp_path: Path, server: Server) -> None:
    udp, other_udp, tcp, tls = SITES
    await all_of(
        call_through_proxy(server, udp, tmp_path / "1", "pjsua", "linphone", "agent"),
        call_through_proxy(server, other_udp, tmp_path / "2", "baresip", "pjsua", "caller"),
        call_through_proxy(server, tcp, tmp_path / "3", "linphone", "baresip", "caller"),
        call_through_proxy(server, tls, tmp_path / "4", "pjsua", "pjsua", "agent"),
    )
