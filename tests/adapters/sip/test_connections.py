"""Stream connections and WebSockets of a real endpoint: limits, keep-alive, reuse, loss."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
import uvloop

from adapters.sip.dialogs.session import EndReason, SessionAnswered, SessionEnded, SessionProgress
from adapters.sip.endpoint import Endpoint, RegistrationChanged, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import Challenge, answer_challenge, ha1
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.connections import ConnectionLimits, Connections, KeepAliveTimes
from adapters.sip.transports.stun import is_stun
from adapters.sip.transports.transport import SipTransport
from tests.native_rig import Inbox, new_token, tcp_socket, udp_socket, verifier_for
from tests.sip_link import SDP

HOST = "127.0.0.1"
REALM = "pbx.test"


class Server:
    """An endpoint with a registrar on UDP, TCP and WebSockets; 127.0.0.0/8 is a trunk if wanted."""

    def __init__(
        self, *, trunk: bool = True, limits: ConnectionLimits | None = None, keep_alive: KeepAliveTimes | None = None
    ) -> None:
        self.inbox = Inbox()
        self.transport = SipTransport(limits, keep_alive)
        trunks = [Trunk("any", (ip_network("127.0.0.0/8"),))] if trunk else []
        users = {"a1": {name: ha1("a1", REALM, "secret", name) for name in ("MD5", "SHA-256")}}
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy(trunks, users, verifier_for(REALM)),
            registrar=Registrar(),
            new_token=new_token,
        )
        self.udp = self.tcp = 0

    async def start(self) -> None:
        udp, tcp = udp_socket(), tcp_socket()
        self.udp, self.tcp = udp.getsockname()[1], tcp.getsockname()[1]
        await self.transport.start(self.endpoint, self.inbox.put, [udp], [tcp])
        self.transport.serve_web(HOST, 8080, secure=False)

    def call(self, target: str, *, flow: Flow | None = None, body: bytes = SDP) -> object:
        session, effects = self.endpoint.invite(
            SipUri.parse(target), body, from_="<sip:1@x>", now=self.transport.clock(), flow=flow
        )
        assert session is not None
        self.transport.carry_out(effects)
        return session


@asynccontextmanager
async def serving(
    *, trunk: bool = True, limits: ConnectionLimits | None = None, keep_alive: KeepAliveTimes | None = None
) -> AsyncIterator[Server]:
    server = Server(trunk=trunk, limits=limits, keep_alive=keep_alive)
    await server.start()
    try:
        yield server
    finally:
        await server.transport.close()


class Client:
    """A TCP phone by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self) -> Request | Response:
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            return parse_message(head + await self.reader.readexactly(int(length[1])))

    async def ended(self) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(4096):
                    pass


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request(method: str = "OPTIONS", *, via: str = "TCP phone.test", user: str = "a1", cseq: int = 1) -> Request:
    return Request.build(
        method,
        f"sip:{REALM}",
        via=f"SIP/2.0/{via};branch=z9hG4bK{new_token()}",
        from_=f"<sip:{user}@{REALM}>;tag={new_token()}",
        to=f"<sip:{user}@{REALM}>",
        call_id=new_token(),
        cseq=cseq,
    )


def registration(contact: str) -> Request:
    made = request("REGISTER")
    made.set("contact", contact)
    made.set("supported", "path, outbound")
    return made


async def register(asked: Request, exchange: Callable[[Request], Awaitable[Response]]) -> Response:
    """Send a REGISTER, and again with the password."""
    refused = await exchange(asked)
    assert refused.status == 401
    value = answer_challenge(
        [Challenge.parse(text) for text in refused.get_all("www-authenticate")],
        method="REGISTER",
        uri=asked.uri,
        username="a1",
        password="secret",
        ha1s=None,
        body=b"",
        cnonce=new_token(),
    )
    assert value is not None
    asked.set("authorization", value)
    asked.set("cseq", "2 REGISTER")
    asked.set("via", f"SIP/2.0/TCP phone.test;branch=z9hG4bK{new_token()}")
    return await exchange(asked)


def over(phone: Client) -> Callable[[Request], Awaitable[Response]]:
    async def exchange(asked: Request) -> Response:
        phone.write(asked.serialise())
        answer = await phone.read()
        assert isinstance(answer, Response)
        return answer

    return exchange


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the loop of the server has no event for this
            await asyncio.sleep(0.01)


# --- hostile peers -----------------------------------------------------------------------------


async def test_message_that_never_ends_is_cut_however_it_drips() -> None:
    async with serving(limits=ConnectionLimits(message_s=0.2)) as server, client(server.tcp) as phone:
        phone.write(request().serialise())
        await phone.read()
        ended = asyncio.ensure_future(phone.ended())
        async with asyncio.timeout(5):
            while not ended.done():
                phone.write(b"O")
                await asyncio.wait({ended}, timeout=0.02)
        assert server.transport.counters["sip_connections_slow_total"] == 1
        assert server.transport.connections == 0


