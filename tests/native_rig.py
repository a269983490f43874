"""The native provider on loopback, with phones on the same SIP stack and a media worker, real or fake."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_network
from itertools import count
from pathlib import Path
from typing import TypeVar

from adapters.native.legs import Link
from adapters.native.settings import AgentSettings, NativeSettings, TrunkSettings
from adapters.native.telephony import NativeTelephony
from adapters.native.workers import keep_connected
from adapters.sip.dialogs.session import Login, Session, SessionAcked, SessionAnswered, SessionOffered
from adapters.sip.endpoint import Endpoint, Event, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import Challenge, DigestVerifier, answer_challenge, ha1
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.syntax.sdp import SessionDescription, make_answer, make_offer
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transports.transport import SipTransport
from engine.events import LegEvent
from media import client as media
from tests.ports import free_port

REALM = "pbx.test"
PASSWORD = "secret"
WAIT_S = 5.0

EventT = TypeVar("EventT")


def udp_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def tcp_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((host, port))
    return sock


def verifier_for(realm: str) -> DigestVerifier:
    return DigestVerifier(realm, bytes(32), algorithms=("SHA-256", "MD5"), random_bytes=os.urandom)


def new_token() -> str:
    return secrets.token_hex(8)


class Inbox:
    """Events as they come; `wait` takes the next of a kind and drops those before it."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self._queue: asyncio.Queue[object] = asyncio.Queue()

    def put(self, event: object) -> None:
        self.seen.append(event)
        self._queue.put_nowait(event)

    async def wait(self, kind: type[EventT], where: Callable[[EventT], bool] = lambda _: True) -> EventT:
        async with asyncio.timeout(WAIT_S):
            while True:
                event = await self._queue.get()
                if isinstance(event, kind) and where(event):
                    return event

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.seen if isinstance(event, kind)]


