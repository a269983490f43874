"""One INVITE session from our side: the user agent core of RFC 3261 12 to 15, with RFC 3311 and RFC 6026.

A session is a dialog, the INVITE that opened it and the state of offer and
answer. Bodies are opaque here. It repeats its own 2xx until the ACK comes, and
tells its owner by events; each session ends with exactly one `SessionEnded`.

Here is what both sides do; `adapters.sip.incoming` and `adapters.sip.outgoing`
add what only the called or only the calling side does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from adapters.sip.dialog import Dialog
from adapters.sip.dialog_request import NO_RESPONSE, NOT_SENT, DialogRequest, Outcome
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.info_dtmf import parse_dtmf
from adapters.sip.login import Login
from adapters.sip.message import KNOWN_METHODS, Request, Response, build_response
from adapters.sip.session_events import (
    EndReason,
    SessionAcked,
    SessionAnswered,
    SessionDtmf,
    SessionEnded,
    SessionEvent,
    SessionOffered,
    SessionProbed,
    SessionProgress,
    SessionReoffered,
    SessionState,
)
from adapters.sip.transaction import T1, T2, TIMEOUT, ClientTransaction, Flow, ServerTransaction

__all__ = [
    "ACCEPT",
    "AGENT",
    "ALLOW",
    "SDP",
    "Core",
    "EndReason",
    "Headers",
    "InDialogHandler",
    "Login",
    "Session",
    "SessionAcked",
    "SessionAnswered",
    "SessionDtmf",
    "SessionEnded",
    "SessionEvent",
    "SessionOffered",
    "SessionProbed",
    "SessionProgress",
    "SessionReoffered",
    "SessionState",
]

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE, REGISTER"
ACCEPT = "application/sdp, application/dtmf-relay, application/dtmf"
AGENT = "Murima"
SDP = "application/sdp"

Headers = Iterable[tuple[str, str]]


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
    def in_dialog_handler(self, method: str) -> InDialogHandler | None: ...
    @property
    def allow(self) -> str: ...


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
        "_login",
        "_offer_tx",
        "_ok",
        "_ok_cseq",
        "_ok_end_at",
        "_ok_flow",
        "_ok_interval",
        "_ok_resend_at",
        "_reinvite",
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
        self._login: Login | None = None  # for when our requests are challenged
        self._ok = b""  # our 2xx while it waits for its ACK
        self._ok_flow = flow
        self._ok_cseq = 0
        self._ok_resend_at: float | None = None
        self._ok_interval = T1
        self._ok_end_at = 0.0
        self._delayed = False  # our 2xx held the offer: the ACK brings the answer
        self._bye_wanted = False  # once the ACK is here
        self._ack: tuple[Flow, bytes] | None = None  # our last ACK, to be repeated with each 2xx
        self._offer_tx: ServerTransaction | None = None  # their offer that waits for the owner
        self._reinvite: ClientTransaction | None = None

    # --- what the sides differ in -----------------------------------------------------------

    @property
    def offered(self) -> bytes:
        """Body of the INVITE that opened it; empty: who was called is to offer."""
        return self.request.body

    def ring(self, headers: Headers, now: float) -> None:
        """Tell the caller that the phone rings; nothing on the calling side."""

    def answer(self, sdp: bytes, headers: Headers, now: float) -> None:
        """Accept the INVITE; nothing on the calling side."""

    def reject(self, status: int, headers: Headers, now: float) -> None:
        """Refuse the INVITE; nothing on the calling side."""

    def on_cancel(self, now: float) -> None:
        """The peer cancelled an INVITE that waits for our answer; after our 2xx this means nothing."""
        if self._offer_tx is not None and self._offer_tx.request.method == "INVITE":
            self._refuse_open(487, now)

    def _give_up(self, reason: EndReason, now: float) -> None:
        """Cancel our INVITE; nothing on the called side."""

    def hang_up(self, status: int, headers: Headers, now: float) -> None:
        """End the session in whatever state it is; `status` refuses an INVITE that waits."""
        if self.state is SessionState.INCOMING:
            self.reject(status, headers, now)
        elif self.state is SessionState.CALLING:
            self._give_up(EndReason.LOCAL, now)
        elif self.state in (SessionState.ANSWERED, SessionState.CONFIRMED):
            self._over(EndReason.LOCAL)
            self._hang_up_when_acked(now)

    # --- 2xx and ACK ------------------------------------------------------------------------

    def _accept(self, tx: ServerTransaction, sdp: bytes, headers: Headers, now: float) -> None:
        """Send a 2xx and repeat it until the ACK (RFC 3261 13.3.1.4)."""
        response = self._response(tx, 200)
        for name, value in headers:
            response.set(name, value)
        response.set("allow", self._core.allow)
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

    def _send_ack(self, dialog: Dialog, cseq: int) -> None:
        ack = dialog.request("ACK", self._core.via(dialog.flow), cseq)
        self._add_credentials(ack)
        self._ack = (dialog.flow, ack.serialise())
        self._core.send(*self._ack)

    def _ack_again(self, response: Response) -> None:
        if self._ack is not None and self.dialog is not None and response.to.tag == self.dialog.remote_tag:
            self._core.send(*self._ack)

    def _response(self, tx: ServerTransaction, status: int) -> Response:
        """A response within the dialog that this INVITE opens or belongs to."""
        request = tx.request
        response = build_response(request, status, to_tag=self.local_tag)
        if "record-route" in request.headers:
            response.headers["record-route"] = list(request.headers["record-route"])
        response.set("contact", self._core.contact(tx.flow))
        response.set("server", AGENT)
        return response

    def _add_credentials(self, ack: Request) -> None:
        """An ACK carries the same credentials as its INVITE (RFC 3261 22.1)."""

    # --- our requests -----------------------------------------------------------------------

    def send(
        self,
        method: str,
        now: float,
        *,
        headers: Headers = (),
        body: bytes = b"",
        on_outcome: Outcome | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Send a request within the dialog (no INVITE), with credentials where it is challenged.

        Args:
            method: REFER, NOTIFY, INFO and so on.
            now: monotonic seconds.
            headers: besides those of every request, names in lower case; Content-Type where there is a body.
            body: of the request.
            on_outcome: told once of the outcome, maybe from within.
            timeout_s: wait no longer; None: 32 s.

        Raises:
            UsageError: there is no dialog yet.
        """
        dialog = self.dialog
        if dialog is None:
            raise UsageError("a request within a dialog needs one")
        request = dialog.request(method, self._core.via(dialog.flow))
        for name, value in headers:
            request.set(name, value)
        request.body = body
        give_up_at = None if timeout_s is None else now + timeout_s
        DialogRequest(self._core, dialog, request, on_outcome, login=self._login, give_up_at=give_up_at).send(now)

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        """A response to an INVITE of ours."""
        if response.status < 200:
            self._let_go_of_reinvite(now)
        elif tx is self._reinvite:
            self._on_reinvite_response(tx, response, now)
        elif response.status < 300:
            self._ack_again(response)  # a repeated 2xx to an earlier re-INVITE

    def on_timeout(self, tx: ClientTransaction | ServerTransaction, now: float, *, reached: bool) -> None:
        """An INVITE of ours got no answer, or (`reached` False) could not be sent at all."""
        if tx is self._reinvite:  # else no ACK came to a refusal: nothing depends on it
            self._reinvite = None
            if self.state is SessionState.CONFIRMED:  # once over, nothing more is told
                self._core.emit(SessionReoffered(self, NO_RESPONSE if reached else NOT_SENT, b""))
                self._lose(now, NO_RESPONSE)

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
        request.set("allow", self._core.allow)
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
        if self.state is SessionState.ANSWERED:  # their ACK, or its absence, will tell
            self._core.emit(SessionProbed(self, alive=True, status=None))
        if self.state is SessionState.CONFIRMED:
            self.send("OPTIONS", now, headers=[("accept", SDP)], on_outcome=self._on_probe, timeout_s=timeout_s)

    def _on_probe(self, status: int, response: Response | None, _now: float) -> None:
        if self.state is SessionState.CONFIRMED:
            alive = response is not None and status not in (408, 481)
            self._core.emit(SessionProbed(self, alive, None if response is None else status))

    # --- their requests ---------------------------------------------------------------------

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
        handler = _IN_DIALOG.get(method) or self._core.in_dialog_handler(method)
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
        response.set("allow", self._core.allow)
        response.set("accept", ACCEPT)
        response.set("supported", "")
        self._core.respond(tx, response, now)

    # --- time -----------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        return self._ok_resend_at

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
        self._core.wake(self)

    # --- endings --------------------------------------------------------------------------

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
        self.state = SessionState.CLOSING
        self._bye_wanted = False
        self._refuse_open(487, now)
        self._let_go_of_reinvite(now)
        self.send("BYE", now, on_outcome=lambda *_: self._gone())

    def _refuse_open(self, status: int, now: float) -> None:
        """Give a final answer to the request of theirs that still waits, if one does."""
        if self._offer_tx is not None:
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


InDialogHandler = Callable[[Session, ServerTransaction, Flow, float], None]
"""Takes a request within a dialog; answers it by `Core.respond`, or raises PeerError with the status."""

_IN_DIALOG: dict[str, InDialogHandler] = {
    "BYE": Session._on_bye,
    "INVITE": Session._on_offer,
    "UPDATE": Session._on_offer,
    "INFO": Session._on_info,
    "OPTIONS": Session._on_options,
}
