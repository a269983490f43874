from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network

import pytest
import uvloop

from adapters.sip.dialogs.session import EndReason, Session, SessionAcked, SessionAnswered, SessionEnded
from adapters.sip.endpoint import Endpoint, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.syntax.message import parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.connections import ConnectionLimits
from adapters.sip.transports.transport import SipTransport
from tests.native_rig import Inbox, new_token, tcp_socket, udp_socket, verifier_for
from tests.ports import loopback_address
from tests.sip_link import SDP

HOST = "127.0.0.1"


class Server:
    """An endpoint on UDP and TCP that takes every call."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.inbox = Inbox()
        self.transport = SipTransport(limits)
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy([Trunk("any", (ip_network("127.0.0.0/8"),))], {}, verifier_for("x")),
            registrar=None,
            new_token=new_token,
        )
        self.udp = self.tcp = 0

    async def start(self, host: str = HOST) -> None:
        udp, tcp = udp_socket(host), tcp_socket(host)
        self.udp, self.tcp = udp.getsockname()[1], tcp.getsockname()[1]
        await self.transport.start(self.endpoint, self.inbox.put, [udp], [tcp])

    def call(self, target: str) -> Session:
        session, effects = self.endpoint.invite(
            SipUri.parse(target), SDP, from_="<sip:1@x>", now=self.transport.clock(), ring_timeout_s=5
        )
        assert session is not None
        self.transport.carry_out(effects)
        return session


@asynccontextmanager
async def servers(count: int, host: str = HOST, limits: ConnectionLimits | None = None) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            server = Server(limits)
            await server.start(host)
            stack.push_async_callback(server.transport.close)
            made.append(server)
        yield made


def options(cseq: int = 1, *, transport: str = "UDP", length: bool = True, port: int = 5060) -> bytes:
    lines = [
        "OPTIONS sip:x@127.0.0.1 SIP/2.0",
        f"Via: SIP/2.0/{transport} 127.0.0.1:{port};branch=z9hG4bK{new_token()};rport",
        "From: <sip:a@x>;tag=1",
        "To: <sip:x@127.0.0.1>",
        f"Call-ID: {new_token()}",
        f"CSeq: {cseq} OPTIONS",
        "Max-Forwards: 70",
        *(["Content-Length: 0"] if length else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def read_message(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        return await reader.readuntil(b"\r\n\r\n")


async def ask_udp(port: int, *datagrams: bytes) -> bytes:
    """Send datagrams; the answer to the last."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((HOST, port))
        for datagram in datagrams:
            await loop.sock_sendall(sock, datagram)
        async with asyncio.timeout(5):
            return await loop.sock_recv(sock, 65536)


async def one_call(caller: Server, called: Server, target: str) -> None:
    """Call, answer, hang up from the called side."""
    session = caller.call(target)
    incoming = await called.inbox.wait(SessionIncoming)
    called.transport.carry_out(called.endpoint.answer(incoming.session, SDP, called.transport.clock()))
    await caller.inbox.wait(SessionAnswered)
    called.transport.carry_out(called.endpoint.hang_up(incoming.session, called.transport.clock()))
    ended = await caller.inbox.wait(SessionEnded)
    assert (ended.session, ended.reason) == (session, EndReason.BYE)


async def test_call_over_udp_and_tcp() -> None:
    async with servers(2) as (caller, called):
        await one_call(caller, called, f"sip:500@{HOST}:{called.udp}")
        assert called.transport.connections == 0
        await one_call(caller, called, f"sip:500@{HOST}:{called.tcp};transport=tcp")
        assert caller.transport.connections == called.transport.connections == 1
        await one_call(caller, called, f"sip:500@{HOST}:{called.tcp};transport=tcp")
        assert caller.transport.connections == called.transport.connections == 1  # used again


def test_call_on_uvloop() -> None:
    async def both() -> None:
        async with servers(2) as (caller, called):
            await one_call(caller, called, f"sip:500@{HOST}:{called.udp}")
            await one_call(caller, called, f"sip:500@{HOST}:{called.tcp};transport=tcp")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())