class Phone:
    """A phone or trunk: rings by itself; answers and hangs up when told."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.inbox = Inbox()
        self.codecs: tuple[str, ...] = ("PCMU", "PCMA")
        self.answers_offers = True
        self.transport = SipTransport()
        self.endpoint = Endpoint(
            network=self.transport,
            policy=AccessPolicy([Trunk("any", (ip_network("0.0.0.0/0"),))], {}, verifier_for("phone")),
            registrar=None,
            new_token=new_token,
        )
        self.port = self.tcp_port = 0

    async def start(self) -> None:
        udp, tcp = udp_socket(self.host), tcp_socket(self.host)
        self.port, self.tcp_port = udp.getsockname()[1], tcp.getsockname()[1]
        await self.transport.start(self.endpoint, self._on_event, [udp], [tcp])

    async def close(self) -> None:
        await self.transport.close()

    def _on_event(self, event: Event) -> None:
        self.inbox.put(event)
        if isinstance(event, SessionOffered) and self.answers_offers:
            self.transport.carry_out(self.endpoint.accept_offer(event.session, self.answer_to(event.body), self.now))

    @property
    def now(self) -> float:
        return self.transport.clock()

    def offer(self, *, direction: str = "sendrecv", version: int = 1) -> bytes:
        return make_offer(self.host, 40000, self.codecs, session_id=1, version=version, direction=direction).serialise()

    def answer_to(self, offer: bytes) -> bytes:
        description = SessionDescription.parse(offer)
        return make_answer(description, self.host, 40000, self.codecs, session_id=1, version=1)[0].serialise()

    def call(
        self,
        target: str,
        *,
        user: str = "4930123",
        body: bytes | None = None,
        login: Login | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Session:
        session, effects = self.endpoint.invite(
            SipUri.parse(target),
            self.offer() if body is None else body,
            from_=f'"Ann" <sip:{user}@{REALM}>',
            now=self.now,
            login=login,
            headers=headers,
        )
        assert session is not None
        self.transport.carry_out(effects)
        return session

    async def ringing(self) -> Session:
        return (await self.inbox.wait(SessionIncoming)).session

    def ring(self, session: Session) -> None:
        self.transport.carry_out(self.endpoint.ring(session, self.now))

    def progress(self, session: Session) -> None:
        """Be heard before the answer."""
        body = self.answer_to(session.offered)
        self.transport.carry_out(self.endpoint.progress(session, body, self.now))

    async def reoffered(self) -> SessionOffered:
        return await self.inbox.wait(SessionOffered)

    async def pick_up(self, session: Session) -> None:
        self.transport.carry_out(self.endpoint.answer(session, self.answer_to(session.offered), self.now))
        await self.inbox.wait(SessionAcked)

    def refuse(self, session: Session, status: int) -> None:
        self.transport.carry_out(self.endpoint.reject(session, status, self.now))

    def hang_up(self, session: Session) -> None:
        self.transport.carry_out(self.endpoint.hang_up(session, self.now))

    def reinvite(self, session: Session, body: bytes) -> None:
        self.transport.carry_out(self.endpoint.reinvite(session, body, self.now))

    async def answered(self) -> SessionAnswered:
        return await self.inbox.wait(SessionAnswered)


class FakeWorker:
    """Speaks the worker's protocol without sockets or audio; the tests that use it also run on the real one."""

    def __init__(self, telephony: NativeTelephony, name: str = "worker-0", *, ports: int = 100) -> None:
        self.telephony = telephony
        self.name = name
        self.connected = True
        self.commands: list[media.Command] = []
        self.legs: dict[str, str] = {}
        self.plays: dict[str, str] = {}
        self.recordings: dict[str, str] = {}
        self._ports = ports
        self._next_port = 20000
        self._loop = asyncio.get_running_loop()

    def attach(self, calls: list[media.KeptCall] | None = None) -> None:
        self.connected = True
        self.telephony.attach_worker(
            self.name, "127.0.0.1", self, media.Welcome(1, self.name, os.getpid(), calls or [])
        )

    def lose(self) -> None:
        self.connected = False
        self.telephony.on_worker_lost(self.name)

    def say(self, event: media.Event) -> None:
        self._loop.call_soon(self.telephony.on_worker_event, self.name, event)

    def sent(self, kind: type[EventT]) -> list[EventT]:
        return [command for command in self.commands if isinstance(command, kind)]

    def send(self, command: media.Command) -> None:
        if not self.connected:
            raise media.WorkerUnavailable("gone")
        self.commands.append(command)
        if isinstance(command, media.OpenLeg):
            if len(self.legs) >= self._ports:
                self.say(media.LegFailed(command.leg, "no port is free"))
                return
            self.legs[command.leg] = command.call
            self._next_port += 2
            self.say(media.LegOpened(command.leg, self._next_port))
        elif isinstance(command, media.CloseLeg):
            self._close(command.leg)
        elif isinstance(command, media.MoveLeg):
            self.legs[command.leg] = command.call
        elif isinstance(command, media.LoadPrompt):
            self.say(media.PromptLoaded(command.prompt, 1000))
        elif isinstance(command, media.Play):
            self._end_play(command.leg)
            self.plays[command.leg] = command.play
            if not command.loop:
                self._end_play(command.leg, completed=True)
        elif isinstance(command, media.StopPlay):
            self._end_play(command.leg)
        elif isinstance(command, media.StartRecording):
            self.recordings[command.call] = command.path
        elif isinstance(command, media.StopRecording):
            self._end_recording(command.call)
        elif isinstance(command, media.ReleaseCall):
            for leg in [leg for leg, call in self.legs.items() if call == command.call]:
                self._close(leg)
            self._end_recording(command.call)

    def _close(self, leg: str) -> None:
        call = self.legs.pop(leg, None)
        if call is not None:
            self._end_play(leg)
            self.say(media.LegClosed(leg, call, media.LegStatistics("PCMU", 5, 6, 0, 0, 0.0, None, None, None)))

    def _end_play(self, leg: str, *, completed: bool = False) -> None:
        play = self.plays.pop(leg, None)
        if play is not None:
            self.say(media.PlayEnded(leg, play, completed))

    def _end_recording(self, call: str) -> None:
        path = self.recordings.pop(call, None)
        if path is not None:
            self.say(media.RecordingEnded(call, path, 1000, 32044, "00"))


