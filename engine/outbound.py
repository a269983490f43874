"""Calls to the outside: from an agent, or a trunk that may, through routes to one trunk after the other.

A part of call control. The choice is `routing.outbound`'s; here legs are made,
failures judged and limits given back. Toll fraud is kept out at two places:
callers from a trunk reach only what the trunk's rules let them, and no route
without `dial_out`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from config.numbering import Numbering
from config.numbers import NumberSet
from config.schema import DialOut
from config.trunks import NumberFormat
from engine import events as ev
from engine.call import Call, CallState, Leg
from engine.events import AgentId, EndCause, LegId, Party, Source
from engine.snapshot import CallSnapshot
from engine.telephony import Originate, Outside
from routing.outbound import Attempt, Outbound, OutboundSettings, Search, TrunkRefusal

if TYPE_CHECKING:
    from engine.control import CallControl

log = logging.getLogger("murima.call")

LONGEST_SILENCE_S = 600.0
"""For at most so long a carrier's Retry-After is honoured."""

AGENT_RINGS_S = 30.0
"""How long an agent's phone rings who is to be called before the number."""

# What the person called has to do with; everything else that happens before it rings is the trunk's fault.
_OUTCOMES = frozenset({404, 410, 480, 484, 485, 486, 487})
_ANONYMOUS = frozenset({"", "anonymous", "unavailable", "restricted", "unknown"})


@dataclasses.dataclass(frozen=True, slots=True)
class TrunkRules:
    """What the configuration says of a trunk, beside its technical side.

    Attributes:
        reach: numbers that its callers may dial; None: all.
        dial_out: its callers may use routes.
        shown: the caller's number and name where the own one is not shown.
        allow: numbers of callers from trunks that may be shown; None: all.
    """

    reach: NumberSet | None = None
    dial_out: bool = False
    shown: Party | None = None
    allow: NumberSet | None = None
    number_format: NumberFormat = NumberFormat.AS_IS
    withhold: bool = False
    country: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OutboundRules:
    """Everything that a configuration document decides here."""

    choice: OutboundSettings = dataclasses.field(default_factory=OutboundSettings)
    trunks: Mapping[str, TrunkRules] = dataclasses.field(default_factory=dict)
    numbering: Numbering = dataclasses.field(default_factory=Numbering)


@dataclasses.dataclass(slots=True)
class _Dialling:
    """A call on its way out."""

    search: Search
    attempt: Attempt | None = None
    rang: bool = False
    failure: ev.LegEnded | None = None


