"""Client requests to host names: located first, and sent to the next target where one fails (RFC 3263 4.3).

A transaction whose target fails moves: it gets a new branch and the next
target, and stays the same object for its user, who learns of failure only when
no target is left. What was sent to the target before may still be answered:
a copy stays behind that cancels or hangs up what comes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.outgoing import OutgoingSession
from adapters.sip.dialogs.session import Session
from adapters.sip.dialogs.session_events import SessionState
from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.location import DEFAULT_PORTS, Avoided, Target, is_address
from adapters.sip.transactions.layer import TransactionLayer
from adapters.sip.transactions.transaction import TIMEOUT, ClientTransaction, Effect, Flow, Transaction, build_cancel

MAX_DATAGRAM = 1300  # bytes of a request (RFC 3261 18.1.1)
FAILOVER_AFTER_S = 4.0  # without any response, where there is another target; four INVITEs went out by then
AVOID_S = 60.0  # a target that was silent, unreachable or overloaded
MAX_AVOID_S = 600.0  # however long its Retry-After
MAX_BRANCHES = 16  # of a fork, that are hung up at a target that we left


@dataclass(frozen=True, slots=True)
class Locate:
    """Find the targets of `uri`, and hand them to `Endpoint.on_located` with the ticket."""

    ticket: int
    uri: SipUri


class Core(Protocol):
    """What this needs of the endpoint.

    Attributes:
        counters: `sip_targets_failed_total`, `sip_failovers_total`.
    """

    counters: Counter[str]

    def open(self, request: Request, flow: Flow, user: object, now: float) -> ClientTransaction: ...
    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None: ...
    def send(self, flow: Flow, data: bytes) -> None: ...
    def run(self, tx: Transaction, effects: list[Effect], now: float) -> None: ...
    def via(self, flow: Flow) -> str: ...
    def contact(self, flow: Flow, *, secure: bool = False) -> str: ...
    def session_of_ours(self, request: Request) -> Session | None: ...


class Course:
    """What is known of the way of one request.

    Attributes:
        tx: carries it.
        at: the target it was sent to last.
        left: targets that were not tried yet; None while they are being looked up.
        give_up_at: the user waits no longer than this.
    """

    __slots__ = ("at", "give_up_at", "left", "tx")

    def __init__(self, tx: ClientTransaction) -> None:
        self.tx = tx
        self.at: Target | None = None
        self.left: list[Target] | None = None
        self.give_up_at: float | None = None


class Courses:
    """All requests of one endpoint that go to host names.

    Args:
        core: the endpoint.
        layer: its transactions.
        route: `Network.route`.
        emit: takes Locate.

    Attributes:
        avoided: targets that failed lately.
    """

    def __init__(
        self,
        core: Core,
        layer: TransactionLayer,
        route: Callable[[str, str, int], Flow | None],
        emit: Callable[[Locate], None],
    ) -> None:
        self.avoided = Avoided()
        self._core = core
        self._layer = layer
        self._route = route
        self._emit = emit
        self._waiting: dict[int, Course | tuple[Flow, Request]] = {}
        self._last_ticket = 0

    def __len__(self) -> int:
        return len(self._waiting)

    # --- beginnings -----------------------------------------------------------------------

    def open(self, request: Request, flow: Flow, user: object, now: float) -> ClientTransaction:
        """As `Endpoint.open`, for a flow whose host is a name: nothing is sent before it is located."""
        tx = self._layer.open_held(request, flow, now)
        tx.user = user
        course = tx.course = Course(tx)
        self._locate(course, request, flow)
        return tx

    def send_ack(self, flow: Flow, data: bytes) -> None:
        """Send the ACK to a 2xx, likewise. It goes where the dialog's other requests go."""
        ack = parse_message(data)
        if not isinstance(ack, Request):
            return
        session = self._core.session_of_ours(ack)
        dialog = None if session is None else session.dialog
        if dialog is not None and is_address(dialog.flow.host):
            self._send_ack(ack, dialog.flow)
        else:
            self._locate((flow, ack), ack, flow)

    def carry_large(self, tx: ClientTransaction, now: float) -> list[Effect]:
        """Send by TCP what is too large for UDP, and by UDP after all where that fails (RFC 3261 18.1.1).

        Returns:
            Instead of the effects of its first sending. None: it is to go by UDP: the peer is behind a
            NAT, which lets nothing but its UDP flow in, or its TCP port was dead lately, or we have no TCP.
        """
        flow, request = tx.flow, tx.request
        hop = next_hop(request)
        host = hop.params.get("maddr") or hop.host
        if (host, hop.port or DEFAULT_PORTS["udp"]) != (flow.host, flow.port):
            return []
        datagrams = Target("udp", flow.host, flow.port, host)
        stream = self._by_stream(datagrams, now)
        if stream is None:
            return []
        course = tx.course = Course(tx)
        course.at, course.left = datagrams._replace(transport="tcp"), [datagrams]
        return self._redirect(tx, stream, now, now + FAILOVER_AFTER_S)

    def _by_stream(self, target: Target, now: float) -> Flow | None:
        """The way by TCP to a UDP target, if it may be tried."""
        if self.avoided.is_avoided("tcp", target.host, target.port, now):
            return None
        return self._route("tcp", target.host, target.port)

    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None:
        """The user of a request waits no longer than this."""
        if tx.course is not None:
            tx.course.give_up_at = deadline

    def _locate(self, waiting: Course | tuple[Flow, Request], request: Request, flow: Flow) -> None:
        hop = next_hop(request)
        if flow.host not in (hop.host, hop.params.get("maddr")):  # a proxy that no Route names
            hop = SipUri("sip", None, host=flow.host, port=flow.port, params={"transport": flow.transport})
        self._last_ticket += 1
        self._waiting[self._last_ticket] = waiting
        self._emit(Locate(self._last_ticket, hop))

    def on_located(self, ticket: int, targets: Sequence[Target], now: float) -> None:
        """Targets in their order; none: nothing leads there."""
        waiting = self._waiting.pop(ticket, None)
        if isinstance(waiting, Course):
            tx = waiting.tx
            if tx.course is waiting and self._layer.holds(tx):
                failed = waiting.at
                ordered = self.avoided.order(targets, now)
                waiting.left = [target for target in ordered if failed is None or target[:3] != failed[:3]]
                if not self._move(waiting, now):
                    self._core.run(tx, self._layer.abandon(tx, now), now)
        elif waiting is not None:
            unlocated, ack = waiting
            for target in self.avoided.order(targets, now):
                flow = self._flow(target)
                if flow is not None:
                    self._pin(ack, unlocated, flow)
                    self._send_ack(ack, flow)
                    return

    # --- outcomes -------------------------------------------------------------------------

    def on_response(self, tx: Transaction, response: Response, now: float) -> bool:
        """A response to a located request; True: its target is overloaded, another one is tried."""
        status, course = response.status, tx.course
        if status < 200 or not isinstance(course, Course) or course.at is None:
            return False
        if status != 503:
            self.avoided.forgive(course.at.transport, course.at.host, course.at.port)
            course.left = []
            return False
        self._avoid(course.at, now + _retry_after(response))
        return self._fail_over(course, now, leave=self._layer.holds(course.tx))

    def on_failure(self, tx: ClientTransaction, now: float, *, reached: bool) -> bool:
        """A request got no answer, or could not be sent; True: another target is tried."""
        course = tx.course
        if course is None:
            return not reached and self._look_further(tx, now)
        if course.at is None:  # it was not even sent
            return False
        self._avoid(course.at, now + AVOID_S)
        return self._fail_over(course, now, leave=reached)

    def _look_further(self, tx: ClientTransaction, now: float) -> bool:
        """Locate the peer of a dialog again, whose address of up to now does not work any more."""
        request = tx.request
        if not request.to.tag or not self._wanted(tx) or tx.sent.startswith(b"ACK "):
            return False  # the last: it was answered
        hop = next_hop(request)
        host = hop.params.get("maddr") or hop.host
        if is_address(host):
            return False
        flow = tx.flow
        course = Course(tx)
        course.at = Target(flow.transport, flow.host, flow.port, hop.host)
        self._avoid(course.at, now + AVOID_S)
        self._layer.hold(tx, now)
        tx.course = course
        self._locate(course, request, flow._replace(host=host))
        return True

    # --- moving on ------------------------------------------------------------------------

    def _move(self, course: Course, now: float, *, leave: bool = False) -> bool:
        """Send the request to the next target; False: there is none, or nobody wants it any more."""
        tx = course.tx
        if not self._wanted(tx) or (course.give_up_at is not None and course.give_up_at <= now):
            return False
        flow = None
        while course.left:
            target = course.left.pop(0)
            flow = self._flow(target)
            if flow is not None:
                break
        if flow is None:
            return False
        if target.transport == "udp" and len(tx.sent) > MAX_DATAGRAM:
            stream = self._by_stream(target, now)
            if stream is not None:
                course.left = [target, *(course.left or ())]
                target, flow = target._replace(transport="tcp"), stream
        if leave and tx.request.method == "INVITE":
            self._leave(tx, now)
        course.at = target
        until = now + (FAILOVER_AFTER_S if course.left else TIMEOUT)
        if course.give_up_at is not None:
            until = min(until, course.give_up_at)
        self._core.run(tx, self._redirect(tx, flow, now, until), now)
        return True

    def _fail_over(self, course: Course, now: float, *, leave: bool) -> bool:
        moved = self._move(course, now, leave=leave)
        self._core.counters["sip_failovers_total"] += moved
        return moved

    def _redirect(self, tx: ClientTransaction, flow: Flow, now: float, until: float) -> list[Effect]:
        """Send the request of `tx` by another flow, with our address there in Via and Contact."""
        old, request = tx.flow, tx.request
        secure = request.uri.startswith("sips:")
        contact = request.get("contact")
        if contact is not None:
            before, after = (self._core.contact(way, secure=secure).partition("@")[2][:-1] for way in (old, flow))
            start, at, end = contact.partition(f"@{before}")
            if at and end[:1] in (";", ">") and before != after:  # whatever user and parameters of its own it has
                request.set("contact", f"{start}@{after}{end}")
        self._pin(request, old, flow)
        return self._layer.move(tx, self._core.via(flow), flow, now, until)

    def _avoid(self, target: Target, until: float) -> None:
        self._core.counters["sip_targets_failed_total"] += 1
        self.avoided.avoid(target.transport, target.host, target.port, until)

    def _wanted(self, tx: ClientTransaction) -> bool:
        """Whether the request still has a purpose: no INVITE goes out for a session that is over."""
        user = tx.user
        if tx.request.method != "INVITE" or not isinstance(user, Session):
            return True
        return user.state not in (SessionState.CLOSING, SessionState.ENDED)

    def _leave(self, tx: ClientTransaction, now: float) -> None:
        left = self._layer.leave(tx, now)
        left.user = _LeftBehind(self._core)
        left.course = None

    def _flow(self, target: Target) -> Flow | None:
        flow = self._route(target.transport, target.host, target.port)
        if flow is not None and target.transport == "tls" and not is_address(target.name):
            flow = flow._replace(domain=target.name)
        return flow

    def _pin(self, request: Request, old: Flow, flow: Flow) -> None:
        """Let what follows in the session go to the same target."""
        session = self._core.session_of_ours(request)
        if session is None:
            return
        if session.dialog is None:
            if isinstance(session, OutgoingSession):
                session.on_moved(flow)
        elif session.dialog.flow == old:
            session.dialog.flow = flow

    def _send_ack(self, ack: Request, flow: Flow) -> None:
        ack.set("via", self._core.via(flow))
        self._core.send(flow, ack.serialise())


