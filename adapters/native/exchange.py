"""What every part of the native provider shares: calls, legs, workers, and the way out for events.

No event is delivered from within a command: those that a command causes follow
once the caller has had its turn.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from adapters.native.causes import reason_headers, refusal_headers, status_of
from adapters.native.legs import Call, Cancellable, Leg, Worker
from adapters.native.settings import NativeSettings
from adapters.sip.endpoint import Effect, Endpoint
from adapters.sip.errors import PeerError
from adapters.sip.transactions.transaction import Flow
from engine.events import CallId, EndCause, LegAnswered, LegEnded, LegEvent, LegHeld, LegId, LegResumed
from engine.telephony import EventSink
from media import client as media

log = logging.getLogger("murima.telephony")

CALL_ID_HEADER = "x-murima-call-id"

_EventT = TypeVar("_EventT")


class Carrier(Protocol):
    """Carries out what the endpoint wants; `adapters.sip.transports.transport.SipTransport` is one."""

    clock: Callable[[], float]

    def carry_out(self, effects: list[Effect]) -> None: ...

    def keep_open(self, flow: Flow) -> None:
        """Keep NATs from forgetting a flow of ours."""

    def let_go(self, flow: Flow) -> None:
        """The opposite of `keep_open`; safe to repeat."""


class EventLoop(Protocol):
    """The two things needed of an event loop."""

    def call_soon(self, callback: Callable[[], None], /) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Cancellable: ...


class Exchange:
    """See the module. Arguments are those of `NativeTelephony`.

    Attributes:
        calls, legs: those that have not ended.
        workers: media workers by name.
        on_calls_changed: told of an agent whose calls have changed.
        on_dialog: told the Call-ID header of each dialog and the call that it belongs to.
    """

    def __init__(
        self,
        settings: NativeSettings,
        *,
        endpoint: Endpoint,
        carrier: Carrier,
        sink: EventSink,
        new_id: Callable[[], str],
        loop: EventLoop,
    ) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self.carrier = carrier
        self.sink = sink
        self.new_id = new_id
        self.loop = loop
        self.calls: dict[CallId, Call] = {}
        self.legs: dict[LegId, Leg] = {}
        self.workers: dict[str, Worker] = {}
        self.counters: Counter[str] = Counter()
        self.on_dialog: Callable[[str, CallId], None] = _nobody
        self.on_calls_changed: Callable[[str], None] = _unwatched
        self._legs_by_user: dict[str, list[Leg]] = {}
        self._sdp_sessions = 0
        self._events: deque[LegEvent] = deque()
        self._delivering = False
        self._scheduled = False

    def send_to(self, worker: Worker | None, command: media.Command) -> bool:
        """Send a command to a worker, if it can be reached."""
        if worker is None or worker.link is None or not worker.link.connected:
            return False
        try:
            worker.link.send(command)
        except media.WorkerUnavailable:
            return False  # on_worker_lost follows
        return True

    def open(self, leg: Leg) -> bool:
        """Ask a worker for a port, once; False if there is no worker for this call."""
        if leg.opening:
            return True
        call = leg.call
        if call.worker is None:
            connected = [worker for worker in self.workers.values() if worker.connected]
            if not connected:
                return False
            call.worker = min(connected, key=lambda worker: (len(worker.legs), worker.name))
        if not self.send_to(call.worker, media.OpenLeg(leg.leg_id, call.call_id)):
            return False
        call.worker.legs[leg.leg_id] = leg.request is not None
        leg.opening = True
        return True

    def talk(self, leg: Leg) -> None:
        """Say that a leg is answered, once."""
        if not leg.answered:
            leg.answered = True
            self.changed(leg)
            self.emit(LegAnswered(leg.leg_id))

    def take_answer(self, leg: Leg, body: bytes) -> bool:
        """Read their answer to our offer; the leg ends if it is none."""
        try:
            leg.audio.read(body)
        except PeerError as exc:
            broken = leg.request is not None and not leg.answered  # it should have refused our offer
            self.drop(leg, EndCause.BROKEN if broken else EndCause.UNSUPPORTED, str(exc))
            return False
        self.agreed(leg)
        return True

    def agreed(self, leg: Leg) -> None:
        """Tell the worker, and call control if the hold has changed."""
        self.send_to(leg.call.worker, leg.audio.remote(leg.leg_id))
        agreed = leg.audio.agreed
        if agreed is not None and agreed.held != leg.held:
            leg.held = agreed.held
            self.emit(LegHeld(leg.leg_id) if leg.held else LegResumed(leg.leg_id))

    def drop(self, leg: Leg, cause: EndCause, detail: str = "") -> None:
        """End a leg from our side, whatever its state."""
        session = leg.session
        self.finish(leg, cause, leg.status, detail)
        if session is not None:
            status = status_of(cause)
            now = self.carrier.clock()
            headers = (*refusal_headers(status), *reason_headers(cause))
            self.run(self.endpoint.hang_up(session, now, status=status, headers=headers))

    def finish(
        self, leg: Leg, cause: EndCause, status: int | None, detail: str, retry_after_s: float | None = None
    ) -> None:
        """Forget a leg, release its ports and say so, once."""
        if self.legs.pop(leg.leg_id, None) is None:
            return
        leg.call.legs.discard(leg.leg_id)
        if leg.user is not None:
            self._unseat(leg, leg.user)
        self.heard_again(leg)
        if leg.session is not None:
            leg.session.owner = None
        if leg.fork is not None:
            fork, leg.fork = leg.fork, None
            fork.stop(cause)
        if leg.opening:
            self.send_to(leg.call.worker, media.CloseLeg(leg.leg_id))
        self.emit(LegEnded(leg.leg_id, cause, status, detail, retry_after_s))

    def seat(self, leg: Leg, user: str) -> None:
        """A leg is that of an agent's phone."""
        leg.user = user
        self._legs_by_user.setdefault(user, []).append(leg)

    def _unseat(self, leg: Leg, user: str) -> None:
        legs = self._legs_by_user[user]
        legs.remove(leg)
        if not legs:
            del self._legs_by_user[user]
        self.on_calls_changed(user)

    def legs_of(self, user: str) -> Sequence[Leg]:
        """The legs of an agent's phones, the oldest first."""
        return self._legs_by_user.get(user, ())

    def changed(self, leg: Leg) -> None:
        """A leg is in another state now."""
        if leg.user is not None:
            self.on_calls_changed(leg.user)

    def heard_again(self, leg: Leg) -> None:
        """A leg's audio is back, or wanted no more: stop asking for its phone."""
        leg.silent_s = 0.0
        if leg.probe_timer is not None:
            leg.probe_timer.cancel()
            leg.probe_timer = None

    def emit(self, event: LegEvent) -> None:
        """Tell call control, once the command or event in progress is over."""
        self._events.append(event)
        if not self._delivering and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._deliver)

    def take(self, handle: Callable[[_EventT], None], event: _EventT) -> None:
        """Handle an event, then tell call control what came of it, unless a command of ours is the cause."""
        if self._delivering:
            self._handle(handle, event)
            return
        self._delivering = True
        try:
            self._handle(handle, event)
        finally:
            self._delivering = False
        self._deliver()

    def _handle(self, handle: Callable[[_EventT], None], event: _EventT) -> None:
        """A fault of ours ends the call it happened in; raised further, it would cost the worker's connection."""
        try:
            handle(event)
        except Exception:
            self.counters["telephony_faults_total"] += 1
            log.exception("telephony.failed", extra={"event": type(event).__name__})
            with suppress(Exception):  # whatever part of the end fails, too
                self._abandon(event)

    def _abandon(self, event: object) -> None:
        """End the leg that an event was about; a call that is not ours yet gets 500."""
        session = getattr(event, "session", None)
        leg = self.legs.get(getattr(event, "leg", LegId(""))) if session is None else session.owner
        if isinstance(leg, Leg):
            self.drop(leg, EndCause.FAILED, "internal fault")
        elif session is not None:
            self.run(self.endpoint.hang_up(session, self.carrier.clock(), status=status_of(EndCause.FAILED)))

    def run(self, effects: list[Effect]) -> None:
        """Carry out effects; events among them wait until the command that caused them has returned."""
        if self._delivering:
            self.carrier.carry_out(effects)
            return
        self._delivering = True
        try:
            self.carrier.carry_out(effects)
        finally:
            self._delivering = False
        if self._events and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._delivering:
            return  # called from within: whoever delivers goes on until nothing is left
        self._scheduled = False
        self._delivering = True
        try:
            while self._events:
                self.sink(self._events.popleft())
        finally:
            self._delivering = False
            if self._events:  # the sink raised: the rest is not lost
                self._scheduled = True
                self.loop.call_soon(self._deliver)

    def call_header(self, leg: Leg) -> tuple[tuple[str, str], ...]:
        """Our name of the call, for its phones."""
        return ((CALL_ID_HEADER, leg.call.call_id),)

    def next_sdp_session(self) -> int:
        """A session id for the descriptions of one dialog."""
        self._sdp_sessions += 1
        return self._sdp_sessions


def _unwatched(_user: str) -> None:
    """Nobody watches."""


def _nobody(_sip_call_id: str, _call_id: CallId) -> None:
    """Nobody keeps a trace."""
