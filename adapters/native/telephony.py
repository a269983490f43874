"""`NativeTelephony`: the `Telephony` protocol on the SIP endpoint and the media workers.

Commands of call control become SIP and worker messages; what phones and
workers say becomes leg events. No event is delivered from within a command:
those that a command causes follow once the caller has had its turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from adapters.native.audio import LegAudio, first_common
from adapters.native.calling import Calling
from adapters.native.causes import cause_of, refusal_headers
from adapters.native.early_media import EarlyMedia
from adapters.native.exchange import Carrier, EventLoop, Exchange
from adapters.native.forking import Branch
from adapters.native.legs import Call, Leg, Link, Worker
from adapters.native.parties import called_on_line, caller_of, dialled_by, forwarded_by
from adapters.native.settings import NativeSettings
from adapters.native.transferring import Transferring
from adapters.native.trunks import Trunks
from adapters.native.watching import Watching
from adapters.sip.dialogs.session import (
    SessionAcked,
    SessionAnswered,
    SessionDtmf,
    SessionEnded,
    SessionOffered,
    SessionOfferWanted,
    SessionProbed,
    SessionProgress,
)
from adapters.sip.endpoint import Endpoint, Event, RegistrationChanged, SessionIncoming
from adapters.sip.errors import PeerError
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.syntax.replaces import REPLACES
from adapters.sip.syntax.sdp import SessionDescription
from engine.events import (
    AgentId,
    AgentReachability,
    CallAbandonedByEngine,
    CallId,
    EndCause,
    LegDtmf,
    LegId,
    LegIncoming,
    LegReport,
    MediaStatistics,
    OrphanEnded,
    PlayFinished,
    PlayId,
    RecordingFinished,
    Source,
    TransferId,
    TransferState,
)
from engine.telephony import EventSink, Originate
from media import client as media

log = logging.getLogger("murima.telephony")


class NativeTelephony:
    """See the module. `on_sip_event` is the owner that the endpoint's carrier reports to.

    Args:
        settings: first configuration.
        endpoint: the SIP endpoint, with a registrar for phones that register.
        carrier: its transport.
        verifier_for: makes the digest verifier of a realm.
        sink: gets the leg events.
        new_id: makes call and leg ids.
        loop: the event loop.
        draw: random numbers from 0 up to 1, which spread registrations over time.

    Attributes:
        trunks: registrations and alive-checks; `start` them once the sockets are there.
        draining: refuse new calls with 503 and Retry-After; calls in progress go on.
        on_dialog: told the Call-ID header of each dialog and the call that it belongs to.
    """

    def __init__(
        self,
        settings: NativeSettings,
        *,
        endpoint: Endpoint,
        carrier: Carrier,
        verifier_for: Callable[[str], DigestVerifier],
        sink: EventSink,
        new_id: Callable[[], str],
        loop: EventLoop,
        draw: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._exchange = Exchange(settings, endpoint=endpoint, carrier=carrier, sink=sink, new_id=new_id, loop=loop)
        self.trunks = Trunks(self._exchange, draw)
        self._early_media = EarlyMedia(self._exchange)
        self._calling = Calling(self._exchange, self.trunks, self._early_media)
        self._transferring = Transferring(self._exchange)
        self.watching = Watching(self._exchange)
        self._verifier_for = verifier_for
        self._verifier = verifier_for(settings.domain)
        self.reconfigure(settings)

    # --- configuration and observation ------------------------------------------------------

    def reconfigure(self, settings: NativeSettings) -> None:
        """Put another configuration in force at once; calls in progress go on.

        Raises:
            ValueError: a network or contact is malformed; nothing has changed then.
        """
        verifier = self._verifier if settings.domain == self._verifier.realm else self._verifier_for(settings.domain)
        policy, contacts = settings.policy(verifier, self._exchange.endpoint.guard), settings.contacts()
        self.trunks.replace(settings.trunks)
        self._exchange.endpoint.session_timer = settings.session_timer
        changed = {n: p for n, p in settings.prompts.items() if self._exchange.settings.prompts.get(n) != p}
        self._verifier, self._exchange.settings, self._calling.contacts = verifier, settings, contacts
        self._exchange.run(
            self._exchange.endpoint.replace_policy(policy, [agent.agent_id for agent in settings.agents])
        )
        self.watching.trunks = frozenset(trunk.name for trunk in settings.trunks if trunk.watch)
        self.watching.keep_only(frozenset(agent.agent_id for agent in settings.agents))
        for worker in self._exchange.workers.values():
            self._load_prompts(worker, changed)

    @property
    def on_dialog(self) -> Callable[[str, CallId], None]:
        return self._exchange.on_dialog

    @on_dialog.setter
    def on_dialog(self, value: Callable[[str, CallId], None]) -> None:
        self._exchange.on_dialog = value

    @property
    def draining(self) -> bool:
        return self._exchange.endpoint.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._exchange.endpoint.draining = value

    def reachable(self, agent_id: AgentId) -> bool:
        """Whether an agent's phone has a fixed contact or is registered."""
        return bool(self._calling.phones(agent_id))

    def live_counts(self) -> Mapping[str, int]:
        """What is alive now; after all calls, and 32 s for SIP's late messages, all are 0 but registrations."""
        registrar = self._exchange.endpoint.registrar
        return {
            "calls": len(self._exchange.calls),
            "legs": len(self._exchange.legs),
            "media_legs": sum(len(worker.legs) for worker in self._exchange.workers.values()),
            "dialogs": self._exchange.endpoint.sessions,
            "transactions": self._exchange.endpoint.transactions,
            "registrations": 0 if registrar is None else len(registrar),
        }

    def workers_ready(self) -> int:
        """How many media workers can serve calls now."""
        return sum(worker.ready for worker in self._exchange.workers.values())

    @property
    def busy(self) -> bool:
        """Whether any leg still has a dialog to end or ports to give back, or a carrier is to forget us."""
        return bool(self._exchange.endpoint.sessions or self.trunks.leaving) or any(
            worker.legs for worker in self._exchange.workers.values() if worker.connected
        )

    def counters(self) -> Mapping[str, float]:
        """Counters and gauges by metric name, as `engine.operations.Operations.counters` has them."""
        gauges = {f"sip_{name}": float(value) for name, value in self.live_counts().items()}
        gauges["sip_subscriptions"] = float(len(self.watching.notifier))
        return {**gauges, **self._exchange.endpoint.counters, **self._exchange.counters}

    # --- workers ----------------------------------------------------------------------------

    def attach_worker(self, name: str, address: str, link: Link, welcome: media.Welcome) -> None:
        """A worker was reached: from now on it gets calls.

        Args:
            name: ours for it; the same after a reconnection.
            address: IP address that its legs are offered at.
            link: the connection.
            welcome: its answer; calls in it that we do not know are announced.
        """
        worker = self._exchange.workers.setdefault(name, Worker(name, address))
        worker.address = address
        worker.link = link
        kept = {call.call for call in welcome.calls}
        for call_id in worker.unreleased & kept:
            self._exchange.send_to(worker, media.ReleaseCall(call_id))
        known = worker.unreleased | {
            str(call.call_id) for call in self._exchange.calls.values() if call.worker is worker
        }
        worker.unreleased.clear()
        worker.loading.clear()
        self._load_prompts(worker, self._exchange.settings.prompts)
        for call_id in worker.orphans - kept:  # it is another process now
            self._exchange.emit(OrphanEnded(CallId(call_id)))
        worker.orphans &= kept
        for found in welcome.calls:
            if found.call not in known and found.call not in worker.orphans:
                worker.orphans.add(found.call)
                self._exchange.emit(CallAbandonedByEngine(CallId(found.call), found.snapshot))

    def on_worker_lost(self, name: str) -> None:
        """The connection to a worker has ended: its legs end, the others go on."""
        worker = self._exchange.workers.get(name)
        if worker is None or worker.link is None:
            return
        worker.link = None
        worker.legs.clear()
        log.warning("worker.lost", extra={"worker": name})
        for call in [call for call in self._exchange.calls.values() if call.worker is worker]:
            for leg in [self._exchange.legs[leg_id] for leg_id in call.legs]:
                self._exchange.drop(leg, EndCause.FAILED, "media worker lost")
            if call.recording is not None:
                path, call.recording = call.recording, None
                self._exchange.emit(RecordingFinished(call.call_id, path, 0, 0, "", "media worker lost"))

    def _load_prompts(self, worker: Worker, prompts: Mapping[str, str]) -> None:
        for prompt, path in prompts.items():
            if self._exchange.send_to(worker, media.LoadPrompt(prompt, path)):
                worker.loading.add(prompt)

    # --- Telephony: legs ----------------------------------------------------------------------

    def ring(self, leg_id: LegId) -> None:
        leg = self._exchange.legs.get(leg_id)
        if leg is not None and leg.session is not None and leg.request is None and not leg.answering:
            self._exchange.open(leg)  # the port is there by the time somebody answers
            self._exchange.run(
                self._exchange.endpoint.ring(
                    leg.session, self._exchange.carrier.clock(), self._exchange.call_header(leg)
                )
            )

    def progress(self, leg_id: LegId, peer: LegId) -> None:
        if not self._early_media.progress(leg_id, peer):
            self.ring(leg_id)

    def answer(self, leg_id: LegId, *, peer: LegId | None = None) -> None:
        leg = self._exchange.legs.get(leg_id)
        if leg is None or leg.request is not None or leg.answering or leg.answered:
            return
        other = None if peer is None else self._exchange.legs.get(peer)
        if other is not None and other.audio.codec is not None:
            leg.preferred = other.audio.codec
        leg.answering = True
        if leg.port is not None:
            self._answer(leg, leg.port)
        elif not self._exchange.open(leg):
            self._exchange.drop(leg, EndCause.OVERLOADED, "no media worker")

    def reject(self, leg_id: LegId, cause: EndCause) -> None:
        self.hang_up(leg_id, cause)

    def originate(self, leg_id: LegId, request: Originate) -> None:
        self._calling.originate(leg_id, request)

    def hang_up(self, leg_id: LegId, cause: EndCause = EndCause.NORMAL) -> None:
        leg = self._exchange.legs.get(leg_id)
        if leg is not None:
            self._exchange.drop(leg, cause)

    # --- Telephony: transfers ------------------------------------------------------------------

    def shares_audio(self, a: LegId, b: LegId) -> bool:
        return self._transferring.shares_audio(a, b)

    def move_leg(self, leg_id: LegId, call_id: CallId) -> None:
        self._transferring.move(leg_id, call_id)

    def report_transfer(self, transfer_id: TransferId, state: TransferState, cause: EndCause = EndCause.NORMAL) -> None:
        self._transferring.report(transfer_id, state, cause)

    def refer(self, leg_id: LegId, transfer_id: TransferId, target: str) -> None:
        self._transferring.refer(leg_id, transfer_id, target)

    # --- Telephony: audio ---------------------------------------------------------------------

    def bridge(self, a: LegId, b: LegId) -> None:
        worker = self._shared_worker(a, b)
        if worker is not None:
            self._exchange.send_to(worker, media.Bridge(a, b))

    def unbridge(self, a: LegId, b: LegId) -> None:
        worker = self._shared_worker(a, b)
        if worker is not None:
            self._exchange.send_to(worker, media.Unbridge(a, b))

    def play(self, leg_id: LegId, play_id: PlayId, prompt: str, *, loop: bool = False) -> None:
        if not self._to_leg(leg_id, media.Play(leg_id, play_id, prompt, loop)):
            self._exchange.emit(PlayFinished(leg_id, play_id, completed=False))

    def stop_play(self, leg_id: LegId) -> None:
        self._to_leg(leg_id, media.StopPlay(leg_id))

    def echo(self, leg_id: LegId) -> None:
        self._to_leg(leg_id, media.Echo(leg_id, on=True))

    def send_dtmf(self, leg_id: LegId, digits: str) -> None:
        leg = self._exchange.legs.get(leg_id)
        if leg is not None and leg.audio.agreed is not None and leg.audio.agreed.dtmf_payload_type is not None:
            self._exchange.send_to(leg.call.worker, media.SendDtmf(leg_id, digits))

    def start_recording(self, call_id: CallId, left: LegId, right: LegId) -> None:
        call = self._exchange.calls.get(call_id)
        path = f"{self._exchange.settings.recordings}/{call_id}.wav"
        if call is None or not self._exchange.send_to(call.worker, media.StartRecording(call_id, left, right, path)):
            self._exchange.emit(RecordingFinished(call_id, path, 0, 0, "", "no media worker"))
        else:
            call.recording = path

    def stop_recording(self, call_id: CallId) -> None:
        call = self._exchange.calls.get(call_id)
        if call is not None and call.recording is not None:
            self._exchange.send_to(call.worker, media.StopRecording(call_id))

    def save_snapshot(self, call_id: CallId, snapshot: bytes) -> None:
        call = self._exchange.calls.get(call_id)
        if call is not None:
            self._exchange.send_to(call.worker, media.PutSnapshot(call_id, snapshot))

    def release_call(self, call_id: CallId) -> None:
        call = self._exchange.calls.pop(call_id, None)
        if call is None:
            return
        for leg in [self._exchange.legs[leg_id] for leg_id in call.legs]:
            self._exchange.drop(leg, EndCause.NORMAL)
        if call.worker is not None and not self._exchange.send_to(call.worker, media.ReleaseCall(call_id)):
            call.worker.unreleased.add(call_id)

    def _shared_worker(self, a: LegId, b: LegId) -> Worker | None:
        one, other = self._exchange.legs.get(a), self._exchange.legs.get(b)
        if one is None or other is None or one.call.worker is not other.call.worker:
            return None
        return one.call.worker

    def _to_leg(self, leg_id: LegId, command: media.Command) -> bool:
        leg = self._exchange.legs.get(leg_id)
        return leg is not None and leg.port is not None and self._exchange.send_to(leg.call.worker, command)

    # --- ports --------------------------------------------------------------------------------

    def _on_opened(self, event: media.LegOpened) -> None:
        leg = self._exchange.legs.get(LegId(event.leg))
        if leg is None:
            return  # it ended meanwhile; CloseLeg is on its way
        leg.port = event.port
        if leg.request is not None:
            self._calling.invite(leg, leg.request, event.port)
        elif leg.answering:
            self._answer(leg, event.port)
        elif leg.early_peer is not None:
            self._early_media.on_opened(leg, event.port)

    def _on_open_failed(self, event: media.LegFailed) -> None:
        for worker in self._exchange.workers.values():
            worker.legs.pop(event.leg, None)
        self._exchange.counters["media_ports_exhausted_total"] += 1
        leg = self._exchange.legs.get(LegId(event.leg))
        if leg is not None:
            leg.opening = False
            self._exchange.drop(leg, EndCause.OVERLOADED, event.reason)

    # --- calls from phones ----------------------------------------------------------------------

    def _on_incoming(self, event: SessionIncoming) -> None:
        session = event.session
        request = session.request
        now = self._exchange.carrier.clock()
        if not any(worker.connected for worker in self._exchange.workers.values()):
            self._exchange.counters["calls_refused_no_worker_total"] += 1
            self._exchange.run(self._exchange.endpoint.reject(session, 503, now, refusal_headers(503)))
            return
        replaced: Leg | None = None
        try:
            if REPLACES in request.headers:
                replaced = self._transferring.replaced(request)
            leg = Leg(
                LegId(self._exchange.new_id()),
                self._new_call(event.source.user) if replaced is None else replaced.call,
                LegAudio(self._exchange.next_sdp_session()),
            )
            dialled = called_on_line(request) if event.source.line else dialled_by(request)
            caller = caller_of(request, trusted=self.trunks.trusts(event.source.trunk))
            if request.body:
                leg.offer = SessionDescription.parse(request.body)
                leg.preferred = first_common(leg.offer)
                if leg.preferred is None:
                    raise PeerError("no codec in common", status=488)
        except PeerError as exc:
            self._exchange.counters[f'calls_refused_total{{status="{exc.status}"}}'] += 1
            self._exchange.run(self._exchange.endpoint.reject(session, exc.status, now))
            return
        forwards = request.max_forwards
        leg.max_forwards = 70 if forwards is None else forwards
        leg.session = session
        session.owner = leg
        self._exchange.on_dialog(session.sip_call_id, leg.call.call_id)
        leg.call.legs.add(leg.leg_id)
        self._exchange.calls[leg.call.call_id] = leg.call
        self._exchange.legs[leg.leg_id] = leg
        user = event.source.user
        if user is not None:
            self._exchange.seat(leg, user)
            self._exchange.changed(leg)
        self._exchange.emit(
            LegIncoming(
                leg.leg_id,
                leg.call.call_id,
                caller,
                dialled,
                Source(event.source.trunk, None if user is None else AgentId(user)),
                session.sip_call_id,
                None if replaced is None else replaced.leg_id,
                forwarded_by(request),
            )
        )

    def _new_call(self, user: str | None) -> Call:
        """A call; that of an agent who is in one already goes where the other is, so that they can be joined."""
        call = Call(CallId(self._exchange.new_id()))
        if user is not None and len(self._exchange.workers) > 1:
            others = (leg.call.worker for leg in self._exchange.legs_of(user))
            call.worker = next((worker for worker in others if worker is not None and worker.connected), None)
        return call

    def _answer(self, leg: Leg, port: int) -> None:
        session, worker = leg.session, leg.call.worker
        assert session is not None
        assert worker is not None
        try:
            if leg.early_answer:
                body = leg.early_answer
            elif leg.offer is not None:
                body = leg.audio.answer(leg.offer, worker.address, port, leg.preferred)
                self._exchange.send_to(worker, leg.audio.remote(leg.leg_id))
            else:
                body = leg.audio.offer(worker.address, port, leg.preferred)
        except PeerError as exc:
            self._exchange.drop(leg, EndCause.UNSUPPORTED, str(exc))
            return
        self._exchange.run(
            self._exchange.endpoint.answer(
                session, body, self._exchange.carrier.clock(), self._exchange.call_header(leg)
            )
        )
        if leg.offer is not None:
            self._exchange.talk(leg)

    def _on_acked(self, leg: Leg, body: bytes) -> None:
        """The ACK; it carries the answer where we made the offer."""
        if leg.answered and not body:
            return
        if self._exchange.take_answer(leg, body):
            self._exchange.talk(leg)

    # --- within calls -------------------------------------------------------------------------------

    def _on_offered(self, leg: Leg, body: bytes) -> None:
        """A re-INVITE or UPDATE: hold, resume, a new address."""
        session, worker = leg.session, leg.call.worker
        if session is None or worker is None or leg.port is None:
            return
        now = self._exchange.carrier.clock()
        if not body:
            self._exchange.run(
                self._exchange.endpoint.accept_offer(
                    session, leg.audio.offer(worker.address, leg.port, leg.audio.codec), now
                )
            )
            return
        try:
            answer = leg.audio.answer(SessionDescription.parse(body), worker.address, leg.port, leg.audio.codec)
        except PeerError as exc:
            self._exchange.run(self._exchange.endpoint.refuse_offer(session, exc.status, now))
            return
        self._exchange.agreed(leg)
        self._exchange.run(self._exchange.endpoint.accept_offer(session, answer, now))

    def _offer_again(self, leg: Leg) -> None:
        """The session is to be refreshed, or an offer of ours crossed one of theirs."""
        session, worker = leg.session, leg.call.worker
        if session is not None and worker is not None and leg.port is not None and leg.answered:
            offer = leg.audio.offer(worker.address, leg.port, leg.audio.codec)
            self._exchange.run(self._exchange.endpoint.reinvite(session, offer, self._exchange.carrier.clock()))

    def _on_reoffered(self, leg: Leg, body: bytes) -> None:
        """Their answer to such an offer; what cannot be used leaves the call as it was."""
        try:
            leg.audio.read(body)
        except PeerError:
            self._exchange.counters["reoffers_unusable_total"] += 1
        else:
            self._exchange.agreed(leg)

    def _on_silent(self, leg: Leg, silent_ms: int) -> None:
        """Audio stopped: a phone on hold or muted is fine, one that has gone is not. Ask it."""
        if self._exchange.settings.probe_silent_legs and leg.answered:
            leg.silent_s = silent_ms / 1000
            self._probe(leg)

    def _probe(self, leg: Leg) -> None:
        leg.probe_timer = None
        if leg.session is not None and leg.leg_id in self._exchange.legs:
            timeout_s = self._exchange.settings.probe_timeout_s
            self._exchange.run(self._exchange.endpoint.probe(leg.session, self._exchange.carrier.clock(), timeout_s))

    def _on_probed(self, leg: Leg, event: SessionProbed) -> None:
        if leg.silent_s == 0:
            return  # its audio is back
        if event.status == 481:
            leg.status = event.status
            self._exchange.drop(leg, EndCause.FAILED, "the phone has forgotten the call")
        elif not event.alive:
            leg.status = event.status
            self._exchange.drop(leg, EndCause.MEDIA_LOST, "the phone does not answer")
        elif leg.probe_timer is None:
            leg.probe_timer = self._exchange.loop.call_later(leg.silent_s, lambda: self._probe(leg))

    # --- endings ------------------------------------------------------------------------------------

    def _on_closed(self, event: media.LegClosed) -> None:
        originated = any(worker.legs.pop(event.leg, False) for worker in self._exchange.workers.values())
        s = event.statistics
        figures = MediaStatistics(
            s.codec,
            s.packets_received,
            s.packets_sent,
            s.packets_lost,
            s.packets_discarded,
            s.jitter_ms,
            s.remote_packets_lost,
            s.remote_jitter_ms,
            s.round_trip_ms,
        )
        self._exchange.emit(LegReport(LegId(event.leg), CallId(event.call), figures, originated))
        leg = self._exchange.legs.get(LegId(event.leg))
        if leg is not None:  # the worker closed it by itself
            leg.opening = False
            self._exchange.drop(leg, EndCause.FAILED, "closed by the media worker")

    # --- events in ------------------------------------------------------------------------------------

    def on_sip_event(self, event: Event) -> None:
        """Take an event of the endpoint."""
        self._exchange.take(self._handle_sip, event)

    def on_worker_event(self, name: str, event: media.Event) -> None:
        """Take an event of the worker `name`."""
        worker = self._exchange.workers.get(name)
        if worker is not None:
            self._exchange.take(partial(self._handle_worker, worker), event)

    def _handle_sip(self, event: Event) -> None:
        if isinstance(event, SessionIncoming):
            self._on_incoming(event)
            return
        if isinstance(event, RegistrationChanged):
            self._exchange.emit(AgentReachability(AgentId(event.user), event.reachable))
            self.watching.on_registration(event.user)
            return
        leg = event.session.owner
        if isinstance(leg, Branch):
            leg.fork.on_event(leg, event)
            return
        if isinstance(event, SessionEnded):
            self._transferring.on_ended(event.session, event.reason)
        if not isinstance(leg, Leg):
            return  # the leg has ended; its session is on the way to the same end
        if leg.probe_timer is not None and not leg.answered:
            self._exchange.heard_again(leg)  # the gateway is there
        if isinstance(event, SessionProgress):
            self._calling.on_progress(leg, event)
        elif isinstance(event, SessionAnswered):
            self._calling.on_answered(leg, event.body)
        elif isinstance(event, SessionAcked):
            self._on_acked(leg, event.body)
        elif isinstance(event, SessionOffered):
            self._on_offered(leg, event.body)
        elif isinstance(event, SessionDtmf):
            self._exchange.emit(LegDtmf(leg.leg_id, event.digit, event.duration_ms))
        elif isinstance(event, SessionProbed):
            self._on_probed(leg, event)
        elif isinstance(event, SessionEnded):
            cause = cause_of(event.reason, event.status)
            self._exchange.finish(leg, cause, event.status, event.detail, event.retry_after_s)
        elif isinstance(event, SessionOfferWanted):
            self._offer_again(leg)
        elif event.status < 300:
            self._on_reoffered(leg, event.body)

    def _handle_worker(self, worker: Worker, event: media.Event) -> None:
        if isinstance(event, media.LegOpened):
            self._on_opened(event)
        elif isinstance(event, media.LegClosed):
            self._on_closed(event)
        elif isinstance(event, media.Dtmf):
            if event.leg in self._exchange.legs:
                self._exchange.emit(LegDtmf(LegId(event.leg), event.digit, event.duration_ms))
        elif isinstance(event, media.PlayEnded):
            self._exchange.emit(PlayFinished(LegId(event.leg), PlayId(event.play), event.completed))
        elif isinstance(event, media.MediaSilent):
            leg = self._exchange.legs.get(LegId(event.leg))
            if leg is not None:
                self._on_silent(leg, event.silent_ms)
        elif isinstance(event, media.MediaResumed):
            leg = self._exchange.legs.get(LegId(event.leg))
            if leg is not None:
                self._exchange.heard_again(leg)
        elif isinstance(event, media.LegFailed):
            self._on_open_failed(event)
        elif isinstance(event, media.RecordingEnded):
            self._on_recorded(event)
        elif isinstance(event, media.OrphanEnded):
            worker.orphans.discard(event.call)
            self._exchange.emit(OrphanEnded(CallId(event.call)))
        elif isinstance(event, media.PromptLoaded):
            worker.loading.discard(event.prompt)
        elif isinstance(event, media.PromptFailed):
            worker.loading.discard(event.prompt)
            self._exchange.counters["prompts_failed_total"] += 1
            log.warning("prompt.failed", extra={"prompt": event.prompt, "reason": event.reason})
        elif isinstance(event, media.WorkerStatistics):
            self._exchange.counters["media_events_dropped_total"] = event.events_dropped

    def _on_recorded(self, event: media.RecordingEnded) -> None:
        call = self._exchange.calls.get(CallId(event.call))
        if call is not None:
            call.recording = None
        self._exchange.emit(
            RecordingFinished(
                CallId(event.call), event.path, event.duration_ms, event.size_bytes, event.sha256, event.error
            )
        )
