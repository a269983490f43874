"""The engine process: every part of it, joined."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import uvloop

from adapters.native.telephony import NativeTelephony
from adapters.native.workers import keep_connected
from adapters.sip.endpoint import Endpoint, Event, RegistrationChanged
from adapters.sip.protection.access import AccessPolicy
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.registration import registrations
from adapters.sip.registration.registrar import Registrar
from adapters.sip.targets.dns import DnsSettings
from adapters.sip.trace import SipTrace
from adapters.sip.transports.connections import ConnectionLimits
from adapters.sip.transports.transport import SipTransport
from adapters.store.recorder import EventRecorder
from adapters.store.records import PostgresRecords
from config.loader import Loaded, load
from config.problems import ConfigurationError
from config.schema import Document
from engine import listeners
from engine import log as logs
from engine.api import ApiSettings, HashedAccounts, create_app, serve, served_locally
from engine.bus import EventBus
from engine.clock import SystemClock
from engine.control import CallControl
from engine.data_folder import DataFolder
from engine.desk import Desk
from engine.events import EndCause, EngineStarted, LegEvent
from engine.identity import new_id
from engine.operations import ComponentHealth
from engine.start.certificates import Certificates
from engine.start.protection import Protection
from engine.start.settings import control_settings, kept_secret, native_settings, web_accounts
from engine.timer import DeadlineTimer
from engine.tls import TlsError
from engine.watching import AgentWatch
from routing.model import RoutingError

log = logging.getLogger("murima.engine")

_GOODBYE_S = 2.0  # for the last BYEs, reports and recordings
_GC_THRESHOLDS = (50_000, 4, 50)
_TRYING_AFTER_S = 0.2  # most calls are answered, or a phone rings, before: one message less
_KEEP_S = 0.5  # registrations that come together are written together
_LOOK_AGAIN_S = 0.2  # the end of a leg's media is not a log event
_FIXED = ("media",)  # sections that the supervisor reads once


class Engine:
    """All parts of the engine process, joined."""

    def __init__(self, config: Path, loaded: Loaded, folder: DataFolder) -> None:
        self._config = config
        self._document = loaded.document
        self._bound = loaded.document.sip.listen
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._clock = SystemClock()
        self._bus = EventBus()
        self._recorder: EventRecorder | None = None

        document = loaded.document
        self._certificates = Certificates(document)
        name_servers = tuple((server.host, server.port) for server in document.sip.dns.servers)
        self._transport = SipTransport(
            _limits(document),
            dns=DnsSettings(name_servers, document.sip.dns.timeout_s),
        )
        self._registrar = Registrar()
        self._registrations = folder.root / "registrations.json"
        self._keeping: asyncio.TimerHandle | None = None
        self._endpoint = Endpoint(
            network=self._transport,
            policy=AccessPolicy((), {}, self._verifier(document.domain)),
            registrar=self._registrar,
            new_token=lambda: secrets.token_hex(8),
        )
        self._endpoint.trying_after_s = _TRYING_AFTER_S
        self._protection = Protection(self._endpoint, document, self._loop.time)
        draw = secrets.SystemRandom().random
        self._control: CallControl
        self._telephony = NativeTelephony(
            native_settings(document, folder.recordings, kept_secret(folder, "sip-lines")),
            endpoint=self._endpoint,
            carrier=self._transport,
            verifier_for=self._verifier,
            sink=self._on_leg_event,
            new_id=new_id,
            loop=self._loop,
            draw=draw,
        )
        self._trace = SipTrace(self._transport.local, document.sip.trace_mb << 20)
        if document.sip.trace_mb:
            self._transport.trace = self._trace
            self._telephony.on_dialog = self._trace.link
        timer = DeadlineTimer(self._loop, self._on_time)
        self._control = CallControl(
            self._telephony, control_settings(document), self._bus, self._clock, new_id, timer.set, draw
        )
        watch = AgentWatch(self._control, self._bus, self._telephony.watching.on_presence)
        self._telephony.watching.presence = watch.presence
        self._accounts = HashedAccounts(web_accounts(document))

    def _verifier(self, realm: str) -> DigestVerifier:
        return DigestVerifier(
            realm,
            kept_secret(self._folder, "sip-nonce"),
            nonce_lifetime_s=float(self._document.sip.digest.nonce_s),
            random_bytes=os.urandom,
        )

    async def run(self, bound: Mapping[listeners.Listener, socket.socket]) -> int:
        """Serve until SIGTERM, then drain and stop."""
        signals = {
            signal.SIGTERM: self._on_stop,
            signal.SIGHUP: self._reload_wanted.set,
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
            counters=(
                self._telephony.counters,
                lambda: self._transport.counters,
                self._protection.figures,
                recorder.counters,
            ),
            lines=self._telephony.trunks.lines,
        )
        desk.describe(self._document.agents)
        self._desk = desk
        https = self._certificates.http
        api = ApiSettings(
            kept_secret(self._folder, "jwt"),
            cookie_secure=https is not None,
            allowed_origins=self._document.http.origins,
        )
        bans = self._protection.bans
        app = create_app(
            desk, records, self._accounts, self._bus, api, trace=self._trace, sip=self._transport, bans=bans
        )
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
        await self._transport.start(
            self._endpoint,
            self._on_sip_event,
            kinds[listeners.Kind.UDP],
            kinds[listeners.Kind.TCP],
            kinds[listeners.Kind.TLS],
            tls_server=None if self._certificates.sip is None else self._certificates.sip.context,
            tls_client=self._certificates.client,
        )
        self._protection.watch(kinds[listeners.Kind.UDP])
        web = self._document.http.listen
        self._transport.serve_web(web.host, web.port, secure=https is not None)
        context = None if https is None else https.context
        background += [self._loop.create_task(serve(app, sock, context)) for sock in kinds[listeners.Kind.HTTP]]
        self._restore_registrations(len(kinds[listeners.Kind.UDP]))
        self._telephony.trunks.start()
        log.info("engine.started", extra={"pid": os.getpid(), "config": str(self._config)})
        background += [self._loop.create_task(work) for work in (self._announce(), self._keep_reloading())]
        async with served_locally(self._trace, self._folder.control_socket):
            await self._stopping.wait()
            await self._drain()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._protection.close()
        await self._transport.close()
        self._keep_registrations()
        await recorder.close()
        await records.close()
        log.info("engine.stopped")
        return 0

    async def _drain(self) -> None:
        """Refuse new calls, let those in progress end within `drain_s`, then end them politely."""
        self._telephony.draining = True
        log.info("engine.draining", extra={"calls": len(self._control.calls), "drain_s": self._document.drain_s})
        over = self._loop.create_task(self._until(lambda: not self._control.calls))
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({over, hurry}, timeout=self._document.drain_s, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        hurry.cancel()
        # Those who wait go first: an agent set free must not be rung for a call that ends in the same moment.
        for call_id in reversed(tuple(self._control.calls)):
            self._control.hang_up(call_id, EndCause.SHUTDOWN)
        self._telephony.trunks.stop()
        self._telephony.watching.end()
        # SIP gives up a phone that is gone after half a minute; that must not hold up the end.
        with contextlib.suppress(TimeoutError):
            quiet = self._until(lambda: not (self._control.calls or self._telephony.busy))
            await asyncio.wait_for(quiet, _GOODBYE_S)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until this is true, which may be whenever an event was logged or soon after."""
        ended = asyncio.Event()
        unsubscribe = self._bus.subscribe(lambda _: ended.set())
        try:
            while not condition():
                ended.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _LOOK_AGAIN_S)
        finally:
            unsubscribe()

    async def _announce(self) -> None:
        """Tell the person at the terminal when calls are taken, and where."""
        await self._until(lambda: self._telephony.workers_ready() > 0)
        where = {
            "sip": " ".join(str(listener) for listener in self._document.sip.listen),
            "http": f"http{'' if self._document.http.tls is None else 's'}://{self._document.http.listen}/",
        }
        log.info("engine.ready", extra=where)

    def _on_sip_event(self, event: Event) -> None:
        if isinstance(event, RegistrationChanged) and self._keeping is None:
            self._keeping = self._loop.call_later(_KEEP_S, self._write_registrations)
        self._telephony.on_sip_event(event)

    def _restore_registrations(self, udp_listeners: int) -> None:
        """Reach the phones again that had registered with the engine before this one."""
        agents = {agent.id for agent in self._document.agents}
        found = registrations.read(self._registrations, self._loop.time(), time.time())
        kept = [item for item in found if item.user in agents and item.flow.local < udp_listeners]
        self._transport.carry_out(self._endpoint.restore(kept))
        log.info("engine.registrations_restored", extra={"registrations": len(kept)})

    def _kept_registrations(self) -> bytes:
        return registrations.encode(self._registrar.all_bindings(), self._loop.time(), time.time())

    def _write_registrations(self) -> None:
        self._keeping = None
        self._loop.run_in_executor(None, registrations.write, self._registrations, self._kept_registrations())

    def _keep_registrations(self) -> None:
        """At the end: what has changed since the last write."""
        if self._keeping is not None:
            self._keeping.cancel()
            registrations.write(self._registrations, self._kept_registrations())

    def _on_leg_event(self, event: LegEvent) -> None:
        self._control.on_leg_event(event)

    def _on_time(self) -> None:
        self._control.on_time()

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _keep_reloading(self) -> None:
        """Each SIGHUP: one that comes during a reload makes another follow."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            try:
                await self._reload()
            except Exception:  # a fault of ours must not make every later SIGHUP go unheard
                log.exception("config.failed")

    async def _reload(self) -> None:
        """Put the file's present contents in force, or say why not and go on as before."""
        try:
            # Two thousand agents take seconds to read; calls go on meanwhile.
            loaded = await asyncio.to_thread(load, self._config)
        except ConfigurationError as exc:
            log.error("config.refused", extra={"problems": str(exc)})
            return
        old, new = self._document, loaded.document
        try:
            settings = control_settings(new)
            line_key = kept_secret(self._folder, "sip-lines")
            self._protection.configure(new)
            self._telephony.reconfigure(native_settings(new, self._folder.recordings, line_key, self._bound))
        except (RoutingError, ValueError) as exc:
            self._protection.configure(old)
            log.error("config.refused", extra={"problems": str(exc)})
            return
        self._control.replace_settings(settings)
        self._accounts.replace(web_accounts(new))
        self._desk.describe(new.agents)
        self._document = new
        self._certificates.replace(new)
        self._transport.replace_limits(_limits(new))
        needs_restart = [key for key in _FIXED if getattr(old, key) != getattr(new, key)]
        if [str(item) for item in self._bound] != [str(item) for item in new.sip.listen]:
            needs_restart.append("sip.listen")
        if old.sip.dns != new.sip.dns:
            needs_restart.append("sip.dns")
        if _served(old) != _served(new):
            needs_restart.append("http")
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


def _limits(document: Document) -> ConnectionLimits:
    return ConnectionLimits(per_address=document.sip.connections_per_address)


def _served(document: Document) -> object:
    """What of `http` a running engine cannot change; certificates it can."""
    return document.http.listen, document.http.origins, document.http.tls is None


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

    # What was loaded stays for good: the collector need not look at it again, and only seldom at the rest.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)

    async def run() -> int:
        try:
            engine = Engine(arguments.config, loaded, folder)
        except TlsError as exc:  # a file changed since it was checked
            log.error("engine.not_started", extra={"problems": str(exc)})
            return 1
        return await engine.run(bound)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
