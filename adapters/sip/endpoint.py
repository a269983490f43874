"""The SIP endpoint: bytes, their source and the time in; bytes to send and session events out.

It answers by itself what needs nobody's decision (OPTIONS, REGISTER, wrong
requests) and hands calls to its owner as sessions. Every public method returns
the effects in the order in which they are to be carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.sip.answers import Answers, note_source, way_back
from adapters.sip.dialogs.dialog import PORTS, destination
from adapters.sip.dialogs.dialog_request import Outcome
from adapters.sip.dialogs.incoming import IncomingSession
from adapters.sip.dialogs.notifier import Notifier
from adapters.sip.dialogs.outgoing import OutgoingSession
from adapters.sip.dialogs.session import (
    AGENT,
    ALLOW,
    SDP,
    Headers,
    InDialogHandler,
    Login,
    Session,
    SessionEvent,
    SessionState,
)
from adapters.sip.dialogs.session_timer import TimerSettings, ask
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.protection.access import AccessPolicy, Admitted, Refused
from adapters.sip.protection.guard import Guard
from adapters.sip.protection.overload import Admission
from adapters.sip.registration.registrar import (
    OUTBOUND,
    PATH,
    Binding,
    Reachability,
    Registrar,
    is_outbound,
)
from adapters.sip.syntax.body import accepts, keep_session_description
from adapters.sip.syntax.message import (
    KNOWN_METHODS,
    Request,
    Response,
    build_response,
    parse_message,
    validate_request,
    validate_response,
)
from adapters.sip.syntax.option_tags import RELIABLE, TIMER
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.failover import MAX_DATAGRAM, Courses, Locate
from adapters.sip.targets.location import Target, is_address
from adapters.sip.transactions.layer import TransactionLayer, server_key
from adapters.sip.transactions.schedule import Schedule
from adapters.sip.transactions.stateless import Refusals, StatelessAnswers, is_absorbed
from adapters.sip.transactions.transaction import (
    TIMEOUT,
    ClientTransaction,
    Flow,
    PassUp,
    Send,
    ServerTransaction,
    State,
    Transaction,
    Unreachable,
)
from adapters.sip.transactions.transaction import Effect as TransactionEffect

MAX_SESSIONS = 20_000

FLOW_TIMER_S = 120  # asked of phones that keep a flow open (RFC 5626 4.4.1)
FLOW_GRACE_S = 30

_CONTACT_PARAMS = {
    "udp": "",
    "tcp": ";transport=tcp",
    "tls": ";transport=tls",
    "ws": ";transport=ws",
    "wss": ";transport=ws",  # RFC 7118 5.2.4: the URI does not tell whether it is secure
}
# What begins something new, and may be refused under load. OPTIONS asks whether we are alive: we are.
_METERED = frozenset({"INVITE", "REGISTER", "SUBSCRIBE", "PUBLISH", "MESSAGE", "REFER"})
_WITH_DESCRIPTION = frozenset({"INVITE", "UPDATE", "PRACK"})


class Network(Protocol):
    """What the endpoint must know of its sockets."""

    def local(self, flow: Flow) -> tuple[str, int]:
        """Our own address as the peer of `flow` can reach it."""

    def route(self, transport: str, host: str, port: int) -> Flow | None:
        """The flow to a new peer, None if no listener has that transport."""

    def vouch(self, flow: Flow, silence_s: float | None) -> None:
        """A phone has registered by this connection; without pings for `silence_s` (None: for long) it is dead."""

    def alias(self, flow: Flow, host: str, port: int, *, trusted: bool) -> None:
        """A peer that listens at this address offers its connection for our requests (RFC 5923).

        A TLS connection is taken if its certificate is for `host`; another one if the peer is trusted.
        """


@dataclass(frozen=True, slots=True)
class SessionIncoming:
    """A call that was admitted: `ring`, `answer` or `reject` it."""

    session: Session
    source: Admitted


@dataclass(frozen=True, slots=True)
class RegistrationChanged:
    """A user's phone registered, for the first time or again, or the last one went."""

    user: str
    reachable: bool


