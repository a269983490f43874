"""The agents: their states, the moments when these end by themselves, and who is free for which queue."""

from __future__ import annotations

from collections.abc import Iterable

from routing.decisions import AgentChanged, Decision
from routing.lane import Availability, Lane
from routing.model import ASKABLE, AgentSettings, AgentState, Reason
from routing.ordered import Ordered
from routing.records import Agent, Contact

FAULTS_BEFORE_BREAK = 3
"""A phone that fails this often in a row for technical reasons puts its agent on break."""

_IN_CALL = frozenset({AgentState.RINGING, AgentState.TALKING})


class Presence:
    """Agents by id, with every change of state in one place.

    Attributes:
        now: the time of the event being handled.
        decisions: what the event has led to so far.
        stirred: queues in which an agent or a contact has become available.
    """

    def __init__(self, now: float) -> None:
        self.agents: dict[str, Agent] = {}
        self.now = now
        self.decisions: list[Decision] = []
        self.stirred: dict[str, Lane] = {}
        self._timers: Ordered[tuple[float, str]] = Ordered()

    # --- time ----------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When the first agent must be looked at again."""
        return self._timers.first()[0] if self._timers else None

    def take_due(self) -> Agent | None:
        """The next agent whose moment has come, with the timer cleared."""
        if not self._timers or self._timers.first()[0] > self.now:
            return None
        agent = self.agents[self._timers.first()[1]]
        self._set_due(agent, None)
        return agent

    def _set_due(self, agent: Agent, due: float | None) -> None:
        if agent.due == due:
            return
        if agent.due is not None:
            self._timers.remove((agent.due, agent.agent_id))
        if due is not None:
            self._timers.add((due, agent.agent_id))
        agent.due = due

    # --- into a call and out of it ---------------------------------------------------------

    def ring(self, agent: Agent, contact: Contact, until: float) -> None:
        """The agent's phone is about to ring; look again at `until`."""
        agent.contact = contact
        contact.offers[agent.agent_id] = agent
        self._change(agent, AgentState.RINGING, _purpose(contact), Availability.RINGING)
        self._set_due(agent, until)

    def talk(self, agent: Agent, contact: Contact | None, other_call: str | None = None) -> None:
        """The agent talks: with a contact, or in a call that the router did not place."""
        agent.contact = contact
        agent.other_call = other_call
        agent.owed_wrap_up_s = 0.0
        agent.faults = 0
        agent.silent = False
        reason = Reason.OTHER_CALL if contact is None else _purpose(contact)
        self._change(agent, AgentState.TALKING, reason, Availability.TALKING)
        self._set_due(agent, None)

    def release(self, agent: Agent, reason: Reason) -> None:
        """Whatever occupied the agent is over: on to wrap-up, or to the state asked for.

        Args:
            reason: why the agent is READY, if that is the outcome.
        """
        if agent.contact is not None:
            agent.contact.offers.pop(agent.agent_id, None)
        agent.contact = None
        agent.other_call = None
        if agent.leaving:
            self._forget(agent)
            return
        now = self.now
        if agent.wrap_until is not None and agent.wrap_until > now:
            self._change(agent, AgentState.WRAP_UP, Reason.QUEUE, Availability.WRAP_UP)
            self._set_due(agent, agent.wrap_until)
            return
        agent.wrap_until = None
        due = None
        if not agent.reachable:
            if agent.lost and agent.asked is AgentState.READY:
                agent.asked, agent.asked_reason = AgentState.BREAK, Reason.NOT_READY
            agent.lost = False
            self._change(agent, AgentState.OFFLINE, Reason.UNREACHABLE, Availability.OFFLINE)
        elif agent.asked is not AgentState.READY:
            which = Availability.BREAK if agent.asked is AgentState.BREAK else Availability.OFFLINE
            self._change(agent, agent.asked, agent.asked_reason, which)
        else:
            if agent.idle_since is None:
                agent.idle_since = now
            if agent.rest_until is not None and agent.rest_until > now:
                due = agent.rest_until
                self._change(agent, AgentState.READY, reason, Availability.RESTING)
            else:
                agent.rest_until = None
                self._change(agent, AgentState.READY, reason, Availability.FREE)
        self._set_due(agent, due)

    # --- what people and phones do ---------------------------------------------------------

    def ask(self, agent: Agent, state: AgentState, reason: str) -> None:
        """A person asks for a state: at once, or after the call."""
        if state not in ASKABLE or agent.leaving:
            return
        agent.asked, agent.asked_reason = state, reason or Reason.ASKED
        agent.lost = False
        agent.faults = 0
        if agent.state in _IN_CALL:
            return
        agent.wrap_until = None
        agent.rest_until = None
        agent.silent = agent.silent and state is AgentState.OFFLINE
        self.release(agent, Reason.ASKED)

    def reach(self, agent: Agent, *, registered: bool) -> None:
        """The phone registered, or its last registration is gone."""
        if registered:
            agent.registered, agent.silent, agent.lost = True, False, False
        else:
            agent.registered = False
            if agent.has_phone:
                return
            agent.lost = not agent.settings.auto_ready
        if agent.state not in _IN_CALL and agent.state is not AgentState.WRAP_UP:
            self.release(agent, Reason.REACHABLE)

    def lose_phone(self, agent: Agent) -> None:
        """The phone did not reply: nobody rings there until it registers, or a person asks. `release` follows."""
        agent.silent = True
        agent.lost = not agent.settings.auto_ready

    # --- the settings ----------------------------------------------------------------------

    def admit(self, settings: AgentSettings) -> Agent:
        """Add an agent, or give one new settings; the queues are set by `enlist`."""
        agent = self.agents.get(settings.agent_id)
        if agent is None:
            agent = self.agents[settings.agent_id] = Agent(settings, self.now)
            return agent
        agent.settings = settings
        agent.leaving = False
        if settings.auto_ready and agent.asked is AgentState.BREAK and agent.asked_reason == Reason.NOT_READY:
            agent.asked, agent.asked_reason = AgentState.READY, Reason.START
        return agent

    def dismiss(self, agent: Agent) -> None:
        """The settings no longer have the agent: gone at once, or after the call."""
        agent.leaving = True
        if agent.state not in _IN_CALL:
            self._forget(agent)

    def enlist(self, agent: Agent, lanes: Iterable[Lane]) -> None:
        """Put the agent into these queues, which have never seen it, and bring its state up to date."""
        agent.lanes = tuple(lanes)
        agent.keys = ()
        for lane in agent.lanes:
            lane.counts[agent.availability] += 1
        if agent.availability is Availability.FREE:
            self._enter(agent)
        if agent.state not in _IN_CALL and agent.state is not AgentState.WRAP_UP:
            self.release(agent, Reason.START if agent.reason == Reason.START else Reason.REACHABLE)

    def _forget(self, agent: Agent) -> None:
        self._set_due(agent, None)
        self._change(agent, AgentState.OFFLINE, Reason.REMOVED, Availability.OFFLINE)
        for lane in agent.lanes:
            lane.counts[Availability.OFFLINE] -= 1
        del self.agents[agent.agent_id]

    # --- the one place where states change ---------------------------------------------------

    def _change(self, agent: Agent, state: AgentState, reason: str, availability: Availability) -> None:
        old = agent.state
        # One who stays ready is ready for the same reason as before: nothing has happened to him.
        if state is not old or (reason != agent.reason and state is not AgentState.READY):
            agent.state, agent.reason, agent.since = state, reason, self.now
            self.decisions.append(AgentChanged(agent.agent_id, old, state, reason))
        if state is not AgentState.READY and state is not AgentState.RINGING:
            agent.idle_since = agent.rest_until = None
        before = agent.availability
        if availability is before:
            return
        agent.availability = availability
        for lane in agent.lanes:
            counts = lane.counts
            counts[before] -= 1
            counts[availability] += 1
        if before is Availability.FREE:
            for lane, key in zip(agent.lanes, agent.keys, strict=True):
                lane.free.remove(key)
            agent.keys = ()
        elif availability is Availability.FREE:
            self._enter(agent)

    def _enter(self, agent: Agent) -> None:
        agent.keys = tuple(lane.key(agent) for lane in agent.lanes)
        stirred = self.stirred
        for lane, key in zip(agent.lanes, agent.keys, strict=True):
            lane.free.add(key)
            stirred[lane.queue_id] = lane


def _purpose(contact: Contact) -> Reason:
    return Reason.DIRECT if contact.lane is None else Reason.QUEUE
