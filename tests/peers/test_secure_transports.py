"""`murima serve` over TLS, HTTPS and SIP over WebSockets, with clients that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adapters.sip.protection.digest import Challenge, answer_challenge
from adapters.sip.syntax.message import Message, Request, Response, parse_message
from tests.certificates import Authority
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess
from tests.ports import free_port, loopback_address

REALM = "pbx.local"


def config(address: str, files: dict[str, str], **sip: Any) -> dict[str, Any]:
    port = free_port(address, span=2)
    return {
        "domain": REALM,
        "sip": {
            "listen": [f"udp:{address}:{port}", f"tcp:{address}:{port}", f"tls:{address}:{port + 1}"],
            "tls": {**files, "ca": "test-root.pem"},
            **sip,
        },
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [
            {"id": "a0001", "password": "secret", "auto_ready": True},
            {"id": "a0002", "password": "secret", "auto_ready": True},
        ],
        "numbers": {"600": {"answer": "silence"}, "~7(\\d{4})": {"agent": "a\\1"}},
    }


class WebPhone:
    """SIP over a WebSocket, by hand: what JsSIP puts on the wire."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, user: str) -> None:
        self.user = user
        self.contact = f"<sip:{user}@{secrets.token_hex(4)}.invalid;transport=ws>"
        self.instance = f'"<urn:uuid:{secrets.token_hex(8)}>"'
        self._ws = ws
        self._cseq = 0

    async def read(self) -> Message:
        async with asyncio.timeout(10):
            message = await self._ws.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return parse_message(message.data.encode())

    async def send(self, message: Request | Response) -> None:
        await self._ws.send_str(message.serialise().decode())

    def request(self, method: str, to: str) -> Request:
        self._cseq += 1
        request = Request.build(
            method,
            f"sip:{REALM}" if method == "REGISTER" else to,
            via=f"SIP/2.0/WSS x.invalid;branch=z9hG4bK{secrets.token_hex(8)}",
            from_=f"<sip:{self.user}@{REALM}>;tag={secrets.token_hex(4)}",
            to=f"<{to}>",
            call_id=secrets.token_hex(8),
            cseq=self._cseq,
        )
        request.set("contact", self.contact)
        request.set("supported", "path, outbound")
        return request

    async def register(self) -> Response:
        request = self.request("REGISTER", f"sip:{self.user}@{REALM}")
        request.set("contact", f"{self.contact};reg-id=1;+sip.instance={self.instance};expires=300")
        await self.send(request)
        challenged = await self.read()
        assert isinstance(challenged, Response)
        assert challenged.status == 401
        value = answer_challenge(
            [Challenge.parse(text) for text in challenged.get_all("www-authenticate")],
            method="REGISTER",
            uri=request.uri,
            username=self.user,
            password="secret",
            ha1s=None,
            body=b"",
            cnonce=secrets.token_hex(8),
        )
        assert value is not None
        request.set("authorization", value)
        request.set("cseq", f"{self._cseq + 1} REGISTER")
        self._cseq += 1
        request.set("via", f"SIP/2.0/WSS x.invalid;branch=z9hG4bK{secrets.token_hex(8)}")
        await self.send(request)
        answer = await self.read()
        assert isinstance(answer, Response)
        return answer


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "test-root.pem"))


@asynccontextmanager
async def web_phone(murima: MurimaProcess, user: str, tls: ssl.SSLContext) -> AsyncIterator[WebPhone]:
    url = f"wss://{murima.address}:{murima.http_port}/sip"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, protocols=["sip"], ssl=tls) as ws:
        assert ws.protocol == "sip"
        yield WebPhone(ws, user)


async def reachable(murima: MurimaProcess, agent: str, *, expected: bool) -> None:
    state = "ready" if expected else "offline"
    await murima.until(f"/api/v1/agents/{agent}", lambda answer: answer["data"]["state"] == state)


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[MurimaProcess]:
    """A murima with HTTPS and TLS, and a root that its certificate is from."""
    address = loopback_address()
    folder = tmp_path / "murima"
    folder.mkdir()
    Authority(folder).issue(address, "pbx.local", file="cert")
    files = {"certificate": "cert.pem", "key": "cert.key"}
    document = config(address, files)
    document["http"] = {"tls": files}
    async with MurimaProcess(document, folder, address=address, tls=trusting(folder)) as murima:
        await murima.login()
        yield murima


