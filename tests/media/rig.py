"""A real worker process, a real client, and phones that are sockets."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from media.client import (
    AskStatistics,
    Codec,
    Command,
    Direction,
    Event,
    LegOpened,
    MediaClient,
    OpenLeg,
    SetRemote,
    Welcome,
    WorkerStatistics,
)
from tests.ports import free_port

E = TypeVar("E")
PATIENCE_S = 10.0


class Rtp(NamedTuple):
    marker: bool
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def unpack(data: bytes) -> Rtp:
    first, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
    assert first == 0x80
    return Rtp(bool(second & 0x80), second & 0x7F, sequence, timestamp, ssrc, data[12:])


class Phone:
    """Two UDP sockets (RTP, RTCP) and a stream to send."""

    def __init__(self, address: str = "127.0.0.1", payload_type: int = 0) -> None:
        self.address = address
        self.port = free_port(address, span=2, align=2)
        self.rtp = self._bind(self.port)
        self.rtcp = self._bind(self.port + 1)
        self.payload_type = payload_type
        self.ssrc = 0x1234
        self.sequence = 65530  # soon wraps
        self.timestamp = 0xFFFFFF00
        self.to = ("127.0.0.1", 0)

    def _bind(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((self.address, port))
        return sock

    def send(self, payload: bytes, *, marker: bool = False, payload_type: int | None = None, step: int = 160) -> None:
        kind = self.payload_type if payload_type is None else payload_type
        header = struct.pack("!BBHII", 0x80, kind | (0x80 if marker else 0), self.sequence, self.timestamp, self.ssrc)
        self.rtp.sendto(header + payload, self.to)
        self.sequence = (self.sequence + 1) & 0xFFFF
        self.timestamp = (self.timestamp + step) & 0xFFFFFFFF

    async def receive(self) -> Rtp:
        async with asyncio.timeout(PATIENCE_S):
            return unpack(await asyncio.get_running_loop().sock_recv(self.rtp, 2048))

    async def receive_rtcp(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.get_running_loop().sock_recv(self.rtcp, 2048)

    def close(self) -> None:
        self.rtp.close()
        self.rtcp.close()


class Rig:
    """Drives one worker."""

    def __init__(self, path: str, process: asyncio.subprocess.Process) -> None:
        self.path = path
        self.process = process
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.client = MediaClient(path, self.events.put_nowait, "tests")
        self._phones: list[Phone] = []

    async def connect(self) -> Welcome:
        """Connect (again): a new engine."""
        self.events = asyncio.Queue()
        self.client = MediaClient(self.path, self.events.put_nowait, "tests")
        return await self.client.connect()

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.client.send(command)

    async def event(self, kind: type[E]) -> E:
        """The next event, which is of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            event = await self.events.get()
        assert isinstance(event, kind), event
        return event

    async def wait_for(self, kind: type[E]) -> E:
        """The next event of this kind, passing over others."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self.events.get()
                if isinstance(event, kind):
                    return event

    def phone(self, payload_type: int = 0, address: str = "127.0.0.1") -> Phone:
        phone = Phone(address, payload_type)
        self._phones.append(phone)
        return phone

    async def leg(
        self,
        name: str,
        phone: Phone,
        *,
        call: str = "call",
        codec: Codec = Codec.PCMU,
        dtmf: int | None = 101,
        ptime_ms: int = 20,
        direction: Direction = Direction.SENDRECV,
    ) -> None:
        """Open a leg for a phone and tell each where the other is."""
        self.send(OpenLeg(name, call))
        opened = await self.event(LegOpened)
        phone.to = ("127.0.0.1", opened.port)
        phone.payload_type = int(codec)
        self.send(
            SetRemote(name, phone.address, phone.port, codec, int(codec), dtmf, ptime_ms, direction, phone.port + 1)
        )

    async def settle(self) -> WorkerStatistics:
        """All commands so far have been carried out."""
        self.send(AskStatistics())
        return await self.wait_for(WorkerStatistics)

    def close(self) -> None:
        for phone in self._phones:
            phone.close()


@asynccontextmanager
async def worker(*options: str, ports: int = 20) -> AsyncIterator[Rig]:
    """A worker with its own socket and ports, and a connected client; at the end it must leave by itself."""
    with tempfile.TemporaryDirectory(prefix="murima-") as folder:
        path = str(Path(folder) / "w.sock")
        low = free_port(span=ports, align=2)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "media.worker", "--socket", path, "--address", "127.0.0.1",
            "--ports", f"{low}-{low + ports - 1}", *options, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        rig = Rig(path, process)
        try:
            assert process.stderr is not None
            async with asyncio.timeout(PATIENCE_S):
                assert b"worker_started" in await process.stderr.readline()
            await rig.connect()
            yield rig
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                _, errors = await process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            assert b"fault" not in errors, errors.decode()
        finally:
            rig.client.close()
            rig.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
