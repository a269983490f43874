"""The start-up module: joins the parts. It alone may name concrete adapters.

`python -m engine.start --config FILE --data DIR` is the engine process, a child
of the supervisor, which hands it the listening sockets. The test phone and the
demo build their phones here, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import uvloop

from adapters.native.settings import AgentSettings as PhoneSettings
from adapters.native.settings import NativeSettings, TrunkSettings
from adapters.native.telephony import NativeTelephony
from adapters.native.workers import keep_connected
from adapters.sip.access import AccessPolicy
from adapters.sip.digest import DigestVerifier
from adapters.sip.endpoint import Endpoint
from adapters.sip.registrar import Registrar
from adapters.sip.transport import SipTransport
from adapters.store.recorder import EventRecorder
from adapters.store.records import PostgresRecords
from config.loader import Loaded, load
from config.numbers import DialPlan
from config.problems import ConfigurationError
from config.schema import Agent, Document, Password, Role
from config.secrets import ALGORITHMS, sip_ha1
from engine import listeners
from engine import log as logs
from engine.api import Account, ApiSettings, HashedAccounts, Identity, create_app, serve
from engine.bus import EventBus
from engine.clock import SystemClock
from engine.control import CallControl, ControlSettings, QueueCare
from engine.data_folder import DataFolder
from engine.desk import Desk
from engine.events import AgentId, EndCause, EngineStarted, LegEvent
from engine.identity import new_id
from engine.operations import ComponentHealth
from engine.timer import DeadlineTimer
from routing.model import AgentSettings, NoAnswer, QueueSettings, RoutingError, RoutingSettings, Strategy

log = logging.getLogger("murima.engine")

_GOODBYE_S = 2.0  # for the last BYEs, reports and recordings
_LOOK_AGAIN_S = 0.2  # the end of a leg's media is not a log event
_FIXED = ("media", "http")  # sections that the supervisor reads once


# --- from the document to what each part wants --------------------------------------------


def control_settings(document: Document) -> ControlSettings:
    """What call control and the router take from a document."""
    return ControlSettings(
        dial_plan=DialPlan(document.numbers),
        routing=RoutingSettings(
            agents=tuple(
                AgentSettings(
                    agent_id=agent.id,
                    skills=dict(agent.skills),
                    auto_ready=agent.auto_ready,
                    fixed_contact=agent.contact is not None,
                )
                for agent in document.agents
            ),
            queues=tuple(
                QueueSettings(
                    queue_id=queue.id,
                    strategy=Strategy(queue.strategy),
                    members=queue.members,
                    requires=dict(queue.requires),
                    ring_timeout_s=float(queue.ring_timeout_s),
                    wrap_up_s=float(queue.wrap_up_s),
                    no_answer=NoAnswer(queue.no_answer),
                )
                for queue in document.queues
            ),
        ),
        queues={queue.id: QueueCare(music=queue.music, record=queue.record) for queue in document.queues},
    )


def web_accounts(document: Document) -> list[Account]:
    """Who may log in over HTTP: users by name, agents by id."""

    def account(identity: Identity, password: Password) -> Account:
        return Account(
            identity,
            password_hash=password.argon2id.get_secret_value() if password.argon2id else "",
            password=password.plain.get_secret_value() if password.plain else "",
        )

    return [
        *(account(Identity(user.username, user.role), user.password) for user in document.users),
        *(account(Identity(agent.id, Role.AGENT, AgentId(agent.id)), agent.password) for agent in document.agents),
    ]


def native_settings(document: Document, recordings: Path) -> NativeSettings:
    """What SIP and the media workers take from a document."""

    def hashes(agent: Agent) -> dict[str, str]:
        found = ((algorithm, sip_ha1(agent, document.domain, algorithm)) for algorithm in ALGORITHMS)
        return {algorithm: ha1 for algorithm, ha1 in found if ha1 is not None}

    return NativeSettings(
        domain=document.domain,
        trunks=tuple(
            TrunkSettings(trunk.name, tuple(str(network) for network in trunk.match)) for trunk in document.sip.trunks
        ),
        agents=tuple(PhoneSettings(agent.id, hashes(agent), agent.contact) for agent in document.agents),
        prompts={name: str(path) for name, path in document.prompts.items()},
        recordings=str(recordings),
    )


def kept_secret(folder: DataFolder, name: str) -> bytes:
    """A random key of 32 bytes that stays the same over restarts, in a file that only we may read."""
    path = folder.root / "secrets" / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == 32:
            return key
        path.unlink()  # cut short by a full disk: a new key only means logging in again
        return kept_secret(folder, name)
    key = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    return key


# --- the engine process -------------------------------------------------------------------


class Engine:
    """All parts of the engine process, joined."""

    def __init__(self, config: Path, loaded: Loaded, folder: DataFolder) -> None:
        self._config = config
        self._document = loaded.document
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._clock = SystemClock()
        self._bus = EventBus()
        self._recorder: EventRecorder | None = None

        document = loaded.document
        self._transport = SipTransport()
        self._endpoint = Endpoint(
            network=self._transport,
            policy=AccessPolicy((), {}, self._verifier(document.domain)),
            registrar=Registrar(),
            new_token=lambda: secrets.token_hex(8),
        )
        self._control: CallControl
        self._telephony = NativeTelephony(
            native_settings(document, folder.recordings),
            endpoint=self._endpoint,
            carrier=self._transport,
            verifier_for=self._verifier,
            sink=self._on_leg_event,
            new_id=new_id,
            loop=self._loop,
        )
        timer = DeadlineTimer(self._loop, self._on_time)
        self._control = CallControl(
            self._telephony, control_settings(document), self._bus, self._clock, new_id, timer.set
        )
        self._accounts = HashedAccounts(web_accounts(document))

    def _verifier(self, realm: str) -> DigestVerifier:
        return DigestVerifier(realm, kept_secret(self._folder, "sip-nonce"), random_bytes=os.urandom)

    async def run(self, bound: Mapping[listeners.Listener, socket.socket]) -> int:
        """Serve until SIGTERM, then drain and stop."""
        signals = {
            signal.SIGTERM: self._on_stop,
            signal.SIGHUP: self._reload,
        }
        for number, action in signals.items():
            self._loop.add_signal_handler(number, action)
        url = os.environ.get("MURIMA_DATABASE_URL") or self._folder.database_url
        self._recorder = recorder = EventRecorder(url, self._folder.root / "journal")
        self._bus.subscribe(recorder.record)
        await recorder.start()
        self._bus.publish(EngineStarted(event_id=new_id(), at=self._clock.utc(), version=version("murima")))
        self._control.start()
        records = PostgresRecords(url)
        desk = Desk(
            self._control,
            self._clock,
            health=(self._health, lambda: (recorder.health(),)),
            counters=(self._telephony.counters, lambda: self._transport.counters, recorder.counters),
        )
        desk.describe(self._document.agents)
        self._desk = desk
        app = create_app(desk, records, self._accounts, self._bus, ApiSettings(kept_secret(self._folder, "jwt")))
        background = [
            self._loop.create_task(
                keep_connected(
                    self._telephony,
                    name=f"worker-{index}",
                    path=str(self._folder.worker_socket(index)),
                    address=str(self._document.media.public_address),
                    engine_name=f"engine-{os.getpid()}",
                )
            )
            for index in range(self._document.media.workers)
        ]
        kinds = {kind: [sock for item, sock in bound.items() if item.kind is kind] for kind in listeners.Kind}
        background += [self._loop.create_task(serve(app, sock)) for sock in kinds[listeners.Kind.HTTP]]
        await self._transport.start(
            self._endpoint, self._telephony.on_sip_event, kinds[listeners.Kind.UDP], kinds[listeners.Kind.TCP]
        )
        log.info("engine.started", extra={"pid": os.getpid(), "config": str(self._config)})
        await self._stopping.wait()
        await self._drain()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._transport.close()
        await recorder.close()
        await records.close()
        log.info("engine.stopped")
        return 0

    async def _drain(self) -> None:
        """Refuse new calls, let those in progress end within `drain_s`, then end them politely."""
        self._telephony.draining = True
        log.info("engine.draining", extra={"calls": len(self._control.calls), "drain_s": self._document.drain_s})
        quiet = self._loop.create_task(self._until_quiet())
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({quiet, hurry}, timeout=self._document.drain_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for call_id in tuple(self._control.calls):
            self._control.hang_up(call_id, EndCause.SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(quiet, _GOODBYE_S)

    async def _until_quiet(self) -> None:
        """Until no call is left, and what remains of the last ones has been told and recorded."""
        ended = asyncio.Event()
        unsubscribe = self._bus.subscribe(lambda _: ended.set())
        try:
            while self._control.calls or self._telephony.busy:
                ended.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _LOOK_AGAIN_S)
        finally:
            unsubscribe()

    def _on_leg_event(self, event: LegEvent) -> None:
        self._control.on_leg_event(event)

    def _on_time(self) -> None:
        self._control.on_time()

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _reload(self) -> None:
        """SIGHUP: put the file's present contents in force, or say why not and go on as before."""
        try:
            loaded = load(self._config)
        except ConfigurationError as exc:
            log.error("config.refused", extra={"problems": str(exc)})
            return
        old, new = self._document, loaded.document
        try:
            settings = control_settings(new)
            self._telephony.reconfigure(native_settings(new, self._folder.recordings))
        except (RoutingError, ValueError) as exc:
            log.error("config.refused", extra={"problems": str(exc)})
            return
        self._control.replace_settings(settings)
        self._accounts.replace(web_accounts(new))
        self._desk.describe(new.agents)
        self._document = new
        needs_restart = [key for key in _FIXED if getattr(old, key) != getattr(new, key)]
        if old.sip.listen != new.sip.listen:
            needs_restart.append("sip.listen")
        if needs_restart:
            log.warning("config.needs_restart", extra={"keys": needs_restart})
        log.info("config.activated", extra={"agents": len(new.agents), "queues": len(new.queues)})

    def _health(self) -> list[ComponentHealth]:
        connected = self._telephony.workers_ready()
        workers = self._document.media.workers
        return [
            ComponentHealth("sip", ok=not self._telephony.draining, critical=True, detail=self._sip_detail()),
            ComponentHealth(
                "media",
                ok=connected > 0,
                critical=True,
                detail="" if connected == workers else f"{connected} of {workers} workers ready",
            ),
        ]

    def _sip_detail(self) -> str:
        return "draining" if self._telephony.draining else ""


def main(argv: Sequence[str] | None = None) -> int:
    """The engine process."""
    parser = argparse.ArgumentParser(prog="murima-engine")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args(argv)
    logs.configure(os.environ.get("MURIMA_LOG_LEVEL", "info"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the supervisor
    try:
        loaded = load(arguments.config)
        bound = listeners.inherited(os.environ)
    except (ConfigurationError, listeners.ListenerError) as exc:
        log.error("engine.not_started", extra={"problems": str(exc)})
        return 1
    folder = DataFolder.at(arguments.data)

    async def run() -> int:
        return await Engine(arguments.config, loaded, folder).run(bound)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
