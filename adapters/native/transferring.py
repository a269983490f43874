"""Transfers between SIP and call control: REFER both ways, and INVITE with Replaces."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.native.causes import cause_of, status_of
from adapters.native.exchange import Exchange
from adapters.native.forking import Branch
from adapters.native.legs import Cancellable, Leg
from adapters.native.parties import number_of
from adapters.sip.dialogs.referral import Referral, Referrals
from adapters.sip.dialogs.session import EndReason, Session, SessionState
from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.refer import NO_SUBSCRIPTION
from adapters.sip.syntax.replaces import REPLACES, Replaces
from adapters.sip.syntax.uri import SipUri, escape
from engine.events import (
    CallId,
    EndCause,
    LegId,
    LegReferred,
    LegTransferAsked,
    TransferId,
    TransferState,
)
from media import client as media

REFER_TIMEOUT_S = 90.0
"""A far side that does not tell in this time how our REFER goes has not done it."""

# Refusals that leave the dialog alone: others make phones hang up (RFC 5057 5.1).
_REFUSALS = {EndCause.FORBIDDEN: 403, EndCause.UNSUPPORTED: 488, EndCause.OVERLOADED: 503}

_LAST = (TransferState.REFUSED, TransferState.BUSY, TransferState.DONE, TransferState.FAILED)


@dataclass(slots=True)
class _Wanted:
    """A REFER of ours."""

    leg_id: LegId
    transfer_id: TransferId
    timer: Cancellable


class Transferring:
    """See the module."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._asked: dict[TransferId, Referral] = {}
        self._wanted: dict[Session, _Wanted] = {}
        exchange.endpoint.support(REPLACES)
        exchange.endpoint.support(NO_SUBSCRIPTION)
        self._referrals = Referrals(exchange.endpoint, self._on_refer, self._on_progress)

    # --- phones ask -----------------------------------------------------------------------

    def _on_refer(self, referral: Referral) -> None:
        leg = referral.session.owner
        if not isinstance(leg, Leg) or not leg.answered:
            raise PeerError("no conversation to be transferred", status=403)
        wish = referral.wish
        replaced: Leg | None = None
        if wish.replaces is not None:
            replaced = self._leg_of(wish.replaces)
            if replaced is None or replaced is leg:
                raise PeerError("the call to be joined is not here", status=603)
        transfer_id = TransferId(self._exchange.new_id())
        target = number_of(wish.target)
        self._asked[transfer_id] = referral
        self._exchange.emit(
            LegTransferAsked(leg.leg_id, transfer_id, target, None if replaced is None else replaced.leg_id)
        )

    def report(self, transfer_id: TransferId, state: TransferState, cause: EndCause) -> None:
        """As `Telephony.report_transfer`."""
        referral = self._asked.get(transfer_id)
        if referral is None:
            return
        now = self._exchange.carrier.clock()
        if state in _LAST:
            del self._asked[transfer_id]
        if state is TransferState.BUSY:
            referral.refuse(491, now)
        elif state is TransferState.REFUSED and cause in _REFUSALS:
            referral.refuse(_REFUSALS[cause], now)
        elif state is TransferState.TRYING:
            self._accept(referral, now)
            referral.tell(100, now)
        elif state is TransferState.RINGING:
            referral.tell(180, now)
        elif state is TransferState.DONE:
            referral.tell(200, now)
        else:
            self._accept(referral, now)
            referral.tell(status_of(cause), now)
        self._exchange.run(self._exchange.endpoint.effects())

    @staticmethod
    def _accept(referral: Referral, now: float) -> None:
        leg = referral.session.owner
        first = not (isinstance(leg, Leg) and leg.referred)
        if isinstance(leg, Leg):
            leg.referred = True
        referral.accept(now, first=first)

    def _leg_of(self, names: Replaces) -> Leg | None:
        """The leg whose dialog is named, if it has not ended."""
        session = self._exchange.endpoint.find(names.sip_call_id, names.to_tag, names.from_tag)
        leg = None if session is None else session.owner
        return leg if isinstance(leg, Leg) else None

    # --- phones want a leg's place --------------------------------------------------------

    def replaced(self, request: Request) -> Leg | None:
        """The leg whose place an INVITE wants; None: it wants nobody's.

        Raises:
            PeerError: 400, malformed; 481, no such dialog; 486, it is answered and was wanted only
                while ringing; 603, it has ended (RFC 3891 3).
        """
        names = Replaces.of(request)
        if names is None:
            return None
        leg = self._leg_of(names) or self._ringing(names)
        if leg is None:
            ended = self._exchange.endpoint.find(names.sip_call_id, names.to_tag, names.from_tag) is not None
            raise PeerError("no call to be replaced", status=603 if ended else 481)
        if not leg.answered and leg.request is None:
            raise PeerError("only a call of ours that rings can be replaced", status=481)
        if leg.answered and names.early_only:
            raise PeerError("the call to be replaced is answered", status=486)
        return leg

    def _ringing(self, names: Replaces) -> Leg | None:
        """The phone that rings, named as it would name the dialog itself or as we would.

        Its own tag is not looked at: those who pick up learn of the dialog from
        us, and ours is the tag that nobody can guess.
        """
        for tag in (names.to_tag, names.from_tag):
            session = self._exchange.endpoint.find_any(names.sip_call_id, tag)
            if session is not None and session.state is SessionState.CALLING:
                owner = session.owner.fork.leg if isinstance(session.owner, Branch) else session.owner
                return owner if isinstance(owner, Leg) else None
        return None

    # --- we ask ---------------------------------------------------------------------------

    def refer(self, leg_id: LegId, transfer_id: TransferId, target: str) -> None:
        """As `Telephony.refer`."""
        leg = self._exchange.legs.get(leg_id)
        session = None if leg is None else leg.session
        if session is None or session.dialog is None or session in self._wanted:
            self._exchange.emit(LegReferred(leg_id, transfer_id, TransferState.REFUSED, EndCause.FAILED))
            return
        domain = self._exchange.settings.domain
        far = NameAddr.parse(session.dialog.remote).uri
        host = far.host if isinstance(far, SipUri) and far.host else domain
        shown = f"[{host}]" if ":" in host else host
        timer = self._exchange.loop.call_later(REFER_TIMEOUT_S, lambda: self._on_silence(session))
        self._wanted[session] = _Wanted(leg_id, transfer_id, timer)
        now = self._exchange.carrier.clock()
        self._referrals.ask(session, f"sip:{escape(target)}@{shown}", f"<sip:murima@{domain}>", now)
        self._exchange.run(self._exchange.endpoint.effects())

    def _on_progress(self, session: Session, status: int) -> None:
        wanted = self._wanted.get(session)
        if wanted is None:
            return
        if status < 200:
            state = TransferState.TRYING if status < 180 else TransferState.RINGING
            self._exchange.emit(LegReferred(wanted.leg_id, wanted.transfer_id, state))
            return
        cause = EndCause.NORMAL if status < 300 else cause_of(EndReason.REFUSED, status)
        self._end_wanted(session, TransferState.DONE if status < 300 else TransferState.FAILED, cause)

    def _on_silence(self, session: Session) -> None:
        self._referrals.forget(session)
        self._end_wanted(session, TransferState.FAILED, EndCause.NO_ANSWER)

    def on_ended(self, session: Session, reason: EndReason) -> None:
        """A call is over: one that hangs up after our REFER has done what we asked for."""
        accepted = self._referrals.forget(session)
        for transfer_id, referral in tuple(self._asked.items()):
            if referral.session is session and not referral.answered:  # a fault of ours: nobody will answer it
                del self._asked[transfer_id]
                referral.refuse(500, self._exchange.carrier.clock())
        if session not in self._wanted:
            return
        done = accepted and reason is EndReason.BYE
        state = TransferState.DONE if done else TransferState.FAILED
        self._end_wanted(session, state, EndCause.NORMAL if done else EndCause.CANCELLED)

    def _end_wanted(self, session: Session, state: TransferState, cause: EndCause) -> None:
        wanted = self._wanted.pop(session, None)
        if wanted is not None:
            wanted.timer.cancel()
            self._exchange.emit(LegReferred(wanted.leg_id, wanted.transfer_id, state, cause))

    # --- audio ----------------------------------------------------------------------------

    def shares_audio(self, a: LegId, b: LegId) -> bool:
        """As `Telephony.shares_audio`."""
        one, other = self._exchange.legs.get(a), self._exchange.legs.get(b)
        if one is None or other is None or one.call.worker is None:
            return False
        return one.call.worker is other.call.worker

    def move(self, leg_id: LegId, call_id: CallId) -> None:
        """As `Telephony.move_leg`."""
        leg, call = self._exchange.legs.get(leg_id), self._exchange.calls.get(call_id)
        if leg is None or call is None or leg.call is call:
            return
        leg.call.legs.discard(leg_id)
        call.legs.add(leg_id)
        leg.call = call
        if leg.opening:
            self._exchange.send_to(call.worker, media.MoveLeg(leg_id, call_id))
