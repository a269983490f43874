"""Calls, queues and agents as they are now, and what operators do to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from engine.api.errors import ApiError
from engine.api.listing import Listing, cut, pagination
from engine.api.models import (
    Agent,
    AgentState,
    Call,
    Collection,
    Data,
    Empty,
    Pagination,
    Queue,
    Transfer,
    TransferBegun,
)
from engine.api.permissions import Permission, Scope
from engine.api.routes import Asked, Route, json_answer
from engine.events import AgentId
from engine.operations import AgentView, CallView, Operations, QueueView, TransferRequest

log = logging.getLogger("murima.http")

V = TypeVar("V")

CALL_SORTS: dict[str, Callable[[CallView], float | str | None]] = {
    "started_at": lambda call: call.started_at.timestamp(),
    "answered_at": lambda call: call.answered_at.timestamp() if call.answered_at else None,
    "id": lambda call: call.call_id,
    "state": lambda call: call.state,
    "queue_id": lambda call: call.queue_id,
    "agent_id": lambda call: call.agent_id,
}
CALL_FILTERS: dict[str, Callable[[CallView, str], bool]] = {
    "state": lambda call, value: call.state == value,
    "queue": lambda call, value: call.queue_id == value,
    "agent": lambda call, value: value in (call.agent_id, call.from_agent),
    "trunk": lambda call, value: value in (call.trunk, call.trunk_out),
    "caller": lambda call, value: call.caller == value,
    "dialled": lambda call, value: call.dialled == value,
}
QUEUE_SORTS: dict[str, Callable[[QueueView], float | str | None]] = {
    "id": lambda queue: queue.queue_id,
    "waiting": lambda queue: queue.waiting,
    "talking": lambda queue: queue.talking,
    "longest_wait_s": lambda queue: queue.longest_wait_s,
    "agents_ready": lambda queue: queue.agents_ready,
}
QUEUE_FILTERS: dict[str, Callable[[QueueView, str], bool]] = {
    "strategy": lambda queue, value: queue.strategy == value,
    "agent": lambda queue, value: value in queue.members,
}
AGENT_SORTS: dict[str, Callable[[AgentView], float | str | None]] = {
    "id": lambda agent: agent.agent_id,
    "name": lambda agent: agent.name,
    "state": lambda agent: agent.state,
    "since": lambda agent: agent.since.timestamp(),
}
AGENT_FILTERS: dict[str, Callable[[AgentView, str], bool]] = {
    "state": lambda agent, value: agent.state == value,
    "queue": lambda agent, value: value in agent.queues,
    "skill": lambda agent, value: value in agent.skills,
}


class LiveRoutes:
    """Whoever has a permission for their own only (agents) does not learn that the rest exists."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/api/v1/calls",
                self.list_calls,
                "Live calls",
                "calls",
                Collection[Call],
                permission=Permission.CALLS_READ,
                listing=Listing(tuple(CALL_SORTS), tuple(CALL_FILTERS)),
            ),
            Route(
                "GET",
                "/api/v1/calls/{id}",
                self.get_call,
                "One live call",
                "calls",
                Data[Call],
                permission=Permission.CALLS_READ,
                errors=(404,),
            ),
            Route(
                "POST",
                "/api/v1/calls/{id}/hangup",
                self.hang_up,
                "Hang up a call",
                "calls",
                None,
                permission=Permission.CALLS_HANGUP,
                body=Empty,
                errors=(404, 409),
                status=204,
            ),
            Route(
                "POST",
                "/api/v1/calls/{id}/hold",
                self.hold,
                "Put the caller on hold, with the queue's music",
                "calls",
                None,
                permission=Permission.CALLS_HOLD,
                body=Empty,
                errors=(404, 409),
                status=204,
            ),
            Route(
                "POST",
                "/api/v1/calls/{id}/resume",
                self.resume,
                "Join caller and agent again",
                "calls",
                None,
                permission=Permission.CALLS_HOLD,
                body=Empty,
                errors=(404, 409),
                status=204,
            ),
            Route(
                "POST",
                "/api/v1/calls/{id}/transfer",
                self.transfer,
                "Connect a call to somebody else",
                "calls",
                Data[TransferBegun],
                permission=Permission.CALLS_TRANSFER,
                body=Transfer,
                errors=(404, 409),
                status=202,
            ),
            Route(
                "GET",
                "/api/v1/queues",
                self.list_queues,
                "Queues now",
                "queues",
                Collection[Queue],
                permission=Permission.QUEUES_READ,
                listing=Listing(tuple(QUEUE_SORTS), tuple(QUEUE_FILTERS)),
            ),
            Route(
                "GET",
                "/api/v1/queues/{id}",
                self.get_queue,
                "One queue now",
                "queues",
                Data[Queue],
                permission=Permission.QUEUES_READ,
                errors=(404,),
            ),
            Route(
                "GET",
                "/api/v1/agents",
                self.list_agents,
                "Agents now",
                "agents",
                Collection[Agent],
                permission=Permission.AGENTS_READ,
                listing=Listing(tuple(AGENT_SORTS), tuple(AGENT_FILTERS)),
            ),
            Route(
                "GET",
                "/api/v1/agents/{id}",
                self.get_agent,
                "One agent now",
                "agents",
                Data[Agent],
                permission=Permission.AGENTS_READ,
                errors=(404,),
            ),
            Route(
                "PUT",
                "/api/v1/agents/{id}/state",
                self.set_state,
                "Make an agent ready, send them on a break, or take them offline",
                "agents",
                Data[Agent],
                permission=Permission.AGENTS_STATE,
                body=AgentState,
                errors=(404, 409),
            ),
        )

    # --- what the asker may see

    def _calls(self, asked: Asked) -> list[CallView]:
        calls = self._operations.calls()
        if asked.scope is Scope.ALL:
            return list(calls)
        return [call for call in calls if call.is_of(asked.identity.agent_id)]

    def _agents(self, asked: Asked) -> list[AgentView]:
        agents = self._operations.agents()
        if asked.scope is Scope.ALL:
            return list(agents)
        return [agent for agent in agents if agent.agent_id == asked.identity.agent_id]

    def _queues(self, asked: Asked) -> list[QueueView]:
        queues = self._operations.queues()
        if asked.scope is Scope.ALL:
            return list(queues)
        served = {queue_id for agent in self._agents(asked) for queue_id in agent.queues}
        return [queue for queue in queues if queue.queue_id in served]

    # --- handlers

    async def list_calls(self, asked: Asked) -> web.StreamResponse:
        page, total = cut(
            self._calls(asked),
            asked.listing,
            sorts=CALL_SORTS,
            filters=CALL_FILTERS,
            identity=lambda call: call.call_id,
        )
        return _page(asked, [Call.of(view) for view in page], total)

    async def get_call(self, asked: Asked) -> web.StreamResponse:
        call_id = asked.request.match_info["id"]
        view = _find(self._calls(asked), lambda call: call.call_id == call_id, "call")
        return json_answer(Data(data=Call.of(view)))

    async def hang_up(self, asked: Asked) -> web.StreamResponse:
        call_id = asked.request.match_info["id"]
        view = _find(self._calls(asked), lambda call: call.call_id == call_id, "call")
        self._operations.hang_up(view.call_id)
        log.info("call.hangup_asked", extra={"call_id": view.call_id, "user": asked.identity.username})
        return web.Response(status=204)

    async def hold(self, asked: Asked) -> web.StreamResponse:
        call_id = asked.request.match_info["id"]
        view = _find(self._calls(asked), lambda call: call.call_id == call_id, "call")
        self._operations.hold(view.call_id, by="agent" if asked.scope is Scope.OWN else "operator")
        log.info("call.hold_asked", extra={"call_id": view.call_id, "user": asked.identity.username})
        return web.Response(status=204)

    async def resume(self, asked: Asked) -> web.StreamResponse:
        call_id = asked.request.match_info["id"]
        view = _find(self._calls(asked), lambda call: call.call_id == call_id, "call")
        self._operations.resume(view.call_id)
        log.info("call.resume_asked", extra={"call_id": view.call_id, "user": asked.identity.username})
        return web.Response(status=204)

    async def transfer(self, asked: Asked) -> web.StreamResponse:
        call_id = asked.request.match_info["id"]
        view = _find(self._calls(asked), lambda call: call.call_id == call_id, "call")
        wanted = asked.parsed(Transfer)
        own = asked.identity.agent_id if asked.scope is Scope.OWN else None
        transfer_id = self._operations.transfer(
            view.call_id,
            TransferRequest(wanted.target, own, attended=wanted.attended, release=wanted.mode == "refer"),
        )
        log.info("call.transfer_asked", extra={"call_id": view.call_id, "user": asked.identity.username})
        return json_answer(Data(data=TransferBegun(transfer_id=transfer_id)), status=202)

    async def list_queues(self, asked: Asked) -> web.StreamResponse:
        page, total = cut(
            self._queues(asked),
            asked.listing,
            sorts=QUEUE_SORTS,
            filters=QUEUE_FILTERS,
            identity=lambda queue: queue.queue_id,
        )
        return _page(asked, [Queue.of(view) for view in page], total)

    async def get_queue(self, asked: Asked) -> web.StreamResponse:
        queue_id = asked.request.match_info["id"]
        view = _find(self._queues(asked), lambda queue: queue.queue_id == queue_id, "queue")
        return json_answer(Data(data=Queue.of(view)))

    async def list_agents(self, asked: Asked) -> web.StreamResponse:
        page, total = cut(
            self._agents(asked),
            asked.listing,
            sorts=AGENT_SORTS,
            filters=AGENT_FILTERS,
            identity=lambda agent: agent.agent_id,
        )
        return _page(asked, [Agent.of(view) for view in page], total)

    async def get_agent(self, asked: Asked) -> web.StreamResponse:
        agent_id = asked.request.match_info["id"]
        view = _find(self._agents(asked), lambda agent: agent.agent_id == agent_id, "agent")
        return json_answer(Data(data=Agent.of(view)))

    async def set_state(self, asked: Asked) -> web.StreamResponse:
        agent_id = AgentId(asked.request.match_info["id"])
        if asked.scope is Scope.OWN and agent_id != asked.identity.agent_id:
            raise ApiError(403, "You may only set your own state.")
        wanted = asked.parsed(AgentState)
        view = self._operations.set_agent_state(agent_id, wanted.state, wanted.reason)
        log.info(
            "agent.state_asked",
            extra={"agent_id": view.agent_id, "state": wanted.state.value, "user": asked.identity.username},
        )
        return json_answer(Data(data=Agent.of(view)))


def _find(views: Sequence[V], wanted: Callable[[V], bool], noun: str) -> V:
    for view in views:
        if wanted(view):
            return view
    raise ApiError(404, f"There is no such {noun}.")


def _page(asked: Asked, rows: Sequence[BaseModel], total: int) -> web.Response:
    page = Pagination.model_validate(pagination(asked.listing, total))
    return json_answer(Collection[Any](data=rows, pagination=page))
