"""Responses that the endpoint gives of its own, to OPTIONS and to what it refuses, and where they go."""

from __future__ import annotations

from collections.abc import Iterable

from adapters.sip.dialogs.dialog import PORTS
from adapters.sip.dialogs.notifier import MIN_EXPIRES_S, IntervalError
from adapters.sip.dialogs.session import ACCEPT, AGENT, ALLOW
from adapters.sip.dialogs.session_timer import IntervalTooSmallError
from adapters.sip.errors import PeerError
from adapters.sip.registration.registrar import IntervalTooBriefError
from adapters.sip.syntax.body import ACCEPTED_ENCODING
from adapters.sip.syntax.headers import Via
from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.transactions.stateless import StatelessAnswers
from adapters.sip.transactions.transaction import Flow

RETRY_AFTER_S = "5"
MAX_NAMED = 16  # unknown extensions that a refusal names


class Answers:
    """What an endpoint can do, as its responses tell.

    Args:
        stateless: makes the tags: the same ones for a repeated request.
        extensions: option tags that it knows.
        min_expires_s: shortest registration.

    Attributes:
        allow, allow_events, supported: values of these headers; no events: empty.
    """

    def __init__(self, stateless: StatelessAnswers, extensions: Iterable[str], min_expires_s: int) -> None:
        self.allow = ALLOW
        self.allow_events = ""
        self._stateless = stateless
        self._extensions = list(extensions)
        self._min_expires_s = min_expires_s
        self.supported = ", ".join(self._extensions)

    def support(self, extension: str) -> None:
        """Know one more option tag."""
        self._extensions.append(extension)
        self.supported = ", ".join(self._extensions)

    def unknown_extensions(self, request: Request) -> list[str]:
        """What a request demands and we don't have (RFC 3261 8.2.2.3)."""
        return [tag for tag in request.get_all("require") if tag.lower() not in self._extensions]

    def plain(self, request: Request, status: int) -> Response:
        """A response without more."""
        response = build_response(request, status, to_tag=self._stateless.tag(request))
        response.set("server", AGENT)
        return response

    def abilities(self, request: Request, status: int) -> Response:
        """The answer to OPTIONS (RFC 3261 11.2)."""
        response = self.plain(request, status)
        response.set("allow", self.allow)
        response.set("accept", ACCEPT)
        response.set("accept-encoding", ACCEPTED_ENCODING)
        if self.allow_events:
            response.set("allow-events", self.allow_events)
        response.set("supported", self.supported)
        return response

    def refusal(self, request: Request, exc: PeerError) -> Response:
        """The answer to what broke the protocol or asks for too much, with what would do."""
        status = exc.status
        response = self.plain(request, status)
        if status in (405, 501):
            response.set("allow", self.allow)
        elif status == 415:
            response.set("accept", ACCEPT)
            response.set("accept-encoding", ACCEPTED_ENCODING)
        elif status == 420:
            response.set("unsupported", ", ".join(self.unknown_extensions(request)[:MAX_NAMED]))
        elif status == 422 and isinstance(exc, IntervalTooSmallError):
            response.set("min-se", exc.min_s)
        elif status == 489 and self.allow_events:
            response.set("allow-events", self.allow_events)
        elif isinstance(exc, IntervalError):
            response.set("min-expires", MIN_EXPIRES_S)
        elif status == 423 and isinstance(exc, IntervalTooBriefError):
            response.set("min-expires", self._min_expires_s)
        elif status in (500, 503):
            response.set("retry-after", RETRY_AFTER_S)
        return response


def note_source(request: Request, via: Via, flow: Flow) -> None:
    """Write into the top Via where a request really came from (RFC 3261 18.2.1, RFC 3581 4)."""
    noted: dict[str, str | None] = {}
    if via.has_rport:
        noted = {"received": flow.host, "rport": str(flow.port)}
    elif via.host != flow.host:
        noted = {"received": flow.host}
    if noted:
        request.replace_first("via", via.with_params(noted))


def way_back(via: Via, flow: Flow) -> Flow:
    """Where the responses to a request go (RFC 3261 18.2.2, RFC 3581 4).

    Args:
        via: as the request brought it.
        flow: what the request came by.
    """
    if not flow.connection:
        port = flow.port if via.has_rport and flow.transport == "udp" else via.port or PORTS[flow.transport]
        return Flow(flow.transport, flow.local, flow.host, port)
    domain = via.host if flow.transport == "tls" else ""
    return Flow(flow.transport, flow.local, flow.host, via.port or PORTS[flow.transport], flow.connection, domain)