def test_timers_that_are_overdue_on_uvloop() -> None:
    async def late() -> None:
        async with servers(2) as (caller, called):
            for _ in range(2):  # the second finds a timer that is due already
                _, effects = caller.endpoint.invite(
                    SipUri.parse(f"sip:500@{HOST}:{called.udp}"),
                    SDP,
                    from_=f"<sip:1@{HOST}>",
                    now=caller.transport.clock() - 40,
                )
                caller.transport.carry_out(effects)
            assert (await caller.inbox.wait(SessionEnded)).reason is EndReason.NO_RESPONSE

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(late())


async def test_wildcard_listener_names_the_address_towards_the_peer() -> None:
    async with servers(2, "0.0.0.0") as (caller, called):
        await one_call(caller, called, f"sip:500@127.0.0.1:{called.udp}")
        assert called.transport.local(Flow("udp", 0, "127.0.0.1", 1)) == ("127.0.0.1", called.udp)


async def test_host_names_are_looked_up() -> None:
    async with servers(2) as (caller, called):
        await one_call(caller, called, f"sip:500@localhost:{called.udp}")
        await one_call(caller, called, f"sip:500@localhost:{called.tcp};transport=tcp")


UNREACHABLE = [
    "sip:500@127.0.0.1:{port};transport=tcp",
    "sip:500@localhost:{port};transport=tcp",
    "sip:500@no-such-host.invalid",
    "sip:500@an..empty.label",
    "sip:500@" + "x" * 70,
    "sip:500@[::1]",  # no listener of that family
    "sip:500@x;maddr=127.0.0.1%25zone",
]


def test_unreachable_target_fails_at_once_on_uvloop() -> None:
    async def call_all() -> None:
        async with servers(1) as (caller,):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as closed:
                closed.bind((HOST, 0))
                for target in UNREACHABLE:
                    session = caller.call(target.format(port=closed.getsockname()[1]))
                    ended = await caller.inbox.wait(SessionEnded)
                    assert (target, ended.session, ended.reason) == (target, session, EndReason.UNREACHABLE)
            assert not caller.transport.hosts.asked

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(call_all())


