"""One queue at work: who waits, who is free to serve it, and whom its strategy takes next."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING

from routing.explanation import Candidate, Explanation
from routing.model import AgentSettings, QueueSettings, Strategy
from routing.ordered import Ordered

if TYPE_CHECKING:
    from routing.records import Agent, Contact

FreeKey = tuple[float, float, str]
"""Sorts free agents: the strategy's two measures, then the agent id."""

WaitKey = tuple[int, float, int, str]
"""Sorts contacts: minus priority, joined_at, order of arrival, contact id."""

_RUNNERS_UP = 3


class Availability(IntEnum):
    """What an agent is to the queues: the index of the counters a lane keeps."""

    FREE = 0
    RESTING = 1  # ready, but an offer failed a moment ago
    RINGING = 2
    TALKING = 3
    WRAP_UP = 4
    BREAK = 5
    OFFLINE = 6


class Lane:
    """The live side of a queue. Agents enter `free` when they may be offered a contact."""

    __slots__ = (
        "_lacking",
        "_place",
        "_skill",
        "counts",
        "free",
        "in_turn",
        "last_turn",
        "members",
        "queue_id",
        "ring_all",
        "ringing",
        "settings",
        "talking",
        "waiting",
    )

    def __init__(self, settings: QueueSettings, agents: Mapping[str, AgentSettings]) -> None:
        self.settings = settings
        self.queue_id = settings.queue_id
        self.ring_all = settings.strategy is Strategy.RING_ALL
        self.in_turn = settings.strategy is Strategy.ROUND_ROBIN
        asked = settings.members if settings.members is not None else tuple(sorted(agents))
        self.members = tuple(a for a in asked if _qualifies(agents[a], settings.requires))
        self.waiting: Ordered[WaitKey] = Ordered()
        self.ringing: Ordered[WaitKey] = Ordered()
        self.talking = 0
        self.free: Ordered[FreeKey] = Ordered()
        self.counts = [0] * len(Availability)
        self.last_turn: FreeKey | None = None  # round robin: who was offered a contact last
        self._lacking = len(asked) - len(self.members)
        self._place = {agent_id: float(place) for place, agent_id in enumerate(self.members)}
        self._skill = {a: sum(agents[a].skills[skill] for skill in settings.requires) for a in self.members}

    def take_turns_from(self, former: Lane) -> None:
        """Go on with the round robin of the queue's former settings."""
        if self.in_turn and former.last_turn is not None and former.last_turn[2] in self._place:
            agent_id = former.last_turn[2]
            self.last_turn = (self._place[agent_id], 0.0, agent_id)

    def key(self, agent: Agent) -> FreeKey:
        """Where an agent who is free since `agent.idle_since` stands in this queue's order."""
        idle_since = agent.idle_since
        assert idle_since is not None
        match self.settings.strategy:
            case Strategy.ROUND_ROBIN:
                return (self._place[agent.agent_id], 0.0, agent.agent_id)
            case Strategy.TOP_SKILL:
                return (-self._skill[agent.agent_id], idle_since, agent.agent_id)
            case Strategy.LONGEST_IDLE | Strategy.RING_ALL:
                return (idle_since, 0.0, agent.agent_id)

    def busy(self) -> int:
        """Agents of this queue in a call or in wrap-up."""
        return sum(self.counts[which] for which in (Availability.RINGING, Availability.TALKING, Availability.WRAP_UP))

    def candidates(self) -> Iterator[FreeKey]:
        """The free agents, best first."""
        last = self.last_turn
        if last is None:
            yield from self.free
            return
        yield from self.free.after(last)
        for key in self.free:
            if key > last:
                break
            yield key

    def next_up(self, contacts: Mapping[str, Contact]) -> WaitKey | None:
        """The contact that a free agent of this queue should serve now, if there is one.

        In ring-all a contact that rings already is joined by agents who become
        free, unless they have failed it.
        """
        if not self.free:
            return None
        first = self.waiting.first() if self.waiting else None
        if self.ring_all:
            for key in self.ringing:
                if first is not None and first < key:
                    break
                tried = contacts[key[3]].tried
                if any(free[2] not in tried for free in self.free):
                    return key
        return first

    def choose(self, tried: Collection[str]) -> tuple[list[FreeKey], list[str]]:
        """Whom to offer a contact that the agents in `tried` have failed.

        Returns:
            The winner (in ring-all: everyone), or nobody when only agents in
            `tried` are free; and who was passed over.
        """
        if self.ring_all:
            chosen = [key for key in self.free if key[2] not in tried]
            return chosen, [key[2] for key in self.free if key[2] in tried] if tried else []
        passed_over: list[str] = []
        for key in self.candidates():
            if key[2] not in tried:
                return [key], passed_over
            passed_over.append(key[2])
        return [], passed_over

    def explain(
        self, winner: FreeKey, passed_over: list[str], contact: Contact, agents: Mapping[str, Agent], now: float
    ) -> Explanation:
        """Say why `winner` is offered `contact`, before either has moved."""
        others = (key for key in self.candidates() if key[2] != winner[2] and key[2] not in passed_over)
        refused = {which.name.lower(): n for which in _NOT_FREE if (n := self.counts[which])}
        if self._lacking:
            refused["lacks_skill"] = self._lacking
        return Explanation(
            winner=self._candidate(winner[2], agents, now),
            strategy=self.settings.strategy,
            runners_up=tuple(self._candidate(key[2], agents, now) for key in islice(others, _RUNNERS_UP)),
            free=len(self.free),
            refused=refused,
            already_tried=tuple(passed_over),
            waiting=len(self.waiting) - (contact.key in self.waiting),
            waited_s=max(0.0, now - contact.joined_at),
            priority=contact.priority,
        )

    def _candidate(self, agent_id: str, agents: Mapping[str, Agent], now: float) -> Candidate:
        idle_since = agents[agent_id].idle_since
        return Candidate(agent_id, now - (idle_since if idle_since is not None else now), self._skill[agent_id])


_NOT_FREE = tuple(a for a in Availability if a is not Availability.FREE)


def _qualifies(agent: AgentSettings, requires: Mapping[str, int]) -> bool:
    return all(agent.skills.get(skill, 0) >= level for skill, level in requires.items())
