"""What travels in request and answer bodies: validated by these, and described by these in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from config.schema import Role
from engine.api.accounts import Identity
from engine.operations import AgentStateRequest, AgentView, CallView, ComponentHealth, QueueView

T = TypeVar("T")


class _Body(BaseModel):
    """A request body: unknown members are refused, types are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Login(_Body):
    """User name (agents: their id) and password."""

    username: str = Field(min_length=1, max_length=128, strict=True)
    password: str = Field(min_length=1, max_length=1024, strict=True, json_schema_extra={"format": "password"})


class AgentState(_Body):
    """The state asked for, and why (shown on the wallboard and in reports)."""

    state: AgentStateRequest
    reason: str = Field(default="", max_length=100, strict=True)


class Transfer(_Body):
    """Who the call is to go on with."""

    target: str = Field(
        default="",
        max_length=128,
        strict=True,
        description="What is dialled: an agent, a number, a queue's number. "
        "With `attended`: the agent or number in the agent's other call; empty: whichever it is.",
    )
    attended: bool = Field(default=False, strict=True, description="Join the call with the other call of its agent.")
    mode: Literal["bridge", "refer"] = Field(
        default="bridge",
        description="bridge: we place the new call and stay between both. "
        "refer: the caller's side is asked to place it (SIP REFER), and both leave us.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.target and not self.attended:
            raise ValueError("target is needed: who the call is to go on with")
        if self.attended and self.mode == "refer":
            raise ValueError("an attended transfer joins two calls here; leave out mode")
        return self


class TransferBegun(_Answer):
    """The events transfer.completed and transfer.failed with this id tell the outcome."""

    transfer_id: str


class Empty(_Body):
    """No members; the body itself may be left out."""


class User(_Answer):
    username: str
    role: Role
    agent_id: str | None = Field(description="Set for people who take calls.")

    @classmethod
    def of(cls, identity: Identity) -> Self:
        return cls(username=identity.username, role=identity.role, agent_id=identity.agent_id)


class Session(_Answer):
    """Keep the access token in memory; the refresh token travels in an HttpOnly cookie."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a scheme name, no secret
    expires_in: int = Field(description="Seconds until the access token expires.")
    user: User


class Ticket(_Answer):
    ticket: str = Field(description="Opens one event stream, once: /api/v1/events?ticket=…")
    expires_in: int = Field(description="Seconds until the ticket expires.")


class Call(_Answer):
    """One live call."""

    id: str
    call_id: str = Field(description="The same as `id`, under the name that events and interactions use.")
    state: str = Field(description="arriving, waiting, ringing, talking, held, playing or ending")
    caller: str
    caller_name: str
    dialled: str
    trunk: str | None
    started_at: datetime
    answered_at: datetime | None
    queue_id: str | None
    agent_id: str | None
    from_agent: str | None = Field(description="The agent who calls, if it is one.")
    trunk_out: str | None = Field(description="The trunk through which somebody outside is called.")
    recording: bool
    explanation: Mapping[str, Any] | None = Field(
        description="Why the last agent offered, or the trunk of a call to the outside, was chosen."
    )

    @classmethod
    def of(cls, view: CallView) -> Self:
        return cls(
            id=view.call_id,
            call_id=view.call_id,
            state=view.state,
            caller=view.caller,
            caller_name=view.caller_name,
            dialled=view.dialled,
            trunk=view.trunk,
            started_at=view.started_at,
            answered_at=view.answered_at,
            queue_id=view.queue_id,
            agent_id=view.agent_id,
            from_agent=view.from_agent,
            trunk_out=view.trunk_out,
            recording=view.recording,
            explanation=view.explanation,
        )


class Queue(_Answer):
    """One queue now."""

    id: str
    queue_id: str = Field(description="The same as `id`, under the name that events and interactions use.")
    strategy: str
    waiting: int
    ringing: int
    talking: int
    longest_wait_s: float
    agents_ready: int
    agents_busy: int
    members: Sequence[str]

    @classmethod
    def of(cls, view: QueueView) -> Self:
        return cls(
            id=view.queue_id,
            queue_id=view.queue_id,
            strategy=view.strategy,
            waiting=view.waiting,
            ringing=view.ringing,
            talking=view.talking,
            longest_wait_s=view.longest_wait_s,
            agents_ready=view.agents_ready,
            agents_busy=view.agents_busy,
            members=view.members,
        )


class Agent(_Answer):
    """One agent now."""

    id: str
    agent_id: str = Field(description="The same as `id`, under the name that events and interactions use.")
    name: str
    state: str = Field(description="offline, ready, ringing, talking, wrap_up or break")
    reason: str
    since: datetime
    reachable: bool = Field(description="The agent's phone is registered or has a fixed contact.")
    call_id: str | None
    skills: Mapping[str, int]
    queues: Sequence[str]

    @classmethod
    def of(cls, view: AgentView) -> Self:
        return cls(
            id=view.agent_id,
            agent_id=view.agent_id,
            name=view.name,
            state=view.state,
            reason=view.reason,
            since=view.since,
            reachable=view.reachable,
            call_id=view.call_id,
            skills=view.skills,
            queues=view.queues,
        )


class Interaction(_Answer):
    """One finished interaction, as the store keeps it."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Component(_Answer):
    name: str
    ok: bool
    critical: bool
    detail: str = Field(description="Empty unless the request may also read /metrics.")

    @classmethod
    def of(cls, health: ComponentHealth, *, detailed: bool) -> Self:
        detail = health.detail if detailed else ""
        return cls(name=health.name, ok=health.ok, critical=health.critical, detail=detail)


class Alive(_Answer):
    status: Literal["ok"] = "ok"


class Ready(_Answer):
    ready: Literal[True] = True
    components: Sequence[Component]


class Data(_Answer, Generic[T]):
    data: T


class Pagination(_Answer):
    total: int
    page: int
    limit: int
    pages: int


class Collection(_Answer, Generic[T]):
    data: Sequence[T]
    pagination: Pagination


class FieldError(_Answer):
    field: str
    message: str


class ErrorBody(_Answer):
    code: str = Field(description="A fixed word for programs.")
    message: str = Field(description="A sentence for people.")
    details: Sequence[FieldError]


class Error(_Answer):
    error: ErrorBody


class Event(_Answer):
    """One message of the event stream."""

    id: str
    at: datetime
    name: str
    call_id: str | None
    agent_id: str | None
    queue_id: str | None
    data: Mapping[str, Any]
