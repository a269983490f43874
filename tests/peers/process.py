"""A phone or server of another make, running as a process of its own beside the test."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]

_UDP, _TCP = Path("/proc/net/udp"), Path("/proc/net/tcp")


class PeerError(Exception):
    """A peer did not start, ended too early, or did not do what was expected in time."""


class Events:
    """What a peer has reported; each event is handed out once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: list[Event] = []
        self._seen: list[str] = []
        self._changed = asyncio.Condition()
        self._ended = False

    async def add(self, event: Event) -> None:
        async with self._changed:
            self._pending.append(event)
            self._seen.append(str(event))
            self._changed.notify_all()

    async def end(self) -> None:
        """The peer is gone: nothing more will come."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def expect(self, kind: str | tuple[str, ...], timeout_s: float = 10.0, **fields: object) -> Event:
        """Wait for an event of this kind (or of one of these) with these fields; earlier others stay for later.

        Raises:
            PeerError: it did not come in time.
        """

        kinds = (kind,) if isinstance(kind, str) else kind

        def find() -> Event | None:
            for event in self._pending:
                if event["kind"] in kinds and all(event.get(key) == value for key, value in fields.items()):
                    return event
            return None

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: find() is not None or self._ended)
            event = find()
            if event is None:
                wanted = " ".join([" or ".join(kinds), *(f"{key}={value!r}" for key, value in fields.items())])
                state = "ended" if self._ended else f"did not within {timeout_s} s"
                raise PeerError(f"{self._name}: expected {wanted}; it {state}. Seen: {'; '.join(self._seen) or 'none'}")
            self._pending.remove(event)
            return event


class PeerProcess:
    """One process: its output goes to a log file; it is ended by its own process id only."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> asyncio.subprocess.Process:
        """Start the program; with `pipes`, standard input and output are the caller's, and only errors are logged.

        Raises:
            PeerError: the program is not installed.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    cwd=folder,
                    env=environment,
                    stdin=pipe if pipes else asyncio.subprocess.DEVNULL,
                    stdout=pipe if pipes else log,
                    stderr=log,
                )
        except FileNotFoundError as exc:
            raise PeerError(f"{command[0]} is not installed: `make setup-test` installs it") from exc
        return self._process

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def bound(self, address: str, port: int, transport: str = "udp", timeout_s: float = 10.0) -> None:
        """Wait until somebody listens at the address and port.

        Raises:
            PeerError: the process ended first, or nobody does in time; with the end of the log.
        """
        local = f"{int.from_bytes(bytes(map(int, address.split('.'))), 'little'):08X}:{port:04X}"
        table = _UDP if transport == "udp" else _TCP
        wanted = f": {local} " if transport == "udp" else f": {local} 00000000:0000 0A"  # 0A: listening
        try:
            async with asyncio.timeout(timeout_s):
                while wanted not in table.read_text():
                    if not self.running:
                        raise PeerError(f"{self.name} ended at start\n{self.tail()}")
                    await asyncio.sleep(0.02)  # nothing tells when the port is bound
        except TimeoutError:
            raise PeerError(f"{self.name} did not bind {address}:{port}\n{self.tail()}") from None

    async def wait(self, timeout_s: float) -> int:
        """Wait for the end; returns the exit status.

        Raises:
            PeerError: it still runs after `timeout_s`.
        """
        assert self._process is not None, f"{self.name} was not started"
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process.wait()
        except TimeoutError:
            raise PeerError(f"{self.name} still runs after {timeout_s} s\n{self.tail()}") from None

    async def stop(self, timeout_s: float = 5.0, *, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """End the process (SIGKILL after `timeout_s`); safe to repeat."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(with_signal)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def tail(self, lines: int = 40) -> str:
        """Return the end of the log, for messages."""
        if not self.log.exists():
            return "(no log)"
        text = self.log.read_text(errors="replace").splitlines()
        return f"--- end of {self.log.name} ---\n" + "\n".join(text[-lines:])
