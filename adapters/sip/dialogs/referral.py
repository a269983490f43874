"""Transfers on the wire (RFC 3515): REFERs of phones with the NOTIFYs that follow, and REFERs of ours.

A REFER makes a subscription within the dialog of its call. NOTIFYs of one
REFER wait for each other: what comes faster than the phone answers is left out.
The last one does not wait, because our BYE may follow it at once, and phones
that have got a BYE listen no more (RFC 5589 6.1: it comes after the NOTIFY).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from adapters.sip.dialogs.session import AGENT, Headers, InDialogHandler, Session
from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import Response, build_response
from adapters.sip.syntax.refer import SIPFRAG, EventName, ReferTo, is_terminated, read_sipfrag, sipfrag
from adapters.sip.transactions.transaction import Flow, ServerTransaction

EXPIRES_S = 180
"""How long we promise to tell how a transfer goes; it rings no longer than that."""

LAST = 200  # a status from here on is the last one


class Endpoint(Protocol):
    """What is needed of the endpoint."""

    def serve_in_dialog(self, method: str, handler: InDialogHandler) -> None: ...
    def respond(self, tx: ServerTransaction, response: Response, now: float) -> None: ...
    def contact(self, flow: Flow) -> str: ...


class Referral:
    """A REFER of a phone, from its arrival to the last NOTIFY.

    Attributes:
        wish: what it asks for.
        session: the call it came in.
        number: its CSeq.
    """

    __slots__ = ("_busy", "_endpoint", "_event", "_last", "_next", "_over", "_tx", "number", "session", "wish")

    def __init__(self, endpoint: Endpoint, session: Session, tx: ServerTransaction, wish: ReferTo) -> None:
        self._endpoint = endpoint
        self._tx: ServerTransaction | None = tx
        self.session = session
        self.wish = wish
        self.number = tx.request.cseq.number
        self._event = "refer"
        self._last = 100
        self._next: int | None = None
        self._busy = False
        self._over = not wish.notify

    def accept(self, now: float, *, first: bool) -> None:
        """Take it on (202); from then on `tell` how it goes.

        Args:
            now: monotonic seconds.
            first: of its dialog; the events of later ones name their REFER (RFC 3515 2.4.6).
        """
        tx, self._tx = self._tx, None
        if tx is None:
            return
        if not first:
            self._event = f"refer;id={self.number}"
        response = self._plain(tx, 200 if self._over else 202)
        if self._over:
            response.set("refer-sub", "false")
        response.set("contact", self._endpoint.contact(tx.flow))
        self._endpoint.respond(tx, response, now)

    def refuse(self, status: int, now: float) -> None:
        """Answer that it will not be done."""
        tx, self._tx = self._tx, None
        self._over = True
        if tx is not None:
            self._endpoint.respond(tx, self._plain(tx, status), now)

    def tell(self, status: int, now: float) -> None:
        """Tell how the new call goes; 200 and more end it."""
        if self._over:
            return
        if self._busy and status < LAST:
            self._next = status
        else:
            self._notify(status, now)

    @property
    def answered(self) -> bool:
        """Whether it was accepted or refused."""
        return self._tx is None

    @property
    def over(self) -> bool:
        """Whether nothing more is told."""
        return self._over

    def on_subscribe(self, tx: ServerTransaction, now: float) -> None:
        """The phone renews its subscription, or wants to hear no more."""
        expires = tx.request.expires
        response = self._plain(tx, 200)
        response.set("expires", EXPIRES_S if expires is None else min(expires, EXPIRES_S))
        response.set("contact", self._endpoint.contact(tx.flow))
        self._endpoint.respond(tx, response, now)
        if expires == 0:
            self._notify(self._last, now, "timeout")
        else:
            self.tell(self._last, now)

    def _plain(self, tx: ServerTransaction, status: int) -> Response:
        response = build_response(tx.request, status, to_tag=self.session.local_tag)
        response.set("server", AGENT)
        return response

    def _notify(self, status: int, now: float, ended: str = "") -> None:
        self._busy = True
        self._next = None
        self._last = status
        self._over = status >= LAST or bool(ended)
        reason = ended or "noresource"
        state = f"terminated;reason={reason}" if self._over else f"active;expires={EXPIRES_S}"
        headers: Headers = [
            ("event", self._event),
            ("subscription-state", state),
            ("contact", self._endpoint.contact(self.session.flow)),
            ("content-type", f"{SIPFRAG};version=2.0"),
        ]
        self.session.send("NOTIFY", now, headers=headers, body=sipfrag(status), on_outcome=self._on_notified)

    def _on_notified(self, status: int, _response: Response | None, now: float) -> None:
        self._busy = False
        if status >= 300:
            self._over = True  # it does not care, or is gone (RFC 6665 4.2.2)
            return
        waiting, self._next = self._next, None
        if waiting is not None and not self._over:
            self._notify(waiting, now)


OnRefer = Callable[[Referral], None]
OnProgress = Callable[[Session, int], None]


class Referrals:
    """Serves REFER, and NOTIFY for the REFERs of ours, within the dialogs of an endpoint's calls.

    Args:
        endpoint: whose calls.
        on_refer: gets each REFER; `accept` or `refuse` answers it.
        on_progress: how a REFER of ours goes: the status of the call that the peer places.
            From 200 on it is the last; 202 means that nothing more will be told.
    """

    def __init__(self, endpoint: Endpoint, on_refer: OnRefer, on_progress: OnProgress) -> None:
        self._endpoint = endpoint
        self._on_refer = on_refer
        self._on_progress = on_progress
        self._served: dict[Session, Referral] = {}  # the last REFER in each call
        self._asked: dict[Session, bool] = {}  # REFERs of ours that are not over; whether they are accepted
        endpoint.serve_in_dialog("REFER", self._take_refer)
        endpoint.serve_in_dialog("NOTIFY", self._take_notify)
        endpoint.serve_in_dialog("SUBSCRIBE", self._take_subscribe)

    def _take_refer(self, session: Session, tx: ServerTransaction, _source: Flow, _now: float) -> None:
        referral = Referral(self._endpoint, session, tx, ReferTo.of(tx.request))
        self._on_refer(referral)
        self._served[session] = referral

    def _take_subscribe(self, session: Session, tx: ServerTransaction, _source: Flow, now: float) -> None:
        event = EventName.of(tx.request)
        if event.package != "refer":
            raise PeerError("other events have dialogs of their own", status=489)
        referral = self._served.get(session)
        if referral is None or referral.over or event.event_id not in (None, str(referral.number)):
            raise PeerError("no such subscription", status=403)  # with 481 some phones would end the call, too
        referral.on_subscribe(tx, now)

    def ask(self, session: Session, target: str, referred_by: str, now: float) -> None:
        """Ask the far side to call `target` (a URI) in our place; `on_progress` tells how it goes."""
        if session in self._asked:
            self._on_progress(session, 491)
            return
        self._asked[session] = False
        headers: Headers = [
            ("refer-to", f"<{target}>"),
            ("referred-by", referred_by),
            ("contact", self._endpoint.contact(session.flow)),
            ("accept", SIPFRAG),
        ]
        session.send("REFER", now, headers=headers, on_outcome=partial(self._on_answer, session))

    def forget(self, session: Session) -> bool:
        """A call has ended; whether it had accepted a REFER of ours and not told yet what came of it."""
        self._served.pop(session, None)
        return self._asked.pop(session, False)

    def _on_answer(self, session: Session, status: int, response: Response | None, _now: float) -> None:
        if session not in self._asked:
            return
        if status >= 300:
            del self._asked[session]
            self._on_progress(session, status)
            return
        self._asked[session] = True
        if response is not None and (response.get("refer-sub") or "").lower() == "false":
            del self._asked[session]
            self._on_progress(session, 202)

    def _take_notify(self, session: Session, tx: ServerTransaction, _source: Flow, now: float) -> None:
        request = tx.request
        if EventName.of(request).package != "refer":
            raise PeerError("no such subscription", status=489)
        if session not in self._asked:
            raise PeerError("no such subscription", status=481)
        if request.body and request.content_type != SIPFRAG:
            raise PeerError("not a fragment of SIP", status=415)
        response = build_response(request, 200, to_tag=session.local_tag)
        response.set("server", AGENT)
        self._endpoint.respond(tx, response, now)
        self._asked[session] = True
        status = read_sipfrag(request.body)
        over = is_terminated(request)
        if over or (status is not None and status >= LAST):
            del self._asked[session]
            status = 408 if status is None or status < LAST else status  # it stopped telling
        if status is not None:
            self._on_progress(session, status)
