"""What happens to the router. Each event says what becomes of an impossible or late one.

Nothing here ever raises or corrupts the router: an event that does not fit the
present state is ignored, unless its docstring promises an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from routing.model import AgentState, RoutingSettings


class Failure(StrEnum):
    """Why an offered agent did not take the call."""

    NO_ANSWER = "no_answer"
    REJECTED = "rejected"  # declined by the person or the phone
    BUSY = "busy"  # the phone is in a call we do not know of
    UNREACHABLE = "unreachable"  # no registration, no reply
    FAILED = "failed"  # a fault, ours or the phone's


@dataclass(frozen=True, slots=True)
class ContactArrived:
    """A caller joins a queue; answered by an Offer, a ContactRefused, or nothing (the caller waits).

    A contact that the router already knows is ignored: to move it, send
    ContactLeft first, then arrive again with the old `joined_at`.

    Attributes:
        joined_at: when the wait began, on the router's clock; it may lie in the past.
        priority: higher goes first; within one priority, the older `joined_at`.
    """

    contact_id: str
    queue_id: str
    joined_at: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ContactLeft:
    """The caller hung up or was moved, in whatever state. Unknown contact: ignored.

    Ringing phones are withdrawn; a conversation counts as ended.
    """

    contact_id: str


@dataclass(frozen=True, slots=True)
class DirectRequested:
    """A call straight to one agent; answered by an Offer or a ContactRefused.

    A contact that the router already knows is ignored.
    """

    contact_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class OfferAccepted:
    """The agent's phone was answered; answered by Connected.

    When the offer no longer stands (withdrawn, lost to another agent, unknown),
    the answer is OfferWithdrawn with reason LATE: hang that phone up. A second
    acceptance of the conversation the agent is in is ignored.
    """

    contact_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class OfferFailed:
    """The agent's phone did not take the call. No such offer (any more): ignored."""

    contact_id: str
    agent_id: str
    reason: Failure


@dataclass(frozen=True, slots=True)
class ConversationEnded:
    """Agent and contact parted; also ends what AgentOccupied began. Not in that conversation: ignored.

    Attributes:
        phone_lost: the agent's phone no longer replies: the agent is unreachable afterwards,
            as after an offer that failed for that reason.
    """

    contact_id: str
    agent_id: str
    phone_lost: bool = False


@dataclass(frozen=True, slots=True)
class ConversationMoved:
    """The agent's conversation goes on under another contact's name. Not in that conversation: ignored.

    A transfer gave the agent another partner, or the first of two calls of the
    agent ended. The former contact is over for its queue; the wrap-up that it
    costs comes when the agent's conversation ends.
    """

    contact_id: str
    agent_id: str
    to_contact_id: str


@dataclass(frozen=True, slots=True)
class AgentStateAsked:
    """A person asks for READY, BREAK or OFFLINE; others are ignored, as is an unknown agent.

    While ringing or talking, and for READY while unreachable, it is noted and
    applied afterwards. During wrap-up it ends the wrap-up.
    """

    agent_id: str
    state: AgentState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AgentReachable:
    """The agent's phone registered (True; repeat it freely) or no longer is (False).

    Unknown agents, and False for those with a fixed contact, are ignored.
    """

    agent_id: str
    reachable: bool


@dataclass(frozen=True, slots=True)
class AgentOccupied:
    """The agent is in a call that the router did not place: an outgoing one, or one found after a restart.

    A ringing offer is withdrawn. Ignored for an unknown agent and for one who is
    already talking. `contact_id` may be that of a waiting contact: an agent can
    call a queue.

    Attributes:
        wrap_up_s: what the conversation will cost the agent: it was taken from a queue by other means.
    """

    agent_id: str
    contact_id: str
    wrap_up_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TimeAdvanced:
    """Nothing happened but time: send it at `Router.deadline()`. Early or repeated: harmless."""


@dataclass(frozen=True, slots=True)
class SettingsReplaced:
    """New rules, which waiting contacts and present agents get at once."""

    settings: RoutingSettings


Event = (
    ContactArrived
    | ContactLeft
    | DirectRequested
    | OfferAccepted
    | OfferFailed
    | ConversationEnded
    | ConversationMoved
    | AgentStateAsked
    | AgentReachable
    | AgentOccupied
    | TimeAdvanced
    | SettingsReplaced
)
