"""A WebSocket that speaks SIP (RFC 7118): one message a frame, opened by the client alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.sip.syntax.message import MAX_MESSAGE
from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.connections import Connections
from adapters.sip.transports.stream import PING, PONG


class WebSocketLink:
    """One WebSocket of the HTTP server.

    Args:
        table: where it is kept; `admit` has counted it.
        transport: "ws" or "wss".
        index: number of the listener, for flows.
        peer: address and port of the client.
        send: puts one message into a frame.
        close: ends the WebSocket.
    """

    def __init__(
        self,
        table: Connections,
        transport: str,
        index: int,
        peer: tuple[str, int],
        send: Callable[[bytes], None],
        close: Callable[[], None],
    ) -> None:
        self.transport = transport
        self.peer = peer
        self._table = table
        self._send = send
        self._close = close
        self._open = True
        self._admitted = True
        self._silent: asyncio.TimerHandle | None = None
        self.number = table.add(self)
        self._flow = Flow(transport, index, *peer, self.number)
        if self.number == 0:
            self._end()
        else:
            loop = asyncio.get_running_loop()
            self._silent = loop.call_later(table.limits.silent_s, self._on_silent)

    @property
    def keys(self) -> list[tuple[str, str, int, str]]:
        return []  # nobody connects to a browser: it is found by number alone

    @property
    def usable(self) -> bool:
        return self._open

    def on_message(self, data: bytes) -> None:
        """One frame."""
        if not data.strip(b"\r\n"):
            if data == PING:
                self.write(PONG)
            return
        if len(data) > MAX_MESSAGE:
            self._table.owner.counters["sip_streams_broken_total"] += 1
            self.close()
            return
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        self._table.owner.on_message(data, self._flow)

    def on_close(self) -> None:
        """It has ended, for whatever reason."""
        self._end()

    def vouch(self, silence_s: float | None) -> None:
        """See `Connection.vouch`; the pings of the HTTP server tell when the peer has vanished."""
        del silence_s
        self._release()

    def certified(self, name: str) -> bool:
        """Browsers show no certificates."""
        del name
        return False

    def write(self, data: bytes) -> None:
        if self._open:
            self._send(data)

    def close(self) -> None:
        if self._open:
            self._close()
            self._end()

    def _on_silent(self) -> None:
        self._table.owner.counters["sip_connections_idle_total"] += 1
        self.close()

    def _end(self) -> None:
        self._open = False
        if self._silent is not None:
            self._silent.cancel()
        self._release()
        self._table.drop(self)

    def _release(self) -> None:
        if self._admitted:
            self._admitted = False
            self._table.release(self.peer[0])
