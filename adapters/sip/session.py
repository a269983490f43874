"""One INVITE session from our side: the user agent core of RFC 3261 13 to 15, with RFC 3311 and RFC 6026.

A session is a dialog, the INVITE that opened it and the state of offer and
answer. Bodies are opaque here. It repeats its own 2xx until the ACK comes, and
tells its owner by events; each session ends with exactly one `SessionEnded`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Protocol

from adapters.sip.dialog import Dialog
from adapters.sip.digest import Challenge, answer_challenge
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.info_dtmf import parse_dtmf
from adapters.sip.message import KNOWN_METHODS, Request, Response, build_response
from adapters.sip.transaction import T1, T2, TIMEOUT, ClientTransaction, Flow, ServerTransaction

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE, REGISTER"
ACCEPT = "application/sdp, application/dtmf-relay, application/dtmf"
AGENT = "Murima"
SDP = "application/sdp"

MAX_BRANCHES = 16  # of a fork, that we hang up because another answered first
REFRESH_S = 60.0  # a proxy forgets an INVITE after three minutes without a sign (RFC 3261 13.3.1.1)

Headers = Iterable[tuple[str, str]]


class SessionState(Enum):
    """Where a session stands."""

    INCOMING = "incoming"  # their INVITE waits for our final answer
    ANSWERED = "answered"  # our 2xx is out, their ACK is not here yet
    CALLING = "calling"  # our INVITE waits for their final answer
    CONFIRMED = "confirmed"
    CLOSING = "closing"  # over for the owner; a CANCEL, BYE or late ACK is still on the way
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a session ended."""

    BYE = "bye"  # they hung up
    CANCELLED = "cancelled"  # they gave up before the answer
    REFUSED = "refused"  # their final response; see status
    RING_TIMEOUT = "ring_timeout"
    NO_RESPONSE = "no_response"
    UNREACHABLE = "unreachable"  # the transport could not carry our INVITE
    NO_ACK = "no_ack"
    LOST = "lost"  # the far side says that the dialog is gone
    LOCAL = "local"  # we ended it
    BROKEN = "broken"  # their answer makes no sense


@dataclass(frozen=True, slots=True)
class Login:
    """What answers a challenge to our own requests: a password, or the HA1s of its realm."""

    username: str
    password: str | None = None
    ha1s: Mapping[str, str] | None = None


