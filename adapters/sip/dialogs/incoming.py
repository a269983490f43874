"""The called side of a session (RFC 3261 13.3, RFC 3262): an INVITE of theirs, until our final answer."""

from __future__ import annotations

import zlib

from adapters.sip.dialogs import session_timer
from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.reliable import RAck, ReliableResponses
from adapters.sip.dialogs.session import AGENT, SDP, Core, Headers, Session
from adapters.sip.dialogs.session_events import EndReason, SessionState
from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.syntax.option_tags import RELIABLE, requires, supports
from adapters.sip.syntax.reason import reason_of
from adapters.sip.transactions.repetition import Repetition
from adapters.sip.transactions.transaction import TIMEOUT, Flow, ServerTransaction

REFRESH_S = 60.0  # a proxy forgets an INVITE after three minutes without a sign (RFC 3261 13.3.1.1)
NOT_ACKNOWLEDGED = 504  # a reliable response without its PRACK (RFC 3262 3 wants a 5xx)


class IncomingSession(Session):
    """A call that came: `ring`, `progress`, `answer` or `reject` it."""

    __slots__ = ("_answer", "_invite", "_progress", "_refresh_at", "_reliable")

    def __init__(self, core: Core, tx: ServerTransaction, local_tag: str) -> None:
        super().__init__(core, tx.request, tx.flow, local_tag, SessionState.INCOMING)
        self._invite = tx
        self._refresh_at: float | None = None  # when to say the next line
        self._progress: tuple[int, bytes, tuple[tuple[str, str], ...]] = (100, b"", ())  # first, then each minute
        self._reliable: ReliableResponses | None = None
        self._answer: tuple[bytes, tuple[tuple[str, str], ...]] | None = None  # waits for a PRACK

    def begin(self, source: Flow, now: float) -> None:
        """Open the dialog and tell the caller that we work on it (100): at once, or if nothing else is said soon.

        Raises:
            PeerError: the INVITE cannot open a dialog, or asks for a session timer that is too short.
        """
        tx = self._invite
        if "session-expires" in tx.request.headers:
            session_timer.check(tx.request, self._core.session_timer)
        self.dialog = Dialog.from_request(tx.request, self.local_tag, source)
        tx.user = self
        if self._core.trying_after_s > 0:
            self._refresh_at = now + self._core.trying_after_s
            self._core.wake(self)
        else:
            self._core.respond(tx, build_response(tx.request, 100), now)

    # --- before the answer ------------------------------------------------------------------

    def ring(self, headers: Headers, now: float) -> None:
        """Send 180, and again each minute (RFC 3261 13.3.1.1); reliably where the caller demands that.

        A caller who demands that and has made no offer is told nothing: such a
        response would have to hold our offer (RFC 3262 5).
        """
        if self.state is SessionState.INCOMING and self._answer is None:
            self._tell(180, b"", tuple(headers), now)

    def progress(self, sdp: bytes, headers: Headers, now: float) -> None:
        """Send 183 with our answer, so that the caller hears us before the call is answered.

        Reliably where the caller can take it. The answer to the INVITE is to
        hold the same description. To an INVITE without an offer nothing is sent.
        """
        if self.state is SessionState.INCOMING and self._answer is None and self.request.body:
            self._tell(183, sdp, tuple(headers), now)

    def _tell(self, status: int, sdp: bytes, headers: tuple[tuple[str, str], ...], now: float) -> None:
        request = self._invite.request
        must = requires(request, RELIABLE)
        if must and not request.body:
            return
        self._progress = (status, sdp, headers)
        response = self._response(self._invite, status)
        for name, value in headers:
            response.set(name, value)
        if sdp:
            response.set("content-type", SDP)
            response.body = sdp
        self._refresh_at = now + REFRESH_S
        if not must and not (sdp and supports(request, RELIABLE)):
            self._core.respond(self._invite, response, now)
        elif sdp and self._reliable is not None and (self._reliable.with_description or self._reliable.described):
            return  # it was told already, and will arrive
        else:
            response.set("allow", self._core.allow)
            if self._reliable is None:
                self._reliable = ReliableResponses(zlib.crc32(self.local_tag.encode()) % 2**30 + 1)
            if self._reliable.add(response):
                self._send_reliably(response, now)
        self._core.wake(self)

    def _send_reliably(self, response: Response, now: float) -> None:
        tx = self._invite
        self._core.respond(tx, response, now)
        assert self._reliable is not None
        number = int(response.headers["rseq"][0])
        self._reliable.sent = Repetition(tx.flow, tx.sent, number, now, TIMEOUT)

    def _on_prack(self, tx: ServerTransaction, now: float, /) -> None:
        request = tx.request
        reliable = self._reliable
        if reliable is None:
            raise PeerError("PRACK for nothing that waits", status=481)
        if request.body and request.content_type != SDP:
            raise PeerError("offer is not SDP", status=415)
        waiting = reliable.on_prack(RAck.parse(request.get("rack")), self._invite.request.cseq.number)
        if request.body and reliable.described and not self._is_offering() and self.state is SessionState.INCOMING:
            self._open_offer(tx)  # an offer in a PRACK is answered in its 200 (RFC 3262 5)
        else:
            self._core.respond(tx, self._plain(tx, 200), now)
        if self.state is not SessionState.INCOMING:
            return
        if waiting is not None:
            self._send_reliably(waiting, now)
        elif self._answer is not None:
            (sdp, headers), self._answer = self._answer, None
            self.answer(sdp, headers, now)
        self._core.wake(self)

    def _check_early_offer(self, request: Request) -> None:
        if self.state is SessionState.INCOMING and (
            request.method == "INVITE" or self._reliable is None or not self._reliable.described
        ):
            raise PeerError("the offer of the INVITE waits", status=500)  # RFC 3311 5.2, RFC 3261 14.2

    def _offerable(self) -> Dialog | None:
        if self.state is SessionState.INCOMING:
            return self.dialog if self._reliable is not None and self._reliable.described else None
        return super()._offerable()

    # --- final answers ----------------------------------------------------------------------

    def answer(self, sdp: bytes, headers: Headers, now: float) -> None:
        """Accept the INVITE, once the caller has acknowledged a description that it was told reliably."""
        if self.state is not SessionState.INCOMING or self._answer is not None:
            return
        if self._reliable is not None and self._reliable.with_description:
            self._answer = (sdp, tuple(headers))  # RFC 3262 3: not before its PRACK
            return
        self.state = SessionState.ANSWERED
        self._stop_telling()
        self._delayed = not self.request.body
        self._accept(self._invite, sdp, headers, now)

    def reject(self, status: int, headers: Headers, now: float) -> None:
        """Refuse the INVITE."""
        if self.state is not SessionState.INCOMING:
            return
        tx = self._invite
        response = build_response(tx.request, status, to_tag=self.local_tag)
        for name, value in headers:
            response.set(name, value)
        response.set("server", AGENT)
        self._stop_telling()
        self._core.respond(tx, response, now)
        super()._refuse_open(487, now)
        self._over(EndReason.LOCAL, status)
        self._core.forget(self)

    def on_cancel(self, cancel: Request, now: float, /) -> None:
        if self.state is SessionState.INCOMING:
            self._refuse_open(487, now)
            self._over(EndReason.CANCELLED, detail=reason_of(cancel))
            self._core.forget(self)
        else:
            super().on_cancel(cancel, now)

    def _refuse_open(self, status: int, now: float) -> None:
        if self.state is SessionState.INCOMING:
            self._stop_telling()
            self._core.respond(self._invite, self._plain(self._invite, status), now)
        super()._refuse_open(status, now)

    def _stop_telling(self) -> None:
        self._refresh_at = None
        if self._reliable is not None:
            self._reliable.stop()

    # --- time ---------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        if self.state is not SessionState.INCOMING:
            return super().deadline()
        sent = None if self._reliable is None else self._reliable.sent
        if sent is not None and (self._refresh_at is None or sent.at < self._refresh_at):
            return sent.at
        return self._refresh_at

    def on_time(self, now: float) -> None:
        if self.state is not SessionState.INCOMING:
            super().on_time(now)
            return
        sent = None if self._reliable is None else self._reliable.sent
        if sent is not None and sent.at <= now:
            if sent.is_over(now):
                self._refuse_open(NOT_ACKNOWLEDGED, now)
                self._over(EndReason.NO_ACK, detail="no PRACK")
                self._core.forget(self)
                return
            self._core.send(sent.flow, sent.data)
            sent.move_on(now)
        if self._refresh_at is not None and self._refresh_at <= now:
            status, sdp, headers = self._progress
            if status == 100:
                self._refresh_at = None
                self._core.respond(self._invite, build_response(self._invite.request, 100), now)
                return
            reliable = self._reliable
            self._tell(status if reliable is None else 180, sdp if reliable is None else b"", headers, now)
        self._core.wake(self)