@pytest.mark.parametrize("target", UNREACHABLE[:5])  # asyncio tells the others apart only by an error without address
async def test_unreachable_target_fails_at_once(target: str) -> None:
    async with servers(1) as (caller,):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as closed:
            closed.bind((HOST, 0))
            caller.call(target.format(port=closed.getsockname()[1]))
            assert (await caller.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE


async def test_connection_is_used_whatever_name_the_contact_gives() -> None:
    async with servers(1) as (server,):
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        contact = b"Contact: <sip:a@no-such-host.invalid;transport=tcp>\r\nMax-Forwards"
        invite = options(transport="TCP").replace(b"OPTIONS", b"INVITE").replace(b"Max-Forwards", contact)
        writer.write(invite)
        incoming = await server.inbox.wait(SessionIncoming)
        server.transport.carry_out(server.endpoint.answer(incoming.session, SDP, server.transport.clock()))
        answer = b""
        while not answer.startswith(b"SIP/2.0 200"):
            answer = await read_message(reader)
        to = re.search(rb"To: [^\r]*", answer)
        assert to is not None
        writer.write(
            invite.replace(b"INVITE", b"ACK").replace(b"z9hG4bK", b"z9hG4bKa").replace(b"To: <sip:x@127.0.0.1>", to[0])
        )
        await server.inbox.wait(SessionAcked)
        server.transport.carry_out(server.endpoint.hang_up(incoming.session, server.transport.clock()))
        assert b"BYE sip:a@no-such-host.invalid" in await read_message(reader)  # behind the body of the 200
        writer.close()
        await writer.wait_closed()


async def test_connections_of_ours_come_from_the_address_we_listen_at() -> None:
    host = loopback_address()
    async with servers(1, host) as (caller,), servers(1) as (called,):
        caller.call(f"sip:500@{HOST}:{called.tcp};transport=tcp")
        incoming = await called.inbox.wait(SessionIncoming)
        assert incoming.session.flow.host == host


async def test_bad_datagrams_disturb_nobody() -> None:
    async with servers(1) as (server,):
        noise = [b"", b"\r\n\r\n", b"\x00" * 100, b"INVITE", b"\xff\xfe" * 30_000, b"SIP/2.0 200 OK\r\n\r\n"]
        answer = await ask_udp(server.udp, *noise, options())
        assert answer.startswith(b"SIP/2.0 200 OK")
        assert parse_message(answer).top_via.rport


async def test_stream_is_cut_into_messages_and_pings_are_answered() -> None:
    async with servers(1) as (server,):
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        data = options(1, transport="TCP") + options(2, transport="TCP")
        for index in range(0, len(data), 100):
            writer.write(data[index : index + 100])
            await writer.drain()
        assert b"CSeq: 1 OPTIONS" in await read_message(reader)
        assert b"CSeq: 2 OPTIONS" in await read_message(reader)
        writer.write(b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.readexactly(2) == b"\r\n"
        writer.close()
        await writer.wait_closed()


async def test_stream_that_cannot_be_followed_is_answered_and_closed() -> None:
    async with servers(1) as (server,):
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        writer.write(options(transport="TCP", length=False))
        assert (await read_message(reader)).startswith(b"SIP/2.0 400")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert server.transport.counters["sip_streams_broken_total"] == 1
        assert (await ask_udp(server.udp, options())).startswith(b"SIP/2.0 200")


async def test_silent_connections_are_closed_and_their_number_is_bounded() -> None:
    async with servers(1, limits=ConnectionLimits(silent_s=0.05, total=1)) as (server,):
        first, one = await asyncio.open_connection(HOST, server.tcp)
        second, other = await asyncio.open_connection(HOST, server.tcp)
        async with asyncio.timeout(5):
            assert await second.read() == b""
            assert await first.read() == b""
        assert server.transport.counters["sip_connections_refused_total"] == 1
        assert server.transport.counters["sip_connections_idle_total"] == 1
        assert server.transport.connections == 0
        for writer in (one, other):
            writer.close()
            await writer.wait_closed()


async def test_drops_of_a_message_do_not_keep_a_connection_open() -> None:
    async with servers(1, limits=ConnectionLimits(silent_s=0.1)) as (server,):
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        closed = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(5):
            while not closed.done():
                writer.write(b"O")
                await asyncio.wait({closed}, timeout=0.02)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await closed
            await writer.wait_closed()
        assert server.transport.connections == 0


async def test_response_opens_a_connection_when_the_old_one_is_gone() -> None:
    # RFC 3261 18.2.2: to the address of received and the port of sent-by.
    async with servers(1) as (server,):
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.set_result(await read_message(reader))
            writer.close()
            await writer.wait_closed()

        listener = await asyncio.start_server(accept, HOST, 0)
        port = listener.sockets[0].getsockname()[1]
        invite = (
            options(transport="TCP", port=port)
            .replace(b"OPTIONS", b"INVITE")
            .replace(b"Max-Forwards", f"Contact: <sip:a@{HOST}:{port};transport=tcp>\r\nMax-Forwards".encode())
        )
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        writer.write(invite)
        assert (await read_message(reader)).startswith(b"SIP/2.0 100")
        incoming = await server.inbox.wait(SessionIncoming)
        writer.close()
        await writer.wait_closed()
        await until(lambda: server.transport.connections == 0)
        server.transport.carry_out(server.endpoint.reject(incoming.session, 486, server.transport.clock()))
        async with asyncio.timeout(5):
            assert (await arrived).startswith(b"SIP/2.0 486")
        listener.close()
        await listener.wait_closed()


async def test_fault_of_ours_is_logged_once_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with servers(1) as (server,):

        def broken(event: object) -> None:
            raise RuntimeError("owner is broken")

        server.transport._owner = broken
        invite = options().replace(b"OPTIONS", b"INVITE").replace(b"Max-", b"Contact: <sip:a@127.0.0.1>\r\nMax-")
        for _ in range(5):
            await ask_udp(server.udp, invite.replace(b"z9hG4bK", f"z9hG4bK{new_token()}".encode()))
        assert server.transport.counters["sip_faults_total"] >= 1
        assert [record.message for record in caplog.records].count("sip.fault") == 1
        assert (await ask_udp(server.udp, options())).startswith(b"SIP/2.0 200")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the loop of the server has no event for this
            await asyncio.sleep(0)
