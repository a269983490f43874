"""Listening sockets that outlive the engine.

The supervisor binds them once and every engine inherits them, so what arrives
while an engine restarts waits in the kernel. They travel as file descriptors;
the environment variable `MURIMA_LISTENERS` says which is which:
`udp:127.0.0.1:5060=5,tcp:[::1]:5060=6,tls:[::1]:5061=7,http:127.0.0.1:8080=8`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

VARIABLE = "MURIMA_LISTENERS"

_BACKLOG = 1024
# Room for the packets of an engine restart; the kernel gives at most net.core.rmem_max.
_RECEIVE_BUFFER_BYTES = 4 << 20
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, never bound unasked


class ListenerError(Exception):
    """A listener cannot be bound or inherited; `str()` is a sentence for the operator."""


class Kind(StrEnum):
    """What is spoken on a listener: SIP over UDP, TCP or TLS, or HTTP."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to listen on. `host` is an IP address, without brackets."""

    kind: Kind
    host: str
    port: int

    @property
    def is_datagram(self) -> bool:
        return self.kind is Kind.UDP

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind.value}:{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Listener:
        """The inverse of `str()`.

        Raises:
            ListenerError: the text is not of this form.
        """
        kind, _, endpoint = text.partition(":")
        host, _, port = endpoint.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            listener = cls(Kind(kind), host, int(port))
            ipaddress.ip_address(host)
        except ValueError:
            raise ListenerError(f"{text!r} is not a listener") from None
        return listener


def bind(listener: Listener) -> socket.socket:
    """Bind one listener (and listen, on TCP); non-blocking, not inheritable.

    Raises:
        ListenerError: naming the address, the port and, where the system tells, who holds it.
    """
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM if listener.is_datagram else socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # leaves the IPv4 port to its own listener
        if listener.is_datagram:
            # No SO_REUSEADDR: on UDP it would let a second program take our packets.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not block us
        sock.bind((listener.host, listener.port))
        if not listener.is_datagram:
            sock.listen(_BACKLOG)
        sock.settimeout(0)
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise ListenerError(_bind_failed(listener, exc)) from None
    return sock


def bind_all(listeners: Iterable[Listener]) -> dict[Listener, socket.socket]:
    """Bind every listener, or none.

    Raises:
        ListenerError: one line for each that cannot be bound.
    """
    bound: dict[Listener, socket.socket] = {}
    problems: list[str] = []
    for listener in listeners:
        try:
            bound[listener] = bind(listener)
        except ListenerError as exc:
            problems.append(str(exc))
    if problems:
        for sock in bound.values():
            sock.close()
        raise ListenerError("\n".join(problems))
    return bound


def environment(bound: Mapping[Listener, socket.socket]) -> dict[str, str]:
    """The variable that tells a child about inherited descriptors (pass their numbers on, too)."""
    return {VARIABLE: ",".join(f"{listener}={sock.fileno()}" for listener, sock in bound.items())}


def inherited(environ: Mapping[str, str]) -> dict[Listener, socket.socket]:
    """Rebuild the sockets that a parent passed on; empty if there are none.

    They are non-blocking, and not inheritable any further.

    Raises:
        ListenerError: the variable is broken, or a descriptor is not the socket it should be.
    """
    text = environ.get(VARIABLE, "")
    result: dict[Listener, socket.socket] = {}
    for entry in text.split(",") if text else ():
        name, _, number = entry.rpartition("=")
        listener = Listener.parse(name)
        try:
            sock = socket.socket(fileno=int(number))
        except (ValueError, OSError) as exc:
            raise ListenerError(f"{VARIABLE}: {entry!r} names no open socket: {exc}") from None
        wanted = socket.SOCK_DGRAM if listener.is_datagram else socket.SOCK_STREAM
        if sock.type != wanted or sock.getsockname()[1] != listener.port:
            sock.detach()
            raise ListenerError(f"{VARIABLE}: descriptor {number} is not {listener}")
        sock.settimeout(0)
        sock.set_inheritable(False)
        result[listener] = sock
    return result


def _bind_failed(listener: Listener, exc: OSError) -> str:
    protocol = "UDP" if listener.is_datagram else "TCP"
    where = f"cannot listen on {listener} ({'HTTP' if listener.kind is Kind.HTTP else 'SIP'}): "
    match exc.errno:
        case errno.EADDRINUSE:
            holders = port_holders(protocol.lower(), listener.host, listener.port)
            by = f" by {', '.join(holders)}" if holders else ""
            return f"{where}{protocol} port {listener.port} is in use{by}; stop that program or choose another port"
        case errno.EADDRNOTAVAIL:
            return f"{where}{listener.host} is not an address of this machine; give one that is, or 0.0.0.0 for all"
        case errno.EACCES | errno.EPERM:
            return f"{where}not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, choose a higher one"
        case errno.EAFNOSUPPORT:
            return f"{where}this machine has no {'IPv6' if ':' in listener.host else 'IPv4'}; choose another address"
        case _:
            return f"{where}{exc.strerror or exc}"


# --- who holds a port ---------------------------------------------------------------------


def port_holders(protocol: str, host: str, port: int) -> Sequence[str]:
    """Name the programs bound to a port, like `sipd (process 4711)`; empty if the system does not tell.

    Args:
        protocol: `udp` or `tcp`.
        host: only sockets that stand in the way of this address count.
        port: the port.
    """
    inodes: set[str] = set()
    for table in (protocol, f"{protocol}6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port_hex = fields[1].rpartition(":")
                listening = protocol == "udp" or fields[3] == "0A"
                if listening and int(port_hex, 16) == port and _overlaps(_address(address), host):
                    inodes.add(f"socket:[{fields[9]}]")
    return _owners(inodes) if inodes else ()


def _address(text: str) -> str:
    """An address of /proc/net: hex in 32-bit words of host byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(socket.htonl(socket.ntohl(word)).to_bytes(4, "little") for word in words)))


def _overlaps(bound: str, wanted: str) -> bool:
    return bound == wanted or bound in _ANY or wanted in _ANY


def _owners(inodes: set[str]) -> Sequence[str]:
    owners: list[str] = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            links = {os.readlink(entry) for entry in os.scandir(process / "fd") if _is_socket(entry.path)}  # noqa: PTH115 - a DirEntry
            if links & inodes:
                owners.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
        except OSError:
            continue  # gone, or another user's
    return owners


def _is_socket(path: str) -> bool:
    with suppress(OSError):
        return os.readlink(path).startswith("socket:")  # noqa: PTH115 - a hot scan over every descriptor
    return False
