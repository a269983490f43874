"""Finished interactions, read from the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiohttp import web

from engine.api.errors import ApiError, Detail
from engine.api.listing import Listing, pagination
from engine.api.models import Collection, Interaction
from engine.api.permissions import Permission, Scope
from engine.api.routes import Asked, Route, encode
from engine.operations import Page, Records, RecordsUnavailableError

log = logging.getLogger("murima.http")


class InteractionRoutes:
    """Which fields sort and filter is the store's to say."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/api/v1/interactions",
                self.list_interactions,
                "Finished interactions, the latest first",
                "interactions",
                Collection[Interaction],
                permission=Permission.INTERACTIONS_READ,
                listing=Listing(("started_at",), None, descending=True),
                errors=(503,),
            ),
        )

    async def list_interactions(self, asked: Asked) -> web.StreamResponse:
        page = await self._page(asked)
        return web.Response(
            body=encode({"data": page.rows, "pagination": pagination(asked.listing, page.total)}),
            content_type="application/json",
        )

    async def _page(self, asked: Asked) -> Page:
        query = asked.listing
        filters = dict(query.filters)
        if asked.scope is Scope.OWN:
            own = asked.identity.agent_id
            if own is None or filters.setdefault("agent", own) != own:
                return Page(rows=(), total=0)
        try:
            return await self._records.interactions(
                filters=filters, sort=query.sort, descending=query.descending, page=query.page, limit=query.limit
            )
        except ValueError as exc:
            raise ApiError(
                400, "The query is not valid.", details=[Detail("filter" if filters else "sort", str(exc))]
            ) from exc
        except RecordsUnavailableError as exc:
            log.warning("records.unavailable")
            raise ApiError(503, "The database does not answer now; calls go on.", headers={"Retry-After": "5"}) from exc
