"""A re-INVITE of ours: sent, challenged, answered and acknowledged (RFC 3261 14.1)."""

from __future__ import annotations

from typing import Protocol

from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.dialog_request import NO_RESPONSE, NOT_SENT, Opener, Outcome
from adapters.sip.protection.login import Login, with_credentials
from adapters.sip.syntax.message import Request, Response
from adapters.sip.transactions.transaction import TIMEOUT, ClientTransaction, Flow


class Sender(Opener, Protocol):
    """What sends requests, and ACKs, which have no transaction."""

    def send(self, flow: Flow, data: bytes) -> None: ...


class Reinvite:
    """One re-INVITE, from its first sending to the last repetition of its 2xx.

    Args:
        core: what sends it.
        dialog: the dialog it belongs to.
        request: made by `Dialog.request`, complete.
        on_outcome: told once of the final response, after our ACK.
        login: for when it is challenged.
    """

    __slots__ = ("_ack", "_core", "_dialog", "_login", "_on_outcome", "_over", "_request", "_tx")

    def __init__(
        self, core: Sender, dialog: Dialog, request: Request, on_outcome: Outcome, login: Login | None
    ) -> None:
        self._core = core
        self._dialog = dialog
        self._request = request
        self._on_outcome = on_outcome
        self._login = login
        self._ack: tuple[Flow, bytes] | None = None
        self._over = False
        self._tx: ClientTransaction | None = None

    def send(self, now: float) -> None:
        """Put it on the wire; the outcome may be told from within."""
        self._tx = self._core.open(self._request, self._dialog.flow, self, now)

    def abandon(self, now: float) -> None:
        """The session is over: one with a provisional response must not wait for ever."""
        self._over = True
        if self._tx is not None:
            self._core.give_up_at(self._tx, now + TIMEOUT)

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:
        """A response came."""
        status = response.status
        if status < 200:
            if self._over:
                self.abandon(now)
        elif status >= 300:
            if status not in (401, 407) or not self._log_in(response, now):
                self._on_outcome(status, response, now)
        elif self._ack is not None:
            self._core.send(*self._ack)  # our ACK was lost
        else:
            ack = self._dialog.request("ACK", self._core.via(self._dialog.flow), tx.request.cseq.number)
            copy_credentials(self._request, ack)
            self._ack = (self._dialog.flow, ack.serialise())
            self._core.send(*self._ack)
            self._on_outcome(status, response, now)

    def on_timeout(self, _tx: ClientTransaction, now: float, *, reached: bool) -> None:
        """Nobody answered, or it could not be sent."""
        self._on_outcome(NO_RESPONSE if reached else NOT_SENT, None, now)

    def _log_in(self, response: Response, now: float) -> bool:
        login, self._login = self._login, None  # once
        if login is None or self._over:
            return False
        number = self._dialog.local_cseq + 1
        retry = with_credentials(self._request, response, login, number, self._core.new_token)
        if retry is None:
            return False
        self._dialog.local_cseq = number
        retry.set("via", self._core.via(self._dialog.flow))
        self._request = retry
        self.send(now)
        return True


def copy_credentials(invite: Request, ack: Request) -> None:
    """An ACK carries the same credentials as its INVITE (RFC 3261 22.1)."""
    for name in ("authorization", "proxy-authorization"):
        value = invite.get(name)
        if value is not None:
            ack.set(name, value)
