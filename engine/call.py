"""A call and its legs, as call control keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from config.schema import Action
from engine.events import NOTHING_FORWARDED, AgentId, CallId, EndCause, Forwarded, LegId, Party, QueueId, Source

if TYPE_CHECKING:
    from engine.transfers import Transfer

Side = Literal["caller", "agent", "callee", "leaving"]


class CallState(StrEnum):
    """What a call is doing, as operators see it."""

    ARRIVING = "arriving"  # not answered yet
    WAITING = "waiting"  # in a queue, nobody rings
    RINGING = "ringing"  # an agent's phone rings
    TALKING = "talking"
    HELD = "held"
    PLAYING = "playing"  # a prompt, an echo, or silence
    ENDING = "ending"  # hung up; legs are being released


IN_CONVERSATION = (CallState.TALKING, CallState.HELD)


@dataclass(slots=True)
class Leg:
    """One party's connection.

    Attributes:
        side: "callee": somebody outside whom we called; "leaving": its place was
            given to another leg, and its end changes nothing.
        agent_id: the agent whose phone we called, or who took over a leg.
        lost: the phone dropped off.
        trunk: of somebody outside whom we called, or who came to the place of one called.
    """

    leg_id: LegId
    side: Side
    agent_id: AgentId | None = None
    answered: bool = False
    held: bool = False
    lost: bool = False
    trunk: str | None = None


@dataclass(slots=True)
class Call:
    """One call, from the caller's INVITE until its last leg has ended."""

    call_id: CallId
    caller: Party
    dialled: str
    source: Source
    caller_leg: Leg
    started: float  # monotonic seconds
    started_at: datetime
    state: CallState = CallState.ARRIVING
    action: Action | None = None  # what the number asks for, and now the step being carried out
    answered_at: datetime | None = None
    queue_id: QueueId | None = None
    joined: float = 0.0  # monotonic, when it joined the queue
    joined_at: datetime | None = None
    music: str | None = None  # prompt for waiting and hold
    record: bool = False
    recording: bool = False
    offers: dict[AgentId, Leg] = field(default_factory=dict)  # agents whose phones ring
    agent: Leg | None = None  # the agent who accepted
    talk_started: float | None = None  # monotonic
    talk_started_at: datetime | None = None
    explanation: Mapping[str, object] | None = None
    legs: dict[LegId, Leg] = field(default_factory=dict)  # every leg that has not ended
    forwarded: Forwarded = NOTHING_FORWARDED
    held_by: str = ""  # on whose word it is on hold: agent or operator; phones hold by themselves, see `Leg.held`
    failure: EndCause = EndCause.FAILED  # of the agent's phone that failed last, where the router knows no more
    over: bool = False  # CallEnded was published
    transfer: Transfer | None = None  # the one in progress
    transfers: int = 0  # begun so far
    placed: bool = False  # by us: we called the caller's phone first

    @property
    def agent_id(self) -> AgentId | None:
        return self.agent.agent_id if self.agent is not None else None

    def agent_of(self, leg: Leg) -> AgentId | None:
        """The agent at a leg, whoever called whom."""
        return leg.agent_id or (self.source.agent_id if leg is self.caller_leg else None)

    def other(self, leg: Leg) -> Leg | None:
        """The leg at the other end of the conversation."""
        return self.agent if leg is self.caller_leg else self.caller_leg