async def test_slow_messages_that_end_in_time_are_served() -> None:
    async with serving(limits=ConnectionLimits(message_s=5)) as server, client(server.tcp) as phone:
        data = request().serialise() * 2
        for start in range(0, len(data), 50):
            phone.write(data[start : start + 50])
            await asyncio.sleep(0)
        assert isinstance(await phone.read(), Response)
        assert server.transport._connections.unread == 0


async def test_unfinished_messages_share_one_bound() -> None:
    async with serving(limits=ConnectionLimits(unread=10_000)) as server:
        async with client(server.tcp) as first, client(server.tcp) as second:
            unfinished = request()
            unfinished.set("subject", "x" * 6000)
            first.write(unfinished.serialise()[:-2])
            await until(lambda: server.transport._connections.unread >= 6000)
            second.write(b"OPTIONS sip:x SIP/2.0\r\nX: " + b"x" * 6000)
            await second.ended()
            assert server.transport.counters["sip_connections_over_memory_total"] == 1
            first.write(b"\r\n")
            assert isinstance(await first.read(), Response)
        await until(lambda: server.transport._connections.unread == 0)


@pytest.mark.parametrize("length", ["-1", "99999999999", "4 4", "0x10", "70000", ""])
async def test_hostile_content_length_is_refused_and_the_connection_closed(length: str) -> None:
    async with serving() as server, client(server.tcp) as phone:
        made = request().serialise().replace(b"Content-Length: 0", f"Content-Length: {length}".encode())
        phone.write(made)
        answer = await phone.read()
        assert isinstance(answer, Response)
        assert answer.status in (400, 513)
        await phone.ended()


async def test_peer_that_reads_nothing_is_cut_off() -> None:
    async with serving(limits=ConnectionLimits(unsent=100_000)) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, (HOST, server.tcp))
            data = request().serialise()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    while not server.transport.counters["sip_connections_stuck_total"]:
                        await loop.sock_sendall(deaf, data * 50)
        await until(lambda: server.transport.connections == 0)
        assert server.transport._connections.stalled == 0


async def test_connections_of_one_address_are_bounded_unless_they_register() -> None:
    limits = ConnectionLimits(per_address=1)
    async with serving(trunk=False, limits=limits) as server, client(server.tcp) as first:
        async with client(server.tcp) as refused:
            await refused.ended()
        assert server.transport.counters["sip_connections_refused_total"] == 1
        answer = await register(registration("<sip:a1@x.invalid;transport=tcp>"), over(first))
        assert answer.status == 200
        async with client(server.tcp) as second:  # the first no longer counts
            second.write(request().serialise())
            assert isinstance(await second.read(), Response)
        server.transport.replace_limits(ConnectionLimits(per_address=3))
        async with client(server.tcp) as third, client(server.tcp) as fourth:
            for phone in (third, fourth):
                phone.write(request().serialise())
                assert isinstance(await phone.read(), Response)
    async with serving(limits=limits) as server, client(server.tcp), client(server.tcp) as second:
        second.write(request().serialise())  # trunks may have any number
        assert isinstance(await second.read(), Response)


async def test_an_ipv6_network_counts_as_one_address() -> None:
    async with serving(trunk=False) as server:
        table = Connections(server.transport, ConnectionLimits(per_address=2), KeepAliveTimes(), lambda _: False)
        assert [table.admit(f"2001:db8::{n}") for n in range(1, 4)] == [True, True, False]
        assert table.admit("2001:db8:0:1::1")
        table.release("2001:db8::1")
        assert table.admit("2001:db8::9")
        assert not table.admit("2001:db8::a")


# --- keep-alive ------------------------------------------------------------------------------------