class _LeftBehind:
    """Ends what a target makes of an INVITE after we went to another one."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cancelled = False
        self._acks: dict[str | None, tuple[Flow, bytes]] = {}

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        if response.status < 200:
            if not self._cancelled:
                self._cancelled = True
                self._core.open(build_cancel(tx.request), tx.flow, _nobody, now)
                self._core.give_up_at(tx, now + TIMEOUT)
        elif response.status < 300:
            self._hang_up(tx, response, now)

    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None: ...

    def _hang_up(self, tx: ClientTransaction, response: Response, now: float) -> None:
        tag = response.to.tag
        known = self._acks.get(tag)
        if known is None and len(self._acks) < MAX_BRANCHES:
            try:
                dialog = Dialog.from_response(tx.request, response, tx.flow)
            except PeerError:
                return
            ack = dialog.request("ACK", self._core.via(dialog.flow), tx.request.cseq.number)
            known = self._acks[tag] = (dialog.flow, ack.serialise())
            self._core.open(dialog.request("BYE", self._core.via(dialog.flow)), dialog.flow, _nobody, now)
        if known is not None:
            self._core.send(*known)


class _Nobody:
    """The user of a request whose outcome changes nothing."""

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None: ...
    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None: ...


_nobody = _Nobody()


def next_hop(request: Request) -> SipUri:
    """The URI that says where a request of ours goes (RFC 3261 8.1.2, 12.2.1.1)."""
    routes = request.headers.get("route")
    if routes:
        first = NameAddr.parse(routes[0]).uri
        if isinstance(first, SipUri) and "lr" in first.params:
            return first
    return request.parsed_uri


def _retry_after(response: Response) -> float:
    """Seconds that a 503 asks us to stay away (RFC 3261 20.33, 21.5.4)."""
    text = (response.get("retry-after") or "").partition(";")[0].partition("(")[0].strip()
    return float(min(int(text), MAX_AVOID_S)) if text.isascii() and text.isdigit() and len(text) < 10 else AVOID_S
