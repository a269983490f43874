"""Addresses that SIP does not listen to: who they are, and letting them in again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from engine.api.listing import Listing, cut, pagination
from engine.api.models import Collection, Pagination
from engine.api.permissions import Permission
from engine.api.routes import Asked, Route, json_answer
from engine.operations import Bans, BanView

log = logging.getLogger("murima.http")

SORTS: dict[str, Callable[[BanView], float | str | None]] = {
    "until": lambda ban: ban.until.timestamp(),
    "since": lambda ban: ban.since.timestamp(),
    "address": lambda ban: ban.address,
    "dropped": lambda ban: ban.dropped,
}
FILTERS: dict[str, Callable[[BanView, str], bool]] = {
    "address": lambda ban, value: ban.address == value,
    "reason": lambda ban, value: ban.reason == value,
}


class Ban(BaseModel):
    """An address that nothing is read from."""

    model_config = ConfigDict(frozen=True)

    id: str
    address: str = Field(description="An IPv4 address, or an IPv6 network.")
    reason: str = Field(description="passwords, scanner or flood.")
    since: datetime
    until: datetime
    dropped: int = Field(description="Messages and connections that were dropped since.")

    @classmethod
    def of(cls, view: BanView) -> Self:
        return cls(
            id=view.address,
            address=view.address,
            reason=view.reason,
            since=view.since,
            until=view.until,
            dropped=view.dropped,
        )


class BanRoutes:
    """Reading and lifting bans."""

    def __init__(self, bans: Bans) -> None:
        self._bans = bans

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/api/v1/sip/bans",
                self.list_bans,
                "Addresses that SIP does not listen to",
                "sip",
                Collection[Ban],
                permission=Permission.SIP_BANS,
                listing=Listing(tuple(SORTS), tuple(FILTERS), descending=True),
            ),
            Route(
                "DELETE",
                "/api/v1/sip/bans/{address}",  # the slash of an IPv6 network as %2F, or one of its addresses
                self.lift_ban,
                "Listen to an address again",
                "sip",
                None,
                permission=Permission.SIP_BANS,
                errors=(404,),
                status=204,
            ),
        )

    async def list_bans(self, asked: Asked) -> web.StreamResponse:
        page, total = cut(
            self._bans.bans(), asked.listing, sorts=SORTS, filters=FILTERS, identity=lambda ban: ban.address
        )
        told = Pagination.model_validate(pagination(asked.listing, total))
        return json_answer(Collection[Ban](data=[Ban.of(view) for view in page], pagination=told))

    async def lift_ban(self, asked: Asked) -> web.StreamResponse:
        address = asked.request.match_info["address"]
        self._bans.lift_ban(address)
        log.info("sip.ban_lifted", extra={"address": address[:60], "user": asked.identity.username})
        return web.Response(status=204)
