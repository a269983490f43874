"""Asterisk 22 (unpacked into .cache/switches by `tools/switches`) as a carrier, a PBX or a phone at a trunk.

It runs on a loopback address with a generated configuration, and is steered over its manager interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.audio import Samples, load_wav
from tests.certificates import Files
from tests.peers.process import Event, Events, PeerError, PeerProcess
from tests.ports import free_port

SWITCHES = Path(__file__).resolve().parents[2] / ".cache" / "switches"

_MAIN = """\
[directories]
astetcdir => {folder}
astmoddir => {root}/usr/lib/x86_64-linux-gnu/asterisk/modules
astdatadir => {root}/usr/share/asterisk
astvarlibdir => {state}
astdbdir => {state}
astkeydir => {state}
astagidir => {state}
astspooldir => {state}
astrundir => {state}
astlogdir => {folder}
[options]
nocolor = yes
verbose = {verbose}
hideconnect = yes
"""

_MODULES = (
    *("app_dial", "app_echo", "app_mixmonitor", "app_playback", "app_senddtmf", "app_transfer", "app_verbose"),
    *("bridge_builtin_features", "bridge_native_rtp", "bridge_simple"),
    *("chan_pjsip", "codec_alaw", "codec_g722", "codec_ulaw", "codec_resample", "format_pcm", "format_wav"),
    *("func_callerid", "func_channel", "func_strings", "pbx_config"),
    *("res_crypto", "res_pjproject", "res_pjsip", "res_pjsip_authenticator_digest", "res_pjsip_caller_id"),
    *("res_pjsip_diversion", "res_pjsip_dtmf_info", "res_pjsip_endpoint_identifier_ip"),
    *("res_pjsip_endpoint_identifier_user", "res_pjsip_header_funcs", "res_pjsip_logger", "res_pjsip_nat"),
    *("res_pjsip_outbound_authenticator_digest", "res_pjsip_outbound_registration", "res_pjsip_pubsub"),
    *("res_pjsip_refer", "res_pjsip_registrar", "res_pjsip_rfc3326", "res_pjsip_sdp_rtp", "res_pjsip_session"),
    *("res_rtp_asterisk", "res_sorcery_astdb", "res_sorcery_config", "res_sorcery_memory", "res_srtp"),
    "res_timing_timerfd",
)

_LOGGER = """\
[general]
[logfiles]
full.log => {levels}
"""

_MANAGER = """\
[general]
enabled = yes
bindaddr = {address}
port = {manager_port}
[tests]
secret = tests
read = system,call,dtmf,security
write = system,call,originate,command
"""

_RTP = """\
[general]
rtpstart = {rtp_first}
rtpend = {rtp_last}
strictrtp = no
icesupport = no
"""

_PJSIP = """\
[global]
type = global
user_agent = Asterisk 22
[transport]
type = transport
protocol = {transport}
bind = {address}:{port}
{tls}
[murima]
type = aor
contact = sip:{peer}{parameter}
qualify_frequency = 0
[murima]
type = identify
endpoint = murima
match = {peer_address}
[murima]
type = endpoint
transport = transport
context = murima
aors = {aor}
disallow = all
allow = {codecs}
direct_media = no
rtp_symmetric = yes
media_address = {address}
bind_rtp_to_media_address = yes
send_pai = yes
trust_id_inbound = yes
from_domain = {domain}
"""

_TLS = """\
cert_file = {certificate}
priv_key_file = {key}
ca_list_file = {ca}
verify_server = yes
method = tlsv1_2
"""

_ACCOUNT = """\
outbound_auth = account
from_user = {user}
[account]
type = auth
auth_type = digest
username = {user}
password = {password}
[account]
type = registration
transport = transport
outbound_auth = account
server_uri = sip:{domain}
client_uri = sip:{user}@{domain}
contact_user = {user}
outbound_proxy = sip:{peer}{parameter}\\;lr
expiration = 120
retry_interval = 1
"""

_CUSTOMER = """\
auth = customer
[{user}]
type = aor
max_contacts = 1
remove_existing = yes
[customer]
type = auth
auth_type = digest
username = {user}
password = {password}
"""

# What numbers can lead to. `heard` is what came in, whatever was played meanwhile.
_DIALPLAN = """\
[murima]
exten => talk,1,Answer()
 same => n,Set(CALL=${{FILTER(0-9,${{CHANNEL}})}})
 same => n,MixMonitor({folder}/mixed-${{CALL}}.wav,r({folder}/heard-${{CALL}}.wav))
 same => n,{play}
 same => n,Wait(120)
exten => early,1,Progress()
 same => n,{play}
 same => n,Goto(talk,1)
exten => ring,1,Ringing()
 same => n,Wait(120)
exten => echo,1,Answer()
 same => n,Echo()
