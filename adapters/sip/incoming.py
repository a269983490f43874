"""The called side of a session (RFC 3261 13.3): an INVITE of theirs, from its arrival to our final answer."""

from __future__ import annotations

from adapters.sip.dialog import Dialog
from adapters.sip.message import build_response
from adapters.sip.session import AGENT, Core, Headers, Session
from adapters.sip.session_events import EndReason, SessionState
from adapters.sip.transaction import Flow, ServerTransaction

REFRESH_S = 60.0  # a proxy forgets an INVITE after three minutes without a sign (RFC 3261 13.3.1.1)


class IncomingSession(Session):
    """A call that came: `ring`, `answer` or `reject` it."""

    __slots__ = ("_invite", "_progress_headers", "_refresh_at")

    def __init__(self, core: Core, tx: ServerTransaction, local_tag: str) -> None:
        super().__init__(core, tx.request, tx.flow, local_tag, SessionState.INCOMING)
        self._invite = tx
        self._refresh_at: float | None = None
        self._progress_headers: tuple[tuple[str, str], ...] = ()

    def begin(self, source: Flow, now: float) -> None:
        """Open the dialog and tell the caller that we work on it (100).

        Raises:
            PeerError: the INVITE cannot open a dialog.
        """
        tx = self._invite
        self.dialog = Dialog.from_request(tx.request, self.local_tag, source)
        tx.user = self
        self._core.respond(tx, build_response(tx.request, 100), now)

    def ring(self, headers: Headers, now: float) -> None:
        """Send 180, and again each minute (RFC 3261 13.3.1.1)."""
        if self.state is SessionState.INCOMING:
            self._progress_headers = tuple(headers)
            self._send_ringing(now)

    def _send_ringing(self, now: float) -> None:
        tx = self._invite
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
        self._core.respond(tx, response, now)
        self._over(EndReason.LOCAL, status)
        self._core.forget(self)

    def on_cancel(self, now: float) -> None:
        if self.state is SessionState.INCOMING:
            self._refuse_open(487, now)
            self._over(EndReason.CANCELLED)
            self._core.forget(self)
        else:
            super().on_cancel(now)

    def deadline(self) -> float | None:
        return self._refresh_at if self.state is SessionState.INCOMING else super().deadline()

    def on_time(self, now: float) -> None:
        if self.state is SessionState.INCOMING:
            if self._refresh_at is not None and self._refresh_at <= now:
                self._send_ringing(now)
        else:
            super().on_time(now)

    def _refuse_open(self, status: int, now: float) -> None:
        if self.state is SessionState.INCOMING:
            self._core.respond(self._invite, self._plain(self._invite, status), now)
        else:
            super()._refuse_open(status, now)
