"""What the router remembers of each agent and each contact. Only `Router` changes these."""

from __future__ import annotations

from enum import Enum, auto

from routing.lane import Availability, FreeKey, Lane, WaitKey
from routing.model import AgentSettings, AgentState, Reason


class Agent:
    """One agent's present.

    Attributes:
        asked, asked_reason: the state to return to when calls and wrap-up are over.
        registered: the phone has a registration.
        silent: the phone did not reply, to an offer or in a conversation.
        lost: the phone vanished from an agent who must ask for calls anew.
        idle_since: when the agent became free for the strategies; kept while
            ringing, so that an offer withdrawn costs no place.
        wrap_until, rest_until: when wrap-up, or the pause after a failed offer, ends.
        due: the one moment at which the router must look at this agent again.
        contact: rings or talks; `other_call`: talks, not placed by the router.
        owed_wrap_up_s: what `other_call` will cost the agent.
        faults: offers in a row that failed for a technical reason.
        leaving: no longer in the settings, but still talking.
        lanes, keys: the queues the agent may serve, and the place held in each while free.
    """

    __slots__ = (
        "agent_id",
        "asked",
        "asked_reason",
        "availability",
        "contact",
        "due",
        "faults",
        "idle_since",
        "keys",
        "lanes",
        "leaving",
        "lost",
        "other_call",
        "owed_wrap_up_s",
        "reason",
        "registered",
        "rest_until",
        "settings",
        "silent",
        "since",
        "state",
        "wrap_until",
    )

    def __init__(self, settings: AgentSettings, now: float) -> None:
        self.settings = settings
        self.agent_id = settings.agent_id
        self.state = AgentState.OFFLINE
        self.reason: str = Reason.START
        self.since = now
        self.asked = AgentState.READY if settings.auto_ready else AgentState.BREAK
        self.asked_reason: str = Reason.START if settings.auto_ready else Reason.NOT_READY
        self.registered = False
        self.silent = False
        self.lost = False
        self.idle_since: float | None = None
        self.wrap_until: float | None = None
        self.rest_until: float | None = None
        self.due: float | None = None
        self.contact: Contact | None = None
        self.other_call: str | None = None
        self.owed_wrap_up_s = 0.0
        self.faults = 0
        self.leaving = False
        self.lanes: tuple[Lane, ...] = ()
        self.keys: tuple[FreeKey, ...] = ()
        self.availability = Availability.OFFLINE

    @property
    def has_phone(self) -> bool:
        """There is an address to call."""
        return self.registered or self.settings.fixed_contact

    @property
    def reachable(self) -> bool:
        """There is an address, and it has not just failed to reply."""
        return self.has_phone and not self.silent


class Phase(Enum):
    """Where a contact stands."""

    WAITING = auto()
    RINGING = auto()
    TALKING = auto()


class Contact:
    """One contact's present.

    Attributes:
        lane: the queue; None for a call straight to an agent, and for a
            conversation whose queue was removed.
        offers: the agents whose phones ring.
        tried: agents who failed it since everybody free was last tried.
        wrap_up_s: what the conversation will cost the agent.
    """

    __slots__ = ("contact_id", "joined_at", "key", "lane", "offers", "phase", "priority", "tried", "wrap_up_s")

    def __init__(self, contact_id: str, lane: Lane | None, joined_at: float, priority: int, order: int) -> None:
        self.contact_id = contact_id
        self.lane = lane
        self.joined_at = joined_at
        self.priority = priority
        self.key: WaitKey = (-priority, joined_at, order, contact_id)
        self.phase = Phase.WAITING
        self.offers: dict[str, Agent] = {}
        self.tried: set[str] = set()
        self.wrap_up_s = 0.0
