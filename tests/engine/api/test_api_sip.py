"""`WS /sip`: what the HTTP server makes of frames, subprotocols, origins and slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import WSMsgType

from engine.api import create_app, serve
from engine.bus import EventBus
from tests.engine.api.fakes import FakeAccounts, FakeOperations, FakeRecords, SteppedClock, settings

MESSAGE = b"OPTIONS sip:x SIP/2.0\r\nSubject: \xc3\xa9\r\n\r\n"


class Peer:
    def __init__(self, send: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.send = send
        self.close = close
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = asyncio.Event()

    def on_message(self, data: bytes) -> None:
        self.messages.put_nowait(data)

    def on_close(self) -> None:
        self.closed.set()


class Gateway:
    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.addresses: list[tuple[str, int]] = []
        self.full = False

    def on_web_socket(
        self, peer: tuple[str, int], send: Callable[[bytes], None], close: Callable[[], None]
    ) -> Peer | None:
        if self.full:
            return None
        self.addresses.append(peer)
        self.peers.append(Peer(send, close))
        return self.peers[-1]


class Rig:
    def __init__(self, gateway: Gateway, port: int, http: aiohttp.ClientSession, server: asyncio.Task[None]) -> None:
        self.gateway = gateway
        self.port = port
        self.server = server
        self._http = http

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, Peer]]:
        async with self._http.ws_connect(f"http://127.0.0.1:{self.port}/sip", protocols=["sip"]) as ws:
            yield ws, self.gateway.peers[-1]

    async def refused(self, *protocols: str, headers: Mapping[str, str] | None = None) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await self._http.ws_connect(
                f"http://127.0.0.1:{self.port}/sip", protocols=protocols, headers=dict(headers or {})
            )
        return caught.value.status


@asynccontextmanager
async def running(**changes: object) -> AsyncIterator[Rig]:
    gateway = Gateway()
    app = create_app(
        FakeOperations(), FakeRecords(), FakeAccounts(), EventBus(), settings(**changes), SteppedClock(), sip=gateway
    )
    sock = socket.create_server(("127.0.0.1", 0))
    server = asyncio.create_task(serve(app, sock))
    async with aiohttp.ClientSession() as http:
        try:
            yield Rig(gateway, sock.getsockname()[1], http, server)
        finally:
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server


async def taken(queue: asyncio.Queue[bytes]) -> bytes:
    async with asyncio.timeout(5):
        return await queue.get()


async def test_frames_go_both_ways_as_text_and_as_bytes() -> None:
    async with running() as rig, rig.open() as (ws, peer):
        assert ws.protocol == "sip"
        assert rig.gateway.addresses[0][0] == "127.0.0.1"
        await ws.send_str(MESSAGE.decode())
        assert await taken(peer.messages) == MESSAGE
        await ws.send_bytes(b"\xff\x00")
        assert await taken(peer.messages) == b"\xff\x00"
        peer.send(MESSAGE)
        peer.send(b"SIP/2.0 200 OK\r\nX: \xff\r\n\r\n")  # Latin-1 from a trunk
        first, second = await ws.receive(5), await ws.receive(5)
        assert (first.type, first.data) == (WSMsgType.TEXT, MESSAGE.decode())
        assert (second.type, second.data[:7]) == (WSMsgType.BINARY, b"SIP/2.0")
        await ws.close()
        async with asyncio.timeout(5):
            await peer.closed.wait()
        peer.send(MESSAGE)  # too late: nothing happens


async def test_who_is_refused() -> None:
    async with running(allowed_origins=("https://desk.example",)) as rig:
        assert await rig.refused() == 400
        assert await rig.refused("mqtt") == 400
        assert await rig.refused("sip", headers={"Origin": "https://evil.example"}) == 403
        rig.gateway.full = True
        assert await rig.refused("sip") == 503
        rig.gateway.full = False
        url = f"http://127.0.0.1:{rig.port}/sip"
        async with aiohttp.ClientSession() as http:
            async with http.get(url) as answer:
                assert answer.status == 400
            for origin in ("https://desk.example", f"http://127.0.0.1:{rig.port}"):
                async with http.ws_connect(url, protocols=["sip"], headers={"Origin": origin}):
                    pass
        assert len(rig.gateway.peers) == 2


async def test_overlong_frame_ends_it() -> None:
    async with running() as rig, rig.open() as (ws, peer):
        await ws.send_bytes(b"x" * 70_000)
        assert (await ws.receive(5)).type is WSMsgType.CLOSE
        assert ws.close_code == 1009
        async with asyncio.timeout(5):
            await peer.closed.wait()


async def test_gateway_and_server_end_it_politely() -> None:
    async with running() as rig:
        async with rig.open() as (ws, peer):
            peer.send(MESSAGE)
            peer.close()
            assert (await ws.receive(5)).type is WSMsgType.TEXT
            assert (await ws.receive(5)).type is WSMsgType.CLOSE
            async with asyncio.timeout(5):
                await peer.closed.wait()
        async with rig.open() as (ws, peer):
            rig.server.cancel()
            assert (await ws.receive(5)).type is WSMsgType.CLOSE
            assert ws.close_code == 1001
            async with asyncio.timeout(5):
                await peer.closed.wait()


async def test_client_that_reads_nothing_is_cut_off() -> None:
    async with running() as rig, rig.open() as (_, peer):
        for _ in range(40):
            peer.send(b"x" * 30_000)  # more than is kept, before the loop had a turn to send
        async with asyncio.timeout(5):
            await peer.closed.wait()


async def test_connection_that_never_asks_is_closed_and_too_many_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.api.server.FIRST_REQUEST_S", 0.2)
    monkeypatch.setattr("engine.api.server.MAX_CONNECTIONS", 2)
    async with running() as rig:
        async with rig.open():
            readers = []
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                writer.write(b"GET /sip HTTP/1.1\r\nX: ")
                readers.append((reader, writer))
            async with asyncio.timeout(5):
                for reader, writer in reversed(readers):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
                    writer.close()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()
        assert await rig.refused() == 400  # there is room again, and the first went on
