"""Calls to host names through real sockets and a real DNS server: chains, dead servers, IPv6, hostile answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network

import pytest

from adapters.sip.dialogs.session import EndReason, Session, SessionAcked, SessionAnswered, SessionEnded
from adapters.sip.endpoint import Endpoint, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets import failover
from adapters.sip.targets.dns import DnsSettings
from adapters.sip.transports.transport import SipTransport
from tests.dns_server import DnsServer, dns_server
from tests.native_rig import Inbox, new_token, tcp_socket, udp_socket, verifier_for
from tests.ports import free_port, loopback_address
from tests.sip_link import SDP

NAME = "phones.example.com"


class Party:
    """An endpoint on UDP and TCP of one address."""

    def __init__(self, dns: DnsServer | None = None) -> None:
        self.inbox = Inbox()
        self.transport = SipTransport(dns=None if dns is None else DnsSettings((dns.address,), 1.0))
        everyone = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy([Trunk("any", everyone)], {}, verifier_for("x")),
            registrar=None,
            new_token=new_token,
        )
        self.host, self.port = loopback_address(), 0

    async def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Listen on one port for both, unless told where."""
        self.port = free_port(self.host)
        udp = [udp_socket(self.host, self.port), *(sock for sock in sockets if sock.type == socket.SOCK_DGRAM)]
        await self.transport.start(self.endpoint, self.inbox.put, udp, [tcp_socket(self.host, self.port)])

    @property
    def now(self) -> float:
        return self.transport.clock()

    def call(self, target: str) -> Session:
        session, effects = self.endpoint.invite(SipUri.parse(target), SDP, from_="<sip:1@x>", now=self.now)
        assert session is not None
        self.transport.carry_out(effects)
        return session

    async def answer(self) -> Session:
        session = (await self.inbox.wait(SessionIncoming)).session
        self.transport.carry_out(self.endpoint.answer(session, SDP, self.now))
        await self.inbox.wait(SessionAcked)
        return session

    def hang_up(self, session: Session) -> None:
        self.transport.carry_out(self.endpoint.hang_up(session, self.now))


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        yield server


@asynccontextmanager
async def parties(server: DnsServer, count: int = 1) -> AsyncIterator[tuple[Party, list[Party]]]:
    """A caller that asks `server`, and phones."""
    async with AsyncExitStack() as stack:
        made = [Party(server), *(Party() for _ in range(count))]
        for party in made:
            await party.start()
            stack.push_async_callback(party.transport.close)
        yield made[0], made[1:]


async def talk(caller: Party, phone: Party, uri: str) -> Session:
    """Call, answer, hang up; all of it by where the name leads."""
    session = caller.call(uri)
    answered = await phone.answer()
    await caller.inbox.wait(SessionAnswered)
    caller.hang_up(session)
    ended = await phone.inbox.wait(SessionEnded)
    assert (ended.session, ended.reason) == (answered, EndReason.BYE)
    return answered


def dead_port() -> tuple[str, int]:
    host = loopback_address()
    return host, free_port(host)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_naptr_srv_and_address_lead_to_the_phone(server: DnsServer, transport: str) -> None:
    async with parties(server) as (caller, (phone,)):
        service = f"_sip._{transport}.elsewhere.example"
        server.add(NAME, 60, "NAPTR", f'10 10 "S" "SIP+D2{transport[0].upper()}" "" {service}.')
        server.add(service, 60, "SRV", f"0 0 {phone.port} one.example.com.")
        server.add("one.example.com", 60, "CNAME", "box.example.com.")
        server.add("box.example.com", 60, "A", phone.host)
        answered = await talk(caller, phone, f"sip:500@{NAME}")
        assert answered.request.top_via.transport == transport.upper()
        assert f"sip:500@{NAME}" in answered.request.uri
        asked = server.asked.total()
        await talk(caller, phone, f"sip:500@{NAME}")
        assert server.asked.total() == asked


async def test_a_refused_connection_leads_to_the_second_server(server: DnsServer) -> None:
    host, port = dead_port()
    async with parties(server) as (caller, (phone,)):
        server.add(
            f"_sip._tcp.{NAME}", 60, "SRV", f"10 0 {port} dead.example.com.", f"20 0 {phone.port} live.example.com."
        )
        server.add("dead.example.com", 60, "A", host)
        server.add("live.example.com", 60, "A", phone.host)
        async with asyncio.timeout(3):
            await talk(caller, phone, f"sip:500@{NAME};transport=tcp")
        assert caller.transport.counters["sip_connects_failed_total"] == 1
        await talk(caller, phone, f"sip:500@{NAME};transport=tcp")
        assert caller.transport.counters["sip_connects_failed_total"] == 1  # avoided


