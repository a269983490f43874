"""A request of ours within a dialog, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.protection.login import Login, with_credentials
from adapters.sip.syntax.message import Request, Response
from adapters.sip.transactions.transaction import ClientTransaction, Flow

NO_RESPONSE = 408  # the status of a request that nobody answered (RFC 3261 8.1.3.1)
NOT_SENT = 503  # and of one that the transport could not carry

Outcome = Callable[[int, Response | None, float], None]
"""Told once: the final status, the response (None: there was none), the time."""


class Opener(Protocol):
    """What sends requests."""

    def open(self, request: Request, flow: Flow, user: object, now: float) -> ClientTransaction: ...
    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None: ...
    def via(self, flow: Flow) -> str: ...
    def new_token(self) -> str: ...


class DialogRequest:
    """Sends one request (no INVITE, no ACK), once more with credentials where it is challenged.

    Args:
        opener: what sends it.
        dialog: the dialog it belongs to.
        request: made by `Dialog.request`, complete.
        on_outcome: told of the final response, or that there is none; None: nobody cares.
        login: for when it is challenged.
        give_up_at: monotonic seconds; None: after 32 s without a reply.
    """

    __slots__ = ("_dialog", "_give_up_at", "_login", "_on_outcome", "_opener", "request")

    def __init__(
        self,
        opener: Opener,
        dialog: Dialog,
        request: Request,
        on_outcome: Outcome | None,
        *,
        login: Login | None = None,
        give_up_at: float | None = None,
    ) -> None:
        self.request = request
        self._opener = opener
        self._dialog = dialog
        self._on_outcome = on_outcome
        self._login = login
        self._give_up_at = give_up_at

    def send(self, now: float) -> None:
        """Put it on the wire; the outcome may be told from within."""
        tx = self._opener.open(self.request, self._dialog.flow, self, now)
        if self._give_up_at is not None:
            self._opener.give_up_at(tx, self._give_up_at)

    def on_response(self, _tx: ClientTransaction, response: Response, now: float) -> None:
        """A response came."""
        if response.status < 200:
            return
        if response.status in (401, 407) and self._login is not None:
            login, self._login = self._login, None  # once
            dialog = self._dialog
            retry = with_credentials(self.request, response, login, dialog.local_cseq + 1, self._opener.new_token)
            if retry is not None:
                dialog.local_cseq += 1
                retry.set("via", self._opener.via(dialog.flow))
                self.request = retry
                self.send(now)
                return
        self._tell(response.status, response, now)

    def on_timeout(self, _tx: ClientTransaction, now: float, *, reached: bool) -> None:
        """Nobody answered, or it could not be sent."""
        self._tell(NO_RESPONSE if reached else NOT_SENT, None, now)

    def _tell(self, status: int, response: Response | None, now: float) -> None:
        if self._on_outcome is not None:
            self._on_outcome(status, response, now)
