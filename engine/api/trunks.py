"""Trunks as they are now, and calls that are placed for agents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from engine.api.errors import ApiError
from engine.api.listing import Listing, cut, pagination
from engine.api.models import Collection, Data, Pagination
from engine.api.permissions import Permission, Scope
from engine.api.routes import Asked, Route, json_answer
from engine.events import AgentId
from engine.operations import Operations, TrunkView

log = logging.getLogger("murima.http")

SORTS: dict[str, Callable[[TrunkView], float | str | None]] = {
    "name": lambda trunk: trunk.name,
    "state": lambda trunk: trunk.state,
    "calls": lambda trunk: trunk.calls,
}
FILTERS: dict[str, Callable[[TrunkView, str], bool]] = {
    "name": lambda trunk, value: trunk.name == value,
    "state": lambda trunk, value: trunk.state == value,
}


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Gateway(_Answer):
    address: str
    reachable: bool
    error: str = Field(description="Why it is out of service, or may soon be.")


class Trunk(_Answer):
    name: str
    state: str = Field(description="up, partly (some gateways are out of service) or down.")
    calls: int = Field(description="Calls on it now, both ways.")
    max_calls: int | None
    max_calls_per_s: float | None
    registers: bool = Field(description="Whether it is one that we register with.")
    registered_until: datetime | None
    gateways: Sequence[Gateway]
    error: str = Field(description="Why it is not up.")

    @classmethod
    def of(cls, view: TrunkView) -> Trunk:
        """From the operators' view."""
        return cls(
            name=view.name,
            state=view.state,
            calls=view.calls,
            max_calls=view.max_calls,
            max_calls_per_s=view.max_calls_per_s,
            registers=view.registers,
            registered_until=view.registered_until,
            gateways=[Gateway(address=g.address, reachable=g.reachable, error=g.error) for g in view.gateways],
            error=view.error,
        )


class PlaceCall(BaseModel):
    """Whose phone rings first, and what is then dialled for them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: str = Field(alias="from", min_length=1, max_length=64, strict=True, description="Id of an agent.")
    to: str = Field(min_length=1, max_length=64, strict=True, description="A number, as the agent would dial it.")


class CallPlaced(_Answer):
    call_id: str


class TrunkRoutes:
    """Trunks are for those who may see all of them; agents place calls for themselves only."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/api/v1/trunks",
                self.list_trunks,
                "Trunks now",
                "trunks",
                Collection[Trunk],
                permission=Permission.TRUNKS_READ,
                listing=Listing(tuple(SORTS), tuple(FILTERS)),
            ),
            Route(
                "POST",
                "/api/v1/calls",
                self.place_call,
                "Ring an agent, then call a number for them",
                "calls",
                Data[CallPlaced],
                permission=Permission.CALLS_PLACE,
                body=PlaceCall,
                errors=(404, 409),
                status=201,
            ),
        )

    async def list_trunks(self, asked: Asked) -> web.StreamResponse:
        page, total = cut(
            list(self._operations.trunks()) if asked.scope is Scope.ALL else [],  # an agent has none
            asked.listing,
            sorts=SORTS,
            filters=FILTERS,
            identity=lambda trunk: trunk.name,
        )
        rows = [Trunk.of(view) for view in page]
        numbers = Pagination.model_validate(pagination(asked.listing, total))
        return json_answer(Collection[Trunk](data=rows, pagination=numbers))

    async def place_call(self, asked: Asked) -> web.StreamResponse:
        wanted = asked.parsed(PlaceCall)
        agent_id = AgentId(wanted.from_)
        if asked.scope is Scope.OWN and agent_id != asked.identity.agent_id:
            raise ApiError(403, "You may only place calls from your own phone.")
        call_id = self._operations.place_call(agent_id, wanted.to)
        log.info("call.place_asked", extra={"call_id": call_id, "agent_id": agent_id, "user": asked.identity.username})
        return json_answer(Data(data=CallPlaced(call_id=call_id)), status=201)