# --- events to the owner ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionProgress:
    """A provisional response to our INVITE."""

    session: Session
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionAnswered:
    """Our INVITE was accepted."""

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionAcked:
    """The ACK to our 2xx came; with a body if our 2xx held an offer."""

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionOffered:
    """A re-INVITE or UPDATE: answer with `accept_offer` or `refuse_offer`.

    An empty body asks us to offer; the answer then comes with SessionAcked.
    """

    session: Session
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionReoffered:
    """Outcome of our own re-INVITE; a status of 300 and above leaves all as it was."""

    session: Session
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SessionDtmf:
    """A key came in an INFO."""

    session: Session
    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class SessionProbed:
    """Outcome of `probe`: whether the far side still knows the dialog."""

    session: Session
    alive: bool
    status: int | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The last event of a session."""

    session: Session
    reason: EndReason
    status: int | None = None
    detail: str = ""


SessionEvent = (
    SessionProgress
    | SessionAnswered
    | SessionAcked
    | SessionOffered
    | SessionReoffered
    | SessionDtmf
    | SessionProbed
    | SessionEnded
)


class Core(Protocol):
    """What a session needs of the endpoint it belongs to."""

    def emit(self, event: SessionEvent) -> None: ...
    def send(self, flow: Flow, data: bytes) -> None: ...
    def open(self, request: Request, flow: Flow, user: object, now: float) -> ClientTransaction: ...
    def respond(self, tx: ServerTransaction, response: Response, now: float) -> None: ...
    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None: ...
    def wake(self, session: Session) -> None: ...
    def forget(self, session: Session) -> None: ...
    def via(self, flow: Flow) -> str: ...
    def contact(self, flow: Flow) -> str: ...
    def new_token(self) -> str: ...


class Session:
    """See the module.

    Attributes:
        sip_call_id, local_tag: its name towards the peer.
        state: see `SessionState`.
        request: the INVITE that opened it, theirs or ours.
        dialog: None until our INVITE is answered.
        owner: for whoever uses the endpoint; not touched here.
        scheduled_at: bookkeeping of the schedule.
    """

    __slots__ = (
        "_ack",
        "_bye_wanted",
        "_core",
        "_delayed",
        "_invite",
        "_login",
        "_offer_tx",
        "_ok",
        "_ok_cseq",
        "_ok_end_at",
        "_ok_flow",
        "_ok_interval",
        "_ok_resend_at",
        "_parted",
        "_progress_headers",
        "_progressed",
        "_refresh_at",
        "_reinvite",
        "_ring_end_at",
        "_tried_login",
        "dialog",
        "flow",
        "local_tag",
        "owner",
        "request",
        "scheduled_at",
        "sip_call_id",
        "state",
    )

    def __init__(self, core: Core, request: Request, flow: Flow, local_tag: str, state: SessionState) -> None:
        self._core = core
        self.request = request
        self.flow = flow
        self.sip_call_id = request.call_id
        self.local_tag = local_tag
        self.state = state
        self.dialog: Dialog | None = None
        self.owner: Any = None
        self.scheduled_at: float | None = None
        self._invite: ServerTransaction | ClientTransaction | None = None
        # called side
        self._ok = b""  # our 2xx while it waits for its ACK
        self._ok_flow = flow
        self._ok_cseq = 0
        self._ok_resend_at: float | None = None
        self._ok_interval = T1
        self._ok_end_at = 0.0
        self._delayed = False  # our 2xx held the offer: the ACK brings the answer
        self._refresh_at: float | None = None
        self._progress_headers: tuple[tuple[str, str], ...] = ()
        self._bye_wanted = False  # once the ACK is here
        # calling side
        self._progressed = False
        self._ring_end_at: float | None = None
        self._login: Login | None = None
        self._tried_login = False
        self._ack: tuple[Flow, bytes] | None = None  # our last ACK, to be repeated with each 2xx
        self._parted: dict[str | None, tuple[Flow, bytes]] = {}  # our ACKs to other branches, by their tags
        # both
        self._offer_tx: ServerTransaction | None = None  # their offer that waits for the owner
        self._reinvite: ClientTransaction | None = None

    # --- called side ----------------------------------------------------------------------

    def begin(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        """Open the dialog and tell the caller that we work on it (100).

        Raises:
            PeerError: the INVITE cannot open a dialog.
        """
        self.dialog = Dialog.from_request(tx.request, self.local_tag, source)
        self._invite = tx
        tx.user = self
        self._core.respond(tx, build_response(tx.request, 100), now)

    @property
    def offered(self) -> bytes:
        """Body of the INVITE that came; empty: the caller wants us to offer."""
        return self.request.body

    def ring(self, headers: Headers, now: float) -> None:
        """Send 180, and again each minute (RFC 3261 13.3.1.1)."""
        if self.state is SessionState.INCOMING:
            self._progress_headers = tuple(headers)
            self._send_ringing(now)

    def _send_ringing(self, now: float) -> None:
        tx = self._server_invite()
        response = self._response(tx, 180)
        for name, value in self._progress_headers:
            response.set(name, value)
        self._core.respond(tx, response, now)
        self._refresh_at = now + REFRESH_S
        self._core.wake(self)

    def answer(self, sdp: bytes, headers: Headers, now: float) -> None:
        """Accept the INVITE."""
        if self.state is not SessionState.INCOMING:
            return
        self.state = SessionState.ANSWERED
        self._refresh_at = None
        self._delayed = not self.request.body
        self._accept(self._server_invite(), sdp, headers, now)

    def reject(self, status: int, headers: Headers, now: float) -> None:
        """Refuse the INVITE."""
        if self.state is not SessionState.INCOMING:
            return
        tx = self._server_invite()
        response = build_response(tx.request, status, to_tag=self.local_tag)
        for name, value in headers:
            response.set(name, value)
        response.set("server", AGENT)
        self._core.respond(tx, response, now)
        self._over(EndReason.LOCAL, status)
        self._core.forget(self)

    def on_cancel(self, now: float) -> None:
        """The caller gave up; after our 2xx this comes too late and means nothing."""
        if self.state is SessionState.INCOMING:
            self._refuse_open(487, now)
            self._over(EndReason.CANCELLED)
            self._core.forget(self)
        elif self._offer_tx is not None and self._offer_tx.request.method == "INVITE":
            self._refuse_open(487, now)

    def _accept(self, tx: ServerTransaction, sdp: bytes, headers: Headers, now: float) -> None:
        """Send a 2xx and repeat it until the ACK (RFC 3261 13.3.1.4)."""
        response = self._response(tx, 200)
        for name, value in headers:
            response.set(name, value)
        response.set("allow", ALLOW)
        response.set("content-type", SDP)
        response.body = sdp
        self._core.respond(tx, response, now)
        if tx.request.method == "INVITE":
            self._ok = tx.sent
            self._ok_flow = tx.flow
            self._ok_cseq = tx.request.cseq.number
            self._ok_interval = T1
            self._ok_resend_at = now + T1
            self._ok_end_at = now + TIMEOUT
            self._core.wake(self)

    def on_ack(self, ack: Request, now: float) -> None:
        """The ACK to one of our 2xx."""
        if self._ok_resend_at is None or ack.cseq.number != self._ok_cseq:
            return
        self._ok_resend_at = None
        self._ok = b""
        if self._bye_wanted:
            self._bye(now)
            return
        if self.state is SessionState.ANSWERED:
            self.state = SessionState.CONFIRMED
        delayed, self._delayed = self._delayed, False
        self._core.emit(SessionAcked(self, ack.body if delayed else b""))

    def _response(self, tx: ServerTransaction, status: int) -> Response:
        """A response within the dialog that this INVITE opens or belongs to."""
        request = tx.request
        response = build_response(request, status, to_tag=self.local_tag)
        if "record-route" in request.headers:
            response.headers["record-route"] = list(request.headers["record-route"])
        response.set("contact", self._core.contact(tx.flow))
        response.set("server", AGENT)
        return response

    def _server_invite(self) -> ServerTransaction:
        assert isinstance(self._invite, ServerTransaction)
        return self._invite

    # --- calling side ---------------------------------------------------------------------

    def start(self, login: Login | None, ring_timeout_s: float | None, now: float) -> None:
        """Send our INVITE (`request`, complete but for Via and Contact)."""
        self._login = login
        self._ring_end_at = None if ring_timeout_s is None else now + ring_timeout_s
        self._send_invite(now)

    def _send_invite(self, now: float) -> None:
        self._invite = self._core.open(self.request, self.flow, self, now)
        self._core.wake(self)

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        """A response to one of our requests."""
        if tx is self._invite:
            self._on_invite_response(response, now)
        elif response.status < 200:
            self._let_go_of_reinvite(now)
        elif tx is self._reinvite:
            self._on_reinvite_response(tx, response, now)
        elif tx.request.method == "BYE":
            self._gone()
        elif tx.request.method == "OPTIONS":
            self._on_probe(response.status)
        elif tx.request.method == "INVITE" and response.status < 300:
            self._ack_again(response)  # a repeated 2xx to an earlier re-INVITE

    def on_timeout(self, tx: ClientTransaction | ServerTransaction, now: float, *, reached: bool) -> None:
        """One of our transactions got no answer, or (`reached` False) could not be sent at all."""
        if isinstance(tx, ServerTransaction):
            return  # no ACK to a refusal: nothing depends on it
        if tx is self._invite:
            self._over(EndReason.NO_RESPONSE if reached else EndReason.UNREACHABLE)
            self._gone()
        elif tx is self._reinvite:
            self._reinvite = None
            if self.state is SessionState.CONFIRMED:  # once over, nothing more is told
                self._core.emit(SessionReoffered(self, 408, b""))
                self._lose(now, 408)
        elif tx.request.method == "BYE":
            self._gone()
        elif tx.request.method == "OPTIONS":
            self._on_probe(None)

    def _on_invite_response(self, response: Response, now: float) -> None:
        status = response.status
        if status < 200:
            first = not self._progressed
            self._progressed = True
            if self.state is SessionState.CLOSING:
                if first:
                    self._send_cancel(now)
            elif self.state is SessionState.CALLING:
                self._core.emit(SessionProgress(self, status, response.body))
        elif status < 300:
            self._on_success(response, now)
        elif self.state is SessionState.CALLING and status in (401, 407) and self._log_in(response, now):
            return
        else:
            self._over(EndReason.REFUSED, status, response.reason)
            self._gone()

    def _on_success(self, response: Response, now: float) -> None:
        tag = response.to.tag
        if self.dialog is not None:
            if tag == self.dialog.remote_tag:
                if self._ack is not None:
                    self._core.send(*self._ack)
            else:
                self._part(response, tag, now)  # another branch of a fork answered too
            return
        try:
            self.dialog = Dialog.from_response(self.request, response, self.flow)
        except PeerError as exc:
            self._over(EndReason.BROKEN, detail=str(exc))
            self._gone()
            return
        self._send_ack(self.dialog, self.request.cseq.number)
        if self.state is not SessionState.CALLING:  # it crossed our CANCEL, or follows an answer that made no sense
            self._bye(now)
            return
        self.state = SessionState.CONFIRMED
        self._ring_end_at = None
        self._core.emit(SessionAnswered(self, response.body))

    def _part(self, response: Response, tag: str | None, now: float) -> None:
        """ACK and hang up a branch that we do not want; ACK again what it repeats."""
        known = self._parted.get(tag)
        if known is not None:
            self._core.send(*known)
            return
        if len(self._parted) >= MAX_BRANCHES:
            return
        dialog = Dialog.from_response(self.request, response, self.flow)
        ack = dialog.request("ACK", self._core.via(dialog.flow), self.request.cseq.number)
        self._parted[tag] = (dialog.flow, ack.serialise())
        self._core.send(*self._parted[tag])
        self._core.open(dialog.request("BYE", self._core.via(dialog.flow)), dialog.flow, _Forgotten(), now)

    def _send_ack(self, dialog: Dialog, cseq: int) -> None:
        ack = dialog.request("ACK", self._core.via(dialog.flow), cseq)
        self._copy_credentials(ack)
        self._ack = (dialog.flow, ack.serialise())
        self._core.send(*self._ack)

    def _copy_credentials(self, request: Request) -> None:
        """An ACK carries the same credentials as its INVITE (RFC 3261 22.1)."""
        for name in ("authorization", "proxy-authorization"):
            value = self.request.get(name)
            if self._tried_login and value is not None:
                request.set(name, value)

    def _ack_again(self, response: Response) -> None:
        if self._ack is not None and self.dialog is not None and response.to.tag == self.dialog.remote_tag:
            self._core.send(*self._ack)

    def _log_in(self, response: Response, now: float) -> bool:
        """Send the INVITE again with credentials, once."""
        login = self._login
        if login is None or self._tried_login:
            return False
        challenge, answer = _AUTH_HEADERS[response.status]
        try:
            challenges = [Challenge.parse(value) for value in response.get_all(challenge)]
        except PeerError:
            return False
        value = answer_challenge(
            challenges,
            method="INVITE",
            uri=self.request.uri,
            username=login.username,
            password=login.password,
            ha1s=login.ha1s,
            body=self.request.body,
            cnonce=self._core.new_token(),
        )
        if value is None:
            return False
        self._tried_login = True
        number = self.request.cseq.number + 1
        old = self.request
        retry = Request(old.method, old.uri, dict(old.headers), old.body)
        retry.set(answer, value)
        retry.set("cseq", f"{number} INVITE")
        retry.set("via", self._core.via(self.flow))
        self.request = retry
        self._progressed = False
        self._send_invite(now)
        return True

    def _send_cancel(self, now: float) -> None:
        """CANCEL our INVITE: same branch, same number (RFC 3261 9.1)."""
        tx = self._invite
        assert isinstance(tx, ClientTransaction)
        request = tx.request
        cancel = Request.build(
            "CANCEL",
            request.uri,
            via=request.headers["via"][0],
            from_=request.headers["from"][0],
            to=request.headers["to"][0],
            call_id=self.sip_call_id,
            cseq=request.cseq.number,
        )
        for route in request.headers.get("route", ()):
            cancel.add("route", route)
        self._core.open(cancel, tx.flow, _Forgotten(), now)
        self._core.give_up_at(tx, now + TIMEOUT)

    # --- both sides -----------------------------------------------------------------------

    def hang_up(self, status: int, headers: Headers, now: float) -> None:
        """End the session in whatever state it is; `status` refuses an INVITE that waits."""
        if self.state is SessionState.INCOMING:
            self.reject(status, headers, now)
        elif self.state is SessionState.CALLING:
            self._give_up(EndReason.LOCAL, now)
        elif self.state in (SessionState.ANSWERED, SessionState.CONFIRMED):
            self._over(EndReason.LOCAL)
            self._hang_up_when_acked(now)

    def reinvite(self, sdp: bytes, now: float) -> None:
        """Offer anew. SessionReoffered follows; at once with 491 while another offer is open.

        Raises:
            UsageError: the session is not confirmed.
        """
        if self.state is not SessionState.CONFIRMED or self.dialog is None:
            raise UsageError("a re-INVITE needs a confirmed session")
        if self._reinvite is not None or self._offer_tx is not None or self._ok_resend_at is not None:
            self._core.emit(SessionReoffered(self, 491, b""))
            return
        dialog = self.dialog
        request = dialog.request("INVITE", self._core.via(dialog.flow))
        request.set("contact", self._core.contact(dialog.flow))
        request.set("allow", ALLOW)
        request.set("content-type", SDP)
        request.body = sdp
        self._reinvite = self._core.open(request, dialog.flow, self, now)

    def _on_reinvite_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        dialog = self.dialog
        assert dialog is not None
        self._reinvite = None
        if response.status < 300:
            with suppress(PeerError):  # a malformed Contact moves nothing
                dialog.refresh_target(response, dialog.flow)
            self._send_ack(dialog, tx.request.cseq.number)
        if self.state in (SessionState.CLOSING, SessionState.ENDED):
            return
        self._core.emit(SessionReoffered(self, response.status, response.body))
        if response.status in (408, 481):
            self._lose(now, response.status)

    def _let_go_of_reinvite(self, now: float) -> None:
        """Once the session is over, a re-INVITE with a provisional response would wait for ever."""
        if self._reinvite is not None and self.state in (SessionState.CLOSING, SessionState.ENDED):
            self._core.give_up_at(self._reinvite, now + TIMEOUT)

    def probe(self, timeout_s: float, now: float) -> None:
        """Ask within the dialog whether the far side is still there; SessionProbed follows."""
        dialog = self.dialog
        if self.state is SessionState.ANSWERED:  # their ACK, or its absence, will tell
            self._core.emit(SessionProbed(self, alive=True, status=None))
        if self.state is not SessionState.CONFIRMED or dialog is None:
            return
        request = dialog.request("OPTIONS", self._core.via(dialog.flow))
        request.set("accept", SDP)
        self._core.give_up_at(self._core.open(request, dialog.flow, self, now), now + timeout_s)

    def _on_probe(self, status: int | None) -> None:
        if self.state is SessionState.CONFIRMED:
            self._core.emit(SessionProbed(self, status not in (None, 408, 481), status))

    def on_request(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        """A request within the dialog other than ACK and CANCEL.

        Raises:
            PeerError: to be answered with its status.
        """
        request = tx.request
        method = request.method
        dialog = self.dialog
        if dialog is None:
            # Our INVITE is not answered yet, and it is an offer (RFC 3311 5.2).
            raise PeerError("early dialog", status=491 if method in ("INVITE", "UPDATE") else 481)
        if request.from_.tag != dialog.remote_tag:
            raise PeerError("another dialog", status=481)
        if self.state is SessionState.CLOSING and method != "BYE":
            raise PeerError("the dialog has ended", status=481)
        if not dialog.accepts(request):
            raise PeerError("CSeq out of order", status=500)
        handler = _IN_DIALOG.get(method)
        if handler is None:
            raise PeerError("method not supported in a dialog", status=405 if method in KNOWN_METHODS else 501)
        handler(self, tx, source, now)

    def _on_bye(self, tx: ServerTransaction, _source: Flow, now: float) -> None:
        self._core.respond(tx, self._plain(tx, 200), now)
        if self.state is SessionState.INCOMING:
            self._refuse_open(487, now)
            self._over(EndReason.CANCELLED)
        else:
            if self._offer_tx is not None:
                self._refuse_open(487, now)
            self._over(EndReason.BYE)
        self._let_go_of_reinvite(now)
        self._gone()

    def _on_offer(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        request = tx.request
        if self.state is SessionState.INCOMING or self._offer_tx is not None:
            raise PeerError("an earlier offer waits", status=500)
        if self._reinvite is not None or (self._ok_resend_at is not None and self._delayed):
            raise PeerError("our own offer waits", status=491)
        if request.body and request.content_type != SDP:
            raise PeerError("offer is not SDP", status=415)
        assert self.dialog is not None
        self.dialog.refresh_target(request, source)
        if request.method == "UPDATE" and not request.body:
            response = self._response(tx, 200)
            self._core.respond(tx, response, now)
            return
        self._offer_tx = tx
        tx.user = self
        self._core.emit(SessionOffered(self, request.body))

    def accept_offer(self, sdp: bytes, now: float) -> None:
        """Answer the offer of SessionOffered, or make the offer it asked for."""
        tx, self._offer_tx = self._offer_tx, None
        if tx is not None:
            self._delayed = not tx.request.body
            self._accept(tx, sdp, (), now)

    def refuse_offer(self, status: int, now: float) -> None:
        """Refuse the offer of SessionOffered; the session goes on as it was."""
        if self._offer_tx is not None:
            self._refuse_open(status, now)

    def _on_info(self, tx: ServerTransaction, _source: Flow, now: float) -> None:
        request = tx.request
        kind = request.content_type
        key: tuple[str, int] | None = None
        if request.body:
            if kind not in ("application/dtmf-relay", "application/dtmf"):
                raise PeerError("INFO of an unknown kind", status=415)
            key = parse_dtmf(kind, request.body)
            if key is None:
                raise PeerError("malformed DTMF")
        self._core.respond(tx, self._plain(tx, 200), now)
        if key is not None and self.state is not SessionState.CLOSING:
            self._core.emit(SessionDtmf(self, *key))

    def _on_options(self, tx: ServerTransaction, _source: Flow, now: float) -> None:
        response = self._plain(tx, 200)
        response.set("allow", ALLOW)
        response.set("accept", ACCEPT)
        response.set("supported", "")
        self._core.respond(tx, response, now)

    # --- time -----------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        times = [
            at
            for at in (
                self._ok_resend_at,
                self._refresh_at if self.state is SessionState.INCOMING else None,
                self._ring_end_at if self.state is SessionState.CALLING else None,
            )
            if at is not None
        ]
        return min(times) if times else None

    def on_time(self, now: float) -> None:
        """Repeat what waits for its ACK; end what waited too long."""
        if self._ok_resend_at is not None and self._ok_resend_at <= now:
            if now >= self._ok_end_at:
                self._ok_resend_at = None
                self._over(EndReason.NO_ACK)
                self._bye(now)
                return
            self._core.send(self._ok_flow, self._ok)
            self._ok_interval = min(self._ok_interval * 2, T2)
            self._ok_resend_at = min(now + self._ok_interval, self._ok_end_at)
        if self.state is SessionState.INCOMING and self._refresh_at is not None and self._refresh_at <= now:
            self._send_ringing(now)
        if self.state is SessionState.CALLING and self._ring_end_at is not None and self._ring_end_at <= now:
            self._give_up(EndReason.RING_TIMEOUT, now)  # whether it rang or was silent: the offer was missed
        self._core.wake(self)

    # --- endings --------------------------------------------------------------------------

    def _give_up(self, reason: EndReason, now: float) -> None:
        """CANCEL our INVITE, now or with the first provisional response (RFC 3261 9.1)."""
        self._over(reason)
        self.state = SessionState.CLOSING
        if self._progressed:
            self._send_cancel(now)

    def _lose(self, now: float, status: int) -> None:
        """The far side no longer has the dialog (RFC 3261 12.2.1.2)."""
        if self.state is SessionState.CONFIRMED:
            self._over(EndReason.LOST, status)
            self._bye(now)

    def _hang_up_when_acked(self, now: float) -> None:
        """BYE, but not before the ACK of our 2xx (RFC 3261 15)."""
        if self._ok_resend_at is not None:
            self.state = SessionState.CLOSING
            self._bye_wanted = True
        else:
            self._bye(now)

    def _bye(self, now: float) -> None:
        assert self.dialog is not None
        self.state = SessionState.CLOSING
        self._bye_wanted = False
        self._refuse_open(487, now)
        self._let_go_of_reinvite(now)
        bye = self.dialog.request("BYE", self._core.via(self.dialog.flow))
        self._core.open(bye, self.dialog.flow, self, now)

    def _refuse_open(self, status: int, now: float) -> None:
        """Give a final answer to the request of theirs that still waits, if one does."""
        if self.state is SessionState.INCOMING:
            self._core.respond(self._server_invite(), self._plain(self._server_invite(), status), now)
        elif self._offer_tx is not None:
            tx, self._offer_tx = self._offer_tx, None
            self._core.respond(tx, self._plain(tx, status), now)

    def _over(self, reason: EndReason, status: int | None = None, detail: str = "") -> None:
        """Tell the owner, once."""
        if self.state in (SessionState.CLOSING, SessionState.ENDED):
            return
        self.state = SessionState.CLOSING
        self._core.emit(SessionEnded(self, reason, status, detail))

    def _gone(self) -> None:
        """Nothing is on the way any more."""
        self._ok_resend_at = None
        self._core.forget(self)

    def _plain(self, tx: ServerTransaction, status: int) -> Response:
        response = build_response(tx.request, status, to_tag=self.local_tag)
        response.set("server", AGENT)
        return response


class _Forgotten:
    """The user of a transaction whose outcome changes nothing."""

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None: ...
    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None: ...


_AUTH_HEADERS = {401: ("www-authenticate", "authorization"), 407: ("proxy-authenticate", "proxy-authorization")}

_IN_DIALOG = {
    "BYE": Session._on_bye,
    "INVITE": Session._on_offer,
    "UPDATE": Session._on_offer,
    "INFO": Session._on_info,
    "OPTIONS": Session._on_options,
}
