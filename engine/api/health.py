"""Alive, ready, and the figures: for whoever watches the process."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from engine.api.errors import ApiError, Detail
from engine.api.metrics import Metrics
from engine.api.models import Alive, Component, Data, Ready
from engine.api.origin import may_inspect
from engine.api.routes import Asked, Auth, Route, json_answer
from engine.api.settings import ApiSettings
from engine.operations import Operations


class HealthRoutes:
    """None of these asks for a log-in; what a component says of itself is for those who may inspect."""

    def __init__(self, operations: Operations, metrics: Metrics, settings: ApiSettings) -> None:
        self._operations = operations
        self._metrics = metrics
        self._settings = settings

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/healthz", self.alive, "The process is alive", "health", Data[Alive], Auth.NONE),
            Route(
                "GET",
                "/readyz",
                self.ready,
                "Every critical component works: calls can be taken",
                "health",
                Data[Ready],
                Auth.NONE,
                errors=(503,),
            ),
            Route(
                "GET",
                "/metrics",
                self.figures,
                "Figures for Prometheus; from this machine or with the metrics token",
                "health",
                None,
                Auth.NONE,
                errors=(403,),
                media_type="text/plain",
            ),
        )

    async def alive(self, _: Asked) -> web.StreamResponse:
        return json_answer(Data(data=Alive()))

    async def ready(self, asked: Asked) -> web.StreamResponse:
        components = self._operations.health()
        detailed = may_inspect(asked.request, self._settings)
        down = [component for component in components if component.critical and not component.ok]
        if down:
            raise ApiError(
                503,
                f"Not ready: {', '.join(component.name for component in down)}.",
                details=[
                    Detail(component.name, (component.detail if detailed else "") or "does not work")
                    for component in down
                ],
            )
        ready = Ready(components=[Component.of(component, detailed=detailed) for component in components])
        return json_answer(Data(data=ready))

    async def figures(self, asked: Asked) -> web.StreamResponse:
        if not may_inspect(asked.request, self._settings):
            raise ApiError(403, "Figures are for this machine and for holders of the metrics token.")
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
