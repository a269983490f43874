"""What every request passes through: its id, its log line, its figures, its headers, its errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Middleware

from engine.api.errors import ApiError, error_response
from engine.api.metrics import Metrics
from engine.api.origin import client_address
from engine.api.routes import REQUEST_ID, USER
from engine.api.settings import ApiSettings
from engine.clock import Clock
from engine.operations import ConflictError, NotFoundError, OperationError

log = logging.getLogger("murima.http")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/", "/assets/{name}", "/api/v1/docs"})

_HEADERS = {
    "Server": "murima",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_API_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """The only middleware, and the hook that adds headers to whatever is answered."""

    def __init__(self, metrics: Metrics, settings: ApiSettings, clock: Clock) -> None:
        self._metrics = metrics
        self._settings = settings
        self._clock = clock

    def middleware(self) -> Middleware:
        """The middleware, as aiohttp wants it marked."""

        @web.middleware
        async def pass_through(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._pass(request, handler)

        return pass_through

    async def _pass(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-ID", "")
        request[REQUEST_ID] = given if _REQUEST_ID.match(given) else uuid4().hex
        began = self._clock.monotonic()
        try:
            response = await handler(request)
        except Exception as exc:  # noqa: BLE001 - every failure becomes an answer, and is logged there
            response = error_response(self._error(exc, request))
        self._note(request, response, began)
        return response

    def _error(self, exc: Exception, request: web.Request) -> ApiError:
        match exc:
            case ApiError():
                return exc
            case NotFoundError():
                return ApiError(404, str(exc))
            case ConflictError():
                return ApiError(409, str(exc))
            case OperationError():
                return ApiError(422, str(exc))
            case web.HTTPNotFound():
                return ApiError(404, "There is nothing at this address.")
            case web.HTTPMethodNotAllowed():
                allowed = ", ".join(sorted(exc.allowed_methods))
                return ApiError(405, f"This address takes {allowed}.", headers={"Allow": allowed})
            case web.HTTPException():
                return ApiError(exc.status if exc.status >= 400 else 500, exc.reason)
        # The answer names the request only; what failed is for the log.
        log.error(
            "http.failed",
            exc_info=exc,
            extra={"request_id": request[REQUEST_ID], "method": request.method, "route": route_of(request)},
        )
        return ApiError(500, f"Something failed here; it is logged as request {request[REQUEST_ID]}.")

    def _note(self, request: web.Request, response: web.StreamResponse, began: float) -> None:
        duration_s = self._clock.monotonic() - began
        route = route_of(request)
        method = request.method if request.method in _METHODS else "other"
        stream = isinstance(response, web.WebSocketResponse)
        self._metrics.count(method, route, response.status, None if stream else duration_s)
        # The route's pattern, never the address itself: that may hold a phone number or a ticket.
        log.log(
            logging.DEBUG if route in _QUIET and response.status < 400 else logging.INFO,
            "http.request",
            extra={
                "request_id": request[REQUEST_ID],
                "method": method,
                "route": route,
                "status": response.status,
                "duration_ms": round(duration_s * 1000, 1),
                "source": client_address(request, self._settings),
                "user": request.get(USER),
            },
        )

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that every answer carries; a handler's own win."""
        headers = response.headers
        headers.update(_HEADERS)
        for name, value in _API_HEADERS.items():
            headers.setdefault(name, value)
        if self._settings.cookie_secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        headers["X-Request-ID"] = request.get(REQUEST_ID, "")


def route_of(request: web.Request) -> str:
    """The pattern of the route that a request met, without its values."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