Event = SessionIncoming | RegistrationChanged | SessionEvent
Effect = Send | Event | Locate


class Endpoint:
    """One user agent with all its sessions.

    Args:
        network: addresses of our sockets.
        policy: who may call and register; replaced by assignment to `policy`.
        registrar: None: REGISTER is not served (405).
        new_token: unguessable text of 64 bits or more, made of token characters.

    Attributes:
        draining: refuse new calls with 503 and Retry-After.
        counters: requests and responses refused or dropped, by reason.
        guard: keeps scanners and floods off; None: everybody is heard.
        admission: refuses new work under load; None: everything is taken on.
        handled: how many messages came in.
        on_flows_lost: told of what can no longer be sent to because a connection has ended.
        notifier: serves SUBSCRIBE; None: it is not served (405).
        trying_after_s: INVITEs get 100 after this, if nothing else by then; RFC 3261 17.2.1 allows 0.2.
    """

    def __init__(
        self,
        *,
        network: Network,
        policy: AccessPolicy,
        registrar: Registrar | None,
        new_token: Callable[[], str],
        layer: TransactionLayer | None = None,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.policy = policy
        self.registrar = registrar
        self.draining = False
        self.counters: Counter[str] = Counter()
        self.guard: Guard | None = None
        self.admission: Admission | None = None
        self.handled = 0
        self.on_flows_lost: Callable[[Sequence[Flow]], None] | None = None
        self._stateless = StatelessAnswers(new_token() + new_token())
        self._refusals = Refusals()
        self._network = network
        self._new_token = new_token
        self._layer = TransactionLayer() if layer is None else layer
        self._sessions: dict[tuple[str, str], Session] = {}
        self._schedule: Schedule[Session] = Schedule()
        self._max_sessions = max_sessions
        self._out: list[Effect] = []
        self._courses = Courses(self, self._layer, network.route, self._ask)
        self._in_dialog_handlers: dict[str, InDialogHandler] = {}
        extensions = [RELIABLE, TIMER, *((OUTBOUND, PATH) if registrar is not None else ())]
        self._answers = Answers(self._stateless, extensions, 0 if registrar is None else registrar.limits.min_expires_s)
        self.session_timer = TimerSettings()
        self.trying_after_s = 0.0
        self._notifier: Notifier | None = None

    # --- extensions -----------------------------------------------------------------------

    def serve_in_dialog(self, method: str, handler: InDialogHandler) -> None:
        """Let `handler` take requests of a method within dialogs that sessions do not serve themselves.

        It answers by `respond`, at once or later, or raises PeerError with the status.
        """
        self._in_dialog_handlers[method] = handler
        self._answers.allow = ", ".join([ALLOW, *self._in_dialog_handlers])

    def support(self, extension: str) -> None:
        """Name an option tag in Supported, and let peers demand it in Require (RFC 3261 19.2)."""
        self._answers.support(extension)

    @property
    def allow(self) -> str:
        """Value of Allow."""
        return self._answers.allow

    @property
    def supported(self) -> str:
        """Value of Supported."""
        return self._answers.supported

    @property
    def notifier(self) -> Notifier | None:
        """Who serves subscriptions, if anybody does."""
        return self._notifier

    @notifier.setter
    def notifier(self, value: Notifier) -> None:
        self._notifier = value
        self._answers.allow_events = value.allow_events

    def in_dialog_handler(self, method: str) -> InDialogHandler | None:
        """Who takes requests of a method within dialogs, if anybody does."""
        return self._in_dialog_handlers.get(method)

    def find(self, sip_call_id: str, local_tag: str, remote_tag: str | None) -> Session | None:
        """The session with a dialog of these names (RFC 3891 3), its end included; None if there is none."""
        session = self._sessions.get((sip_call_id, local_tag))
        dialog = None if session is None else session.dialog
        return session if dialog is not None and dialog.remote_tag == remote_tag else None

    def find_any(self, sip_call_id: str, local_tag: str) -> Session | None:
        """The session that has these names on our side, answered or not."""
        return self._sessions.get((sip_call_id, local_tag))

    @property
    def sessions(self) -> int:
        """How many sessions there are, those still saying goodbye included."""
        return len(self._sessions)

    @property
    def transactions(self) -> int:
        """How many transactions there are; each stays for up to 32 s after its end."""
        return len(self._layer)

    # --- in -------------------------------------------------------------------------------

    def on_message(self, data: bytes, flow: Flow, now: float) -> list[Effect]:
        """One datagram, or one message cut from a stream. Never raises for what a peer sent."""
        self.handled += 1
        guard = self.guard
        if (guard is not None and guard.closed and guard.blocks(flow.host, now)) or is_absorbed(data):
            return []
        try:
            message = parse_message(data)
            if isinstance(message, Response):
                self._on_response(message, flow, now)
            elif not self._is_shed(message, flow, now):
                self._on_request(message, flow, now)
        except PeerError as exc:
            if guard is None or guard.on_junk(flow.host, now):
                self._reject_stateless(exc, flow)
        return self._take()

    def accepts(self, host: str, now: float) -> bool:
        """Whether a connection from an IP address is to be accepted."""
        return self.guard is None or not self.guard.closed or not self.guard.blocks(host, now)

    def effects(self) -> list[Effect]:
        """What `respond` and `Session.send`, called from outside, have led to."""
        return self._take()

    def on_fault(self, exc: PeerError, flow: Flow) -> list[Effect]:
        """A message that the framer of a stream refused."""
        self._reject_stateless(exc, flow)
        return self._take()

    def on_unreachable(self, flow: Flow, now: float) -> list[Effect]:
        """The transport could not send to `flow`."""
        for tx, effects in self._layer.on_flow_failed(flow, now):
            self.run(tx, effects, now)
        return self._take()

    def on_connection_lost(self, number: int, flows: Sequence[Flow], now: float) -> list[Effect]:
        """A stream connection has ended.

        Args:
            number: `Flow.connection` of what came by it.
            flows: of the messages that went out over it.
            now: monotonic seconds.
        """
        for flow in flows:
            for tx, effects in self._layer.on_flow_failed(flow, now):
                self.run(tx, effects, now)
        if self.on_flows_lost is not None and flows:
            self.on_flows_lost(flows)
        if self.registrar is not None:
            self._announce(self.registrar.on_connection_lost(number))
        return self._take()

    def is_due_before(self, at: float) -> bool:
        """Whether `deadline` may be earlier than this: asked after each message, and cheap."""
        registrar, notifier = self.registrar, self.notifier
        return (
            self._layer.schedule.first < at
            or self._schedule.first < at
            or (registrar is not None and registrar.schedule.first < at)
            or (notifier is not None and notifier.schedule.first < at)
        )

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due at the latest, or None."""
        times = [self._layer.deadline(), self._schedule.next_at()]
        if self.registrar is not None:
            times.append(self.registrar.deadline())
        if self.notifier is not None:
            times.append(self.notifier.deadline())
        known = [at for at in times if at is not None]
        return min(known) if known else None

    def on_time(self, now: float) -> list[Effect]:
        """Fire what is due."""
        for tx, effects in self._layer.on_time(now):
            self.run(tx, effects, now)
        for session in self._schedule.due(now):
            session.on_time(now)
        if self.registrar is not None:
            self._announce(self.registrar.on_time(now))
        if self.notifier is not None:
            self.notifier.on_time(now)
        return self._take()

    def on_located(self, ticket: int, targets: Sequence[Target], now: float) -> list[Effect]:
        """The answer to a `Locate`: targets in the order in which to try them; none: nothing leads there."""
        self._courses.on_located(ticket, targets, now)
        return self._take()

    # --- commands -------------------------------------------------------------------------

    def ring(self, session: Session, now: float, headers: Headers = ()) -> list[Effect]:
        """Send 180 to the caller."""
        session.ring(headers, now)
        return self._take()

    def answer(self, session: Session, sdp: bytes, now: float, headers: Headers = ()) -> list[Effect]:
        """Accept a call with an answer, or with an offer when `session.offered` is empty."""
        session.answer(sdp, headers, now)
        return self._take()

    def reject(self, session: Session, status: int, now: float, headers: Headers = ()) -> list[Effect]:
        """Refuse a call with a status of 300 to 699."""
        session.reject(status, headers, now)
        return self._take()

    def hang_up(self, session: Session, now: float, *, status: int = 480, headers: Headers = ()) -> list[Effect]:
        """End a session in any state; SessionEnded follows at once. `status` refuses one not yet answered."""
        session.hang_up(status, headers, now)
        return self._take()

    def invite(
        self,
        target: SipUri,
        sdp: bytes,
        *,
        from_: str,
        now: float,
        flow: Flow | None = None,
        to: str | None = None,
        headers: Headers = (),
        ring_timeout_s: float | None = None,
        login: Login | None = None,
        max_forwards: int = 70,
        owner: object = None,
    ) -> tuple[Session | None, list[Effect]]:
        """Call a URI.

        Args:
            target: the Request-URI.
            sdp: our offer.
            from_: From value, without tag.
            now: monotonic seconds.
            flow: where to send; None: where `target` says.
            to: To value; None: the target.
            headers: more of them, names in lower case.
            ring_timeout_s: CANCEL after this.
            login: for when we are challenged.
            max_forwards: hops left.
            owner: becomes `session.owner`.

        Returns:
            The session and the effects; no session if no transport leads there.
        """
        if flow is None:
            flow = self.flow_to(target)
        if flow is None:
            return None, []
        tag = self._new_token()
        request = Request.build(
            "INVITE",
            target,
            via=self.via(flow),
            from_=f"{from_};tag={tag}",
            to=to or f"<{target}>",
            call_id=self._new_token(),
            cseq=1,
            max_forwards=max_forwards,
        )
        request.set("contact", self.contact(flow, secure=target.scheme == "sips"))
        request.set("allow", self.allow)
        request.set("supported", self.supported)
        ask(request, self.session_timer)
        request.set("user-agent", AGENT)
        for name, value in headers:
            if name == "route":
                request.add(name, value)
            else:
                request.set(name, value)
        request.set("content-type", SDP)
        request.body = sdp
        session = OutgoingSession(self, request, flow, tag)
        session.owner = owner
        self._sessions[request.call_id, tag] = session
        session.start(login, ring_timeout_s, now)
        return session, self._take()

    def send_request(
        self, request: Request, flow: Flow, user: object, now: float, *, timeout_s: float = TIMEOUT
    ) -> list[Effect]:
        """Send a request outside a dialog (not INVITE); its user hears of responses, and of failure by `timeout_s`."""
        tx = self.open(request, flow, user, now)
        self.give_up_at(tx, now + timeout_s)
        return self._take()

    def accept_offer(self, session: Session, sdp: bytes, now: float) -> list[Effect]:
        """Answer SessionOffered."""
        session.accept_offer(sdp, now)
        return self._take()

    def refuse_offer(self, session: Session, status: int, now: float) -> list[Effect]:
        """Refuse SessionOffered; the session stays as it was."""
        session.refuse_offer(status, now)
        return self._take()

    def progress(self, session: Session, sdp: bytes, now: float, headers: Headers = ()) -> list[Effect]:
        """Let the caller hear us before the answer (183); `answer` takes the same description later."""
        session.progress(sdp, headers, now)
        return self._take()

    def update(self, session: Session, sdp: bytes, now: float) -> list[Effect]:
        """Offer anew by UPDATE, also before the answer; SessionReoffered follows."""
        session.update(sdp, now)
        return self._take()

    def send_within(
        self,
        session: Session,
        method: str,
        now: float,
        *,
        headers: Headers = (),
        body: bytes = b"",
        on_outcome: Outcome | None = None,
    ) -> list[Effect]:
        """Send a request within the session's dialog, as `Session.send`."""
        session.send(method, now, headers=headers, body=body, on_outcome=on_outcome)
        return self._take()

    def reinvite(self, session: Session, sdp: bytes, now: float) -> list[Effect]:
        """Offer anew in a confirmed session; SessionReoffered follows."""
        session.reinvite(sdp, now)
        return self._take()

    def probe(self, session: Session, now: float, timeout_s: float = TIMEOUT) -> list[Effect]:
        """Ask whether the far side is still there; SessionProbed follows, after `timeout_s` at the latest."""
        session.probe(timeout_s, now)
        return self._take()

    def replace_policy(self, policy: AccessPolicy, users: Iterable[str]) -> list[Effect]:
        """Put a new configuration in force; bindings of users that are gone go too."""
        self.policy = policy
        if self.registrar is not None:
            self._announce(self.registrar.keep_only(frozenset(users)))
        return self._take()

    def restore(self, bindings: Iterable[Binding]) -> list[Effect]:
        """Take back registrations that an earlier process kept."""
        if self.registrar is not None:
            self._announce(self.registrar.restore(bindings))
        return self._take()

    # --- what sessions use ----------------------------------------------------------------

    def emit(self, event: SessionEvent) -> None:
        self._out.append(event)

    def send(self, flow: Flow, data: bytes) -> None:
        if flow.connection or is_address(flow.host):
            self._out.append(Send(flow, data))
        else:  # the ACK to a 2xx
            self._courses.send_ack(flow, data)

    def flow_to(self, uri: SipUri) -> Flow | None:
        """Where requests to a URI go; None: no transport leads there.

        A host name stays in the flow: `open` locates it, and may then send by another transport.
        """
        found = destination(uri)
        if found is None:
            return None
        transport, host, port = found
        flow = self._network.route(transport, host, port)
        if flow is None and "transport" not in uri.params and not is_address(host):
            flow = self._network.route("tcp", host, port) or self._network.route("tls", host, port)
        return flow

    def open(self, request: Request, flow: Flow, user: object, now: float) -> ClientTransaction:
        """Send a request (other than ACK); its user hears of each response, and of failure.

        Where the host of `flow` is a name, it is located first, and where a target fails the next
        one gets the request (RFC 3263): `flow` and the Via of the transaction tell which.
        """
        if not flow.connection and not is_address(flow.host):
            return self._courses.open(request, flow, user, now)
        tx, effects = self._layer.open_client(request, flow, now)
        tx.user = user
        if len(tx.sent) > MAX_DATAGRAM and flow.transport == "udp":
            effects = self._courses.carry_large(tx, now) or effects
        self.run(tx, effects, now)
        return tx

    def respond(self, tx: ServerTransaction, response: Response, now: float) -> None:
        self.run(tx, self._layer.respond(tx, response, now), now)

    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None:
        self._courses.give_up_at(tx, deadline)
        self._layer.give_up_at(tx, deadline)

    def wake(self, session: Session) -> None:
        self._schedule.update(session)

    def forget(self, session: Session) -> None:
        session.state = SessionState.ENDED
        self._sessions.pop((session.sip_call_id, session.local_tag), None)

    def session_of_ours(self, request: Request) -> Session | None:
        """The session that a request of ours belongs to."""
        return self._sessions.get((request.call_id, request.from_.tag or ""))

    def via(self, flow: Flow) -> str:
        host, port = self._network.local(flow)
        shown = f"[{host}]" if ":" in host else host
        return f"SIP/2.0/{flow.transport.upper()} {shown}:{port};branch=z9hG4bK{self._new_token()};rport"

    def contact(self, flow: Flow, *, secure: bool = False) -> str:
        """Our Contact towards the peer of `flow`; `secure` for a request to a sips URI (RFC 3261 12.1.1)."""
        host, port = self._network.local(flow)
        shown = f"[{host}]" if ":" in host else host
        if secure:
            return f"<sips:murima@{shown}:{port}{';transport=ws' if flow.transport == 'wss' else ''}>"
        return f"<sip:murima@{shown}:{port}{_CONTACT_PARAMS[flow.transport]}>"

    def new_token(self) -> str:
        return self._new_token()

    # --- requests -------------------------------------------------------------------------

    def _on_request(self, request: Request, flow: Flow, now: float) -> None:
        validate_request(request)
        method = request.method
        layer = self._layer
        key = server_key(request)
        tx = layer.find_server(request, key)
        if tx is not None:
            self.run(tx, layer.on_request(tx, request, now), now)
            return
        if method == "ACK":
            session = self._session_of(request)
            if session is not None:
                _keep_description(request)
                session.on_ack(request, now)
            return
        guard = self.guard
        if guard is not None or layer.full:
            expected = self._is_expected(request)
            if layer.full and not expected:
                raise PeerError("too many transactions", status=503, message=request)
            if guard is not None and not expected:
                proof = "authorization" in request.headers
                if not guard.admits(flow.host, request.get("user-agent"), now, proof=proof):
                    return
        if layer.is_merged(request):
            raise PeerError("merged request", status=482, message=request)
        source = flow
        tx = layer.open_server(request, self._mark_via(request, flow), key)
        try:
            if method == "CANCEL":
                self._on_cancel(tx, now)
            elif request.to.tag:
                self._in_dialog(tx, source, now)
            else:
                self._out_of_dialog(tx, source, now)
        except PeerError as exc:
            self._reject(tx, exc, now)
        except Exception:  # a fault of ours: without an answer the transaction would stay for ever
            self._reject(tx, PeerError("fault", status=500), now)
            raise

    def _is_shed(self, request: Request, flow: Flow, now: float) -> bool:
        """Refuse new work that would come on top of too much, before anything else is done for it."""
        admission = self.admission
        if admission is None or not (admission.limiting or self._refusals) or request.method not in _METERED:
            return False
        try:
            if request.to.tag:
                return False
            key = server_key(request)
            if self._layer.find_server(request, key) is not None:
                return False
            if self._refusals.has(key, now):
                after: int | None = admission.retry_after(admission.urgency(request))
            else:
                after = admission.refuses(admission.urgency(request), now) if admission.limiting else None
            if after is None:
                return False
            back = self._mark_via(request, flow)
            self._refusals.add(key, now)
        except PeerError:
            return False  # malformed: refused for that
        if self.guard is None or self.guard.on_junk(flow.host, now):
            self._count_rejection(503)
            self._out.append(Send(back, self._stateless.make(request, 503, (("retry-after", after),)).serialise()))
        return True

    def _is_expected(self, request: Request) -> bool:
        """Whether a request belongs to what there is: a flood must not keep calls from ending."""
        if self._session_of(request) is not None:
            return True
        if request.method == "SUBSCRIBE":
            return self.notifier is not None and self.notifier.find(request) is not None
        return request.method == "CANCEL" and self._layer.find_cancelled(request) is not None

    def _on_cancel(self, tx: ServerTransaction, now: float) -> None:
        cancelled = self._layer.find_cancelled(tx.request)
        if cancelled is None:
            raise PeerError("nothing to cancel", status=481)
        session = cancelled.user
        tag = session.local_tag if isinstance(session, Session) else self._new_token()
        self.respond(tx, build_response(tx.request, 200, to_tag=tag), now)
        if isinstance(session, Session):
            session.on_cancel(tx.request, now)

    def _in_dialog(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        self._check_require(tx.request)
        session = self._session_of(tx.request)
        if session is None:
            self._in_subscription(tx, source, now)
            return
        if tx.request.method in _WITH_DESCRIPTION:
            keep_session_description(tx.request)
        session.on_request(tx, source, now)

    def _in_subscription(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        notifier = self.notifier
        subscription = None if notifier is None else notifier.find(tx.request)
        if notifier is None or subscription is None:
            raise PeerError("no such dialog", status=481)
        notifier.on_request(subscription, tx, source, now)

    def admit_subscription(self, request: Request, source: Flow, now: float) -> Admitted | Refused:
        return self.policy.admit(request, source, now)

    def _session_of(self, request: Request) -> Session | None:
        tag = request.to.tag
        return None if tag is None else self._sessions.get((request.call_id, tag))

    def _out_of_dialog(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        request = tx.request
        method = request.method
        if request.max_forwards == 0 and method != "OPTIONS":  # OPTIONS traces the route that way (RFC 3261 11)
            raise PeerError("too many hops", status=483)
        self._check_require(request)
        if method == "INVITE":
            self._on_invite(tx, source, now)
        elif method == "OPTIONS":
            self._on_options(tx)
        elif method == "REGISTER" and self.registrar is not None:
            self._on_register(tx, self.registrar, source, now)
        elif method == "SUBSCRIBE" and self.notifier is not None:
            if self.draining:
                raise PeerError("no new subscriptions now", status=503)
            refused = self.notifier.on_subscribe(tx, source, now)
            if refused is not None:
                self._refuse(tx, refused, now)
        elif method == "REFER" and method in self._in_dialog_handlers:
            raise PeerError("only a call can be transferred", status=403)
        elif method in ("BYE", "INFO", "UPDATE", "PRACK") or (method == "NOTIFY" and self.notifier is not None):
            raise PeerError("not within a dialog", status=481)
        else:
            raise PeerError("method not supported", status=405 if method in KNOWN_METHODS else 501)

    def _on_invite(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        request = tx.request
        if self.draining or len(self._sessions) >= self._max_sessions:
            raise PeerError("no new calls now", status=503)
        admitted = self.policy.admit(request, source, now)
        if isinstance(admitted, Refused):
            self._refuse(tx, admitted, now)
            return
        keep_session_description(request)
        if not accepts(request, SDP):
            raise PeerError("no answer would be accepted", status=406)
        if self.admission is not None:
            self.admission.on_admitted(call=True, now=now)
        tag = self._new_token()
        session = IncomingSession(self, tx, tag)
        session.begin(source, now)
        self._sessions[session.sip_call_id, tag] = session
        self._out.append(SessionIncoming(session, admitted))

    def _on_options(self, tx: ServerTransaction) -> None:
        response = self._answers.abilities(tx.request, 503 if self.draining else 200)
        self._answer_stateless(tx, response)

    def _on_register(self, tx: ServerTransaction, registrar: Registrar, source: Flow, now: float) -> None:
        request = tx.request
        admitted = self.policy.admit_registration(request, source, now)
        if isinstance(admitted, Refused):
            self._refuse(tx, admitted, now)
            return
        user = admitted.user
        if user is None:
            raise UsageError("a registration is admitted for a user")
        if self.admission is not None:
            self.admission.on_admitted(call=False, now=now)
        events = registrar.register(request, user, source, now)
        response = self._answers.plain(request, 200)
        for value in registrar.contact_values(user, now):
            response.add("contact", value)
        response.set("supported", self.supported)
        if "path" in request.headers:
            response.headers["path"] = list(request.headers["path"])
        outbound = is_outbound(request)
        silence_s: float | None = None
        if outbound:
            response.set("require", OUTBOUND)
            if source.transport in ("tcp", "tls"):
                response.set("flow-timer", FLOW_TIMER_S)
                silence_s = FLOW_TIMER_S + FLOW_GRACE_S
        self.respond(tx, response, now)
        if source.connection:
            self._network.vouch(source, silence_s)
        self._announce(events)

    def _announce(self, events: Iterable[Reachability]) -> None:
        self._out += [RegistrationChanged(event.user, event.reachable) for event in events]

    # --- refusals -------------------------------------------------------------------------

    def _refuse(self, tx: ServerTransaction, refused: Refused, now: float) -> None:
        """Challenge, or tell that it is forbidden: without state, or a flood of strangers would fill our memory."""
        self.counters[f'sip_auth_refused_total{{reason="{refused.why}"}}'] += 1
        if self.admission is not None:
            self.admission.on_admitted(call=tx.request.method == "INVITE", now=now)
        headers = (("server", AGENT), *refused.headers)
        self._answer_stateless(tx, self._stateless.make(tx.request, refused.status, headers))

    def _answer_stateless(self, tx: ServerTransaction, response: Response) -> None:
        self._layer.discard(tx)
        self._out.append(Send(tx.flow, response.serialise()))

    def _reject(self, tx: ServerTransaction, exc: PeerError, now: float) -> None:
        self._count_rejection(exc.status)
        response = self._answers.refusal(tx.request, exc)
        if tx.user is None and self._session_of(tx.request) is None:
            # Strangers may not fill our memory; and refused calls, repeated until the ACK, would multiply
            # what a forged source costs its owner.
            self._answer_stateless(tx, response)
        else:
            self.respond(tx, response, now)

    def _check_require(self, request: Request) -> None:
        """Refuse what demands an extension that we do not have (RFC 3261 8.2.2.3)."""
        if "require" in request.headers and request.method != "CANCEL" and self._answers.unknown_extensions(request):
            raise PeerError("unknown extension", status=420)

    def _reject_stateless(self, exc: PeerError, flow: Flow) -> None:
        self._count_rejection(exc.status)
        request = exc.message
        if request is None or request.method == "ACK":
            return
        if not request.has("via"):
            return  # nobody could tell what the answer belongs to
        try:
            back = self._mark_via(request, flow)
        except PeerError:
            back = flow  # it names no place: the answer goes to where the request came from
        self._out.append(Send(back, self._answers.refusal(request, exc).serialise()))

    def _count_rejection(self, status: int) -> None:
        self.counters[f'sip_rejected_total{{status="{status}"}}'] += 1

    # --- responses ------------------------------------------------------------------------

    def _on_response(self, response: Response, flow: Flow, now: float) -> None:
        validate_response(response)
        tx = self._layer.find_client(response)
        if tx is None:
            self.counters["sip_stray_responses_total"] += 1
            if self.guard is not None:
                self.guard.on_junk(flow.host, now)
            return
        if response.body and tx.request.method in _WITH_DESCRIPTION:
            _keep_description(response)
        self.run(tx, self._layer.on_response(tx, response, now), now)

    def run(self, tx: Transaction, effects: list[TransactionEffect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._out.append(effect)
            elif isinstance(effect, PassUp):
                message = effect.message
                if isinstance(message, Response):
                    if tx.course is not None and self._courses.on_response(tx, message, now):
                        continue
                    tx.user.on_response(tx, message, now)
                elif tx.user is not None:
                    _keep_description(message)
                    tx.user.on_ack(message, now)
            elif tx.user is not None:
                reached = not isinstance(effect, Unreachable)
                if not (isinstance(tx, ClientTransaction) and self._courses.on_failure(tx, now, reached=reached)):
                    tx.user.on_timeout(tx, now, reached=reached)
        if tx.state is State.TERMINATED:
            tx.user = None  # each knows the other: what is over must not wait for the garbage collector

    def _ask(self, question: Locate) -> None:
        self._out.append(question)

    def _mark_via(self, request: Request, flow: Flow) -> Flow:
        """Note in Via where a request really came from, and say where its responses go.

        Source: RFC 3261 18.2.1, 18.2.2, RFC 3581 4.

        Raises:
            PeerError: Via is missing or malformed.
        """
        via = request.top_via
        note_source(request, via, flow)
        if flow.connection and "alias" in via.params:
            trusted = self.policy.trunk_at(flow.host) is not None
            self._network.alias(flow, via.host, via.port or PORTS[flow.transport], trusted=trusted)
        return way_back(via, flow)

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


def _keep_description(message: Request | Response) -> None:
    """As `keep_session_description`, for what cannot be refused: what is not understood is ignored."""
    try:
        keep_session_description(message)
    except PeerError:
        message.body = b""
