"""baresip (Debian's 1.0) as a phone: dials, answers, plays a WAV file, keeps what it hears.

It is steered over its ctrl_tcp module: netstrings with JSON inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tests.audio import Samples, load_wav, save_wav
from tests.certificates import Files
from tests.peers.process import Event, Events, PeerError, PeerProcess
from tests.ports import free_port

_MODULES = (Path("/usr/lib/baresip/modules"), Path("/usr/lib/x86_64-linux-gnu/baresip/modules"))

_SILENCE_S = 300

_CONFIG = """\
poll_method epoll
sip_listen {shown}:{port}
net_interface {address}
audio_player aubridge,nil
audio_source aufile,{play}
audio_alert aubridge,nil
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
audio_txmode poll
audio_level no
ausrc_format s16
auplay_format s16
auenc_format s16
audec_format s16
audio_buffer 20-160
rtp_ports {rtp_first}-{rtp_last}
rtcp_mux no
jitter_buffer_delay 4-10
rtp_stats no
call_local_timeout 120
call_max_calls 4
module_path {modules}
module g711.so
module srtp.so
module aufile.so
module aubridge.so
module sndfile.so
module_tmp account.so
module_app menu.so
module_app ctrl_tcp.so
ctrl_tcp_listen {control}:{control_port}
snd_path {folder}
"""


class Baresip:
    """One baresip with one account; `async with Baresip(...) as phone`.

    Event kinds are baresip's, in lower case: register_ok, register_fail,
    call_incoming, call_ringing, call_established, call_closed, call_dtmf_start, ...

    Args:
        folder: an empty folder of its own for settings, log and sound.
        user: the account's user part.
        address: loopback address to bind, IPv4 or IPv6.
        port: SIP port (UDP and TCP); a free one by default.
        play: WAV file (8 kHz, mono, 16 bit) played into each call from its start; silence by default.
        domain: the account's domain and realm; the address and port by default.
        proxy: `host:port` to send everything to, also the registrar.
        password: for digest authentication.
        register: register at the proxy and keep registered.
        answer: "auto" answers at once, "manual" waits for `accept`.
        codecs: in order of preference.
        transport: "udp", "tcp" or "tls".
        ca: PEM file of the roots that servers are verified by.
        certificate: what it shows to a server that asks.
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
        certificate: Files | None = None,
        srtp: bool = False,
    ) -> None:
        self.folder = folder
        self.user = user
        self.address = address
        self._control = "127.0.0.1" if ":" in address else address
        self._shown = f"[{address}]" if ":" in address else address
        self.port = port if port is not None else free_port(self._control, span=2)  # it takes the next one for TLS
        self.events = Events(f"baresip {user}")
        self._play = play
        self._domain = domain or f"{self._shown}:{self.port}"
        self._proxy = proxy
        self._password = password
        self._register = register
        self._answer = answer
        self._codecs = codecs
        self._transport = transport
        self._ca = ca
        self._certificate = certificate
        self._srtp = srtp
        self._process = PeerProcess(f"baresip {user}", folder / "baresip.log")
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @property
    def uri(self) -> str:
        """Where a fixed contact reaches it."""
        return f"sip:{self.user}@{self._shown}:{self.port}"

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
        play = self._endless(self._play)
        modules = next((folder for folder in _MODULES if folder.is_dir()), None)
        if modules is None:
            raise PeerError("baresip's modules are not installed: `make setup-test` installs baresip")
        control_port = free_port(self._control)
        rtp_first = free_port(self._control, span=20, align=2)
        config = _CONFIG.format(
            address=self.address,
            shown=self._shown,
            control=self._control,
            port=self.port,
            play=play,
            rtp_first=rtp_first,
            rtp_last=rtp_first + 19,
            modules=modules,
            control_port=control_port,
            folder=self.folder,
        )
        if self._ca is not None:
            config += f"sip_cafile {self._ca}\nsip_verify_server yes\n"
        if self._certificate is not None:
            both = self.folder / "certificate.pem"
            both.write_bytes(self._certificate.certificate.read_bytes() + self._certificate.key.read_bytes())
            config += f"sip_certificate {both}\n"
        (self.folder / "config").write_text(config)
        (self.folder / "accounts").write_text("" if self._register else self._account() + "\n")
        (self.folder / "contacts").write_text("")
        await self._process.start(
            ["baresip", "-6" if ":" in self.address else "-4", "-f", self.folder], folder=self.folder
        )
        self._writer = await self._connect(control_port)
        if self._register:  # not from the file: its events would come before anyone listens
            await self.command("uanew", self._account())
            await self._registered()

    def _account(self) -> str:
        parts = [f"<sip:{self.user}@{self._domain};transport={self._transport}>"]
        if self._password is not None:
            parts += [f"auth_user={self.user}", f"auth_pass={self._password}"]
        if self._proxy is not None:
            parts.append(f'outbound="sip:{self._proxy};transport={self._transport}"')
        codecs = ",".join(f"{codec}/8000/1" for codec in self._codecs)
        parts += [f"regint={60 if self._register else 0}", f"answermode={self._answer}", f"audio_codecs={codecs}"]
        if self._srtp:
            parts.append("mediaenc=srtp-mand")
        return ";".join([*parts, "ptime=20"])

    async def _connect(self, port: int) -> asyncio.StreamWriter:
        """Connect to ctrl_tcp, which listens once baresip has read its settings."""
        async with asyncio.timeout(10):
            while True:
                if self._process.returncode is not None:
                    raise PeerError(f"baresip ended at start\n{self._process.tail()}")
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection(self._control, port)
                    self._reading = asyncio.create_task(self._read(reader))
                    return writer
                await asyncio.sleep(0.05)  # nothing tells when the port opens

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int((await reader.readuntil(b":"))[:-1])
                message = json.loads((await reader.readexactly(length + 1))[:-1])
                if message.get("event"):
                    await self.events.add({**message, "kind": str(message["type"]).lower()})
                else:
                    self._replies.put_nowait(message)
        await self.events.end()

    async def _registered(self) -> None:
        event = await self.events.expect(("register_ok", "register_fail"))
        if event["kind"] == "register_fail":
            raise PeerError(f"baresip was refused registration: {event.get('param')}")

    async def command(self, name: str, parameters: str = "") -> str:
        """Run a baresip command (`help` lists them); returns what it prints.

        Raises:
            PeerError: baresip refused it or did not reply.
        """
        assert self._writer is not None, "not started"
        data = json.dumps({"command": name, "params": parameters, "token": "t"}).encode()
        self._writer.write(b"%d:%s," % (len(data), data))
        try:
            async with asyncio.timeout(5):
                reply = await self._replies.get()
        except TimeoutError:
            raise PeerError(f"baresip did not reply to {name}\n{self._process.tail()}") from None
        if not reply.get("ok"):
            raise PeerError(f"baresip refused {name} {parameters}: {reply.get('data')}\n{self._process.tail()}")
        return str(reply.get("data", ""))

    async def dial(self, target: str) -> None:
        """Call a SIP URI, or a number at the account's domain."""
        await self.command("dial", target)

    async def accept(self) -> None:
        """Answer the ringing call."""
        await self.command("accept")

    async def hang_up(self) -> None:
        """End the current call, or reject the ringing one."""
        await self.command("hangup")

    async def hold(self) -> None:
        await self.command("hold")

    async def resume(self) -> None:
        await self.command("resume")

    async def send_dtmf(self, digits: str) -> None:
        """Type digits (RFC 4733)."""
        for digit in digits:
            await self.command("sndcode", digit)

    async def play(self, path: Path) -> None:
        """Play a WAV file (8 kHz, mono, 16 bit) into the current call, instead of what played."""
        await self.command("ausrc", f"aufile,{self._endless(path)}")

    def _endless(self, path: Path | None) -> Path:
        """Write a copy followed by silence: baresip ends the call when its file ends."""
        sound = np.zeros(0, dtype=np.int16) if path is None else load_wav(path)[0]
        silence = np.zeros(_SILENCE_S * 8000, dtype=np.int16)
        name = "silence.wav" if path is None else f"endless-{path.name}"
        return save_wav(self.folder / name, np.concatenate([sound, silence]), 8000)

    async def expect(self, kind: str, timeout_s: float = 10.0, **fields: object) -> Event:
        return await self.events.expect(kind, timeout_s, **fields)

    def heard(self) -> Samples:
        """Return what the last call brought in; 8 kHz. Complete once the call is closed."""
        return self._dump("dec")

    def said(self) -> Samples:
        """Return what was sent in the last call; 8 kHz."""
        return self._dump("enc")

    def _dump(self, direction: str) -> Samples:
        files = sorted(self.folder.glob(f"dump-*-{direction}.wav"), key=lambda path: path.stat().st_mtime_ns)
        if not files:
            raise PeerError(f"baresip kept no sound\n{self._process.tail()}")
        samples, _ = load_wav(files[-1])
        return samples

    async def stop(self) -> None:
        """Quit (which unregisters and hangs up); safe to repeat."""
        if self._writer is not None and self._process.returncode is None:
            with contextlib.suppress(PeerError, ConnectionError):
                await self.command("quit")
                await self._process.wait(5)
        await self._process.stop()
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            await self._reading

    async def vanish(self) -> None:
        """Drop off the network: no BYE, nothing."""
        await self._process.stop(with_signal=signal.SIGKILL)
