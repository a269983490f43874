"""Hold: by a phone, in its signalling, or on somebody's word, by the audio alone.

A phone that holds is left to itself; its partner hears the call's music. A call
held on an operator's or agent's word (`hold`) is parted at the media worker:
the caller hears the music of the queue, or silence, and the agent silence. No
phone is told, so every phone can be held so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import events as ev
from engine.call import Call, CallState, Leg

if TYPE_CHECKING:
    from engine.control import CallControl


class HoldError(Exception):
    """A call cannot be held or resumed now; nothing has changed."""


class Holding:
    """See the module. `control` is the call control that this belongs to."""

    def __init__(self, control: CallControl) -> None:
        self._control = control

    # --- on somebody's word ---------------------------------------------------------------

    def hold(self, call: Call, *, by: str) -> None:
        """Part caller and agent, with music for the caller.

        Raises:
            HoldError: nobody talks, or the call is held so already.
        """
        if call.over or call.talk_started is None or call.agent is None:
            raise HoldError("nobody talks in this call")
        if call.held_by:
            raise HoldError("the call is on hold already")
        known = by in self._holders(call)
        call.held_by = by
        call.state = CallState.HELD
        self._control.telephony.unbridge(call.caller_leg.leg_id, call.agent.leg_id)
        if call.music is not None:
            self._control.play(call.caller_leg.leg_id, call.music, loop=True)
        if not known:
            self._control.publish(ev.HoldStarted, call, by=by)

    def resume(self, call: Call) -> None:
        """Join them again.

        Raises:
            HoldError: the call is not held on anybody's word.
        """
        if call.over or not call.held_by or call.agent is None:
            raise HoldError("the call is not on hold")
        by, call.held_by = call.held_by, ""
        if call.music is not None and not call.agent.held:
            self._control.telephony.stop_play(call.caller_leg.leg_id)
        self._control.telephony.bridge(call.caller_leg.leg_id, call.agent.leg_id)
        holders = self._holders(call)
        call.state = CallState.HELD if holders else CallState.TALKING
        if by not in holders:
            self._control.publish(ev.HoldEnded, call, by=by)

    # --- by phones --------------------------------------------------------------------------

    def on_held(self, event: ev.LegHeld) -> None:
        """A phone put us on hold."""
        call = self._control.call_of(event.leg_id)
        if call is None:
            return
        leg = call.legs[event.leg_id]
        known = leg.side in self._holders(call)
        leg.held = True
        if call.talk_started is not None and not call.over and leg in (call.caller_leg, call.agent):
            self._begin(call, leg, known=known)

    def on_talk(self, call: Call) -> None:
        """Two were joined of whom one or both have us on hold since before."""
        for leg in (call.caller_leg, call.agent):
            if leg is not None and leg.held:
                self._begin(call, leg, known=False)

    def on_part(self, call: Call) -> None:
        """The conversation is over, and with it every hold of it; who holds on holds the next one, too."""
        for by in self._holders(call):
            self._control.publish(ev.HoldEnded, call, by=by)
        call.held_by = ""

    def _holders(self, call: Call) -> list[str]:
        """On whose word the conversation is on hold, each named once though both voice and phone of an agent hold."""
        by = [call.held_by] if call.held_by else []
        by += [leg.side for leg in (call.caller_leg, call.agent) if leg is not None and leg.held]
        return list(dict.fromkeys(by))

    def _begin(self, call: Call, leg: Leg, *, known: bool) -> None:
        call.state = CallState.HELD
        if not known:
            self._control.publish(ev.HoldStarted, call, by=leg.side)
        other = call.other(leg)
        if other is not None and call.music is not None and not call.held_by:
            self._control.play(other.leg_id, call.music, loop=True)

    def on_resumed(self, event: ev.LegResumed) -> None:
        """A phone that had put us on hold is back."""
        call = self._control.call_of(event.leg_id)
        if call is None:
            return
        leg = call.legs[event.leg_id]
        leg.held = False
        if call.state is not CallState.HELD or leg not in (call.caller_leg, call.agent):
            return
        if leg.side not in self._holders(call):
            self._control.publish(ev.HoldEnded, call, by=leg.side)
        other = call.other(leg)
        if other is None or call.held_by:
            return
        self._control.telephony.stop_play(other.leg_id)
        if not other.held:
            call.state = CallState.TALKING