async def test_a_silent_server_leads_to_the_second_one(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "FAILOVER_AFTER_S", 0.3)
    host, port = dead_port()
    async with parties(server) as (caller, (phone,)):
        server.add(
            f"_sip._udp.{NAME}", 60, "SRV", f"10 0 {port} dead.example.com.", f"20 0 {phone.port} live.example.com."
        )
        server.add("dead.example.com", 60, "A", host)
        server.add("live.example.com", 60, "A", phone.host)
        await talk(caller, phone, f"sip:500@{NAME}")


async def test_a_connection_that_closes_without_an_answer_leads_to_the_second_server(server: DnsServer) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    host, port = dead_port()
    broken = await asyncio.start_server(hang_up, host, port)
    async with parties(server) as (caller, (phone,)):
        server.add(
            f"_sip._tcp.{NAME}", 60, "SRV", f"10 0 {port} broken.example.com.", f"20 0 {phone.port} live.example.com."
        )
        server.add("broken.example.com", 60, "A", host)
        server.add("live.example.com", 60, "A", phone.host)
        async with asyncio.timeout(3):
            await talk(caller, phone, f"sip:500@{NAME};transport=tcp")
    broken.close()


async def test_503_leads_to_the_second_server(server: DnsServer) -> None:
    async with parties(server, 2) as (caller, (full, phone)):
        full.endpoint.draining = True
        server.add(
            f"_sip._udp.{NAME}",
            60,
            "SRV",
            f"10 0 {full.port} full.example.com.",
            f"20 0 {phone.port} live.example.com.",
        )
        server.add("full.example.com", 60, "A", full.host)
        server.add("live.example.com", 60, "A", phone.host)
        async with asyncio.timeout(3):
            await talk(caller, phone, f"sip:500@{NAME}")
        assert full.endpoint.counters['sip_rejected_total{status="503"}'] == 1


async def test_a_phone_named_by_its_contact_is_acked_and_hung_up_there(server: DnsServer) -> None:
    async with parties(server) as (caller, (phone,)):
        server.add(NAME, 60, "A", phone.host)
        phone.endpoint.contact = lambda *_, **__: f"<sip:500@{NAME}:{phone.port}>"  # type: ignore[method-assign]
        session = caller.call(f"sip:500@{phone.host}:{phone.port}")
        await phone.answer()
        await caller.inbox.wait(SessionAnswered)
        assert session.dialog is not None
        assert (session.dialog.flow.host, session.dialog.flow.port) == (phone.host, phone.port)
        caller.hang_up(session)
        assert (await phone.inbox.wait(SessionEnded)).reason is EndReason.BYE


async def test_ipv6_where_there_is_a_socket_for_it(server: DnsServer) -> None:
    six = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in six:
        sock.bind(("::1", 0))
    caller, phone = Party(server), Party()
    await caller.start(six[:1])
    await phone.start(six[1:])
    server.add(NAME, 60, "AAAA", "::1")
    answered = await talk(caller, phone, f"sip:500@{NAME}:{six[1].getsockname()[1]}")
    assert answered.request.top_via.host == "::1"
    for party in (caller, phone):
        await party.transport.close()


@pytest.mark.parametrize("what", ["nothing", "loop", "silence", "refused service"])
async def test_a_name_that_leads_nowhere_ends_the_call(server: DnsServer, what: str) -> None:
    if what == "loop":
        server.add(NAME, 60, "CNAME", f"x.{NAME}.")
        server.add(f"x.{NAME}", 60, "CNAME", f"{NAME}.")
    elif what == "refused service":
        server.add(NAME, 60, "A", "127.0.0.1")
        server.add(f"_sip._udp.{NAME}", 60, "SRV", "0 0 0 .")
    server.silent = what == "silence"
    async with parties(server) as (caller, _):
        session = caller.call(f"sip:500@{NAME};transport=udp")
        ended = await caller.inbox.wait(SessionEnded)
        assert (ended.session, ended.reason) == (session, EndReason.UNREACHABLE)
        assert caller.endpoint.sessions == caller.endpoint.transactions == 0


async def test_targets_share_the_calls_by_their_weights(server: DnsServer) -> None:
    async with parties(server, 2) as (caller, phones):
        weighted = list(zip((80, 20), phones, strict=True))
        server.add(f"_sip._udp.{NAME}", 60, "SRV", *(f"1 {w} {p.port} h{w}.example.com." for w, p in weighted))
        for weight, phone in weighted:
            server.add(f"h{weight}.example.com", 60, "A", phone.host)
        for _ in range(100):
            caller.call(f"sip:500@{NAME};transport=udp")
        async with asyncio.timeout(5):
            while sum(len(phone.inbox.of(SessionIncoming)) for phone in phones) < 100:  # noqa: ASYNC110 - two inboxes
                await asyncio.sleep(0.01)
        heavy, light = (len(phone.inbox.of(SessionIncoming)) for phone in phones)
        assert heavy > 60
        assert light > 5
