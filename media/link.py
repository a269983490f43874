"""The worker's end of the engine connection: one Unix socket, one engine at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from media import protocol
from media.framing import FrameError, Frames, frame
from media.loop import Loop
from media.protocol import EVENT_BACKLOG, VERSION, Command, Event, Hello, KeptCall

log = logging.getLogger("murima.media.link")

_MAX_PATH: Final = 107  # bytes; the kernel's limit with its closing zero is 108
_MAX_OUTBOX: Final = 32 << 20  # an engine that reads nothing for so long is dead
_MAX_WAITING: Final = 4  # connections that have not said Hello
_READ: Final = 1 << 18
_decoder = msgspec.msgpack.Decoder(Command)


class LinkError(Exception):
    """The socket can't be offered; the text says why."""


def listen(path: str) -> socket.socket:
    """Listen on a Unix socket that only our user may use; a dead worker's socket is replaced.

    Raises:
        LinkError: the path is too long, taken by a living worker or by another file, or not writable.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise LinkError(f"socket path is longer than {_MAX_PATH} bytes: {path}")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            server.bind(path)
        finally:
            os.umask(mask)
        server.listen(8)
    except OSError as exc:
        server.close()
        raise LinkError(f"{path}: {exc}") from exc
    except LinkError:
        server.close()
        raise
    return server


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise LinkError(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
                return
        raise LinkError(f"{path} belongs to a running worker")


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames = Frames()
        self.outbox = bytearray()
        self.writing = False  # the loop tells when more can be written


class Link:
    """Commands in, events out. While no engine is connected, events wait within bounds."""

    def __init__(
        self,
        loop: Loop,
        server: socket.socket,
        name: str,
        *,
        on_engine: Callable[[float], list[KeptCall]],
        on_engine_gone: Callable[[float], None],
        on_command: Callable[[Command, float], None],
    ) -> None:
        self._loop = loop
        self._server = server
        self._name = name
        self._on_engine = on_engine
        self._on_engine_gone = on_engine_gone
        self._on_command = on_command
        self._engine: _Connection | None = None
        self._waiting: list[_Connection] = []
        self._backlog: deque[bytes] = deque(maxlen=EVENT_BACKLOG)
        self.events_dropped = 0
        loop.watch(server.fileno(), self._on_accept)

    @property
    def connected(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    def emit(self, event: Event) -> None:
        """Send an event to the engine, at the end of this round, or keep it for the next engine."""
        data = frame(event)
        engine = self._engine
        if engine is not None:
            engine.outbox += data
            return
        self.events_dropped += len(self._backlog) == EVENT_BACKLOG
        self._backlog.append(data)

    def flush(self, now: float) -> None:
        """Write what was emitted in this round."""
        engine = self._engine
        if engine is not None and engine.outbox:
            self._write(engine, now)

    def _on_accept(self, _now: float) -> None:
        try:
            sock, _ = self._server.accept()
        except OSError:
            return
        sock.settimeout(0)
        connection = _Connection(sock)
        self._waiting.append(connection)
        if len(self._waiting) > _MAX_WAITING:
            self._close(self._waiting.pop(0))
        self._loop.watch(sock.fileno(), lambda now: self._on_readable(connection, now))

    def _on_readable(self, connection: _Connection, now: float) -> None:
        if connection.outbox:
            self._write(connection, now)
        try:
            data = connection.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection, now, "closed")
            return
        try:
            for body in connection.frames.feed(data):
                if connection.sock.fileno() < 0:
                    return
                self._on_frame(connection, _decoder.decode(body), now)
        except (FrameError, msgspec.DecodeError) as exc:
            self._drop(connection, now, f"malformed: {exc}")

    def _on_frame(self, connection: _Connection, command: Command, now: float) -> None:
        if isinstance(command, Hello):
            self._on_hello(connection, command, now)
        elif connection is self._engine:
            self._on_command(command, now)
        else:
            self._drop(connection, now, "no Hello")

    def _on_hello(self, connection: _Connection, hello: Hello, now: float) -> None:
        if hello.version != VERSION:
            reason = f"this worker speaks version {VERSION} of the protocol, not {hello.version}"
            with contextlib.suppress(OSError):
                connection.sock.send(frame(protocol.Refused(reason)))
            self._drop(connection, now, reason)
            return
        if connection is self._engine:
            return
        if self._engine is not None:
            self._drop(self._engine, now, "replaced by a newer engine")
        self._waiting.remove(connection)
        groups = _groups(self._on_engine(now))
        self._engine = connection
        log.info("media.engine_connected", extra={"engine": hello.engine, "calls": sum(map(len, groups))})
        self.emit(protocol.Welcome(VERSION, self._name, os.getpid(), groups[0], len(groups) - 1))
        for group in groups[1:]:
            self.emit(protocol.KeptCalls(group))
        for data in self._backlog:
            connection.outbox += data
        self._backlog.clear()
        self._write(connection, now)

    def _write(self, connection: _Connection, now: float) -> None:
        outbox = connection.outbox
        try:
            sent = connection.sock.send(outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection, now, "closed")
            return
        del outbox[:sent]
        if len(outbox) > _MAX_OUTBOX:
            self._drop(connection, now, "reads nothing")
            return
        if connection.writing is not bool(outbox):
            connection.writing = bool(outbox)
            self._loop.watch(
                connection.sock.fileno(), lambda at: self._on_readable(connection, at), write=connection.writing
            )

    def _drop(self, connection: _Connection, now: float, reason: str) -> None:
        if connection is self._engine:
            self._engine = None
            log.warning("media.engine_gone", extra={"reason": reason})
            self._on_engine_gone(now)
        elif connection in self._waiting:
            self._waiting.remove(connection)
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if connection.sock.fileno() >= 0:
            self._loop.forget(connection.sock.fileno())
            connection.sock.close()

    def close(self, path: str, timeout_s: float = 2.0) -> None:
        """Write what is left to the engine, then stop listening and remove the socket."""
        engine = self._engine
        if engine is not None:
            engine.sock.settimeout(timeout_s)
            with contextlib.suppress(OSError):
                engine.sock.sendall(engine.outbox)
            self._drop(engine, time.monotonic(), "worker ends")
        for connection in self._waiting:
            self._close(connection)
        self._loop.forget(self._server.fileno())
        self._server.close()
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _groups(calls: list[KeptCall]) -> list[list[KeptCall]]:
    """Cut into lists that each fit into a frame; at least one."""
    groups: list[list[KeptCall]] = [[]]
    size = 0
    for call in calls:
        cost = len(msgspec.msgpack.encode(call))
        if groups[-1] and size + cost > protocol.MAX_FRAME // 2:
            groups.append([])
            size = 0
        groups[-1].append(call)
        size += cost
    return groups
