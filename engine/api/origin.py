"""Where a request comes from: the client's address behind proxies, and the page that sent it."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from engine.api.errors import ApiError
from engine.api.routes import bearer
from engine.api.settings import ApiSettings

_FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def client_address(request: web.Request, settings: ApiSettings) -> str:
    """The client's address: the peer's, or what a trusted proxy says it is.

    X-Forwarded-For is read from its end, and only past proxies that are trusted.
    """
    address = request.remote or ""
    hops = [hop.strip() for value in request.headers.getall("X-Forwarded-For", ()) for hop in value.split(",")]
    while hops and _trusted(address, settings):
        hop = hops.pop()
        try:
            address = str(ip_address(hop))
        except ValueError:  # a proxy's "unknown", or rubbish from beyond it
            break
    return address


def _trusted(address: str, settings: ApiSettings) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in settings.trusted_proxies)


def check_origin(request: web.Request, settings: ApiSettings) -> None:
    """Refuse browsers that act for another site's page; programs send no Origin.

    Raises:
        ApiError: 403.
    """
    origin = request.headers.get("Origin")
    if origin is None or origin in settings.allowed_origins:
        return
    try:
        parts = urlsplit(origin)
    except ValueError:
        parts = urlsplit("")
    own = request.headers.get("Host", "")
    # The scheme is not compared: behind a proxy that ends TLS we see http for https.
    if parts.scheme not in ("http", "https") or not own or parts.netloc.lower() != own.lower():
        raise ApiError(403, "Requests from pages of another origin are not accepted.")


def may_inspect(request: web.Request, settings: ApiSettings) -> bool:
    """Whether the request may read figures and component details.

    Yes from this machine itself (not through a proxy on it), with the metrics
    token, or when the settings open them to all.
    """
    if settings.metrics_public:
        return True
    token = bearer(request)
    if settings.metrics_token and token is not None:
        return hmac.compare_digest(token.encode("utf-8", "replace"), settings.metrics_token.encode())
    if any(header in request.headers for header in _FORWARDING):
        return False
    try:
        return ip_address(request.remote or "").is_loopback
    except ValueError:
        return False
