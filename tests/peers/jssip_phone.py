"""JsSIP in Node, as a browser's SIP phone over WebSocket without its audio: it registers and sends OPTIONS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.peers.process import Event, Events, PeerError, PeerProcess

_PROGRAM = Path(__file__).with_name("jssip") / "phone.js"
_MODULES = Path(__file__).resolve().parents[2] / ".cache" / "jssip" / "node_modules"


class JsSip:
    """One JsSIP user agent; `async with JsSip(...) as phone` waits until its WebSocket is connected.

    Event kinds: connected, disconnected (error), registered (code, contacts), unregistered (code),
    registration_failed (code, cause), options (code, allow), options_received (from).

    Args:
        folder: an empty folder of its own for its log.
        url: the server's WebSocket, `ws://…` or `wss://…`.
        user: the account's user part.
        domain: the account's domain.
        password: for digest authentication.
        ca: PEM file of roots that the server is verified by, besides those that Node knows.
        expires_s: how long a registration lasts.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        user: str,
        *,
        domain: str = "pbx.local",
        password: str | None = None,
        ca: Path | None = None,
        expires_s: int = 120,
    ) -> None:
        self.folder = folder
        self.events = Events(f"jssip {user}")
        self._settings = {"url": url, "uri": f"sip:{user}@{domain}", "password": password, "expires": expires_s}
        self._ca = ca
        self._process = PeerProcess(f"jssip {user}", folder / "jssip.log")
        self._input: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "NODE_PATH": str(_MODULES), "DEBUG": "JsSIP:*"}
        if self._ca is not None:
            environment["NODE_EXTRA_CA_CERTS"] = str(self._ca)
        command: list[str | Path] = ["node", _PROGRAM, json.dumps(self._settings)]
        process = await self._process.start(command, folder=self.folder, environment=environment, pipes=True)
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        self._reading = asyncio.create_task(self._read(process.stdout))
        try:
            await self.events.expect("connected")
        except PeerError as exc:
            raise PeerError(f"JsSIP did not connect\n{self._process.tail()}") from exc

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            await self.events.add(json.loads(line))
        await self.events.end()

    def _do(self, name: str, **parameters: str) -> None:
        assert self._input is not None, "not started"
        self._input.write(json.dumps({"do": name, **parameters}).encode() + b"\n")

    async def register(self) -> Event:
        """Register; returns the event, with the contacts that the registrar has.

        Raises:
            PeerError: refused, or no answer.
        """
        self._do("register")
        event = await self.expect(("registered", "registration_failed"))
        if event["kind"] == "registration_failed":
            raise PeerError(f"JsSIP was refused registration: {event['code']} {event['cause']}")
        return event

    async def unregister(self) -> None:
        self._do("unregister")
        await self.expect("unregistered")

    async def options(self, target: str) -> Event:
        """Send OPTIONS to a SIP URI; returns the event with the final response's code and Allow."""
        self._do("options", target=target)
        return await self.expect("options")

    async def expect(self, kind: str | tuple[str, ...], timeout_s: float = 10.0, **fields: object) -> Event:
        return await self.events.expect(kind, timeout_s, **fields)

    async def stop(self) -> None:
        """Unregister, disconnect and end; safe to repeat."""
        if self._input is not None and self._process.running:
            self._input.close()
            with contextlib.suppress(PeerError):
                await self._process.wait(5)
        await self._process.stop()
        if self._reading is not None:
            await self._reading
