"""The calling side of a session (RFC 3261 13.2): an INVITE of ours, from its start to their final answer."""

from __future__ import annotations

from adapters.sip.dialog import Dialog
from adapters.sip.errors import PeerError
from adapters.sip.login import Login, with_credentials
from adapters.sip.message import Request, Response
from adapters.sip.session import Core, Session
from adapters.sip.session_events import EndReason, SessionAnswered, SessionProgress, SessionState
from adapters.sip.transaction import TIMEOUT, ClientTransaction, Flow, ServerTransaction

MAX_BRANCHES = 16  # of a fork, that we hang up because another answered first


class OutgoingSession(Session):
    """A call of ours: SessionProgress, SessionAnswered or SessionEnded follow."""

    __slots__ = ("_invite", "_parted", "_progressed", "_ring_end_at", "_tried_login")

    def __init__(self, core: Core, request: Request, flow: Flow, local_tag: str) -> None:
        super().__init__(core, request, flow, local_tag, SessionState.CALLING)
        self._invite: ClientTransaction | None = None
        self._progressed = False
        self._ring_end_at: float | None = None
        self._tried_login = False
        self._parted: dict[str | None, tuple[Flow, bytes]] = {}  # our ACKs to other branches, by their tags

    def start(self, login: Login | None, ring_timeout_s: float | None, now: float) -> None:
        """Send our INVITE (`request`, complete but for Via and Contact)."""
        self._login = login
        self._ring_end_at = None if ring_timeout_s is None else now + ring_timeout_s
        self._send_invite(now)

    def _send_invite(self, now: float) -> None:
        self._invite = self._core.open(self.request, self.flow, self, now)
        self._core.wake(self)

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        if tx is self._invite:
            self._on_invite_response(response, now)
        else:
            super().on_response(tx, response, now)

    def on_timeout(self, tx: ClientTransaction | ServerTransaction, now: float, *, reached: bool) -> None:
        if tx is self._invite:
            self._over(EndReason.NO_RESPONSE if reached else EndReason.UNREACHABLE)
            self._gone()
        else:
            super().on_timeout(tx, now, reached=reached)

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
        self._core.open(dialog.request("BYE", self._core.via(dialog.flow)), dialog.flow, _forgotten, now)

    def _add_credentials(self, ack: Request) -> None:
        for name in ("authorization", "proxy-authorization"):
            value = self.request.get(name)
            if self._tried_login and value is not None:
                ack.set(name, value)

    def _log_in(self, response: Response, now: float) -> bool:
        """Send the INVITE again with credentials, once."""
        if self._login is None or self._tried_login:
            return False
        number = self.request.cseq.number + 1
        retry = with_credentials(self.request, response, self._login, number, self._core.new_token)
        if retry is None:
            return False
        self._tried_login = True
        retry.set("via", self._core.via(self.flow))
        self.request = retry
        self._progressed = False
        self._send_invite(now)
        return True

    def _send_cancel(self, now: float) -> None:
        """CANCEL our INVITE: same branch, same number (RFC 3261 9.1)."""
        tx = self._invite
        assert tx is not None
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
        self._core.open(cancel, tx.flow, _forgotten, now)
        self._core.give_up_at(tx, now + TIMEOUT)

    def deadline(self) -> float | None:
        return self._ring_end_at if self.state is SessionState.CALLING else super().deadline()

    def on_time(self, now: float) -> None:
        if self.state is SessionState.CALLING:
            if self._ring_end_at is not None and self._ring_end_at <= now:
                self._give_up(EndReason.RING_TIMEOUT, now)  # whether it rang or was silent: the offer was missed
        else:
            super().on_time(now)

    def _give_up(self, reason: EndReason, now: float) -> None:
        """CANCEL our INVITE, now or with the first provisional response (RFC 3261 9.1)."""
        self._over(reason)
        self.state = SessionState.CLOSING
        if self._progressed:
            self._send_cancel(now)


class _Forgotten:
    """The user of a transaction whose outcome changes nothing."""

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None: ...
    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None: ...


_forgotten = _Forgotten()