async def listening(accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    return await asyncio.start_server(accept, HOST, 0)


async def test_connection_of_ours_is_pinged_and_given_up_when_pongs_stop() -> None:
    pings: asyncio.Queue[bytes] = asyncio.Queue()
    answering = True

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n" + SDP)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                pings.put_nowait(await reader.readexactly(4))
                if answering:
                    writer.write(b"\r\n")
        writer.close()

    listener = await listening(accept)
    times = KeepAliveTimes(first=0.02, last=0.04, pong=0.1)
    async with serving(keep_alive=times) as server:
        server.call(f"sip:1@{HOST}:{listener.sockets[0].getsockname()[1]};transport=tcp")
        async with asyncio.timeout(5):
            for _ in range(3):
                assert await pings.get() == b"\r\n\r\n"
        assert server.transport.connections == 1
        answering = False
        assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE
        assert server.transport.counters["sip_connections_unanswered_total"] == 1
        assert server.transport.connections == 0
    listener.close()


async def test_phone_that_promised_pings_is_given_up_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.sip.endpoint.FLOW_TIMER_S", 0.2)
    monkeypatch.setattr("adapters.sip.endpoint.FLOW_GRACE_S", 0.1)
    contact = '<sip:a1@x.invalid;transport=tcp>;reg-id=1;+sip.instance="<urn:uuid:1>"'
    async with serving(trunk=False) as server, client(server.tcp) as phone:
        answer = await register(registration(contact), over(phone))
        assert answer.status == 200
        assert answer.get("require") == "outbound"
        assert answer.has("flow-timer")
        assert (await server.inbox.wait(RegistrationChanged)).reachable
        for _ in range(6):  # longer than the promise: pings count
            phone.write(b"\r\n\r\n")
            async with asyncio.timeout(5):
                assert await phone.reader.readexactly(2) == b"\r\n"
            await asyncio.sleep(0.08)
        assert server.transport.connections == 1
        await phone.ended()
        assert not (await server.inbox.wait(RegistrationChanged)).reachable


async def test_stun_is_answered_on_the_sip_port() -> None:
    async with serving() as server:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((HOST, server.udp))
            await loop.sock_sendall(sock, b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"t" * 12)
            async with asyncio.timeout(5):
                answer = await loop.sock_recv(sock, 100)
        assert is_stun(answer)
        assert answer[:2] == b"\x01\x01"


# --- loss and reuse --------------------------------------------------------------------------------


async def test_call_fails_at_once_when_its_connection_breaks() -> None:
    async with serving() as server:
        rung = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            invite = parse_message(await reader.readuntil(SDP))
            ringing = Response(180, "Ringing", {n: list(invite.headers[n]) for n in ("via", "from", "call-id", "cseq")})
            ringing.set("to", f"{invite.headers['to'][0]};tag=r")
            writer.write(ringing.serialise())
            await rung.wait()
            writer.transport.abort()

        listener = await listening(accept)
        for after_ringing in (True, False):
            rung.clear()
            if not after_ringing:
                rung.set()
            session = server.call(f"sip:1@{HOST}:{listener.sockets[0].getsockname()[1]};transport=tcp")
            if after_ringing:
                await server.inbox.wait(SessionProgress)
                rung.set()
            ended = await server.inbox.wait(SessionEnded)
            assert (ended.session, ended.reason) == (session, EndReason.UNREACHABLE)
        listener.close()


async def test_alias_of_a_trunk_is_used_for_its_port_and_of_others_is_not() -> None:
    for trunk in (True, False):
        async with serving(trunk=trunk) as server, client(server.tcp) as peer:
            peer.write(request(via=f"TCP {HOST}:4321;alias").serialise())
            await peer.read()
            server.call(f"sip:1@{HOST}:4321;transport=tcp")
            if trunk:
                invite = await peer.read()
                assert isinstance(invite, Request)
                assert invite.method == "INVITE"
            else:
                assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE


# --- requests too large for UDP ----------------------------------------------------------------------

LARGE = SDP + b"a=x-padding:" + b"x" * 1500 + b"\r\n"


async def one_call(caller: Server, called: Server, host: str = HOST) -> str:
    """Call by UDP with a large offer; the transport that brought it."""
    caller.call(f"sip:500@{host}:{called.udp}", body=LARGE)
    incoming = await called.inbox.wait(SessionIncoming)
    transport = incoming.session.flow.transport
    assert incoming.session.request.top_via.transport == transport.upper()
    assert len(incoming.session.offered) == len(LARGE)
    called.transport.carry_out(called.endpoint.answer(incoming.session, SDP, called.transport.clock()))
    await caller.inbox.wait(SessionAnswered)
    called.transport.carry_out(called.endpoint.hang_up(incoming.session, called.transport.clock()))
    assert (await caller.inbox.wait(SessionEnded)).reason is EndReason.BYE
    return transport


async def test_large_request_goes_by_tcp_where_the_peer_takes_it() -> None:
    async with serving() as caller:
        called = Server()
        with udp_socket() as probe:
            port = probe.getsockname()[1]
        udp, tcp = udp_socket(HOST, port), tcp_socket(HOST, port)
        called.udp = port
        await called.transport.start(called.endpoint, called.inbox.put, [udp], [tcp])
        try:
            assert await one_call(caller, called) == "tcp"
        finally:
            await called.transport.close()


async def test_large_request_goes_by_udp_where_there_is_no_tcp() -> None:
    async with serving() as caller, serving() as called:
        assert await one_call(caller, called) == "udp"  # nobody listens on TCP at that port
        assert caller.transport.counters["sip_connects_failed_total"] == 1
        assert await one_call(caller, called) == "udp"
        assert caller.transport.counters["sip_connects_failed_total"] == 1  # remembered


async def test_large_request_to_a_name_goes_by_udp_where_there_is_no_tcp() -> None:
    async with serving() as caller, serving() as called:
        assert await one_call(caller, called, "localhost") == "udp"
        assert caller.transport.counters["sip_connects_failed_total"] == 1


async def test_large_request_to_a_phone_behind_a_nat_keeps_its_flow() -> None:
    async with serving() as caller, serving() as called:
        caller.call("sip:500@10.1.2.3:5060", flow=Flow("udp", 0, HOST, called.udp), body=LARGE)
        assert (await called.inbox.wait(SessionIncoming)).session.flow.transport == "udp"
        assert caller.transport.counters["sip_connects_failed_total"] == 0


# --- WebSockets ------------------------------------------------------------------------------------


class Browser:
    """One WebSocket, from the side of the HTTP server."""

    def __init__(self, server: Server, port: int = 50_000) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False
        link = server.transport.on_web_socket((HOST, port), self.frames.put_nowait, self._close)
        assert link is not None
        self.link = link

    def _close(self) -> None:
        self.closed = True

    async def exchange(self, asked: Request) -> Response:
        self.link.on_message(asked.serialise())
        answer = await self.read()
        assert isinstance(answer, Response)
        return answer

    async def read(self) -> Request | Response:
        async with asyncio.timeout(5):
            return parse_message(await self.frames.get())


async def test_browser_registers_and_is_called_over_its_websocket() -> None:
    async with serving(trunk=False) as server:
        browser = Browser(server)
        answer = await register(registration("<sip:a1@df7.invalid;transport=ws>"), browser.exchange)
        assert answer.status == 200
        assert (await server.inbox.wait(RegistrationChanged)).reachable
        assert server.endpoint.registrar is not None
        (binding,) = server.endpoint.registrar.bindings("a1")
        assert (binding.flow.transport, str(binding.uri)) == ("ws", "sip:a1@df7.invalid;transport=ws")
        server.call(str(binding.uri), flow=binding.flow)
        invite = await browser.read()
        assert isinstance(invite, Request)
        assert invite.uri == "sip:a1@df7.invalid;transport=ws"
        assert invite.top_via.transport == "WS"
        assert (invite.get("contact") or "").endswith(":8080;transport=ws>")
        browser.link.on_close()
        assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE
        assert not (await server.inbox.wait(RegistrationChanged)).reachable
        server.call(str(binding.uri), flow=binding.flow)  # what still knows it
        assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE


async def test_browser_at_the_address_of_a_trunk_needs_a_password() -> None:
    async with serving() as server:
        browser = Browser(server)
        invite = request("INVITE")
        invite.set("contact", "<sip:a1@df7.invalid;transport=ws>")
        assert (await browser.exchange(invite)).status == 401


async def test_websocket_pings_frames_and_limits() -> None:
    limits = ConnectionLimits(silent_s=0.1, per_address=2)
    async with serving(trunk=False, limits=limits) as server:
        browser = Browser(server)
        browser.link.on_message(b"\r\n\r\n")
        assert await browser.frames.get() == b"\r\n"
        browser.link.on_message(b"\r\n")
        browser.link.on_message(b"\x00 not SIP")
        browser.link.on_message(b"x" * 70_000)
        assert browser.closed
        assert browser.frames.empty()
        silent, other = Browser(server), Browser(server)
        assert server.transport.on_web_socket((HOST, 3), other.frames.put_nowait, other._close) is None
        await until(lambda: silent.closed and other.closed)
        assert server.transport.connections == 0


async def test_uri_of_a_browser_leads_nowhere_without_its_websocket() -> None:
    async with serving() as server:
        session, _ = server.endpoint.invite(
            SipUri.parse("sip:a1@df7.invalid;transport=ws"), SDP, from_="<sip:1@x>", now=server.transport.clock()
        )
        if session is not None:
            server.transport.carry_out(_)
            assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE


def test_the_same_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_of_it() -> None:
        await test_message_that_never_ends_is_cut_however_it_drips()
        await test_peer_that_reads_nothing_is_cut_off()
        await test_connections_of_one_address_are_bounded_unless_they_register()
        await test_connection_of_ours_is_pinged_and_given_up_when_pongs_stop()
        await test_stun_is_answered_on_the_sip_port()
        await test_call_fails_at_once_when_its_connection_breaks()
        await test_large_request_goes_by_udp_where_there_is_no_tcp()
        await test_phone_that_promised_pings_is_given_up_without_them(monkeypatch)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())