class Rig:
    """The provider with its endpoint on a loopback socket."""

    endpoint: Endpoint

    def __init__(self, telephony: NativeTelephony, transport: SipTransport, port: int, inbox: Inbox) -> None:
        self.telephony = telephony
        self.transport = transport
        self.port = port
        self.inbox = inbox
        self.worker: FakeWorker | None = None
        self.attached = asyncio.Event()  # the real worker is there

    # --- WorkerUser -----------------------------------------------------------------------

    def attach_worker(self, name: str, address: str, link: Link, welcome: media.Welcome) -> None:
        self.telephony.attach_worker(name, address, link, welcome)
        self.attached.set()

    def on_worker_event(self, name: str, event: media.Event) -> None:
        self.telephony.on_worker_event(name, event)

    def on_worker_lost(self, name: str) -> None:
        self.telephony.on_worker_lost(name)

    def number(self, user: str) -> str:
        return f"sip:{user}@127.0.0.1:{self.port}"

    def _left(self) -> int:
        counts = self.telephony.live_counts()
        return counts["calls"] + counts["legs"] + counts["media_legs"] + counts["dialogs"]

    async def settled(self) -> None:
        """Until no leg, call, port or dialog is left."""
        async with asyncio.timeout(WAIT_S):
            while self._left():  # noqa: ASYNC110 - nothing announces the last 200 to a BYE
                await asyncio.sleep(0.005)


def settings(
    tmp_path: Path, *, trunk: str = "127.0.0.4", contacts: dict[str, str | None] | None = None
) -> NativeSettings:
    agents = [
        AgentSettings(agent, {a: ha1(agent, REALM, PASSWORD, a) for a in ("MD5", "SHA-256")}, contact)
        for agent, contact in (contacts or {}).items()
    ]
    return NativeSettings(
        domain=REALM,
        trunks=(TrunkSettings("carrier", (trunk,)),),
        agents=tuple(agents),
        prompts={},
        recordings=str(tmp_path),
    )


async def register_over_tcp(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str, contact: str
) -> Response:
    """Register a phone; the answer to the authenticated REGISTER."""
    host, port = writer.get_extra_info("sockname")
    request = Request.build(
        "REGISTER",
        f"sip:{REALM}",
        via="",
        from_=f"<sip:{user}@{REALM}>;tag=1",
        to=f"<sip:{user}@{REALM}>",
        call_id=new_token(),
        cseq=1,
    )
    request.set("contact", f"<{contact}>")
    while True:
        request.set("via", f"SIP/2.0/TCP {host}:{port};branch=z9hG4bK{new_token()}")
        writer.write(request.serialise())
        async with asyncio.timeout(WAIT_S):
            answer = parse_message(await reader.readuntil(b"\r\n\r\n"))
        assert isinstance(answer, Response)
        if answer.status != 401 or request.has("authorization"):
            return answer
        challenges = [Challenge.parse(value) for value in answer.get_all("www-authenticate")]
        value = answer_challenge(
            challenges, method="REGISTER", uri=request.uri, username=user, password=PASSWORD, cnonce=new_token()
        )
        request.set("authorization", value)
        request.set("cseq", "2 REGISTER")


@contextlib.asynccontextmanager
async def make_rig(first: NativeSettings, *, tcp: bool = False) -> AsyncIterator[Rig]:
    loop = asyncio.get_running_loop()
    ids = count(1)
    inbox = Inbox()
    transport = SipTransport()
    endpoint = Endpoint(
        network=transport,
        policy=AccessPolicy([], {}, verifier_for(REALM)),
        registrar=Registrar(),
        new_token=new_token,
    )

    def sink(event: LegEvent) -> None:
        inbox.put(event)

    telephony = NativeTelephony(
        first,
        endpoint=endpoint,
        carrier=transport,
        verifier_for=verifier_for,
        sink=sink,
        new_id=lambda: f"id{next(ids):04d}",
        loop=loop,
    )
    port = free_port()
    await transport.start(
        endpoint, telephony.on_sip_event, [udp_socket(port=port)], [tcp_socket(port=port)] if tcp else []
    )
    rig = Rig(telephony, transport, port, inbox)
    rig.endpoint = endpoint
    try:
        yield rig
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def real_worker(rig: Rig, tmp_path: Path, *, pairs: int = 50) -> AsyncIterator[None]:
    """A media worker process, connected to the rig."""
    path = str(tmp_path / "w.sock")
    first = free_port(span=pairs * 2, align=2)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "media.worker",
        *("--socket", path, "--address", "127.0.0.1", "--ports", f"{first}-{first + pairs * 2 - 1}"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    link = asyncio.create_task(keep_connected(rig, name="worker-0", path=path, address="127.0.0.1", engine_name="test"))
    try:
        yield
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        process.terminate()
        async with asyncio.timeout(WAIT_S):
            await process.wait()
