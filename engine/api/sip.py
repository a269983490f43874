"""SIP over WebSocket (RFC 7118): `WS /sip`, one message a frame.

What the messages mean is the gateway's affair. A client names the subprotocol
`sip`; a page must come from here or from an allowed origin. Passwords travel in
SIP itself (digest).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from engine.api.errors import ApiError
from engine.api.origin import check_origin, client_address
from engine.api.routes import Asked, Auth, Route
from engine.api.settings import ApiSettings

SUBPROTOCOL = "sip"
MAX_FRAME = 65_536  # bytes: the longest SIP message that the stack takes, with room to refuse a longer one properly
MAX_UNSENT = 1 << 20  # bytes; a client that reads nothing while so much waits is cut off


class SipPeer(Protocol):
    """One open WebSocket, as the gateway sees it."""

    def on_message(self, data: bytes) -> None:
        """A frame."""

    def on_close(self) -> None:
        """It has ended."""


class SipGateway(Protocol):
    """Whoever speaks SIP."""

    def on_web_socket(
        self, peer: tuple[str, int], send: Callable[[bytes], None], close: Callable[[], None]
    ) -> SipPeer | None:
        """A client has come.

        Args:
            peer: its address and port.
            send: puts one message into a frame, at once; without effect once it has ended.
            close: ends the WebSocket.

        Returns:
            None if it is not wanted: there are too many.
        """


class SipRoutes:
    """Joins WebSockets to the gateway."""

    def __init__(self, gateway: SipGateway, settings: ApiSettings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._sockets: set[_Socket] = set()
        self._closing = False

    def close(self) -> None:
        """Close every WebSocket with 1001 (going away)."""
        self._closing = True
        for socket in self._sockets:
            socket.close()

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/sip",
                self.open,
                "WebSocket: SIP, subprotocol `sip` (RFC 7118)",
                "sip",
                None,
                auth=Auth.NONE,
                media_type="message/sip",
                errors=(400, 403, 503),
                status=101,
            ),
        )

    async def open(self, asked: Asked) -> web.StreamResponse:
        request = asked.request
        check_origin(request, self._settings)
        ws = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            heartbeat=self._settings.heartbeat_s,
            max_msg_size=MAX_FRAME,
            compress=False,
            timeout=2.0,
        )
        ready = ws.can_prepare(request)
        if not ready:
            raise ApiError(400, "This is a WebSocket; ask for the upgrade.")
        if ready.protocol != SUBPROTOCOL:
            raise ApiError(400, "This WebSocket speaks SIP; ask for the subprotocol sip.")
        socket = _Socket(ws, request)
        address = client_address(request, self._settings)
        peer = None if self._closing else self._gateway.on_web_socket(socket.port(address), socket.send, socket.close)
        if peer is None:
            raise ApiError(503, "Too many connections are open.", headers={"Retry-After": "10"})
        self._sockets.add(socket)
        try:
            await socket.serve(peer)
        finally:
            self._sockets.discard(socket)
            peer.on_close()
        return ws


class _Socket:
    """One WebSocket and what waits to be sent on it."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request) -> None:
        self._ws = ws
        self._request = request
        self._waiting: deque[bytes] = deque()
        self._unsent = 0
        self._ended = False
        self._wake = asyncio.Event()

    def port(self, address: str) -> tuple[str, int]:
        """The peer, at the address that it is known by."""
        transport = self._request.transport
        peername = None if transport is None else transport.get_extra_info("peername")
        return address, int(peername[1]) if peername else 0

    def send(self, data: bytes) -> None:
        if self._ended:
            return
        self._unsent += len(data)
        if self._unsent > MAX_UNSENT:
            self._ended = True
            if self._request.transport is not None:
                self._request.transport.abort()
            return
        self._waiting.append(data)
        self._wake.set()

    def close(self) -> None:
        self._ended = True
        self._wake.set()

    async def serve(self, peer: SipPeer) -> None:
        await self._ws.prepare(self._request)
        writer = asyncio.create_task(self._write())
        try:
            await self._read(peer)
        finally:
            self._ended = True
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    async def _read(self, peer: SipPeer) -> None:
        while True:
            message = await self._ws.receive()
            if message.type is WSMsgType.TEXT:
                peer.on_message(message.data.encode())
            elif message.type is WSMsgType.BINARY:
                peer.on_message(message.data)
            else:  # closed, or broken
                return

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._send(data)
                    self._unsent -= len(data)
            except ConnectionError:
                return
            if self._ended:
                await self._ws.close(code=WSCloseCode.GOING_AWAY)
                return

    async def _send(self, data: bytes) -> None:
        """Text as browsers expect it; binary for what is no UTF-8 (RFC 7118 4.2)."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            await self._ws.send_bytes(data)
        else:
            await self._ws.send_str(text)
