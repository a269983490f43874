"""What operators may see and do: the face that call control shows the HTTP API and the CLI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from engine.events import AgentId, CallId, QueueId, TransferId


class OperationError(Exception):
    """An operator asked for what cannot be done; `str()` is a sentence for people."""


class NotFoundError(OperationError):
    """No such call, agent or queue."""


class ConflictError(OperationError):
    """It exists, but its present state forbids this."""


@dataclass(frozen=True, slots=True)
class CallView:
    """One live call."""

    call_id: CallId
    state: str  # arriving, waiting, ringing, talking, held, playing, ending
    caller: str
    caller_name: str
    dialled: str
    trunk: str | None
    started_at: datetime
    answered_at: datetime | None
    queue_id: QueueId | None
    agent_id: AgentId | None
    recording: bool
    explanation: Mapping[str, object] | None  # of the last routing decision
    from_agent: AgentId | None = None  # who calls, if it is an agent
    trunk_out: str | None = None  # through which somebody outside is called

    def is_of(self, agent_id: AgentId | None) -> bool:
        """Whether an agent is in this call, as the one called or as the one who calls."""
        return agent_id is not None and agent_id in (self.agent_id, self.from_agent)


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue now. Waits in seconds."""

    queue_id: QueueId
    strategy: str
    waiting: int
    ringing: int
    talking: int
    longest_wait_s: float
    agents_ready: int
    agents_busy: int
    members: Sequence[AgentId]


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent now."""

    agent_id: AgentId
    name: str
    state: str  # offline, ready, ringing, talking, wrap_up, break
    reason: str
    since: datetime
    reachable: bool
    call_id: CallId | None
    skills: Mapping[str, int]
    queues: Sequence[QueueId]


@dataclass(frozen=True, slots=True)
class GatewayLine:
    """One address of a trunk. `error`: why it is out of service, or may soon be."""

    address: str
    reachable: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class TrunkLine:
    """The technical side of a trunk that calls go to.

    Attributes:
        registers: it is one that we register with.
        registered_until: None: not registered.
        error: why not.
    """

    name: str
    registers: bool
    registered_until: datetime | None
    gateways: Sequence[GatewayLine]
    error: str = ""


@dataclass(frozen=True, slots=True)
class TrunkView:
    """One trunk now.

    Attributes:
        state: up, partly (some gateways are out of service) or down.
        calls: on it, both ways.
        registered_until: None: not registered, or it is none that we register with.
        error: why it is not up.
    """

    name: str
    state: str
    calls: int
    max_calls: int | None
    max_calls_per_s: float | None
    registers: bool
    registered_until: datetime | None
    gateways: Sequence[GatewayLine]
    error: str


class AgentStateRequest(StrEnum):
    """States that a person can ask for; the others follow from calls."""

    READY = "ready"
    BREAK = "break"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """Who a call is to go on with.

    Attributes:
        target: as the one who leaves would dial it; with `attended` the agent or number
            in the agent's other call, or empty.
        agent_id: who asks and leaves; None: an operator asks, and the agent in the call leaves.
        attended: join the call with the agent's other call.
        release: let the caller's side place the new call itself.
    """

    target: str
    agent_id: AgentId | None = None
    attended: bool = False
    release: bool = False


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """One part of the running system. `critical` parts decide readiness."""

    name: str  # sip, worker-0, database, …
    ok: bool
    critical: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BanView:
    """An address that SIP does not listen to: an IPv4 address, or an IPv6 network."""

    address: str
    reason: str
    since: datetime
    until: datetime
    dropped: int


class Bans(Protocol):
    """Who is kept off."""

    def bans(self) -> Sequence[BanView]: ...

    def lift_ban(self, address: str) -> None:
        """Let an address in again; raises NotFoundError if it is not banned."""


class Operations(Protocol):
    """Views are snapshots; commands act at once and raise `OperationError` where they cannot."""

    def calls(self) -> Sequence[CallView]: ...
    def queues(self) -> Sequence[QueueView]: ...
    def agents(self) -> Sequence[AgentView]: ...
    def trunks(self) -> Sequence[TrunkView]: ...

    def place_call(self, agent_id: AgentId, number: str) -> CallId:
        """Ring an agent, then call a number for them."""

    def hang_up(self, call_id: CallId) -> None: ...

    def hold(self, call_id: CallId, *, by: str) -> None:
        """Put the caller on hold, on the word of an agent or operator (`by`)."""

    def resume(self, call_id: CallId) -> None:
        """End a hold of `hold`."""

    def transfer(self, call_id: CallId, request: TransferRequest) -> TransferId:
        """Begin a transfer; its events (transfer.completed, transfer.failed) tell the outcome."""

    def set_agent_state(self, agent_id: AgentId, state: AgentStateRequest, reason: str) -> AgentView: ...
    def health(self) -> Sequence[ComponentHealth]: ...

    def counters(self) -> Mapping[str, float]:
        """Monotonic counters and gauges by metric name (without the `murima_` prefix), for /metrics.

        A name may carry labels in braces: `sip_rejected_total{status="403"}`.
        """


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a collection that lives in the database; rows are JSON-ready."""

    rows: Sequence[Mapping[str, object]]
    total: int


class RecordsUnavailableError(Exception):
    """The database cannot be asked now; calls go on regardless."""


class Records(Protocol):
    """Finished interactions, as the store keeps them."""

    async def interactions(
        self, *, filters: Mapping[str, str], sort: str, descending: bool, page: int, limit: int
    ) -> Page:
        """Raises RecordsUnavailableError, and ValueError for an unknown filter or sort field."""
