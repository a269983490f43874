"""A trunk that we register with calls us by the flow of the registration: it is kept, and made again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import pytest

from adapters.native.settings import RegistrationSettings, TrunkSettings
from adapters.sip.protection.login import Login
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.transports import transport as subject
from tests.native_rig import make_rig, settings, udp_socket

HOST = "127.0.0.1"


def carrier(gateway: str) -> TrunkSettings:
    registration = RegistrationSettings(Login("4930", "secret"), "line-1")
    return TrunkSettings(
        "carrier", (), by_address=False, by_line=True, gateways=(gateway,), priorities=(1,), registration=registration
    )


def accepted(register: Request) -> bytes:
    answer = Response(200, "OK", {name: list(register.headers[name]) for name in ("via", "from", "call-id", "cseq")})
    answer.set("to", f"{register.headers['to'][0]};tag=c")
    answer.set("contact", f"{register.headers['contact'][0]};expires=3600")
    return answer.serialise()


async def test_registration_is_renewed_when_its_connection_breaks(tmp_path: Path) -> None:
    registers: asyncio.Queue[tuple[Request, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = parse_message(await reader.readuntil(b"\r\n\r\n"))
                assert isinstance(request, Request)
                writer.write(accepted(request))
                registers.put_nowait((request, writer))
        writer.close()

    listener = await asyncio.start_server(accept, HOST, 0)
    gateway = f"sip:{HOST}:{listener.sockets[0].getsockname()[1]};transport=tcp"
    async with make_rig(settings(tmp_path), tcp=True) as rig:
        rig.telephony.reconfigure(dataclasses.replace(settings(tmp_path), trunks=(carrier(gateway),)))
        rig.telephony.trunks.start()
        async with asyncio.timeout(10):
            first, writer = await registers.get()
            assert first.method == "REGISTER"
            writer.transport.abort()
            second, _ = await registers.get()
            assert second.call_id == first.call_id
            assert second.cseq.number > first.cseq.number
        rig.telephony.trunks.stop()
    listener.close()


async def test_udp_flow_of_a_registration_is_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_UDP_PING_FIRST_S", 0.02)
    monkeypatch.setattr(subject, "_UDP_PING_LAST_S", 0.03)
    loop = asyncio.get_running_loop()
    with udp_socket() as sock:
        sock.setblocking(False)
        gateway = f"sip:{HOST}:{sock.getsockname()[1]}"
        async with make_rig(settings(tmp_path)) as rig, asyncio.timeout(10):
            rig.telephony.reconfigure(dataclasses.replace(settings(tmp_path), trunks=(carrier(gateway),)))
            rig.telephony.trunks.start()
            data, peer = await loop.sock_recvfrom(sock, 65536)
            register = parse_message(data)
            assert isinstance(register, Request)
            await loop.sock_sendto(sock, accepted(register), peer)
            for _ in range(3):
                assert await loop.sock_recv(sock, 65536) == b"\r\n\r\n"
            rig.telephony.reconfigure(settings(tmp_path))
            while (data := await loop.sock_recv(sock, 65536)) == b"\r\n\r\n":
                pass
            assert parse_message(data).headers["expires"] == ["0"]
            assert not rig.transport._kept
