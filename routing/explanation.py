"""Why an agent was chosen: as data for the record, as a sentence for people.

An explanation must not cost a walk over all agents. It lists the winner and the
next few in the order of the strategy, and counts the others by what kept them
out; the counts are kept up as agents change state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from routing.model import Strategy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A free agent who was considered.

    Attributes:
        idle_s: time since the agent became ready.
        skill: sum of the agent's levels in the required skills.
    """

    agent_id: str
    idle_s: float
    skill: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """One offer explained.

    Attributes:
        strategy: the rule in force; None for a call straight to the agent.
        winner: who is offered the contact.
        runners_up: the next in the strategy's order, at most three; in ring-all
            they ring too.
        free: agents free for this queue, the winner included.
        refused: number of other agents by what keeps them out: ringing,
            talking, wrap_up, break, offline, resting (an offer failed a moment
            ago), lacks_skill.
        already_tried: free agents passed over because they had failed this contact.
        waiting: contacts that still wait in the queue behind this one's offer.
        waited_s, priority: of the contact.
    """

    winner: Candidate
    strategy: Strategy | None
    runners_up: tuple[Candidate, ...] = ()
    free: int = 1
    refused: Mapping[str, int] | None = None
    already_tried: tuple[str, ...] = ()
    waiting: int = 0
    waited_s: float = 0.0
    priority: int = 0

    def as_data(self) -> dict[str, object]:
        """JSON-ready, for the event log."""
        return {
            "strategy": self.strategy.value if self.strategy else "direct",
            "winner": _data(self.winner),
            "runners_up": [_data(c) for c in self.runners_up],
            "free": self.free,
            "refused": dict(self.refused or {}),
            "already_tried": list(self.already_tried),
            "waiting": self.waiting,
            "waited_s": round(self.waited_s, 3),
            "priority": self.priority,
        }

    def __str__(self) -> str:
        winner = self.winner
        if self.strategy is None:
            return f"{winner.agent_id}: called directly."
        text = f"{winner.agent_id}: {_WHY[self.strategy]}, idle {winner.idle_s:.0f} s"
        if winner.skill:
            text += f", skill {winner.skill}"
        text += f"; {self.free} free"
        if self.runners_up:
            text += ", next " + ", ".join(c.agent_id for c in self.runners_up)
        if self.already_tried:
            text += "; already tried: " + ", ".join(self.already_tried)
        if self.refused:
            text += "; not free: " + ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in self.refused.items())
        text += f". The caller waited {self.waited_s:.0f} s at priority {self.priority}"
        return f"{text}; {self.waiting} more wait."


_WHY = {
    Strategy.LONGEST_IDLE: "longest idle",
    Strategy.ROUND_ROBIN: "next in turn",
    Strategy.RING_ALL: "all free agents ring",
    Strategy.TOP_SKILL: "highest skill",
}


def _data(candidate: Candidate) -> dict[str, object]:
    return {"agent_id": candidate.agent_id, "idle_s": round(candidate.idle_s, 3), "skill": candidate.skill}
