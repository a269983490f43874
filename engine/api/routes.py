"""The form of one route: what it asks of the request, checked before its handler runs.

The same table serves requests and makes the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import msgspec
from aiohttp import web
from pydantic import BaseModel, ValidationError

from engine.api.accounts import Identity
from engine.api.errors import ApiError, Detail
from engine.api.listing import Listing, ListQuery, parse_query
from engine.api.permissions import Permission, Scope, scope
from engine.api.sessions import Grant, SessionError, Sessions
from engine.clock import Clock

REQUEST_ID = web.RequestKey("request_id", str)
USER = web.RequestKey("user", str)


class Auth(Enum):
    """How a route learns who asks."""

    NONE = "none"
    BEARER = "bearer"  # Authorization: Bearer, with an access token
    COOKIE = "cookie"  # the refresh token's cookie
    TICKET = "ticket"  # a one-time ticket, or Bearer


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose caller, permission, body and query have been checked."""

    request: web.Request
    grant: Grant | None
    scope: Scope
    body: BaseModel | None
    query: ListQuery | None

    @property
    def identity(self) -> Identity:
        """Who asks; only on routes that authenticate."""
        assert self.grant is not None
        return self.grant.identity

    @property
    def listing(self) -> ListQuery:
        """The collection query; only on routes with a listing."""
        assert self.query is not None
        return self.query

    def parsed(self, model: type[M]) -> M:
        """The body; only on routes that declare this model."""
        assert isinstance(self.body, model)
        return self.body


Handler = Callable[[Asked], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter that is not part of a listing."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    answer: type[BaseModel] | None = None  # None: not JSON, see `media_type`
    auth: Auth = Auth.BEARER
    permission: Permission | None = None
    body: type[BaseModel] | None = None
    listing: Listing | None = None
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()  # beyond those that follow from the rest
    media_type: str = "application/json"
    status: int = 200


def json_answer(answer: BaseModel, *, status: int = 200) -> web.Response:
    """An answer of one of our models."""
    return web.Response(
        status=status, body=answer.model_dump_json(fallback=str).encode(), content_type="application/json"
    )


async def read_body(request: web.Request, model: type[M]) -> M:
    """Parse and validate a JSON body. An absent body counts as `{}`.

    Raises:
        ApiError: 413, 415, 400 (broken off, or not JSON) or 422 (JSON, but not valid).
    """
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise ApiError(413, "The body is too large.") from exc
    except (web.RequestPayloadError, ConnectionError) as exc:
        raise ApiError(400, "The body did not arrive whole.") from exc
    if raw and request.content_type != "application/json":
        raise ApiError(415, "Send the body as application/json.")
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as exc:
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        if any(error["type"] == "json_invalid" for error in found):
            raise ApiError(400, "The body is not JSON.") from exc
        details = [Detail(".".join(map(str, error["loc"])), error["msg"]) for error in found[:20]]
        raise ApiError(422, "The body is not valid.", details=details) from exc


def bearer(request: web.Request) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750 2.1)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def unauthorized(message: str) -> ApiError:
    """401, naming the scheme (RFC 9110 11.6.1)."""
    return ApiError(401, message, headers={"WWW-Authenticate": 'Bearer realm="murima"'})


def authenticate(request: web.Request, auth: Auth, sessions: Sessions, clock: Clock) -> Grant | None:
    """Who asks, by the means that the route accepts.

    Raises:
        ApiError: 401.
    """
    if auth in (Auth.NONE, Auth.COOKIE):
        return None
    now = clock.utc().timestamp()
    try:
        if auth is Auth.TICKET and (ticket := request.query.get("ticket")):
            return sessions.redeem(ticket, now)
        token = bearer(request)
        if token is None:
            raise unauthorized("Log in first.")
        return sessions.check(token, now)
    except SessionError as exc:
        raise unauthorized("The token is not valid (any more).") from exc


def serve_route(
    route: Route, sessions: Sessions, clock: Clock
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """An aiohttp handler that checks what `route` declares, then runs it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        grant = authenticate(request, route.auth, sessions, clock)
        reach = Scope.NONE
        if grant is not None:
            request[USER] = grant.identity.username
            if route.permission is not None:
                reach = scope(grant.identity.role, route.permission)
                if reach is Scope.NONE:
                    raise ApiError(403, f"The role {grant.identity.role} may not do this.")
        query = parse_query(_single(request), route.listing) if route.listing else None
        body = await read_body(request, route.body) if route.body else None
        return await route.handler(Asked(request, grant, reach, body, query))

    return handle


def _single(request: web.Request) -> dict[str, str]:
    """The query as a mapping.

    Raises:
        ApiError: 400 when a parameter is given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name in found:
            raise ApiError(400, "The query is not valid.", details=[Detail(name, "is given twice")])
        found[name] = value
    return found


def plain(value: object) -> object:
    """msgspec's `enc_hook` for what events may carry beyond plain JSON types."""
    return dict(value) if hasattr(value, "keys") and hasattr(value, "__getitem__") else str(value)


def encode(value: object) -> bytes:
    """JSON text of events and other loosely typed values."""
    return msgspec.json.encode(value, enc_hook=plain)
