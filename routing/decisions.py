"""What the router decides. Carry decisions out in the order given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from routing.explanation import Explanation
from routing.model import AgentState


@dataclass(frozen=True, slots=True)
class Offer:
    """Ring this agent's phone for this contact.

    Attributes:
        queue_id: the queue served; None for a call straight to the agent.
        ring_timeout_s: report OfferFailed(NO_ANSWER) after this long. The router
            itself withdraws the offer only `router.RING_GRACE_S` later.
    """

    contact_id: str
    agent_id: str
    queue_id: str | None
    ring_timeout_s: float
    explanation: Explanation


class Withdrawal(StrEnum):
    """Why an offer is taken back."""

    TAKEN = "taken"  # another agent accepted first
    CONTACT_LEFT = "contact_left"
    RING_TIMEOUT = "ring_timeout"  # nobody reported the end of the ringing
    AGENT_OCCUPIED = "agent_occupied"  # the agent is in another call
    AGENT_REMOVED = "agent_removed"
    QUEUE_REMOVED = "queue_removed"
    LATE = "late"  # accepted after the offer had ended


@dataclass(frozen=True, slots=True)
class OfferWithdrawn:
    """Stop ringing (or hang up) this agent's phone for this contact."""

    contact_id: str
    agent_id: str
    reason: Withdrawal


@dataclass(frozen=True, slots=True)
class Connected:
    """The acceptance counts: let the two talk."""

    contact_id: str
    agent_id: str
    queue_id: str | None


@dataclass(frozen=True, slots=True)
class AgentChanged:
    """The agent's state changed. `reason` is a `model.Reason`, or the text a person gave."""

    agent_id: str
    old: AgentState
    new: AgentState
    reason: str


class Refusal(StrEnum):
    """Why a contact cannot be served. The router has forgotten the contact."""

    UNKNOWN_QUEUE = "unknown_queue"
    NOBODY_QUALIFIES = "nobody_qualifies"  # no agent in the settings may ever serve the queue
    QUEUE_REMOVED = "queue_removed"
    UNKNOWN_AGENT = "unknown_agent"  # the rest only for calls straight to an agent
    AGENT_REMOVED = "agent_removed"
    AGENT_BUSY = "agent_busy"  # in a call or ringing, or the phone says busy
    AGENT_OFFLINE = "agent_offline"
    AGENT_UNREACHABLE = "agent_unreachable"
    NO_ANSWER = "no_answer"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ContactRefused:
    """The contact cannot be served: end it, or send it elsewhere."""

    contact_id: str
    reason: Refusal


Decision = Offer | OfferWithdrawn | Connected | AgentChanged | ContactRefused