exten => busy,1,Hangup(17)
{numbers}
"""


class Asterisk:
    """One Asterisk with one trunk, `murima`; `async with Asterisk(...) as asterisk`.

    Numbers lead to one of: talk (answers, plays `play`, keeps what it hears), early (plays it before
    the answer, too), ring, echo, busy; or to lines of a dialplan.

    Event kinds are the manager interface's, in lower case: newchannel, newstate, dialend, hangup,
    dtmfend, hold, unhold, registry, contactstatus, ...; their fields keep their names.

    Args:
        folder: an empty folder of its own for settings, log and sound.
        peer: `host:port` of the other end of the trunk.
        address: loopback address to bind.
        port: SIP port; a free one by default.
        numbers: what the numbers called at Asterisk lead to.
        play: WAV file (8 kHz, mono, 16 bit) that `talk` and `early` play.
        domain: the domain in From, and of the account.
        account: user and password to register at the other end with, and to call it with.
        customer: user and password that the other end must register here with, and call with; not with `account`.
        codecs: in order of preference, by Asterisk's names.
        transport: "udp", "tcp" or "tls".
        certificate: what it shows over TLS, as a server and as a client.
        ca: PEM file of the roots that the other end is verified by.
        options: settings of the trunk's endpoint in addition, e.g. {"100rel": "required"}.
        rtp_ports: four for each bridged call.
        quiet: log problems only; a log of every step costs as much as the calls.
    """

    def __init__(
        self,
        folder: Path,
        peer: str,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        numbers: Mapping[str, str] | None = None,
        play: Path | None = None,
        domain: str = "pbx.local",
        account: tuple[str, str] | None = None,
        customer: tuple[str, str] | None = None,
        codecs: tuple[str, ...] = ("ulaw", "alaw"),
        transport: str = "udp",
        certificate: Files | None = None,
        ca: Path | None = None,
        options: Mapping[str, str] | None = None,
        rtp_ports: int = 100,
        quiet: bool = False,
    ) -> None:
        self.folder = folder
        self.address = address
        self.port = port if port is not None else free_port(address)
        self.events = Events("asterisk")
        self._manager_port = free_port(address)
        self._state = Path(tempfile.mkdtemp(prefix="asterisk-"))  # short, because of the Unix socket in it
        self._process = PeerProcess("asterisk", folder / "asterisk.log")
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[str, asyncio.Future[Event]] = {}
        self._actions = 0
        rtp_first = free_port(address, span=rtp_ports, align=2)
        values = {
            "root": str(SWITCHES),
            "folder": str(folder),
            "state": str(self._state),
            "address": address,
            "port": str(self.port),
            "manager_port": str(self._manager_port),
            "rtp_first": str(rtp_first),
            "rtp_last": str(rtp_first + rtp_ports - 1),
            "verbose": "0" if quiet else "3",
            "levels": "warning,error" if quiet else "notice,warning,error,verbose,debug",
            "peer": peer,
            "peer_address": peer.rsplit(":", 1)[0],
            "domain": domain,
            "codecs": ",".join(codecs),
            "transport": transport,
            "parameter": "" if transport == "udp" else f"\\;transport={transport}",
            "aor": "murima" if customer is None else customer[0],
            "play": "NoOp()" if play is None else f"Playback({play.with_suffix('')},noanswer)",
            "certificate": "" if certificate is None else str(certificate.certificate),
            "key": "" if certificate is None else str(certificate.key),
            "ca": str(ca or ""),
        }
        values["tls"] = _TLS.format(**values) if transport == "tls" else ""
        extra = "".join(f"{name} = {value}\n" for name, value in (options or {}).items())
        pjsip = _PJSIP.format(**values) + extra
        # Both begin with more of the endpoint.
        if account is not None:
            pjsip += _ACCOUNT.format(**values, user=account[0], password=account[1])
        elif customer is not None:
            pjsip += _CUSTOMER.format(**values, user=customer[0], password=customer[1])
        lines = [_extension(number, leads_to) for number, leads_to in (numbers or {}).items()]
        self._files = {
            "asterisk.conf": _MAIN.format(**values),
            "modules.conf": "[modules]\nautoload = no\n" + "".join(f"load = {name}.so\n" for name in _MODULES),
            "logger.conf": _LOGGER.format(**values),
            "manager.conf": _MANAGER.format(**values),
            "rtp.conf": _RTP.format(**values),
            "pjsip.conf": pjsip,
            "extensions.conf": _DIALPLAN.format(**values, numbers="\n".join(lines)),
        }

    def contact(self, user: str) -> str:
        """Where a fixed contact reaches it."""
        return f"sip:{user}@{self.address}:{self.port}"

    @property
    def remote(self) -> str:
        """`host:port` of its SIP port."""
        return f"{self.address}:{self.port}"

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
        (self._state / "keys").mkdir()
        for name, text in self._files.items():
            (self.folder / name).write_text(text)
        command: list[str | Path] = [SWITCHES / "asterisk", "-f", "-C", self.folder / "asterisk.conf"]
        await self._process.start(command, folder=self.folder)
        await self._connect()
        await self.action("Login", Username="tests", Secret="tests")
        await self.events.expect("fullybooted", timeout_s=20)

    async def _connect(self) -> None:
        async with asyncio.timeout(20):
            while True:
                if self._process.returncode is not None:
                    raise PeerError(f"asterisk ended at start\n{self.log_tail()}")
                with contextlib.suppress(OSError):
                    reader, self._writer = await asyncio.open_connection(self.address, self._manager_port)
                    await reader.readline()  # the greeting
                    self._reading = asyncio.create_task(self._read(reader))
                    return
                await asyncio.sleep(0.05)  # nothing tells when the port opens

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                block = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
                fields: Event = {}
                for line in block.split("\r\n"):
                    name, found, value = line.partition(": ")
                    if found:
                        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
                if "Event" in fields:
                    await self.events.add({**fields, "kind": fields["Event"].lower()})
                elif waiting := self._replies.pop(fields.get("ActionID", ""), None):
                    waiting.set_result(fields)
        await self.events.end()

    async def action(self, name: str, **fields: str) -> Event:
        """Send a manager action; returns the fields of the response.

        Raises:
            PeerError: Asterisk refused it or did not reply.
        """
        assert self._writer is not None, "not started"
        self._actions += 1
        identity = str(self._actions)
        reply: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._replies[identity] = reply
        lines = [f"Action: {name}", f"ActionID: {identity}", *(f"{key}: {value}" for key, value in fields.items())]
        self._writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        try:
            async with asyncio.timeout(10):
                response = await reply
        except TimeoutError:
            raise PeerError(f"asterisk did not reply to {name}\n{self.log_tail()}") from None
        if response.get("Response") != "Success":
            raise PeerError(f"asterisk refused {name} {fields}: {response.get('Message')}\n{self.log_tail()}")
        return response

    async def command(self, line: str) -> str:
        """Run a command of its console; returns what it prints."""
        return str((await self.action("Command", Command=line)).get("Output", ""))

    async def dial(self, number: str, *, caller: str = "0700111222", leads_to: str = "talk") -> None:
        """Call a number over the trunk; once it is answered, the call does what `leads_to` says (see the class)."""
        await self.action(
            "Originate",
            Channel=f"PJSIP/{number}@murima",
            Context="murima",
            Exten=leads_to,
            Priority="1",
            CallerID=f'"Caller" <{caller}>',
            Timeout="30000",
            Async="true",
        )

    async def log_messages(self) -> None:
        """Write every SIP message from now on to its log, for `messages`."""
        await self.command("pjsip set logger on")

    def messages(self) -> str:
        """Return the SIP messages sent and received since `log_messages`, among the rest of its log."""
        return (self.folder / "full.log").read_text(errors="replace")

    async def channel(self) -> str:
        """Return the name of its one channel. Raises PeerError when there is none, or several."""
        names = [line.split("!")[0] for line in (await self.command("core show channels concise")).splitlines() if line]
        if len(names) != 1:
            raise PeerError(f"asterisk has these channels: {names}\n{self.log_tail()}")
        return names[0]

    async def hang_up(self) -> None:
        """End its one call."""
        await self.action("Hangup", Channel=await self.channel(), Cause="16")

    async def expect(self, kind: str | tuple[str, ...], timeout_s: float = 10.0, **fields: object) -> Event:
        return await self.events.expect(kind, timeout_s, **fields)

    async def heard(self, call: int = -1) -> Samples:
        """Return what a call that came to `talk` brought in; 8 kHz. Call it after the hangup event.

        Args:
            call: which one of all that came there, in order; by default the last one.
        """
        async with asyncio.timeout(5):
            while True:
                paths = sorted(self.folder.glob("heard-*.wav"))
                if paths and _is_complete(paths[call]):
                    break
                await asyncio.sleep(0.02)  # a thread of Asterisk completes the file after the call
        samples, rate = load_wav(paths[call])
        assert rate == 8000
        return samples

    def log_tail(self, lines: int = 60) -> str:
        """Return the end of its log, for messages."""
        full = self.folder / "full.log"
        text = full.read_text(errors="replace").splitlines() if full.exists() else []
        return "\n".join([self._process.tail(), "--- end of full.log ---", *text[-lines:]])

    async def stop(self) -> None:
        """End it, and with it its calls; safe to repeat."""
        if self._writer is not None:
            self._writer.close()
        await self._process.stop()
        if self._reading is not None:
            await self._reading
        shutil.rmtree(self._state, ignore_errors=True)


def _is_complete(path: Path) -> bool:
    """Tell whether the header of a WAV file knows the length."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(44)[40:], "little") > 0


def _extension(number: str, leads_to: str) -> str:
    """One of the driver's extensions by name, or the applications of a dialplan, one a line."""
    if leads_to.isalpha():
        return f"exten => {number},1,Goto({leads_to},1)"
    first, *others = leads_to.splitlines()
    return "\n".join([f"exten => {number},1,{first}", *(f" same => n,{line}" for line in others)])