async def test_web_phone_is_called_over_its_websocket_and_gone_when_it_closes(
    secure: MurimaProcess, tmp_path: Path
) -> None:
    tls = trusting(secure.folder)
    async with web_phone(secure, "a0001", tls) as callee:
        answer = await callee.register()
        assert answer.status == 200
        assert answer.get("require") == "outbound"
        assert "reg-id=1" in (answer.get("contact") or "")
        await reachable(secure, "a0001", expected=True)
        async with Baresip(
            tmp_path / "baresip",
            "a0002",
            address=loopback_address(),
            domain=REALM,
            proxy=f"{secure.address}:{_tls_port(secure)}",
            password="secret",
            register=True,
            transport="tls",
            ca=secure.folder / "test-root.pem",
        ) as caller:
            await caller.dial("70001")
            invite = await callee.read()
            assert isinstance(invite, Request)
            assert invite.method == "INVITE"
            assert invite.uri == callee.contact.strip("<>")
            assert invite.top_via.transport == "WSS"
            assert "transport=ws" in (invite.get("contact") or "")
            busy = Response(486, "Busy Here", {k: list(invite.headers[k]) for k in ("via", "from", "call-id", "cseq")})
            busy.set("to", f"{invite.headers['to'][0]};tag=b")
            await callee.send(busy)
            ack = await callee.read()
            assert isinstance(ack, Request)
            assert ack.method == "ACK"
            await caller.expect("call_closed")
    await reachable(secure, "a0001", expected=False)


def _tls_port(murima: MurimaProcess) -> int:
    found = re.search(r"tls:[0-9.]+:([0-9]+)", murima.config_file.read_text())
    assert found is not None
    return int(found[1])


async def test_websocket_wants_its_subprotocol_and_a_known_origin(secure: MurimaProcess) -> None:
    url = f"wss://{secure.address}:{secure.http_port}/sip"
    async with aiohttp.ClientSession() as http:
        for headers, protocols, status in (
            ({}, (), 400),
            ({}, ("chat",), 400),
            ({"Origin": "https://evil.example"}, ("sip",), 403),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(url, protocols=protocols, ssl=trusting(secure.folder), headers=headers)
            assert caught.value.status == status


async def reloaded(murima: MurimaProcess, outcome: str) -> None:
    before = murima.log().count(outcome)
    murima.reload()
    async with asyncio.timeout(20):
        while murima.log().count(outcome) == before:  # noqa: ASYNC110 - a log can only be read
            await asyncio.sleep(0.05)


async def test_certificate_is_renewed_without_a_restart(secure: MurimaProcess) -> None:
    tls = trusting(secure.folder)
    port = _tls_port(secure)

    async def serial(at: int) -> str:
        _, writer = await asyncio.open_connection(secure.address, at, ssl=tls, server_hostname=secure.address)
        certificate = writer.get_extra_info("peercert")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return str(certificate["serialNumber"])

    before = await serial(port)
    assert await serial(secure.http_port) == before
    async with web_phone(secure, "a0001", tls) as phone:
        fresh = Authority(secure.folder, "Next Root")
        fresh.issue(secure.address, file="cert")
        tls.load_verify_locations(fresh.root)
        await reloaded(secure, "config.activated")
        after = await serial(port)
        assert after != before
        assert await serial(secure.http_port) == after
        assert (await phone.register()).status == 200  # its connection went on
        (secure.folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n")
        await reloaded(secure, "config.refused")
        assert "sip.tls" in secure.log()
        assert await serial(port) == after


async def test_openssl_gets_an_answer(secure: MurimaProcess) -> None:
    options = Request.build(
        "OPTIONS",
        f"sip:{REALM}",
        via="SIP/2.0/TLS 127.0.0.1;branch=z9hG4bKopenssl",
        from_="<sip:x@x>;tag=1",
        to=f"<sip:{REALM}>",
        call_id="openssl",
        cseq=1,
    )
    process = await asyncio.create_subprocess_exec(
        "openssl",
        *("s_client", "-quiet", "-verify_return_error", "-CAfile", str(secure.folder / "test-root.pem")),
        *("-connect", f"{secure.address}:{_tls_port(secure)}", "-servername", "pbx.local", "-no_ign_eof"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(options.serialise())
    async with asyncio.timeout(10):
        answer = await process.stdout.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"SIP/2.0 200")
    process.stdin.close()
    await process.wait()


@pytest.mark.parametrize("client_certificate", ["none", "required"])
async def test_baresip_calls_and_is_called_over_tls(tmp_path: Path, client_certificate: str) -> None:
    address, phones = loopback_address(), loopback_address()
    folder = tmp_path / "murima"
    folder.mkdir()
    authority = Authority(folder)
    authority.issue(address, "pbx.local", file="cert")
    phone = authority.issue(phones, file="phone")
    document = config(address, {"certificate": "cert.pem", "key": "cert.key", "client_certificate": client_certificate})
    async with MurimaProcess(document, folder, address=address) as murima:
        await murima.login()
        common: dict[str, Any] = {
            "domain": REALM,
            "proxy": f"{address}:{_tls_port(murima)}",
            "password": "secret",
            "register": True,
            "transport": "tls",
            "ca": authority.root,
            "certificate": phone if client_certificate == "required" else None,
        }
        async with (
            Baresip(tmp_path / "a", "a0001", address=phones, **common) as called,
            Baresip(tmp_path / "b", "a0002", address=phones, **common) as caller,
        ):
            await caller.dial("70001")
            await called.expect("call_established")
            await caller.expect("call_established")
            await called.hang_up()
            await caller.expect("call_closed")
