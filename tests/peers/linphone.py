"""linphone (Debian's linphonec 5.1) as a phone: dials, answers, transfers, plays a WAV file, keeps what it heard.

It is steered over its standard input, and tells what happens in sentences on its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

import soxr

from tests.audio import Samples, load_wav
from tests.peers.process import Event, Events, PeerError, PeerProcess
from tests.ports import free_port

_CONFIG = """\
[sip]
sip_port={udp}
sip_tcp_port={tcp}
sip_tls_port={tls}
bind_address={address}
contact=sip:{user}@{address}
default_proxy={default_proxy}
guess_hostname=0
use_ipv6=0
keepalive_period=0
verify_server_certs={verify}
verify_server_cn=0
root_ca={ca}
media_encryption={encryption}
media_encryption_mandatory={srtp}
[rtp]
bind_address={address}
audio_rtp_port={rtp_port}
video_rtp_port=0
text_rtp_port=0
audio_adaptive_jitt_comp_enabled=0
nortp_timeout=300
[net]
mtu=0
[sound]
remote_ring=
local_ring=
echocancellation=0
[video]
capture=0
display=0
"""

_ACCOUNT = """\
[proxy_0]
reg_proxy=<sip:{proxy}{parameter}>
reg_route=<sip:{proxy}{parameter};lr>
reg_identity=sip:{user}@{domain}
reg_expires=60
reg_sendregister={register}
publish=0
avpf=0
quality_reporting_enabled=0
[auth_info_0]
username={user}
passwd={password}
domain={domain}
"""

_CODECS = ("PCMU", "PCMA", "G722", "opus", "speex")

# What linphonec says, and the events that we make of it.
_SENTENCES = (
    ("incoming", r"Receiving new incoming call from (?P<remote>.*), assigned id (?P<call>\d+)"),
    ("dialling", r"Establishing call id to (?P<remote>.*), assigned id (?P<call>\d+)"),
    ("ringing", r"Call (?P<call>\d+) to .* ringing\."),
    ("early_media", r"Call (?P<call>\d+) with .* early media\."),
    ("connected", r"Call (?P<call>\d+) with .* connected\."),
    ("streams", r"Media streams established with .* for call (?P<call>\d+) "),
    ("paused", r"Call (?P<call>\d+) with .* is now paused\."),
    ("paused_by_remote", r"Call (?P<call>\d+) has been paused by "),
    ("transferred", r"The distant endpoint .* of call (?P<call>\d+) has been transfered"),
    ("error", r"Call (?P<call>\d+) with .* error\."),
    ("ended", r"Call (?P<call>\d+) with .* ended \((?P<reason>.*)\)\."),
    ("dtmf", r"Receiving tone (?P<digit>.) from "),
    ("registered", r"registered, identity="),
    ("unregistered", r"registered=(0|-1)"),
)
_EVENTS = tuple((kind, re.compile(pattern)) for kind, pattern in _SENTENCES)


class Linphone:
    """One linphonec with one account; `async with Linphone(...) as phone`.

    Event kinds: incoming, dialling, ringing, early_media, connected,
    streams (after each negotiation), paused, paused_by_remote, transferred, error,
    ended, dtmf; `call` is linphone's number of the call.

    Args:
        folder: an empty folder of its own for settings, log and sound.
        user: the account's user part.
        address: loopback address to bind.
        port: SIP port; a free one by default.
        play: WAV file (8 kHz, mono, 16 bit) played into each call from its start, over and over.
        domain: the account's domain; the address and port by default.
        proxy: `host:port` to send everything to, also the registrar.
        password: for digest authentication.
        register: register at the proxy and keep registered.
        answer: "auto" answers at once, "manual" waits for `accept`.
        codecs: those offered, of PCMU, PCMA, G722, opus and speex.
        transport: "udp", "tcp" or "tls".
        ca: PEM file of the roots that servers are verified by, but not their names, because linphone knows no
            addresses in certificates; without it, none is verified.
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
        answer: str = "auto",
        codecs: tuple[str, ...] = ("PCMU", "PCMA"),
        transport: str = "udp",
        ca: Path | None = None,
        srtp: bool = False,
    ) -> None:
        self.folder = folder
        self.user = user
        self.address = address
        self.port = port if port is not None else free_port(address)
        self.events = Events(f"linphone {user}")
        self._play = play
        self._record = folder / "heard.wav"
        self._transport = transport
        self._answer = answer
        self._register = register
        self._codecs = codecs
        settings = {
            **{kind: str(self.port if kind == transport else 0) for kind in ("udp", "tcp", "tls")},
            "address": address,
            "user": user,
            "rtp_port": str(free_port(address, span=2, align=2)),
            "default_proxy": "0" if proxy is not None else "-1",
            "verify": str(int(ca is not None)),
            "ca": str(ca or ""),
            "encryption": "srtp" if srtp else "none",
            "srtp": str(int(srtp)),
        }
        text = _CONFIG.format(**settings)
        if proxy is not None:
            text += _ACCOUNT.format(
                domain=domain or proxy,
                proxy=proxy,
                parameter="" if transport == "udp" else f";transport={transport}",
                user=user,
                password=password or "",
                register=int(register),
            )
        for number, name in enumerate(_CODECS):
            rate, channels = {"opus": (48000, 2)}.get(name, (8000, 1))
            text += f"[audio_codec_{number}]\nmime={name}\nrate={rate}\nchannels={channels}\n"
            text += f"enabled={int(name in codecs)}\n"
        self._config = text
        self._process = PeerProcess(f"linphone {user}", folder / "errors.log")
        self._input: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def uri(self) -> str:
        """Where a fixed contact reaches it."""
        parameter = "" if self._transport == "udp" else f";transport={self._transport}"
        return f"sip:{self.user}@{self.address}:{self.port}{parameter}"

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
        for name in (".local/share/linphone", ".config/linphone"):  # linphone does not start without them
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        config = self.folder / "linphonerc"
        config.write_text(self._config)
        command: list[str | Path] = ["linphonec", "-c", config, "-d", "6", "-l", self.folder / "linphone.log"]
        if self._answer == "auto":
            command.append("-a")
        environment = {**os.environ, "HOME": str(self.folder), "TERM": "dumb", "LC_ALL": "C"}
        process = await self._process.start(command, folder=self.folder, environment=environment, pipes=True)
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        self._reading = asyncio.create_task(self._read(process.stdout))
        await self.command("soundcard use files")
        await self.command(f"record {self._record}")
        if self._play is not None:
            await self.command(f"play {self._play}")
        if self._register:
            await self._registered()
        await self._process.bound(self.address, self.port, "udp" if self._transport == "udp" else "tcp")

    async def _registered(self) -> None:
        try:
            async with asyncio.timeout(10):
                while True:
                    await self.command("status register")  # it can only be asked for
                    if (await self.events.expect(("registered", "unregistered")))["kind"] == "registered":
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise PeerError(f"linphone could not register; see {self.folder}/linphone.log") from None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with (self.folder / "output.log").open("wb") as log:
            async for line in reader:
                log.write(line)
                log.flush()
                sentence = line.decode(errors="replace")
                for kind, pattern in _EVENTS:
                    if match := pattern.search(sentence):
                        facts = {key: int(text) if key == "call" else text for key, text in match.groupdict().items()}
                        await self.events.add({"kind": kind, **facts})
        await self.events.end()

    async def command(self, line: str) -> None:
        """Type a command (`help` lists them); what it says becomes events."""
        assert self._input is not None, "not started"
        self._input.write(line.encode() + b"\n")
        await self._input.drain()

    async def dial(self, target: str) -> int:
        """Call a SIP URI, or a number at the account's domain; returns linphone's number of the call."""
        await self.command(f"call {target}")
        return int((await self.events.expect("dialling"))["call"])

    async def accept(self, call: int) -> None:
        """Answer the ringing call."""
        await self.command(f"answer {call}")

    async def hang_up(self, call: int) -> None:
        """End the call, or give up dialling, or reject it."""
        await self.command(f"terminate {call}")

    async def hold(self) -> None:
        """Put the current call on hold (sendonly)."""
        await self.command("pause")

    async def resume(self, call: int) -> None:
        await self.command(f"resume {call}")

    async def transfer(self, call: int, target: str) -> None:
        """Send the call's other party to a SIP URI (REFER)."""
        await self.command(f"transfer {call} {target}")

    async def transfer_to_call(self, call: int, other: int) -> None:
        """Join the other parties of two calls and leave (REFER with Replaces)."""
        await self.command(f"transfer {call} --to-call {other}")

    async def send_dtmf(self, digits: str) -> None:
        """Type digits (RFC 4733) into the current call."""
        await self.command(digits)

    async def play(self, path: Path) -> None:
        """Play a WAV file (8 kHz, mono, 16 bit) into the current call, instead of what played."""
        await self.command(f"play {path}")

    async def expect(self, kind: str | tuple[str, ...], timeout_s: float = 10.0, **fields: object) -> Event:
        return await self.events.expect(kind, timeout_s, **fields)

    def heard(self) -> Samples:
        """Return what the last call brought in; 8 kHz. Complete once the call has ended."""
        samples, rate = load_wav(self._record)
        if samples.ndim == 2:
            samples = samples[:, 0]
        resampled: Samples = samples if rate == 8000 else soxr.resample(samples, rate, 8000)
        return resampled

    async def stop(self) -> None:
        """Quit (which hangs up and unregisters); safe to repeat."""
        if self._input is not None and self._process.returncode is None:
            with contextlib.suppress(PeerError, ConnectionError):
                await self.command("quit")
                await self._process.wait(5)
        await self._process.stop()
        if self._reading is not None:
            await self._reading

    async def vanish(self) -> None:
        """Drop off the network: no BYE, nothing."""
        await self._process.stop(with_signal=signal.SIGKILL)
