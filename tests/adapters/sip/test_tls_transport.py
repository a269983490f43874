"""SIP over TLS between real endpoints, and with the ssl module as the peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
import uvloop

from adapters.sip.dialogs.session import EndReason, Session, SessionAnswered, SessionEnded
from adapters.sip.endpoint import Endpoint, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transports.connections import ConnectionLimits
from adapters.sip.transports.transport import SipTransport
from config.tls import ClientCertificate, NamedCertificate, SipTls
from engine.tls import ClientTls, ServerTls, TlsError
from tests.certificates import Authority
from tests.native_rig import Inbox, new_token, tcp_socket, verifier_for
from tests.sip_link import SDP

HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(authority: Authority, *names: str, **more: object) -> SipTls:
    files = authority.issue(*names)
    return SipTls.model_validate({"certificate": files.certificate, "key": files.key, "ca": authority.root, **more})


class Server:
    """An endpoint on TLS that takes every call."""

    def __init__(self, tls: SipTls, limits: ConnectionLimits | None = None) -> None:
        self.inbox = Inbox()
        self.certificates = ServerTls(tls)
        self.client = ClientTls(tls)
        self.transport = SipTransport(limits)
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy([Trunk("any", (ip_network("127.0.0.0/8"),))], {}, verifier_for("x")),
            registrar=None,
            new_token=new_token,
        )
        self.port = 0

    async def start(self) -> None:
        sock = tcp_socket(HOST)
        self.port = sock.getsockname()[1]
        await self.transport.start(
            self.endpoint,
            self.inbox.put,
            [],
            [],
            [sock],
            tls_server=self.certificates.context,
            tls_client=self.client.context,
        )

    def call(self, target: str) -> Session:
        session, effects = self.endpoint.invite(
            SipUri.parse(target), SDP, from_="<sip:1@x>", now=self.transport.clock(), ring_timeout_s=5
        )
        assert session is not None
        self.transport.carry_out(effects)
        return session


@asynccontextmanager
async def serving(tls: SipTls, limits: ConnectionLimits | None = None) -> AsyncIterator[Server]:
    server = Server(tls, limits)
    await server.start()
    try:
        yield server
    finally:
        await server.transport.close()


def options(port: int = 5061) -> bytes:
    lines = [
        "OPTIONS sip:x@127.0.0.1 SIP/2.0",
        f"Via: SIP/2.0/TLS 127.0.0.1:{port};branch=z9hG4bK{new_token()}",
        "From: <sip:a@x>;tag=1",
        "To: <sip:x@127.0.0.1>",
        f"Call-ID: {new_token()}",
        "CSeq: 1 OPTIONS",
        "Max-Forwards: 70",
        "Content-Length: 0",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext, name: str = "pbx.test"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(options())
    async with asyncio.timeout(5):
        return await reader.readuntil(b"\r\n\r\n")


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.root))


def shown_names(writer: asyncio.StreamWriter) -> list[str]:
    certificate = writer.get_extra_info("peercert")
    return [str(value) for _, value in certificate["subjectAltName"]]


@pytest.mark.parametrize(
    "target", ["sips:500@127.0.0.1:{}", "sip:500@127.0.0.1:{};transport=tls", "sips:500@localhost:{}"]
)
async def test_call_over_tls_both_sides_verified(authority: Authority, target: str) -> None:
    tls = settings(authority, "127.0.0.1", "localhost", client_certificate=ClientCertificate.REQUIRED)
    async with serving(tls) as caller, serving(tls) as called:
        session = caller.call(target.format(called.port))
        incoming = await called.inbox.wait(SessionIncoming)
        assert incoming.session.flow.transport == "tls"
        invite = incoming.session.request
        assert invite.top_via.transport == "TLS"
        secure = target.startswith("sips:")
        assert (invite.get("contact") or "").startswith("<sips:" if secure else "<sip:")
        called.transport.carry_out(called.endpoint.answer(incoming.session, SDP, called.transport.clock()))
        await caller.inbox.wait(SessionAnswered)
        called.transport.carry_out(called.endpoint.hang_up(incoming.session, called.transport.clock()))
        ended = await caller.inbox.wait(SessionEnded)
        assert (ended.session, ended.reason) == (session, EndReason.BYE)
        assert caller.transport.connections == called.transport.connections == 1


async def test_server_with_another_name_or_root_is_refused(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strangers = Authority(tmp_path, "Strangers")
    async with (
        serving(settings(authority, "127.0.0.1")) as caller,
        serving(settings(authority, "other.test")) as misnamed,
        serving(settings(strangers, "127.0.0.1")) as stranger,
    ):
        for host, server in ((HOST, misnamed), (HOST, stranger), ("localhost", misnamed)):
            session = caller.call(f"sips:500@{host}:{server.port}")
            ended = await caller.inbox.wait(SessionEnded)
            assert (ended.session, ended.reason) == (session, EndReason.UNREACHABLE)
        assert caller.transport.counters["sip_tls_wrong_name_total"] == 2
        assert caller.transport.counters["sip_connects_failed_total"] == 3
        assert caller.transport.connections == 0
    reasons = [getattr(record, "reason", "") for record in caplog.records if record.message == "sip.connect_failed"]
    assert "the certificate is not for 127.0.0.1" in reasons
    assert "the certificate is not for localhost" in reasons
    assert any(reason.startswith("the certificate is not accepted: ") for reason in reasons)


async def test_verification_can_be_turned_off(authority: Authority, tmp_path: Path) -> None:
    stranger = settings(Authority(tmp_path, "Strangers"), "other.test")
    async with (
        serving(settings(authority, "127.0.0.1", verify_server=False)) as caller,
        serving(stranger) as called,
    ):
        caller.call(f"sips:500@{HOST}:{called.port}")
        await called.inbox.wait(SessionIncoming)


async def test_peer_without_a_certificate_is_refused_where_one_is_required(authority: Authority) -> None:
    tls = settings(authority, "pbx.test", client_certificate=ClientCertificate.REQUIRED)
    async with serving(tls) as server:
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with connected(server.port, trusting(authority)) as streams:
                await ask(*streams)
        ours = trusting(authority)
        assert tls.certificate is not None
        ours.load_cert_chain(tls.certificate, tls.key)
        async with connected(server.port, ours) as streams:
            assert (await ask(*streams)).startswith(b"SIP/2.0 200")


async def test_server_name_chooses_the_certificate(authority: Authority) -> None:
    other = authority.issue("sip.other.test")
    named = NamedCertificate(names=("sip.other.test",), certificate=other.certificate, key=other.key)
    async with serving(settings(authority, "pbx.test", certificates=(named,))) as server:
        for name in ("pbx.test", "sip.other.test"):
            async with connected(server.port, trusting(authority), name) as (reader, writer):
                assert shown_names(writer) == [name]
                assert (await ask(reader, writer)).startswith(b"SIP/2.0 200")


async def test_new_certificate_is_for_new_connections_and_a_broken_one_for_none(
    authority: Authority, tmp_path: Path
) -> None:
    tls = settings(authority, "pbx.test")
    fresh = settings(Authority(tmp_path, "Next"), "next.test", client_certificate=ClientCertificate.OPTIONAL)
    async with serving(tls) as server, connected(server.port, trusting(authority)) as (reader, writer):
        assert (await ask(reader, writer)).startswith(b"SIP/2.0 200")
        server.certificates.replace(fresh)
        assert (await ask(reader, writer)).startswith(b"SIP/2.0 200")  # goes on
        following = ssl.create_default_context(cafile=str(fresh.ca))
        async with connected(server.port, following, "next.test") as (_, other):
            assert shown_names(other) == ["next.test"]
        # The roots are new, too.
        assert fresh.certificate is not None
        following.load_cert_chain(fresh.certificate, fresh.key)
        async with connected(server.port, following, "next.test") as streams:
            assert (await ask(*streams)).startswith(b"SIP/2.0 200")
        assert tls.certificate is not None
        tls.certificate.write_text("-----BEGIN CERTIFICATE-----\n")
        with pytest.raises(TlsError, match=r"pbx\.test"):
            server.certificates.replace(tls)
        async with connected(server.port, following, "next.test") as (_, other):
            assert shown_names(other) == ["next.test"]


@pytest.mark.parametrize(("name", "taken"), [("127.0.0.1", True), ("other.test", False)])
async def test_alias_counts_for_the_name_in_the_certificate(authority: Authority, name: str, *, taken: bool) -> None:
    tls = settings(authority, "127.0.0.1", client_certificate=ClientCertificate.OPTIONAL)
    files = authority.issue(name, file="peer")
    context = trusting(authority)
    context.load_cert_chain(files.certificate, files.key)
    async with serving(tls) as server, connected(server.port, context, HOST) as (reader, writer):
        writer.write(options(4321).replace(b";branch", b";alias;branch"))
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
        server.call(f"sips:1@{HOST}:4321")
        if taken:
            async with asyncio.timeout(5):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"INVITE sips:1@127.0.0.1:4321")
        else:
            assert (await server.inbox.wait(SessionEnded)).reason is EndReason.UNREACHABLE


async def test_handshake_that_does_not_end_is_cut_and_counts_for_its_address(authority: Authority) -> None:
    limits = ConnectionLimits(handshake_s=0.2, per_address=1)
    server = Server(settings(authority, "pbx.test"), limits)
    server.endpoint.policy = AccessPolicy([], {}, verifier_for("x"))
    await server.start()
    try:
        loop = asyncio.get_running_loop()
        with socket.socket() as first, socket.socket() as second:
            for sock in (first, second):
                sock.setblocking(False)
                await loop.sock_connect(sock, (HOST, server.port))
            async with asyncio.timeout(5):
                assert await loop.sock_recv(second, 10) == b""  # one too many
                assert await loop.sock_recv(first, 10) == b""
        assert server.transport.counters["sip_connections_refused_total"] == 1
        assert server.transport.counters["sip_handshakes_failed_total"] == 1
        async with connected(server.port, trusting(authority)) as streams:
            assert (await ask(*streams)).startswith(b"SIP/2.0 200")
    finally:
        await server.transport.close()


async def test_plain_bytes_on_the_tls_port_disturb_nobody(authority: Authority) -> None:
    async with serving(settings(authority, "pbx.test")) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(options())
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with connected(server.port, trusting(authority)) as streams:
            assert (await ask(*streams)).startswith(b"SIP/2.0 200")


def test_the_same_on_uvloop(authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def all_of_it() -> None:
        await test_call_over_tls_both_sides_verified(authority, "sips:500@127.0.0.1:{}")
        await test_server_with_another_name_or_root_is_refused(authority, tmp_path, caplog)
        await test_new_certificate_is_for_new_connections_and_a_broken_one_for_none(authority, tmp_path)
        await test_handshake_that_does_not_end_is_cut_and_counts_for_its_address(authority)
        await test_plain_bytes_on_the_tls_port_disturb_nobody(authority)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions(authority: Authority, version: ssl.TLSVersion) -> None:
    async with serving(settings(authority, "pbx.test")) as server:
        context = trusting(authority)
        context.minimum_version = context.maximum_version = version
        async with connected(server.port, context) as (reader, writer):
            assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
            assert (await ask(reader, writer)).startswith(b"SIP/2.0 200")
