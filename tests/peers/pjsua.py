"""pjsua2 (PyPI wheel) as a phone, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.audio import Samples, load_wav
from tests.peers.process import Event, Events, PeerError, PeerProcess
from tests.ports import free_port

_PROGRAM = Path(__file__).with_name("pjsua_phone.py")


class Pjsua:
    """One pjsua2 phone; `async with Pjsua(...) as phone`. It takes four calls at a time.

    Event kinds: registration (code, active), incoming (call, remote, headers),
    call (call, state, code, reason), media (call, status), dtmf (call, digit),
    transfer (call, code, final), presence (uri, online, activity), messages (text).

    Args:
        folder: an empty folder of its own for log and sound.
        user: the account's user part.
        address: loopback address to bind.
        port: SIP port; a free one by default.
        play: WAV file (8 kHz, mono, 16 bit) played once into each call.
        domain: the account's domain; the address and port by default.
        proxy: `host:port` to send everything to.
        password: for digest authentication.
        register: register at the proxy.
        answer: the status that answers a call at once: 200, 180 (then `answer` later), 486, ...
        codecs: in order of preference.
        transport: "udp" or "tcp".
        messages: subscribe to its own voice messages.
        demands: extensions without which it makes and takes no call: "100rel", "timer".
        srtp: makes and takes calls with SDES-SRTP only.
    """

    def __init__(
        self,
        folder: Path,
        user: str,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        play: Path | None = None,
        domain: str | None = None,
        proxy: str | None = None,
        password: str | None = None,
        register: bool = False,
        answer: int = 200,
        codecs: tuple[str, ...] = ("PCMU", "PCMA"),
        transport: str = "udp",
        demands: tuple[str, ...] = (),
        srtp: bool = False,
        messages: bool = False,
    ) -> None:
        self.folder = folder
        self.user = user
        self.address = address
        self.port = port if port is not None else free_port(address)
        self.events = Events(f"pjsua {user}")
        self._record = folder / "heard.wav"
        self._settings: dict[str, Any] = {
            "user": user,
            "address": address,
            "port": self.port,
            "rtp_port": free_port(address, span=40, align=2),
            "play": str(play) if play is not None else None,
            "record": str(self._record),
            "log": str(folder / "pjsua.log"),
            "domain": domain or f"{address}:{self.port}",
            "proxy": proxy,
            "password": password,
            "register": register,
            "answer": answer,
            "codecs": codecs,
            "transport": transport,
            "messages": messages,
            "demands": demands,
            "srtp": srtp,
        }
        self._process = PeerProcess(f"pjsua {user}", folder / "output.log")
        self._input: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @property
    def uri(self) -> str:
        """Where a fixed contact reaches it."""
        return f"sip:{self.user}@{self.address}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            command: list[str | Path] = [sys.executable, _PROGRAM, json.dumps(self._settings)]
            process = await self._process.start(command, folder=self.folder, pipes=True)
            assert process.stdin is not None
            assert process.stdout is not None
            self._input = process.stdin
            self._reading = asyncio.create_task(self._read(process.stdout))
            try:
                await self.events.expect("ready")
            except PeerError as exc:
                raise PeerError(f"pjsua did not start\n{self._process.tail()}") from exc
            if self._settings["register"]:
                await self.events.expect("registration", code=200, active=True)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            event: Event = json.loads(line)
            if event["kind"] == "reply":
                self._replies.put_nowait(event)
            else:
                await self.events.add(event)
        await self.events.end()

    async def _do(self, command: str, **parameters: object) -> Any:
        assert self._input is not None, "not started"
        self._input.write(json.dumps({"do": command, "with": parameters}).encode() + b"\n")
        try:
            async with asyncio.timeout(10):
                reply = await self._replies.get()
        except TimeoutError:
            raise PeerError(f"pjsua did not reply to {command}\n{self._process.tail()}") from None
        if not reply["ok"]:
            raise PeerError(f"pjsua refused {command}: {reply['result']}")
        return reply["result"]

    async def dial(self, uri: str, headers: Mapping[str, str] | None = None) -> int:
        """Call a SIP URI, with these headers in the INVITE; returns the number of the call."""
        return int(await self._do("dial", uri=uri, headers=dict(headers or {})))

    async def answer(self, call: int, code: int = 200) -> None:
        await self._do("answer", call=call, code=code)

    async def hang_up(self, call: int) -> None:
        """End the call, or give up dialling, or reject; a call already ended is fine."""
        await self._do("hang_up", call=call)

    async def hold(self, call: int) -> None:
        await self._do("hold", call=call)

    async def resume(self, call: int) -> None:
        await self._do("resume", call=call)

    async def watch(self, uri: str) -> None:
        """Subscribe to somebody's presence."""
        await self._do("watch", uri=uri)

    async def transfer(self, call: int, uri: str) -> None:
        """Send the other one of a call to a URI (REFER)."""
        await self._do("transfer", call=call, uri=uri)

    async def transfer_to_call(self, call: int, other: int) -> None:
        """Join the others of two calls (REFER with Replaces)."""
        await self._do("transfer_to_call", call=call, other=other)

    async def send_dtmf(self, call: int, digits: str, method: str = "rfc4733") -> None:
        """Type digits; method "rfc4733" or "info"."""
        await self._do("dtmf", call=call, digits=digits, method=method)

    async def play(self, call: int, path: Path) -> None:
        """Play a WAV file (8 kHz, mono, 16 bit) into the call now, instead of what played."""
        await self._do("play", call=call, path=str(path))

    async def statistics(self, call: int) -> dict[str, int]:
        """Return packets sent, received and lost."""
        result: dict[str, int] = await self._do("statistics", call=call)
        return result

    async def expect(self, kind: str, timeout_s: float = 10.0, **fields: object) -> Event:
        return await self.events.expect(kind, timeout_s, **fields)

    def heard(self) -> Samples:
        """Return what the last call brought in; 8 kHz. Complete once the call has disconnected."""
        samples, rate = load_wav(self._record)
        assert rate == 8000
        return samples

    def messages(self) -> str:
        """Return every SIP message sent and received, among the rest of its log."""
        return (self.folder / "pjsua.log").read_text(errors="replace")

    async def stop(self) -> None:
        """Hang up and end; safe to repeat."""
        if self._input is not None and self._process.returncode is None:
            self._input.close()
            with contextlib.suppress(PeerError):
                await self._process.wait(5)
        await self._process.stop()
        if self._reading is not None:
            await self._reading

    async def vanish(self) -> None:
        """Drop off the network: no BYE, nothing."""
        await self._process.stop(with_signal=signal.SIGKILL)
