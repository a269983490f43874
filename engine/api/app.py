"""Puts the API together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata

from aiohttp import web

from engine.api.accounts import Accounts
from engine.api.bans import BanRoutes
from engine.api.events import EventRoutes
from engine.api.front import Front
from engine.api.health import HealthRoutes
from engine.api.interactions import InteractionRoutes
from engine.api.live import LiveRoutes
from engine.api.login import LoginRoutes
from engine.api.metrics import Metrics
from engine.api.openapi import document
from engine.api.pages import add_pages
from engine.api.routes import Asked, Auth, Route, serve_route
from engine.api.sessions import Sessions
from engine.api.settings import ApiSettings
from engine.api.sip import SipGateway, SipRoutes
from engine.api.trace import TraceRoutes
from engine.api.trunks import TrunkRoutes
from engine.bus import EventBus
from engine.clock import Clock, SystemClock
from engine.operations import Bans, Operations, Records
from engine.tracing import TraceSource

SETTINGS = web.AppKey("settings", ApiSettings)
ROUTES: web.AppKey[Sequence[Route]] = web.AppKey("routes", Sequence)


def create_app(
    operations: Operations,
    records: Records,
    accounts: Accounts,
    bus: EventBus,
    settings: ApiSettings,
    clock: Clock | None = None,
    trace: TraceSource | None = None,
    sip: SipGateway | None = None,
    bans: Bans | None = None,
) -> web.Application:
    """The HTTP application. Events must be published on the loop that serves it; `sip` takes WebSockets at /sip."""
    clock = clock or SystemClock()
    sessions = Sessions(settings, accounts)
    login = LoginRoutes(accounts, sessions, settings, clock)
    stream = EventRoutes(operations, sessions, bus, settings, clock)
    phones = None if sip is None else SipRoutes(sip, settings)
    metrics = Metrics(operations, stream)
    front = Front(metrics, settings, clock)

    async def describe(_: Asked) -> web.StreamResponse:
        return web.Response(body=description, content_type="application/json")

    routes: tuple[Route, ...] = (
        *HealthRoutes(operations, metrics, settings).routes(),
        *login.routes(),
        *LiveRoutes(operations).routes(),
        *TrunkRoutes(operations).routes(),
        *InteractionRoutes(records).routes(),
        *stream.routes(),
        *(TraceRoutes(trace).routes() if trace is not None else ()),
        *(BanRoutes(bans).routes() if bans is not None else ()),
        *(phones.routes() if phones is not None else ()),
        Route("GET", "/api/v1/openapi.json", describe, "This description", "about", None, Auth.NONE,
              media_type="application/json"),
    )  # fmt: skip
    description = json.dumps(document(routes, version=_version())).encode()

    app = web.Application(middlewares=[front.middleware()], client_max_size=settings.body_limit)
    app[SETTINGS] = settings
    app[ROUTES] = routes
    for route in routes:
        app.router.add_route(route.method, route.path, serve_route(route, sessions, clock))
    add_pages(app)

    async def close_streams(_: web.Application) -> None:
        stream.close()
        if phones is not None:
            phones.close()

    async def close_login(_: web.Application) -> None:
        login.close()

    app.on_response_prepare.append(front.on_prepare)
    app.on_shutdown.append(close_streams)
    app.on_cleanup.append(close_login)
    return app


def _version() -> str:
    try:
        return metadata.version("murima")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
