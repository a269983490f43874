"""Phones that ask for the place of a leg: pick-up of a call that rings elsewhere, and take-over of one that talks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine import events as ev
from engine.call import Call, Leg
from engine.events import EndCause, LegId, Source, TransferId
from engine.transfers import Transfer, TransferError, Transfers
from routing.events import ContactLeft

if TYPE_CHECKING:
    from engine.control import CallControl

log = logging.getLogger("murima.call")


class Takeovers:
    """All take-overs of one call control; one that waits for its phone is a transfer in progress."""

    def __init__(self, control: CallControl, transfers: Transfers) -> None:
        self._control = control
        self._transfers = transfers

    def on_incoming(self, event: ev.LegIncoming, replaced_id: LegId) -> None:
        """A phone asks for a leg's place (INVITE with Replaces)."""
        control = self._control
        leg = Leg(event.leg_id, "agent", event.source.agent_id)
        if event.source.trunk is not None:
            control.outbound.on_incoming(leg.leg_id, event.source.trunk)
        try:
            self._take(event, leg, replaced_id)
        except TransferError as exc:
            log.info("takeover.refused", extra={"leg_id": event.leg_id, "cause": exc.cause, "reason": str(exc)})
            control.telephony.reject(event.leg_id, exc.cause)
            if event.call_id not in control.calls:
                control.telephony.release_call(event.call_id)

    def _take(self, event: ev.LegIncoming, leg: Leg, replaced_id: LegId) -> None:
        """Raises TransferError: nothing has changed."""
        call = self._control.call_of(replaced_id)
        replaced = None if call is None else call.legs[replaced_id]
        if call is None or replaced is None or call.over or replaced.side == "leaving":
            raise TransferError(EndCause.NOT_FOUND, "the call has ended")
        if not self._may_take(event.source, call, replaced):
            raise TransferError(EndCause.FORBIDDEN, "that is somebody else's call")
        if replaced.answered:
            self._take_place(call, leg, replaced)
        elif replaced in call.offers.values() or (call.transfer is not None and replaced is call.transfer.leg):
            self._pick_up(call, leg, replaced)
        else:
            raise TransferError(EndCause.FORBIDDEN, "this call waits for one person")

    def _may_take(self, source: Source, call: Call, replaced: Leg) -> bool:
        """Agents take the place of agents; a trunk that may transfer, that of its own legs."""
        if source.agent_id is not None:
            return call.agent_of(replaced) is not None
        trunks = self._control.settings.transferring_trunks
        return replaced.answered and source.trunk in trunks and source.trunk == self._transfers.trunk_of(call, replaced)

    def _pick_up(self, call: Call, leg: Leg, replaced: Leg) -> None:
        """Another agent takes the call that rings at `replaced`; raises TransferError: nothing has changed."""
        control = self._control
        agent_id = leg.agent_id
        assert agent_id is not None
        transfer = call.transfer
        self._transfers.check_partner(call, call.caller_leg if transfer is None else transfer.staying, agent_id)
        control.adopt(call, leg)
        log.info("call.picked_up", extra={"call_id": call.call_id, "agent_id": agent_id, "for": replaced.agent_id})
        if transfer is not None and replaced is transfer.leg:
            self._transfers.replace_ringing(transfer, leg)
            control.occupy(agent_id, call.call_id)
            control.telephony.answer(leg.leg_id, peer=transfer.staying.leg_id)
            return
        wrap_up_s = 0.0
        if call.queue_id is not None:
            queues = control.settings.routing.queues
            wrap_up_s = next((queue.wrap_up_s for queue in queues if queue.queue_id == call.queue_id), 0.0)
        control.route(ContactLeft(call.call_id))  # takes back all offers
        control.occupy(agent_id, call.call_id, wrap_up_s=wrap_up_s)
        control.take(call, leg)
        control.telephony.answer(leg.leg_id, peer=call.caller_leg.leg_id)

    def _take_place(self, call: Call, leg: Leg, replaced: Leg) -> None:
        """The new phone answers first; then the old one leaves."""
        control = self._control
        staying = self._transfers.partner(call, replaced)
        self._transfers.check_partner(call, staying, leg.agent_id)
        control.adopt(call, leg)
        transfer = Transfer(
            TransferId(control.new_id()), call, replaced, staying, leg.agent_id or "", report=False, leg=leg
        )
        self._transfers.start(transfer, replaced.side)
        if leg.agent_id is not None and leg.agent_id != call.agent_of(replaced):
            control.occupy(leg.agent_id, call.call_id)
        control.telephony.answer(leg.leg_id, peer=staying.leg_id)
