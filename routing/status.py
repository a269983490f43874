"""Read-only views of the router, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from routing.model import AgentState, Strategy


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One agent now.

    Attributes:
        since: when the state began, on the router's clock.
        reachable: there is an address to call, and it has not just failed to reply.
        has_phone: there is an address to call.
        contact_id: the contact that rings or talks.
        queues: the queues the agent may serve.
        asked: the state the agent returns to when calls and wrap-up are over.
    """

    agent_id: str
    state: AgentState
    reason: str
    since: float
    reachable: bool
    has_phone: bool
    contact_id: str | None
    queues: tuple[str, ...]
    asked: AgentState


@dataclass(frozen=True, slots=True)
class Waiting:
    """A contact that waits and is not being offered now."""

    contact_id: str
    joined_at: float
    priority: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue now.

    Attributes:
        waiting: contacts in the order in which they will be offered.
        ringing: contacts being offered, in that order.
        talking: number of contacts in conversation.
        longest_wait_since: earliest `joined_at` of those waiting or ringing.
        ready: agents free to be offered a contact.
        busy: agents ringing, talking or in wrap-up, for this queue or another.
        members: every agent who may serve the queue, in its order.
    """

    queue_id: str
    strategy: Strategy
    waiting: tuple[Waiting, ...]
    ringing: tuple[Waiting, ...]
    talking: int
    longest_wait_since: float | None
    ready: int
    busy: int
    members: tuple[str, ...]
