"""The operators' desk: what people see of call control, and what they may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from config.schema import Agent
from engine.call import Call
from engine.clock import Clock
from engine.control import CallControl
from engine.events import AgentId, CallId, EndCause, QueueId, TransferId
from engine.holding import HoldError
from engine.operations import (
    AgentStateRequest,
    AgentView,
    CallView,
    ComponentHealth,
    ConflictError,
    NotFoundError,
    QueueView,
    TransferRequest,
    TrunkLine,
    TrunkView,
)
from engine.transfers import TransferError
from routing.model import AgentState
from routing.outbound import TrunkSettings
from routing.status import AgentStatus

HealthSource = Callable[[], Sequence[ComponentHealth]]
CounterSource = Callable[[], Mapping[str, float]]


class Desk:
    """Implements `engine.operations.Operations` on call control.

    Names and skills of agents come from `describe`, called anew whenever the
    configuration is replaced.
    """

    def __init__(
        self,
        control: CallControl,
        clock: Clock,
        health: Sequence[HealthSource] = (),
        counters: Sequence[CounterSource] = (),
        lines: Callable[[], Sequence[TrunkLine]] = tuple,
    ) -> None:
        self._control = control
        self._clock = clock
        self._health = tuple(health)
        self._counters = tuple(counters)
        self._lines = lines
        self._names: Mapping[str, str] = {}
        self._skills: Mapping[str, Mapping[str, int]] = {}

    def describe(self, agents: Sequence[Agent]) -> None:
        """Take names and skills from a configuration."""
        self._names = {agent.id: agent.display_name for agent in agents}
        self._skills = {agent.id: agent.skills for agent in agents}

    # --- views --------------------------------------------------------------------------

    def calls(self) -> Sequence[CallView]:
        return [_call_view(call) for call in self._control.calls.values()]

    def queues(self) -> Sequence[QueueView]:
        now = self._clock.monotonic()
        return [
            QueueView(
                queue_id=QueueId(status.queue_id),
                strategy=status.strategy,
                waiting=len(status.waiting),
                ringing=len(status.ringing),
                talking=status.talking,
                longest_wait_s=_seconds_since(status.longest_wait_since, now),
                agents_ready=status.ready,
                agents_busy=status.busy,
                members=[AgentId(m) for m in status.members],
            )
            for status in self._control.router.queues()
        ]

    def agents(self) -> Sequence[AgentView]:
        return [self._agent_view(status) for status in self._control.router.agents()]

    def trunks(self) -> Sequence[TrunkView]:
        book = self._control.outbound.book
        lines = {line.name: line for line in self._lines()}
        return [_trunk_view(trunk, lines.get(trunk.name), book.calls(trunk.name)) for trunk in book.trunks]

    def health(self) -> Sequence[ComponentHealth]:
        return [part for source in self._health for part in source()]

    def counters(self) -> Mapping[str, float]:
        figures: dict[str, float] = {"calls": len(self._control.calls), "calls_orphaned": len(self._control.orphans)}
        for trunk in self.trunks():
            label = f'{{trunk="{trunk.name}"}}'
            figures[f"trunk_calls{label}"] = trunk.calls
            figures[f"trunk_up{label}"] = trunk.state != "down"
        for source in self._counters:
            figures.update(source())
        return figures

    # --- commands -----------------------------------------------------------------------

    def place_call(self, agent_id: AgentId, number: str) -> CallId:
        status = self._control.router.agent(agent_id)
        if status is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        if not status.has_phone:
            raise ConflictError(f"the phone of {agent_id} is not registered")
        if status.state in (AgentState.TALKING, AgentState.RINGING):
            raise ConflictError(f"{agent_id} is in a call already")
        call_id = self._control.place(agent_id, number)
        if call_id is None:
            raise ConflictError("no number and no route leads there")
        return call_id

    def hang_up(self, call_id: CallId) -> None:
        if not self._control.hang_up(call_id):
            raise NotFoundError(f"there is no live call {call_id}")

    def hold(self, call_id: CallId, *, by: str) -> None:
        try:
            found = self._control.hold(call_id, by=by)
        except HoldError as exc:
            raise ConflictError(str(exc)) from exc
        if not found:
            raise NotFoundError(f"there is no live call {call_id}")

    def resume(self, call_id: CallId) -> None:
        try:
            found = self._control.resume(call_id)
        except HoldError as exc:
            raise ConflictError(str(exc)) from exc
        if not found:
            raise NotFoundError(f"there is no live call {call_id}")

    def transfer(self, call_id: CallId, request: TransferRequest) -> TransferId:
        by = "operator" if request.agent_id is None else "agent"
        try:
            begun = self._control.transfer(
                call_id,
                request.target,
                by=by,
                agent_id=request.agent_id,
                attended=request.attended,
                release=request.release,
            )
        except TransferError as exc:
            kind = NotFoundError if exc.cause is EndCause.NOT_FOUND else ConflictError
            raise kind(str(exc)) from exc
        if begun is None:
            raise NotFoundError(f"there is no live call {call_id}")
        return begun

    def set_agent_state(self, agent_id: AgentId, state: AgentStateRequest, reason: str) -> AgentView:
        status = self._control.router.agent(agent_id)
        if status is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        if state is AgentStateRequest.READY and not status.has_phone:
            raise ConflictError(f"the phone of {agent_id} is not registered; register it, then ask for ready")
        self._control.ask_agent_state(agent_id, AgentState(state), reason)
        status = self._control.router.agent(agent_id)
        assert status is not None
        return self._agent_view(status)

    def _agent_view(self, status: AgentStatus) -> AgentView:
        in_state_s = max(0.0, self._clock.monotonic() - status.since)
        return AgentView(
            agent_id=AgentId(status.agent_id),
            name=self._names.get(status.agent_id, status.agent_id),
            state=status.state,
            reason=status.reason,
            since=self._clock.utc() - timedelta(seconds=in_state_s),
            reachable=status.reachable,
            call_id=CallId(status.contact_id) if status.contact_id is not None else None,
            skills=self._skills.get(status.agent_id, {}),
            queues=[QueueId(q) for q in status.queues],
        )


def _seconds_since(then: float | None, now: float) -> float:
    return 0.0 if then is None else max(0.0, round(now - then, 3))


def _trunk_view(trunk: TrunkSettings, line: TrunkLine | None, calls: int) -> TrunkView:
    gateways = () if line is None else line.gateways
    registers = line is not None and line.registers
    until = None if line is None else line.registered_until
    up = sum(gateway.reachable for gateway in gateways)
    down = (registers and until is None) or (gateways and not up)
    state = "down" if down else "up" if up == len(gateways) else "partly"
    errors = [gateway.error for gateway in gateways if not gateway.reachable]
    return TrunkView(
        name=trunk.name,
        state=state,
        calls=calls,
        max_calls=trunk.max_calls,
        max_calls_per_s=trunk.max_calls_per_s,
        registers=registers,
        registered_until=until,
        gateways=gateways,
        error=(line.error if line is not None else "") or (errors[0] if errors else ""),
    )


def _call_view(call: Call) -> CallView:
    return CallView(
        call_id=call.call_id,
        state=call.state,
        caller=call.caller.number,
        caller_name=call.caller.name,
        dialled=call.dialled,
        trunk=call.source.trunk,
        started_at=call.started_at,
        answered_at=call.answered_at,
        queue_id=call.queue_id,
        agent_id=call.agent_id or next(iter(call.offers), None) or call.source.agent_id,
        recording=call.recording,
        explanation=call.explanation,
        from_agent=call.source.agent_id,
        trunk_out=next((leg.trunk for leg in call.legs.values() if leg.trunk is not None), None),
    )
