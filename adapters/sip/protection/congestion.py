"""Looks at how far behind the event loop and its sockets are, while work arrives."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable

from adapters.sip.protection.overload import Admission, Load

INTERVAL_S = 0.05

RECEIVE_BUFFER = 4 << 20  # bytes

# Linux; the standard library does not name them.
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_ALLOCATED, _DROPS = 0, 8
_DATAGRAM = 2048  # bytes that the kernel accounts for one, about: 1280 for an ACK, 2304 for an INVITE


class Watch:
    """Samples the load for an `Admission`: nothing runs while nothing arrives.

    The kernel tells how much waits in the receive queue of a UDP socket and how
    many datagrams it had no room for. What waits on connections shows in how late a
    timer fires: the loop reads all of them before it looks at its timers again.

    Args:
        admission: to be told; its `watch` starts the sampling.
        udp: the sockets that SIP is received on.
        handled: how many messages were ever taken in.
    """

    def __init__(self, admission: Admission, udp: Iterable[socket.socket], handled: Callable[[], int]) -> None:
        self._admission = admission
        self._handled = handled
        self._handled_before = 0
        self._looked_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._sockets = [(sock, self._drops(sock)) for sock in udp]
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None
        admission.watch = self._begin

    def close(self) -> None:
        """Stop sampling."""
        if self._handle is not None:
            self._handle.cancel()

    def _begin(self) -> None:
        self._handled_before, self._looked_at = self._handled(), self._loop.time()
        self._arm()

    def _arm(self) -> None:
        self._due = self._loop.time() + INTERVAL_S
        self._handle = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._handle = None
        now = self._loop.time()
        waiting, dropped = 0.0, 0
        for index, (sock, before) in enumerate(self._sockets):
            state = memory(sock)
            if state is not None:
                waiting += state[0] / _DATAGRAM
                dropped += state[1] - before & 0xFFFF_FFFF
                self._sockets[index] = (sock, state[1])
        handled = self._handled()
        pace = max(1, handled - self._handled_before) / max(0.001, now - self._looked_at)
        self._handled_before, self._looked_at = handled, now
        if self._admission.observe(Load(max(0.0, now - self._due), waiting / pace, dropped), now):
            self._arm()

    @staticmethod
    def _drops(sock: socket.socket) -> int:
        state = memory(sock)
        return 0 if state is None else state[1]


def widen(sock: socket.socket) -> None:
    """Let some thousand datagrams wait, as far as the system permits.

    The usual buffer holds 90: a hundred calls at once would lose some, and a
    flood would lose what belongs to calls in progress before it is noticed.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:  # for the privileged; others get what net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def memory(sock: socket.socket) -> tuple[int, int] | None:
    """Bytes of kernel memory that wait to be read from a socket, and how many datagrams were ever dropped.

    None where the system does not tell.
    """
    try:
        fields = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    except (OSError, struct.error):
        return None
    return fields[_ALLOCATED], fields[_DROPS]
