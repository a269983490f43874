"""The sockets of one leg: RTP from the peer, RTP from strangers, RTCP.

Two sockets share the RTP port. One is connected to the peer: the kernel hands it
only the peer's packets and keeps the route, which makes sending and receiving
cheaper than with addresses. The other, unconnected, gets everybody else's packets,
so that a wrong source is counted and a phone that moved can be followed.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from media.latch import Address

_EXPEDITED: Final = 0xB8  # DSCP EF, for RTP and RTCP
_BUFFER_BYTES: Final = 65536  # about two seconds of audio; more would only be played late


class EndpointError(Exception):
    """A socket could not be opened, bound or connected."""


def is_numeric(address: str) -> bool:
    """Whether this is an IP address: names are never looked up here, a look-up would block."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            return True
    return False


class Endpoint:
    """An RTP port with its RTCP port above it, bound for one leg.

    Raises:
        EndpointError: a port is in use, or there are no more descriptors.
    """

    __slots__ = ("_address", "_family", "peer", "port", "rtcp", "strangers")

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.port = port
        self.peer: socket.socket | None = None
        opened: list[socket.socket] = []
        try:
            self.strangers = self._bind(port, opened)
            self.rtcp = self._bind(port + 1, opened)
        except (OSError, OverflowError) as exc:
            for each in opened:
                each.close()
            raise EndpointError(str(exc)) from exc

    def _bind(self, port: int, opened: list[socket.socket], *, shared: bool = False) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        opened.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        if self._family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _EXPEDITED)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _EXPEDITED)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self._address, port))
        return sock

    def connect(self, address: Address) -> bool:
        """Make `address` the peer, now or instead of an earlier one; True when `peer` is a new socket.

        Raises:
            EndpointError: there is no route to it.
        """
        try:
            if self.peer is not None:
                self.peer.connect(address)
                return False
            self.peer = self._open_peer(address)
        except (OSError, OverflowError) as exc:
            raise EndpointError(str(exc)) from exc
        return True

    def _open_peer(self, address: Address) -> socket.socket:
        opened: list[socket.socket] = []
        try:
            # Sharing is allowed for this one moment: at any other, no process can take the port.
            self.strangers.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            peer = self._bind(self.port, opened, shared=True)
            peer.connect(address)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except (OSError, OverflowError):
            for each in opened:
                each.close()
            raise
        finally:
            self.strangers.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        # Between bind and connect the socket took anybody's packets: they are not the peer's.
        with contextlib.suppress(OSError):
            for _ in range(64):
                peer.recv(1)
        return peer

    def close(self) -> None:
        """Free the ports."""
        for each in (self.peer, self.strangers, self.rtcp):
            if each is not None:
                each.close()
