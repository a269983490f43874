"""The calling side of a session (RFC 3261 13.2, RFC 3262): an INVITE of ours, until their final answer.

A fork on the way makes several early dialogs, told apart by their To tags. The
first that answers is the dialog of the session; others that answer, too, are
acknowledged and hung up.
"""

from __future__ import annotations

from typing import ClassVar

from adapters.sip.dialogs import session_timer
from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.dialog_request import DialogRequest
from adapters.sip.dialogs.reinvite import copy_credentials
from adapters.sip.dialogs.session import Core, Session
from adapters.sip.dialogs.session_events import EndReason, SessionAnswered, SessionProgress, SessionState
from adapters.sip.errors import PeerError
from adapters.sip.protection.login import Login, with_credentials
from adapters.sip.syntax.headers import parse_number
from adapters.sip.syntax.message import Request, Response
from adapters.sip.syntax.option_tags import RELIABLE, requires
from adapters.sip.transactions.transaction import TIMEOUT, ClientTransaction, Flow, ServerTransaction, build_cancel

MAX_BRANCHES = 16  # of a fork, that we keep apart, or hang up because another answered first
MAX_INTERVALS = 3  # session intervals that we try
MAX_RSEQ = 2**32 - 1


class _Early:
    """An early dialog (RFC 3261 12.1.2).

    Attributes:
        response: the first of its responses.
        dialog: None until it is needed.
        rseq: of the last reliable response; 0 before the first.
        described: our offer was answered in a reliable response.
        body: the last description it sent.
    """

    __slots__ = ("body", "described", "dialog", "response", "rseq")

    def __init__(self, response: Response) -> None:
        self.response = response
        self.dialog: Dialog | None = None
        self.rseq = 0
        self.described = False
        self.body = b""