class OutboundCalls:
    """See the module.

    Args:
        control: the call control that this belongs to.
        rules: first configuration.
        draw: a random number from 0 up to 1, for trunks of equal priority.

    Attributes:
        book: trunks, routes and what is in use of them.
    """

    def __init__(self, control: CallControl, rules: OutboundRules, draw: Callable[[], float]) -> None:
        self._control = control
        self._rules = rules
        self._dialling: dict[ev.CallId, _Dialling] = {}
        self._trunk_of: dict[LegId, str] = {}
        self.book = Outbound(rules.choice, draw)

    def replace(self, rules: OutboundRules) -> None:
        """Put another configuration in force; calls in progress go on as they began."""
        self._rules = rules
        self.book.replace(rules.choice)

    # --- who may dial what --------------------------------------------------------------

    def may_reach(self, trunk: str, dialled: str) -> bool:
        """Whether callers from a trunk may dial a number at all."""
        rules = self._rules.trunks.get(trunk)
        return rules is None or rules.reach is None or dialled in rules.reach

    def action_for(self, dialled: str) -> DialOut | None:
        """What happens to a number that an agent dials, if a route leads to it."""
        if not self.book.routes or not self.book.serves(self._rules.numbering.forms(dialled)):
            return None
        return DialOut(dial=dialled)

    def emergency_for(self, dialled: str) -> DialOut | None:
        """What happens to a number that an agent dials, if it leads to an emergency service."""
        for route in self.book.routes:
            if not route.emergency:
                break  # they come first
            if any(form in route.numbers for form in self._rules.numbering.forms(dialled)):
                return DialOut(dial=dialled)
        return None

    def may_dial_out(self, source: Source) -> bool:
        """Whether calls from there may take routes."""
        if source.trunk is None:
            return source.agent_id is not None
        rules = self._rules.trunks.get(source.trunk)
        return rules is not None and rules.dial_out

    # --- a call goes out ----------------------------------------------------------------

    def begin(self, call: Call, number: str, authority: Source, *, record: bool) -> None:
        """Call a number outside for the caller of `call`.

        Args:
            call: whose caller is to talk with the number.
            number: as dialled.
            authority: on whose word: the caller, or who transfers the call.
            record: record the conversation; the route may say so, too.

        Where a transfer of the call is in progress, its partner who stays talks with the number
        once it has answered; until then nothing changes.
        """
        if not self.may_dial_out(authority):
            log.warning("outbound.forbidden", extra={"call_id": call.call_id, "trunk": authority.trunk})
            self._refuse(call, EndCause.FORBIDDEN, detail="this trunk may not dial out")
            return
        forms = self._rules.numbering.forms(number, self._country_of(authority))
        search = self.book.search(forms, authority.agent_id, self._control.clock.utc())
        call.explanation = search.explanation
        if search.route is None:
            self._refuse(call, EndCause.NOT_FOUND, detail="no route")
            return
        record = record or search.route.record
        if call.transfer is not None:
            call.transfer.record = record
        else:
            call.record = call.record or record
            call.state = CallState.RINGING if call.caller_leg.answered else CallState.ARRIVING
        self._dialling[call.call_id] = _Dialling(search)
        self._try_next(call, self._dialling[call.call_id])

    def _try_next(self, call: Call, dialling: _Dialling) -> None:
        attempt = dialling.attempt = dialling.search.next(self._control.clock.monotonic())
        call.explanation = dialling.search.explanation
        route = dialling.search.route
        if attempt is None or route is None:
            self._give_up(call, dialling)
            return
        leg = Leg(LegId(self._control.new_id()), "callee", trunk=attempt.trunk)
        staying, party, source, forwarded = call.caller_leg, call.caller, call.source, call.forwarded
        if call.transfer is not None:
            call.transfer.leg, staying = leg, call.transfer.staying
            party, source, forwarded = self._control.transfers.identity_of(call, staying)
        caller, withheld = self.presented(party, source, attempt.trunk)
        withheld = withheld or forwarded.withheld
        self._trunk_of[leg.leg_id] = attempt.trunk
        self._control.adopt(call, leg)
        self._control.publish(
            ev.OutboundTried,
            call,
            trunk=attempt.trunk,
            gateway=attempt.gateway,
            number=attempt.number,
            explanation=call.explanation,
        )
        log.info(
            "outbound.tried",
            extra={
                "call_id": call.call_id,
                "trunk": attempt.trunk,
                "gateway": attempt.gateway,
                "dialled": attempt.number,
                "route": route.name,
            },
        )
        self._control.telephony.originate(
            leg.leg_id,
            Originate(
                call_id=call.call_id,
                agent_id=AgentId(""),
                caller=caller,
                peer=staying.leg_id,
                ring_timeout_s=route.ring_timeout_s,
                outside=Outside(
                    trunk=attempt.trunk,
                    gateway=attempt.gateway,
                    number=attempt.number,
                    withheld=withheld,
                    diverted_from="" if call.source.trunk is None else call.dialled,
                ),
                forwarded=forwarded,
            ),
        )

    def _give_up(self, call: Call, dialling: _Dialling) -> None:
        """No trunk is left."""
        failure = dialling.failure
        if failure is not None:
            self._refuse(call, failure.cause, status=failure.status, detail=failure.detail)
        else:
            busy = dialling.search.refusals() & {TrunkRefusal.CALLS, TrunkRefusal.RATE, TrunkRefusal.OVERLOADED}
            cause = EndCause.OVERLOADED if busy else EndCause.UNREACHABLE
            self._refuse(call, cause, detail="no trunk is free")

    def _refuse(
        self, call: Call, cause: EndCause, *, by: str = "system", status: int | None = None, detail: str = ""
    ) -> None:
        """The number is not reached: the call is over, or the transfer is."""
        if call.transfer is not None:
            self._control.transfers.on_unreached(call.transfer, cause)
        else:
            self._control.end(call, cause, by=by, status=status, detail=detail)

    def place(self, agent_id: AgentId, number: str) -> Call | None:
        """Ring an agent, then call what they would dial; None: nobody can be reached there."""
        control = self._control
        source = Source(agent_id=agent_id)
        action = control.action_for(number, source)
        if action is None:
            return None
        leg = Leg(LegId(control.new_id()), "caller")
        call = Call(
            call_id=ev.CallId(control.new_id()),
            caller=Party(agent_id),
            dialled=number,
            source=source,
            caller_leg=leg,
            started=control.clock.monotonic(),
            started_at=control.clock.utc(),
            action=action,
            placed=True,
        )
        control.calls[call.call_id] = call
        control.adopt(call, leg)
        control.publish(ev.CallStarted, call, caller=call.caller, dialled=number, trunk=None, from_agent=agent_id)
        log.info("call.placed", extra={"call_id": call.call_id, "agent_id": agent_id, "dialled": number})
        control.occupy(agent_id, call.call_id)
        control.telephony.originate(
            leg.leg_id,
            Originate(
                call_id=call.call_id,
                agent_id=agent_id,
                caller=Party(number),
                peer=None,
                ring_timeout_s=AGENT_RINGS_S,
            ),
        )
        return call

    # --- what legs report ---------------------------------------------------------------

    def on_incoming(self, leg_id: LegId, trunk: str) -> None:
        """A call came from a trunk: it takes one of its lines."""
        self._trunk_of[leg_id] = trunk
        self.book.occupy(trunk)

    def on_found(self, kept: CallSnapshot) -> None:
        """A call of an earlier engine is still up: its trunks are as occupied as before."""
        if kept.trunk is not None:
            self.on_incoming(LegId(kept.caller_leg), kept.trunk)
        if kept.trunk_out is not None and kept.agent_leg is not None:
            self.on_incoming(LegId(kept.agent_leg), kept.trunk_out)

    def on_lost(self, kept: CallSnapshot) -> None:
        """That call has ended."""
        self.on_gone(LegId(kept.caller_leg))
        self.on_gone(LegId(kept.agent_leg or ""))

    def on_ringing(self, call: Call) -> None:
        """It rings at the far end, or something is heard from there: no other trunk is tried any more."""
        dialling = self._dialling.get(call.call_id)
        if dialling is not None:
            dialling.rang = True

    def on_answered(self, call: Call, leg: Leg) -> None:
        """The called side took the call."""
        self._dialling.pop(call.call_id, None)
        call.agent = leg
        if call.caller_leg.answered:
            self._control.talk(call)
        else:
            self._control.telephony.answer(call.caller_leg.leg_id, peer=leg.leg_id)

    def trunk_of(self, leg_id: LegId) -> str | None:
        """The trunk that a leg comes from or goes to; None: it is an agent's."""
        return self._trunk_of.get(leg_id)

    def is_dialling(self, call: Call) -> bool:
        """Whether a number outside is being called for this call."""
        return call.call_id in self._dialling

    def on_gone(self, leg_id: LegId) -> None:
        """A leg has ended, whatever it was: its trunk has a line free."""
        trunk = self._trunk_of.pop(leg_id, None)
        if trunk is not None:
            self.book.release(trunk)

    def on_failed(self, call: Call, event: ev.LegEnded) -> None:
        """A leg to the outside ended before it was answered."""
        dialling = self._dialling.get(call.call_id)
        if dialling is None or dialling.attempt is None:
            return
        attempt = dialling.attempt
        dialling.failure = event
        dialling.search.failed(event.cause, event.status)
        now = self._control.clock.monotonic()
        if event.retry_after_s is not None:
            until = now + min(event.retry_after_s, LONGEST_SILENCE_S)
            self.book.leave_alone(attempt.trunk, attempt.gateway, until)
        if call.over:
            return
        self._control.publish(
            ev.OutboundFailed,
            call,
            trunk=attempt.trunk,
            gateway=attempt.gateway,
            cause=event.cause,
            status=event.status,
        )
        log.info(
            "outbound.failed",
            extra={"call_id": call.call_id, "trunk": attempt.trunk, "cause": event.cause, "status": event.status},
        )
        if dialling.rang or not is_trunks_fault(event):
            self._refuse(call, event.cause, by="callee", status=event.status, detail=event.detail)
        else:
            self._try_next(call, dialling)

    def on_over(self, call: Call) -> None:
        """The call is on its way out no more: it has ended, or its transfer has its outcome."""
        self._dialling.pop(call.call_id, None)

    def withdraw(self, call: Call) -> None:
        """The call goes elsewhere: nobody outside is called for it any more."""
        if self._dialling.pop(call.call_id, None) is None:
            return
        for leg in tuple(call.legs.values()):
            if leg.side == "callee":
                leg.side = "leaving"
                self._control.telephony.hang_up(leg.leg_id, EndCause.CANCELLED)

    def on_reachability(self, event: ev.TrunkReachability) -> bool:
        """A trunk or a gateway of it went or came back; whether that is news."""
        return self.book.set_reachable(event.trunk, event.gateway, reachable=event.reachable)

    # --- caller id ----------------------------------------------------------------------

    def presented(self, caller: Party, source: Source, trunk: str) -> tuple[Party, bool]:
        """Who is shown as the caller on a trunk, and whether the person called may see it."""
        rules = self._rules_of(trunk)
        numbering = self._rules.numbering
        if source.agent_id is not None:
            party, withheld = rules.shown or caller, False
        elif caller.number.lower() in _ANONYMOUS:
            party, withheld = rules.shown or Party("anonymous"), True
        elif rules.allow is None or any(
            form in rules.allow for form in numbering.forms(caller.number, self._country_of(source))
        ):
            party, withheld = caller, False
        elif rules.shown is not None:
            party, withheld = rules.shown, False
        else:
            party, withheld = Party("anonymous"), True
        number = numbering.written(party.number, rules.number_format, rules.country)
        return Party(number, party.name), withheld or rules.withhold

    def _country_of(self, source: Source) -> str | None:
        return None if source.trunk is None else self._rules_of(source.trunk).country

    def _rules_of(self, trunk: str) -> TrunkRules:
        return self._rules.trunks.get(trunk, _NOTHING_SAID)


_NOTHING_SAID = TrunkRules()


_TRUNKS_FAULTS = frozenset(
    {EndCause.UNREACHABLE, EndCause.FAILED, EndCause.BROKEN, EndCause.OVERLOADED, EndCause.UNSUPPORTED}
)


def is_trunks_fault(event: ev.LegEnded) -> bool:
    """Whether another trunk might do better: the person called had no part in this end."""
    status = event.status
    if status is None:
        return event.cause in _TRUNKS_FAULTS
    return status < 600 and status not in _OUTCOMES
