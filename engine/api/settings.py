"""Plain values that the HTTP API is built with; nothing here reads a file or the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` at once, refilled evenly over `period_s` seconds."""

    burst: int
    period_s: float

    def __post_init__(self) -> None:
        if self.burst < 1 or self.period_s <= 0:
            raise ValueError("a rate needs burst >= 1 and period_s > 0")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How the API behaves. Times in seconds, sizes in bytes.

    Attributes:
        jwt_secret: HS256 key, at least 32 bytes; the caller keeps it, so that
            access tokens outlive a restart of the engine.
        access_lifetime_s: how long an access token is good for.
        refresh_idle_s: a session ends when it is not refreshed for this long.
        session_max_s: a session ends after this long whatever happens.
        cookie_secure: True when browsers reach us over HTTPS; also sends HSTS.
        login_per_source: failed log-ins allowed from one address.
        login_per_user: failed log-ins allowed for one user name, from anywhere.
        login_workers: password checks that run at once (each takes a core for some 50 ms).
        login_backlog: password checks that may wait for a worker before new ones get 503.
        trusted_proxies: peers whose X-Forwarded-For and X-Forwarded-Proto are believed.
        allowed_origins: further origins ("https://desk.example.org") that browsers may use
            the event stream and the session cookie from. Our own is always allowed.
        metrics_public: serve /metrics to anyone.
        metrics_token: bearer token that opens /metrics from other machines.
        event_queue: events kept for one slow WebSocket client before they are dropped.
        event_clients: WebSocket clients served at once.
        event_stall_s: a client that takes nothing for this long is closed with 1013.
        heartbeat_s: WebSocket pings; a client that does not answer within half of it is closed.
        ticket_lifetime_s: how long a WebSocket ticket may be used.
        body_limit: largest request body.
        shutdown_s: how long requests in progress may go on after a stop was asked for.
    """

    jwt_secret: bytes = field(repr=False)
    access_lifetime_s: int = 600
    refresh_idle_s: int = 12 * 3600
    session_max_s: int = 7 * 24 * 3600
    cookie_secure: bool = False
    login_per_source: Rate = Rate(30, 300.0)
    login_per_user: Rate = Rate(10, 300.0)
    login_workers: int = 1
    login_backlog: int = 32
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    metrics_public: bool = False
    metrics_token: str = field(default="", repr=False)
    event_queue: int = 1000
    event_clients: int = 500
    event_stall_s: float = 30.0
    heartbeat_s: float = 30.0
    ticket_lifetime_s: int = 30
    body_limit: int = 64 * 1024
    shutdown_s: float = 5.0

    def __post_init__(self) -> None:
        if len(self.jwt_secret) < 32:
            raise ValueError("jwt_secret must have at least 32 bytes (RFC 7518 3.2)")