class OutgoingSession(Session):
    """A call of ours: SessionProgress, SessionAnswered or SessionEnded follow."""

    OWNS_CALL_ID: ClassVar[bool] = True

    __slots__ = ("_ack", "_early", "_intervals", "_invite", "_parted", "_progressed", "_ring_end_at", "_tried_login")

    def __init__(self, core: Core, request: Request, flow: Flow, local_tag: str) -> None:
        super().__init__(core, request, flow, local_tag, SessionState.CALLING)
        self._invite: ClientTransaction | None = None
        self._progressed = False
        self._ring_end_at: float | None = None
        self._tried_login = False
        self._intervals = 0
        self._ack: tuple[Flow, bytes] | None = None  # our ACK, to be repeated with each 2xx
        self._early: dict[str, _Early] = {}  # by their tags, the latest last
        self._parted: dict[str | None, tuple[Flow, bytes]] = {}  # our ACKs to other branches, by their tags

    @property
    def early_tag(self) -> str | None:
        """The tag of the phone that was heard of last; None: nobody rings yet."""
        return next(reversed(self._early), None)

    def start(self, login: Login | None, ring_timeout_s: float | None, now: float) -> None:
        """Send our INVITE (`request`, complete)."""
        self._login = login
        self._ring_end_at = None if ring_timeout_s is None else now + ring_timeout_s
        self._send_invite(now)

    def _send_invite(self, now: float) -> None:
        self._invite = self._core.open(self.request, self.flow, self, now)
        self._core.wake(self)

    def on_moved(self, flow: Flow) -> None:
        """Our INVITE goes to another target: nothing was heard from there yet."""
        self.flow = flow
        self._progressed = False
        self._early.clear()

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        """A response to our INVITE."""
        if tx is not self._invite:
            return
        status = response.status
        if status < 200:
            self._on_provisional(response, now)
        elif status < 300:
            self._on_success(response, now)
        elif self.state is not SessionState.CALLING or not self._try_again(response, now):
            self._over(EndReason.REFUSED, status, response.reason, response.retry_after_s)
            self._refuse_open(487, now)  # an offer in an early dialog
            self._gone()

    def on_timeout(self, tx: ServerTransaction | ClientTransaction, now: float, /, *, reached: bool) -> None:
        if tx is self._invite:
            self._over(EndReason.NO_RESPONSE if reached else EndReason.UNREACHABLE)
            self._refuse_open(487, now)
            self._gone()

    # --- early dialogs ------------------------------------------------------------------------

    def _on_provisional(self, response: Response, now: float) -> None:
        first = not self._progressed
        self._progressed = True
        in_order = response.status == 100 or self._take_early(response, now)
        if self.state is SessionState.CLOSING:
            if first:
                self._send_cancel(now)
        elif self.state is SessionState.CALLING and in_order:
            self._core.emit(SessionProgress(self, response.status, response.body))

    def _take_early(self, response: Response, now: float) -> bool:
        """Note the early dialog, and acknowledge a reliable response; False: it is out of order."""
        tag = response.to.tag
        if tag is None:
            return True
        early = self._early.get(tag)
        if early is None:
            if len(self._early) >= MAX_BRANCHES:
                return True
            early = _Early(response)
        if "rseq" in response.headers and requires(response, RELIABLE) and not self._acknowledge(early, response, now):
            return False
        if response.body:
            early.body = response.body
            self._early.pop(tag, None)  # the latest early media is the last
        self._early[tag] = early
        return True

    def _acknowledge(self, early: _Early, response: Response, now: float) -> bool:
        """PRACK a reliable response, if it is the next one (RFC 3262 4)."""
        try:
            rseq = parse_number(response.get("rseq") or "", MAX_RSEQ)
            if early.rseq and rseq != early.rseq + 1:
                return False
            dialog = self._dialog_of(early)
        except PeerError:
            return False
        early.rseq = rseq
        early.described |= bool(response.body)
        prack = dialog.request("PRACK", self._core.via(dialog.flow))
        prack.set("rack", f"{rseq} {response.cseq.number} INVITE")
        DialogRequest(self._core, dialog, prack, None, login=self._login).send(now)
        return True

    def _dialog_of(self, early: _Early) -> Dialog:
        """Raises PeerError if a header of its response is malformed."""
        if early.dialog is None:
            early.dialog = Dialog.from_response(self.request, early.response, self.flow)
        return early.dialog

    def _dialog_with(self, remote_tag: str | None) -> Dialog | None:
        if self.dialog is not None or remote_tag is None:
            return super()._dialog_with(remote_tag)
        early = self._early.get(remote_tag)
        return None if early is None else self._dialog_of(early)

    def on_request(self, tx: ServerTransaction, source: Flow, now: float) -> None:
        if self.dialog is None:
            request = tx.request
            if request.method in ("INVITE", "UPDATE") and self._early.get(request.from_.tag or "") is None:
                raise PeerError("our offer waits", status=491)  # RFC 3311 5.2
            if request.method not in _WHILE_EARLY:
                raise PeerError("early dialog", status=481)
        super().on_request(tx, source, now)

    def _check_early_offer(self, request: Request) -> None:
        if self.dialog is None:
            early = self._early.get(request.from_.tag or "")
            if early is None or not early.described or request.method == "INVITE":
                raise PeerError("our offer waits", status=491)  # RFC 3311 5.2

    def _offerable(self) -> Dialog | None:
        if self.state is SessionState.CALLING:
            latest = next(reversed(self._early.values()), None)
            return latest.dialog if latest is not None and latest.described else None
        return super()._offerable()

    # --- the answer ---------------------------------------------------------------------------

    def _on_success(self, response: Response, now: float) -> None:
        tag = response.to.tag
        if self.dialog is not None:
            if tag == self.dialog.remote_tag:
                if self._ack is not None:
                    self._core.send(*self._ack)
            else:
                self._part(response, tag, now)  # another branch of a fork answered too
            return
        early = self._early.pop(tag or "", None)
        try:
            self.dialog = Dialog.from_response(self.request, response, self.flow)
        except PeerError as exc:
            self.dialog = Dialog.without_contact(self.request, response, self.flow)
            self._send_ack(self.dialog)
            self._over(EndReason.BROKEN, detail=str(exc))
            self._bye(now)
            return
        if self._offer_tx is not None and self._offer_tx.request.from_.tag != tag:
            self._refuse_open(487, now)  # the branch that offered it is none of ours any more
        if early is not None and early.dialog is not None:
            self.dialog.take_over(early.dialog)
        self._send_ack(self.dialog)
        if not self._tried_login:
            self._login = None  # who took the call without a password needs none to end it
        if self.state is not SessionState.CALLING:  # it crossed our CANCEL
            self._bye(now)
            return
        self.state = SessionState.CONFIRMED
        self._ring_end_at = None
        self._peer_allows = response.headers.get("allow")
        if "session-expires" in response.headers:
            self._start_timer(session_timer.agreed(response), now)
        self._early.clear()
        # Who answered reliably before need not repeat it (RFC 3261 13.2.1); some gateways never do.
        self._core.emit(SessionAnswered(self, response.body or (b"" if early is None else early.body)))

    def _part(self, response: Response, tag: str | None, now: float) -> None:
        """ACK and hang up a branch that we do not want; ACK again what it repeats."""
        known = self._parted.get(tag)
        if known is not None:
            self._core.send(*known)
            return
        if len(self._parted) >= MAX_BRANCHES:
            return
        try:
            dialog = Dialog.from_response(self.request, response, self.flow)
        except PeerError:
            dialog = Dialog.without_contact(self.request, response, self.flow)
        self._parted[tag] = self._ack_of(dialog)
        self._core.send(*self._parted[tag])
        bye = dialog.request("BYE", self._core.via(dialog.flow))
        DialogRequest(self._core, dialog, bye, None, login=self._login).send(now)

    def _send_ack(self, dialog: Dialog) -> None:
        self._ack = self._ack_of(dialog)
        self._core.send(*self._ack)

    def _ack_of(self, dialog: Dialog) -> tuple[Flow, bytes]:
        ack = dialog.request("ACK", self._core.via(dialog.flow), self.request.cseq.number)
        if self._tried_login:
            copy_credentials(self.request, ack)
        return dialog.flow, ack.serialise()

    # --- other ends ---------------------------------------------------------------------------

    def _try_again(self, response: Response, now: float) -> bool:
        """Send the INVITE again as a refusal asks: with credentials, or with a longer session interval."""
        number = self.request.cseq.number + 1
        if response.status in (401, 407) and self._login is not None and not self._tried_login:
            retry = with_credentials(self.request, response, self._login, number, self._core.new_token)
            if retry is None:
                return False
            self._tried_login = True
            self._login = self._login.within(response)
        elif response.status == 422 and self._intervals < MAX_INTERVALS:
            retry = Request("INVITE", self.request.uri, dict(self.request.headers), self.request.body)
            if not session_timer.retry_after_422(retry, response):
                return False
            retry.set("cseq", f"{number} INVITE")
            self._intervals += 1
        else:
            return False
        retry.set("via", self._core.via(self.flow))
        self.request = retry
        self._progressed = False
        self._early.clear()
        self._send_invite(now)
        return True

    def _send_cancel(self, now: float) -> None:
        """CANCEL our INVITE: same branch, same number (RFC 3261 9.1)."""
        tx = self._invite
        assert tx is not None
        cancel = build_cancel(tx.request)
        for name, value in self._farewell:
            cancel.set(name, value)
        self._core.open(cancel, tx.flow, _forgotten, now)
        self._core.give_up_at(tx, now + TIMEOUT)

    def _give_up(self, reason: EndReason, now: float) -> None:
        """CANCEL our INVITE, now or with the first provisional response (RFC 3261 9.1)."""
        self._over(reason)
        self._refuse_open(487, now)
        if self._progressed:
            self._send_cancel(now)

    # --- time ---------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        if self.state is not SessionState.CALLING:
            return super().deadline()
        at = super().deadline()
        return self._ring_end_at if at is None or (self._ring_end_at is not None and self._ring_end_at < at) else at

    def on_time(self, now: float) -> None:
        if self.state is SessionState.CALLING and self._ring_end_at is not None and self._ring_end_at <= now:
            self._give_up(EndReason.RING_TIMEOUT, now)  # whether it rang or was silent: the offer was missed
        else:
            super().on_time(now)


_WHILE_EARLY = frozenset({"INVITE", "UPDATE", "INFO", "OPTIONS"})


class _Forgotten:
    """The user of a transaction whose outcome changes nothing."""

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None: ...
    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None: ...


_forgotten = _Forgotten()
