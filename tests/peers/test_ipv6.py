"""Calls over IPv6, signalling and audio, by UDP and TCP."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from adapters.sip.dialogs.session import SessionAcked, SessionAnswered, SessionEnded
from adapters.sip.endpoint import Endpoint, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.syntax.sdp import SessionDescription, make_answer, make_offer
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transports.transport import SipTransport
from tests.native_rig import Inbox, new_token, verifier_for
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess

HOST = "::1"
PACKETS = 25


def bound(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.bind((HOST, 0))
    sock.setblocking(False)
    return sock


class Phone:
    """A phone on ::1 with one RTP socket that sends back what it hears."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.transport = SipTransport()
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy([Trunk("any", (ip_network("::/0"),))], {}, verifier_for("x")),
            registrar=None,
            new_token=new_token,
        )
        self.rtp = bound(socket.SOCK_DGRAM)
        self.port = 0

    def offer(self) -> bytes:
        return make_offer(HOST, self.rtp.getsockname()[1], ("PCMU",), session_id=1, version=1).serialise()

    def answer(self, offer: bytes) -> bytes:
        described = SessionDescription.parse(offer)
        return make_answer(described, HOST, self.rtp.getsockname()[1], ("PCMU",), session_id=1, version=1)[
            0
        ].serialise()


@asynccontextmanager
async def phone() -> AsyncIterator[Phone]:
    made = Phone()
    udp = bound(socket.SOCK_DGRAM)
    made.port = udp.getsockname()[1]
    tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tcp.bind((HOST, made.port))
    await made.transport.start(made.endpoint, made.inbox.put, [udp], [tcp])
    try:
        yield made
    finally:
        await made.transport.close()
        made.rtp.close()


def rtp(sequence: int) -> bytes:
    return struct.pack("!BBHII", 0x80, 0, sequence, sequence * 160, 7) + bytes([sequence]) * 160


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_call_between_two_ipv6_phones_with_audio(tmp_path: Path, transport: str) -> None:
    murima = MurimaProcess({}, tmp_path)
    async with phone() as caller, phone() as called:
        port = murima.sip_port
        parameter = ";transport=tcp" if transport == "tcp" else ""
        document: dict[str, Any] = {
            "sip": {
                "listen": [f"udp:[{HOST}]:{port}", f"tcp:[{HOST}]:{port}"],
                "trunks": [{"name": "six", "match": [HOST]}],
            },
            "media": {"address": HOST},
            "agents": [
                {"id": "a0001", "password": "secret", "contact": f"sip:a0001@[{HOST}]:{called.port}{parameter}"}
            ],
            "numbers": {"700": {"agent": "a0001"}},
        }
        murima.write_config(document)
        async with murima:
            session, effects = caller.endpoint.invite(
                SipUri.parse(f"sip:700@[{HOST}]:{port}{parameter}"),
                caller.offer(),
                from_="<sip:1@x>",
                now=caller.transport.clock(),
            )
            assert session is not None
            caller.transport.carry_out(effects)
            incoming = await called.inbox.wait(SessionIncoming)
            invite = incoming.session.request
            assert str(invite.top_via).startswith(f"SIP/2.0/{transport.upper()} [{HOST}]:{port};")
            assert f"@[{HOST}]:{port}" in (invite.get("contact") or "")
            assert b"c=IN IP6 ::1" in invite.body
            answer = called.answer(invite.body)
            called.transport.carry_out(called.endpoint.answer(incoming.session, answer, called.transport.clock()))
            await called.inbox.wait(SessionAcked)
            answered = await caller.inbox.wait(SessionAnswered)
            await hear(caller, called, answered.body)
            assert session.dialog is not None
            assert f"@[{HOST}]:{port}" in session.dialog.target
            caller.transport.carry_out(caller.endpoint.hang_up(session, caller.transport.clock()))
            await called.inbox.wait(SessionEnded)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_baresip_calls_baresip_over_ipv6(tmp_path: Path, transport: str) -> None:
    murima = MurimaProcess({}, tmp_path / "murima")
    port = murima.sip_port
    async with (
        Baresip(tmp_path / "called", "a0001", address=HOST, transport=transport) as called,
        Baresip(tmp_path / "caller", "1", address=HOST, transport=transport) as caller,
    ):
        parameter = ";transport=tcp" if transport == "tcp" else ""
        murima.folder.mkdir()
        murima.write_config(
            {
                "sip": {
                    "listen": [f"udp:[{HOST}]:{port}", f"tcp:[{HOST}]:{port}"],
                    "trunks": [{"name": "six", "match": [HOST]}],
                },
                "media": {"address": HOST},
                "agents": [{"id": "a0001", "password": "secret", "contact": called.uri + parameter}],
                "numbers": {"700": {"agent": "a0001"}},
            }
        )
        async with murima:
            await caller.dial(f"sip:700@[{HOST}]:{port}")  # it adds the account's transport
            await called.expect("call_established")
            await caller.expect("call_established")
            await called.hang_up()
            await caller.expect("call_closed")


async def hear(caller: Phone, called: Phone, answer: bytes) -> None:
    """Audio of the caller reaches the other phone."""
    assert b"c=IN IP6 ::1" in answer
    found = re.search(rb"m=audio (\d+)", answer)
    assert found is not None
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        arrived = asyncio.ensure_future(loop.sock_recv(called.rtp, 2000))
        for sequence in range(1, PACKETS * 40):
            await loop.sock_sendto(caller.rtp, rtp(sequence % 250), (HOST, int(found[1])))
            done, _ = await asyncio.wait({arrived}, timeout=0.02)
            if done:
                break
        assert len(await arrived) == 172
