"""One INVITE session from our side: the user agent core of RFC 3261 12 to 15, with RFC 3311, RFC 4028 and RFC 6026.

A session is a dialog, the INVITE that opened it and the state of offer and
answer. Bodies are opaque here. It repeats its own 2xx until the ACK comes, and
tells its owner by events; each session ends with exactly one `SessionEnded`.

Here is what both sides do; `adapters.sip.dialogs.incoming` and `adapters.sip.dialogs.outgoing`
add what only the called or only the calling side does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from adapters.sip.dialogs import session_timer
from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.dialog_request import DialogRequest, Outcome
from adapters.sip.dialogs.reinvite import Reinvite
from adapters.sip.dialogs.session_events import (
    EndReason,
    SessionAcked,
    SessionAnswered,
    SessionDtmf,
    SessionEnded,
    SessionEvent,
    SessionOffered,
    SessionOfferWanted,
    SessionProbed,
    SessionProgress,
    SessionReoffered,
    SessionState,
)
from adapters.sip.dialogs.session_timer import SessionTimer, TimerSettings
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.protection.login import Login
from adapters.sip.syntax.info_dtmf import parse_dtmf
from adapters.sip.syntax.message import KNOWN_METHODS, Request, Response, build_response
from adapters.sip.syntax.reason import reason_of
from adapters.sip.transactions.repetition import Repetition
from adapters.sip.transactions.transaction import T2, ClientTransaction, Flow, ServerTransaction

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
    "SessionOfferWanted",
    "SessionOffered",
    "SessionProbed",
    "SessionProgress",
    "SessionReoffered",
    "SessionState",
]

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE, PRACK, REGISTER"
ACCEPT = "application/sdp, multipart/mixed, application/dtmf-relay, application/dtmf, message/sipfrag"
AGENT = "Murima"
SDP = "application/sdp"

EXPIRED = 'SIP;cause=408;text="Session timer expired"'
FAREWELL = frozenset({"reason", "user-to-user"})  # what a BYE or CANCEL takes over from `hang_up`
LATER_S = 2.0  # a refresh that something is in the way of is tried again after this
LONGEST_RETRY_S = 10.0  # that a peer may ask for

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
    def contact(self, flow: Flow, *, secure: bool = False) -> str: ...
    def new_token(self) -> str: ...
    def in_dialog_handler(self, method: str) -> InDialogHandler | None: ...
    @property
    def allow(self) -> str: ...
    @property
    def supported(self) -> str: ...
    @property
    def session_timer(self) -> TimerSettings: ...
    @property
    def trying_after_s(self) -> float: ...


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

    OWNS_CALL_ID: ClassVar[bool] = False  # we made the Call-ID (RFC 3261 14.1)

    __slots__ = (
        "_bye_wanted",
        "_core",
        "_delayed",
        "_farewell",
        "_login",
        "_offer_tx",
        "_ok",
        "_peer_allows",
        "_reinvite",
        "_retry_at",
        "_timer",
        "_timer_at",
        "_timer_end_at",
        "_updating",
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
        self._ok: Repetition | None = None  # our 2xx while it waits for its ACK
        self._delayed = False  # our 2xx held the offer: the ACK brings the answer
        self._bye_wanted = False  # once the ACK is here
        self._farewell: tuple[tuple[str, str], ...] = ()  # headers of our BYE or CANCEL
        self._offer_tx: ServerTransaction | None = None  # their offer that waits for the owner
        self._reinvite: Reinvite | None = None  # ours that waits for its outcome
        self._updating = False  # so does an UPDATE of ours with an offer
        self._retry_at: float | None = None  # when an offer that crossed theirs may be made again
        self._peer_allows: list[str] | None = None  # their Allow, not yet split
        self._timer: SessionTimer | None = None
        self._timer_at: float | None = None  # when to refresh, or to hang up
        self._timer_end_at = 0.0

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

    def progress(self, sdp: bytes, headers: Headers, now: float) -> None:
        """Let the caller hear us before the answer; nothing on the calling side."""

    def on_cancel(self, _cancel: Request, now: float, /) -> None:
        """The peer cancelled an INVITE that waits for our answer; after our 2xx this means nothing."""
        if self._offer_tx is not None and self._offer_tx.request.method == "INVITE":
            self._refuse_open(487, now)

    def _give_up(self, reason: EndReason, now: float) -> None:
        """Cancel our INVITE; nothing on the called side."""

    def hang_up(self, status: int, headers: Headers, now: float) -> None:
        """End the session in whatever state it is.

        `status` and `headers` refuse an INVITE that waits; a Reason among them goes into a BYE or CANCEL, too.
        """
        self._farewell = tuple(header for header in headers if header[0] in FAREWELL)
        if self.state is SessionState.INCOMING:
            self.reject(status, headers, now)
        elif self.state is SessionState.CALLING:
            self._give_up(EndReason.LOCAL, now)
        elif self.state in (SessionState.ANSWERED, SessionState.CONFIRMED):
            self._over(EndReason.LOCAL)
            self._hang_up_when_acked(now)

    # --- 2xx and ACK ------------------------------------------------------------------------

    def _accept(self, tx: ServerTransaction, sdp: bytes, headers: Headers, now: float) -> None:
        """Send a 2xx and, to an INVITE, repeat it until the ACK (RFC 3261 13.3.1.4)."""
        request = tx.request
        response = self._response(tx, 200)
        for name, value in headers:
            response.set(name, value)
        response.set("allow", self._core.allow)
        response.set("supported", self._core.supported)
        response.set("content-type", SDP)
        response.body = sdp
        self._agree_timer(request, response, now)
        self._core.respond(tx, response, now)
        if request.method == "INVITE":
            self._ok = Repetition(tx.flow, tx.sent, request.cseq.number, now, T2)
            self._core.wake(self)

    def on_ack(self, ack: Request, now: float) -> None:
        """The ACK to one of our 2xx."""
        if self._ok is None or ack.cseq.number != self._ok.number:
            return
        self._ok = None
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
        response.set("contact", self._core.contact(tx.flow, secure=tx.request.uri.startswith("sips:")))
        response.set("server", AGENT)
        return response

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
        if self.dialog is None:
            raise UsageError("a request within a dialog needs one")
        self._send_within(self.dialog, method, headers, body, on_outcome, now, timeout_s)

    def _send_within(
        self,
        dialog: Dialog,
        method: str,
        headers: Headers,
        body: bytes,
        on_outcome: Outcome | None,
        now: float,
        timeout_s: float | None = None,
    ) -> None:
        request = dialog.request(method, self._core.via(dialog.flow))
        for name, value in headers:
            request.set(name, value)
        request.body = body
        give_up_at = None if timeout_s is None else now + timeout_s
        DialogRequest(self._core, dialog, request, on_outcome, login=self._login, give_up_at=give_up_at).send(now)

    def on_timeout(self, tx: ServerTransaction | ClientTransaction, now: float, /, *, reached: bool) -> None:
        """No ACK came to a refusal: nothing depends on it."""

    def reinvite(self, sdp: bytes, now: float) -> None:
        """Offer anew. SessionReoffered follows; at once with 491 while another offer is open.

        Raises:
            UsageError: the session is not confirmed.
        """
        dialog = self.dialog
        if self.state is not SessionState.CONFIRMED or dialog is None:
            raise UsageError("a re-INVITE needs a confirmed session")
        if self._is_offering():
            self._cross(now)
            return
        request = dialog.request("INVITE", self._core.via(dialog.flow))
        for name, value in self._refresh_headers(dialog):
            request.set(name, value)
        request.set("content-type", SDP)
        request.body = sdp
        self._retry_at = None
        self._reinvite = Reinvite(self._core, dialog, request, self._on_reinvited, self._login)
        self._reinvite.send(now)

    def update(self, sdp: bytes, now: float) -> None:
        """Offer anew by UPDATE, which needs no person to agree (RFC 3311); the outcome is as with `reinvite`.

        Raises:
            UsageError: there is no dialog, or its first offer is not answered yet.
        """
        dialog = self._offerable()
        if dialog is None:
            raise UsageError("an UPDATE needs a dialog in which an offer was answered")
        if self._is_offering():
            self._cross(now)
            return
        self._updating = True
        headers = [*self._refresh_headers(dialog), ("content-type", SDP)]
        self._send_within(dialog, "UPDATE", headers, sdp, self._on_updated, now)

    def _offerable(self) -> Dialog | None:
        """The dialog in which a new offer may be made now."""
        return self.dialog if self.state in (SessionState.ANSWERED, SessionState.CONFIRMED) else None

    def _is_offering(self) -> bool:
        """Whether an offer is open, theirs or ours."""
        return self._reinvite is not None or self._updating or self._offer_tx is not None or self._ok is not None

    def _refresh_headers(self, dialog: Dialog) -> list[tuple[str, str]]:
        """Of a re-INVITE or UPDATE."""
        contact = self._core.contact(dialog.flow, secure=dialog.target.startswith("sips:"))
        headers = [("contact", contact), ("allow", self._core.allow)]
        headers.append(("supported", self._core.supported))
        if self._timer is not None:
            headers += session_timer.ask_again(self._timer, self._core.session_timer)
        return headers

    def _on_reinvited(self, status: int, response: Response | None, now: float) -> None:
        self._reinvite = None
        self._on_reoffered(status, response, now)

    def _on_updated(self, status: int, response: Response | None, now: float) -> None:
        self._updating = False
        self._on_reoffered(status, response, now)

    def _on_reoffered(self, status: int, response: Response | None, now: float) -> None:
        if self.state in (SessionState.CLOSING, SessionState.ENDED):
            return
        if response is not None and status < 300:
            self._on_refreshed(response, now)
        elif status == 491:
            self._cross(now)
            return
        elif response is not None and status == 500 and response.has("retry-after"):  # RFC 3311 5.2: theirs waits
            self._retry_at = now + _retry_after_s(response)
            self._core.wake(self)
        elif response is not None and status == 422 and self._timer is not None:
            self._timer = session_timer.longer(self._timer, response)
            self._retry_at = now
            self._core.wake(self)
        self._core.emit(SessionReoffered(self, status, b"" if response is None else response.body))
        if status in (408, 481):
            self._lose(now, status)

    def _cross(self, now: float) -> None:
        """Two offers crossed: who made the Call-ID waits longer before the next one (RFC 3261 14.1)."""
        self._core.emit(SessionReoffered(self, 491, b""))
        share = zlib.crc32(self._core.new_token().encode()) / 2**32
        self._retry_at = now + (2.1 + 1.9 * share if self.OWNS_CALL_ID else 2.0 * share)
        self._core.wake(self)

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

    # --- session timer ------------------------------------------------------------------------

    def _agree_timer(self, request: Request, response: Response, now: float) -> None:
        """Answer the timer of an INVITE or UPDATE of theirs, in our 2xx."""
        if "session-expires" in request.headers:
            self._start_timer(session_timer.accept(request, response, self._core.session_timer), now)
            self._peer_allows = request.headers.get("allow") or self._peer_allows
        elif self._timer is not None:
            self._start_timer(None, now)

    def _on_refreshed(self, response: Response, now: float) -> None:
        """A 2xx to a re-INVITE or UPDATE of ours."""
        if self.dialog is not None:
            with suppress(PeerError):  # a malformed Contact moves nothing
                self.dialog.refresh_target(response, self.dialog.flow)
        if self._timer is not None:
            self._start_timer(session_timer.agreed(response), now)

    def _start_timer(self, timer: SessionTimer | None, now: float) -> None:
        self._timer = timer
        if timer is None:
            self._timer_at = None
            return
        self._timer_at = now + timer.due_s
        self._timer_end_at = now + timer.end_s
        self._core.wake(self)

    def _on_timer(self, now: float) -> None:
        """Refresh the session, or end it if nobody has."""
        if self.dialog is None or self.state is SessionState.INCOMING:
            self._timer_at = None  # an UPDATE before the answer set it; the answer will say what holds
            return
        if self._timer is None or not self._timer.ours or now >= self._timer_end_at:
            self._timer_at = None
            self._farewell = (("reason", EXPIRED),)
            self._over(EndReason.LOST, detail="nobody refreshed the session")
            self._hang_up_when_acked(now)
            return
        self._timer_at = self._timer_end_at
        dialog = self.dialog
        if self._is_offering():
            self._refresh_later(now)
        elif self._peer_allows is not None and "UPDATE" in ", ".join(self._peer_allows).upper():
            self._send_within(dialog, "UPDATE", self._refresh_headers(dialog), b"", self._on_refresh, now)
        else:
            self._core.emit(SessionOfferWanted(self))

    def _on_refresh(self, status: int, response: Response | None, now: float) -> None:
        """The outcome of an UPDATE that offers nothing."""
        if self.state is not SessionState.CONFIRMED:
            return
        if response is not None and status < 300:
            self._on_refreshed(response, now)
        elif status in (408, 481):
            self._lose(now, status)
        elif response is not None and status == 422 and self._timer is not None:
            self._timer = session_timer.longer(self._timer, response)
            self._refresh_later(now)
        elif status in (405, 488, 501):  # no UPDATE after all, or none without an offer
            self._peer_allows = None
            self._core.emit(SessionOfferWanted(self))
        else:
            self._refresh_later(now)

    def _refresh_later(self, now: float) -> None:
        self._timer_at = min(now + LATER_S, self._timer_end_at)
        self._core.wake(self)

    # --- their requests ---------------------------------------------------------------------

    def on_request(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        """A request within the dialog other than ACK and CANCEL.

        Raises:
            PeerError: to be answered with its status.
        """
        request = tx.request
        method = request.method
        dialog = self._dialog_with(request.from_.tag)
        if dialog is None:
            raise PeerError("another dialog", status=481)
        if self.state is SessionState.CLOSING and method != "BYE":
            raise PeerError("the dialog has ended", status=481)
        if not dialog.accepts(request):
            raise PeerError("CSeq out of order", status=500)
        handler = _IN_DIALOG.get(method) or self._core.in_dialog_handler(method)
        if handler is None:
            raise PeerError("method not supported in a dialog", status=405 if method in KNOWN_METHODS else 501)
        handler(self, tx, source, now)

    def _dialog_with(self, remote_tag: str | None) -> Dialog | None:
        """The dialog that a request of theirs names."""
        return self.dialog if self.dialog is not None and self.dialog.remote_tag == remote_tag else None

    def _on_bye(self, tx: ServerTransaction, _source: Flow, now: float) -> None:
        self._core.respond(tx, self._plain(tx, 200), now)
        if self.state is SessionState.INCOMING:
            self._refuse_open(487, now)
            self._over(EndReason.CANCELLED, detail=reason_of(tx.request))
        else:
            if self._offer_tx is not None:
                self._refuse_open(487, now)
            self._over(EndReason.BYE, detail=reason_of(tx.request))
        self._abandon_offers(now)
        self._gone()

    def _on_offer(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        request = tx.request
        dialog = self._dialog_with(request.from_.tag)
        assert dialog is not None
        if "session-expires" in request.headers:
            session_timer.check(request, self._core.session_timer)
        if request.method == "UPDATE" and not request.body:
            dialog.refresh_target(request, source)
            response = self._response(tx, 200)
            response.set("allow", self._core.allow)
            self._agree_timer(request, response, now)
            self._core.respond(tx, response, now)
            return
        if self._offer_tx is not None:
            raise PeerError("an earlier offer waits", status=500)
        if self._reinvite is not None or self._updating or (self._ok is not None and self._delayed):
            raise PeerError("our own offer waits", status=491)
        self._check_early_offer(request)
        if request.body and request.content_type != SDP:
            raise PeerError("offer is not SDP", status=415)
        dialog.refresh_target(request, source)
        self._open_offer(tx)

    def _open_offer(self, tx: ServerTransaction) -> None:
        self._offer_tx = tx
        tx.user = self
        self._core.emit(SessionOffered(self, tx.request.body))

    def _check_early_offer(self, request: Request) -> None:
        """Refuse an offer that comes before the one of the INVITE is answered."""

    def _on_prack(self, _tx: ServerTransaction, _now: float, /) -> None:
        """The caller acknowledges a provisional response of ours."""
        raise PeerError("PRACK for nothing that waits", status=481)

    def accept_offer(self, sdp: bytes, now: float) -> None:
        """Answer the offer of SessionOffered, or make the offer it asked for."""
        tx, self._offer_tx = self._offer_tx, None
        if tx is not None:
            self._delayed = not tx.request.body
            self._retry_at = None  # what we wanted to offer again is what we answer with
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
        response.set("supported", self._core.supported)
        self._core.respond(tx, response, now)

    # --- time -----------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        if self.state is SessionState.ENDED:
            return None
        at = None if self._ok is None else self._ok.at
        if self._retry_at is not None and (at is None or self._retry_at < at):
            at = self._retry_at
        if self._timer_at is not None and (at is None or self._timer_at < at):
            at = self._timer_at
        return at

    def on_time(self, now: float) -> None:
        """Repeat what waits for its ACK; end what waited too long; refresh, and offer again."""
        ok = self._ok
        if ok is not None and ok.at <= now:
            if ok.is_over(now):
                self._ok = None
                self._over(EndReason.NO_ACK)
                self._bye(now)
                return
            self._core.send(ok.flow, ok.data)
            ok.move_on(now)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            if self.state is SessionState.CONFIRMED:
                self._core.emit(SessionOfferWanted(self))
        if self._timer_at is not None and self._timer_at <= now:
            self._on_timer(now)
        self._core.wake(self)

    # --- endings --------------------------------------------------------------------------

    def _lose(self, now: float, status: int) -> None:
        """The far side no longer has the dialog (RFC 3261 12.2.1.2)."""
        if self.state is SessionState.CONFIRMED:
            self._over(EndReason.LOST, status)
            self._bye(now)

    def _hang_up_when_acked(self, now: float) -> None:
        """BYE, but not before the ACK of our 2xx (RFC 3261 15)."""
        if self._ok is not None:
            self.state = SessionState.CLOSING
            self._bye_wanted = True
        else:
            self._bye(now)

    def _bye(self, now: float) -> None:
        self.state = SessionState.CLOSING
        self._bye_wanted = False
        self._refuse_open(487, now)
        self._abandon_offers(now)
        self.send("BYE", now, headers=self._farewell, on_outcome=lambda *_: self._gone())

    def _abandon_offers(self, now: float) -> None:
        """The session is over, and with it what we have offered."""
        if self._reinvite is not None:
            self._reinvite.abandon(now)

    def _refuse_open(self, status: int, now: float) -> None:
        """Give a final answer to the request of theirs that still waits, if one does."""
        if self._offer_tx is not None:
            tx, self._offer_tx = self._offer_tx, None
            self._core.respond(tx, self._plain(tx, status), now)

    def _over(
        self, reason: EndReason, status: int | None = None, detail: str = "", retry_after_s: float | None = None
    ) -> None:
        """Tell the owner, once."""
        if self.state in (SessionState.CLOSING, SessionState.ENDED):
            return
        self.state = SessionState.CLOSING
        self._timer_at = self._retry_at = None
        self._core.emit(SessionEnded(self, reason, status, detail, retry_after_s))

    def _gone(self) -> None:
        """Nothing is on the way any more."""
        self._ok = None
        self._core.forget(self)

    def _plain(self, tx: ServerTransaction, status: int) -> Response:
        response = build_response(tx.request, status, to_tag=self.local_tag)
        response.set("server", AGENT)
        return response


def _retry_after_s(response: Response) -> float:
    """Seconds that a peer asks us to wait before the next offer."""
    text = (response.get("retry-after") or "").partition("(")[0].partition(";")[0].strip()
    return min(float(text), LONGEST_RETRY_S) if text.isascii() and text.isdigit() and len(text) < 6 else LATER_S


InDialogHandler = Callable[[Session, ServerTransaction, Flow, float], None]
"""Takes a request within a dialog; answers it by `Core.respond`, or raises PeerError with the status."""

_IN_DIALOG: dict[str, InDialogHandler] = {
    "BYE": Session._on_bye,
    "INVITE": Session._on_offer,
    "UPDATE": Session._on_offer,
    "INFO": Session._on_info,
    "OPTIONS": Session._on_options,
    "PRACK": lambda session, tx, _source, now: session._on_prack(tx, now),
}
