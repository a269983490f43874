"""What the router is told: agents, queues and their rules, as frozen values.

Times are seconds on the caller's monotonic clock. Identities are plain strings:
routing imports nothing of ours, and the engine's `NewType`s over `str` fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

LOWEST_LEVEL = 1
HIGHEST_LEVEL = 100


class RoutingError(Exception):
    """Settings that contradict themselves; `str()` names the fault and where it lies."""


class AgentState(StrEnum):
    """What an agent is doing now. docs/agent-states.md has the whole table."""

    OFFLINE = "offline"  # asked for, or the phone cannot be reached
    READY = "ready"
    RINGING = "ringing"
    TALKING = "talking"
    WRAP_UP = "wrap_up"
    BREAK = "break"  # no calls from queues; direct calls still ring


ASKABLE = frozenset({AgentState.READY, AgentState.BREAK, AgentState.OFFLINE})
"""The states a person can ask for; the others follow from calls."""


class Reason(StrEnum):
    """Why an agent is in a state, where the router decided it. People's own reasons are free text."""

    START = "start"
    NOT_READY = "not-ready"  # phone reachable, but the agent has not asked for calls yet
    ASKED = "asked"  # a person asked and gave no reason
    UNREACHABLE = "unreachable"
    NO_ANSWER = "no-answer"
    REJECTED = "rejected"
    PHONE_BUSY = "phone-busy"
    PHONE_FAILED = "phone-failed"
    QUEUE = "queue"  # ringing, talking or wrapping up for a queue
    DIRECT = "direct"  # the same for a call straight to the agent
    OTHER_CALL = "other-call"  # a call that the router did not place
    OFFER_WITHDRAWN = "offer-withdrawn"  # rang, and got the call for no fault of the agent
    CALL_ENDED = "call-ended"
    WRAP_UP_ENDED = "wrap-up-ended"
    REACHABLE = "reachable"
    REMOVED = "removed"  # no longer in the settings


class Strategy(StrEnum):
    """Which of the free agents gets the call. Ties go to the longest idle, then the lower id."""

    LONGEST_IDLE = "longest_idle"  # ready for the longest time
    ROUND_ROBIN = "round_robin"  # in order of `members` (else of id), after the one offered last
    RING_ALL = "ring_all"  # every free agent rings; the first to accept wins
    TOP_SKILL = "top_skill"  # highest sum of levels in the required skills


class NoAnswer(StrEnum):
    """What becomes of an agent who does not answer, rejects, or whose phone is busy."""

    BREAK = "break"
    READY = "ready"  # stays ready, and gets no offer for `retry_s`


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """One agent.

    Attributes:
        skills: level by skill, 1 to 100.
        auto_ready: ready at start and whenever the phone becomes reachable.
        fixed_contact: the phone has a configured address, so it counts as
            reachable without registering (AgentReachable is ignored).
    """

    agent_id: str
    skills: Mapping[str, int] = field(default_factory=dict)
    auto_ready: bool = False
    fixed_contact: bool = False

    def __post_init__(self) -> None:
        for skill, level in self.skills.items():
            _check_level(f"agent {self.agent_id!r}: skill {skill!r}", level)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One queue.

    Attributes:
        members: who may serve it, in round-robin order; None: every agent
            who has the skills.
        requires: lowest level by skill, 1 to 100; members must have them too.
        ring_timeout_s: how long an agent's phone rings.
        wrap_up_s: time after a call before the agent is ready again.
    """

    queue_id: str
    strategy: Strategy = Strategy.LONGEST_IDLE
    members: tuple[str, ...] | None = None
    requires: Mapping[str, int] = field(default_factory=dict)
    ring_timeout_s: float = 15.0
    wrap_up_s: float = 0.0
    no_answer: NoAnswer = NoAnswer.BREAK

    def __post_init__(self) -> None:
        where = f"queue {self.queue_id!r}"
        for skill, level in self.requires.items():
            _check_level(f"{where}: requires {skill!r}", level)
        if not 0 < self.ring_timeout_s < float("inf"):
            raise RoutingError(f"{where}: ring_timeout_s is {self.ring_timeout_s}; it must be above 0")
        if not 0 <= self.wrap_up_s < float("inf"):
            raise RoutingError(f"{where}: wrap_up_s is {self.wrap_up_s}; it must be 0 or more")
        if self.members is not None and len(set(self.members)) != len(self.members):
            twice = sorted({m for m in self.members if self.members.count(m) > 1})
            raise RoutingError(f"{where}: members named twice: {', '.join(twice)}")


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """All the router's rules; checked as a whole.

    Attributes:
        direct_ring_timeout_s: how long a phone rings for a call straight to it.
        retry_s: how long an agent whose offer failed, and who stays ready,
            gets no offers.

    Raises:
        RoutingError: an id appears twice, or a queue names an unknown agent.
    """

    agents: tuple[AgentSettings, ...] = ()
    queues: tuple[QueueSettings, ...] = ()
    direct_ring_timeout_s: float = 60.0
    retry_s: float = 5.0

    def __post_init__(self) -> None:
        agent_ids: set[str] = set()
        for agent in self.agents:
            if agent.agent_id in agent_ids:
                raise RoutingError(f"agent {agent.agent_id!r} appears twice")
            agent_ids.add(agent.agent_id)
        queue_ids: set[str] = set()
        for queue in self.queues:
            if queue.queue_id in queue_ids:
                raise RoutingError(f"queue {queue.queue_id!r} appears twice")
            queue_ids.add(queue.queue_id)
            unknown = [m for m in queue.members or () if m not in agent_ids]
            if unknown:
                raise RoutingError(f"queue {queue.queue_id!r}: unknown members: {', '.join(unknown)}")
        if not 0 < self.direct_ring_timeout_s < float("inf"):
            raise RoutingError(f"direct_ring_timeout_s is {self.direct_ring_timeout_s}; it must be above 0")
        if not 0 < self.retry_s < float("inf"):
            raise RoutingError(f"retry_s is {self.retry_s}; it must be above 0")


def _check_level(where: str, level: int) -> None:
    if not LOWEST_LEVEL <= level <= HIGHEST_LEVEL:
        raise RoutingError(f"{where}: level {level}; levels go from {LOWEST_LEVEL} to {HIGHEST_LEVEL}")
