"""Takes the stream connections of peers and opens ours, TLS included."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import NamedTuple, Protocol

from adapters.sip.transactions.transaction import Flow
from adapters.sip.transports.connections import Connection, Connections, Link

log = logging.getLogger("murima.sip")

_BACKLOG = 1024
_ACCEPT_PAUSE_S = 0.5  # no descriptors left: some will be given back
_WAITING_TO_CONNECT = 1000  # messages for one peer
_FAILURE_LOG_INTERVAL_S = 60.0
_FAILURES_LOGGED = 10  # in that time


class Owner(Protocol):
    """Who wants the connections."""

    counters: Counter[str]

    def accepts(self, address: str) -> bool:
        """Whether a connection from an IP address is to be accepted."""

    def on_unreachable(self, flow: Flow) -> None:
        """What was to be sent to `flow` is lost."""


class _Target(NamedTuple):
    """Where a connection leads, as `Connections.towards` wants it."""

    transport: str
    address: str
    port: int
    domain: str  # what the certificate must be for


class Connector:
    """See the module.

    Args:
        owner: see there.
        table: gets the connections.

    Attributes:
        tls: gives the context for a TLS connection of ours, or raises OSError; None: there are none.
    """

    def __init__(self, owner: Owner, table: Connections) -> None:
        self.tls: Callable[[], ssl.SSLContext] | None = None
        self._owner = owner
        self._table = table
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._connecting: dict[_Target, list[tuple[Flow, bytes]]] = {}
        self._failures: set[_Target] = set()
        self._failures_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        """Listen no more, and give up what is on its way."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._listening:
            sock.close()

    # --- theirs ---------------------------------------------------------------------------

    def listen(self, sock: socket.socket, index: int, context: ssl.SSLContext | None) -> None:
        """Take connections from now on.

        Args:
            sock: bound; it belongs to us from now on.
            index: number of the listener, for flows.
            context: for TLS.
        """
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.listen(_BACKLOG)
        self._listening.append(sock)
        self._spawn(self._accept(sock, index, context))

    async def _accept(self, listener: socket.socket, index: int, context: ssl.SSLContext | None) -> None:
        """Take connections of peers; each is counted before its TLS handshake."""
        transport = "tcp" if context is None else "tls"
        while True:
            try:
                sock, peer = await self._loop.sock_accept(listener)
            except OSError:
                self._owner.counters["sip_accepts_failed_total"] += 1
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            address = str(peer[0])
            if not self._owner.accepts(address) or not self._table.admit(address):
                sock.close()
                continue
            self._spawn(self._take(sock, Connection(self._table, transport, index, admitted=address), context))

    async def _take(self, sock: socket.socket, connection: Connection, context: ssl.SSLContext | None) -> None:
        limit_s = None if context is None else self._table.limits.handshake_s
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, sock, ssl=context, ssl_handshake_timeout=limit_s
            )
        except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
            self._owner.counters["sip_handshakes_failed_total"] += 1
            connection.close()
            sock.close()
            if self._closed:
                raise

    # --- ours -----------------------------------------------------------------------------

    def send(self, flow: Flow, address: str, data: bytes, bind: str | None) -> None:
        """Send over the connection that leads to a peer, opening it if there is none.

        Args:
            flow: names transport, port and domain.
            address: IP address of its host.
            data: one message.
            bind: our address, for a new connection; None: whichever leads there.
        """
        domain = (flow.domain or flow.host) if flow.transport == "tls" else ""
        target = _Target(flow.transport, address, flow.port, domain)
        link = self._table.towards(*target)
        if link is not None:
            self.write(link, flow, data)
            return
        waiting = self._connecting.setdefault(target, [])
        if len(waiting) < _WAITING_TO_CONNECT:
            waiting.append((flow, data))
        if len(waiting) == 1:
            self._spawn(self._open(target, flow.local, bind))

    def write(self, link: Link, flow: Flow, data: bytes) -> None:
        """Send over a connection, and remember for whom."""
        self._table.used(link, flow)
        link.write(data)

    async def _open(self, target: _Target, index: int, bind: str | None) -> None:
        connection = await self._opened(target, index, bind)
        waiting = self._connecting.pop(target)
        if connection is None or not connection.usable:
            self._owner.counters["sip_connects_failed_total"] += 1
            for failed in {flow for flow, _ in waiting}:
                self._owner.on_unreachable(failed)
            return
        for flow, data in waiting:
            self.write(connection, flow, data)

    async def _opened(self, target: _Target, index: int, bind: str | None) -> Connection | None:
        """A connection of ours; None if it cannot be had."""
        connection = Connection(self._table, target.transport, index, domain=target.domain)
        context = None
        try:
            if target.transport == "tls":
                if self.tls is None:
                    return None
                context = self.tls()
            async with asyncio.timeout(self._table.limits.connect_s):
                await self._loop.create_connection(
                    lambda: connection,
                    target.address,
                    target.port,
                    ssl=context,
                    server_hostname=target.domain or None,
                    local_addr=None if bind is None else (bind, 0),
                )
        except (OSError, TimeoutError, ValueError) as exc:
            self._note_failure(target, _reason(exc))
            return None
        if connection.wrong_name:
            self._note_failure(target, f"the certificate is not for {target.domain}")
        return connection

    def _note_failure(self, target: _Target, reason: str) -> None:
        """Tell the operator why a peer cannot be reached: each once a minute, and not too many."""
        now = self._loop.time()
        if now >= self._failures_until:
            self._failures_until = now + _FAILURE_LOG_INTERVAL_S
            self._failures.clear()
        if target in self._failures or len(self._failures) >= _FAILURES_LOGGED:
            return
        self._failures.add(target)
        where = {"transport": target.transport, "host": target.address, "port": target.port, "domain": target.domain}
        log.warning("sip.connect_failed", extra={**where, "reason": reason})

    # --- work -----------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._owner.counters["sip_faults_total"] += 1
            log.error("sip.fault", exc_info=task.exception())


def _reason(exc: Exception) -> str:
    """Why a connection could not be had, for people."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {exc.verify_message}"
    if isinstance(exc, TimeoutError):
        return "no answer"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {(exc.reason or str(exc)).lower().replace('_', ' ')}"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
