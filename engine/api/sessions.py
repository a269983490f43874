"""Log-in sessions: access tokens (JWT), rotating refresh tokens, one-time WebSocket tickets.

Nothing here does I/O or reads a clock; times are UTC epoch seconds. Sessions
live in memory: after a restart of the engine access tokens stay good until
they expire (the caller keeps the secret), and people log in again after that.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import jwt

from engine.api.accounts import Accounts, Identity
from engine.api.settings import ApiSettings

ISSUER = "murima"
_CLAIMS = ["exp", "iat", "iss", "sub", "jti", "sid", "role"]


class SessionError(Exception):
    """The token is unknown, expired, revoked or was used before."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Who a request comes from and in which session."""

    identity: Identity
    session_id: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a log-in or a refresh hands out. Lifetimes in seconds."""

    access: str
    access_lifetime_s: int
    refresh: str
    refresh_lifetime_s: int


@dataclass(slots=True)
class _Family:
    """One session: the chain of refresh tokens that began with one log-in."""

    username: str
    current: bytes  # SHA-256 of the only refresh token that is good now
    started: float
    idle_until: float


class Sessions:
    """Issues and checks tokens; remembers at most `capacity` sessions, `per_user` of one person.

    A refresh token works once. When an old one comes back, it was copied:
    the whole session ends, for the thief and for the owner (RFC 9700 4.14.2).
    """

    def __init__(
        self, settings: ApiSettings, accounts: Accounts, *, capacity: int = 20_000, per_user: int = 50
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._capacity = capacity
        self._per_user = per_user
        self._families: OrderedDict[str, _Family] = OrderedDict()  # oldest log-in first
        self._by_user: dict[str, list[str]] = {}  # oldest first
        self._revoked: OrderedDict[str, float] = OrderedDict()  # session id → when its last access token expires
        self._tickets: OrderedDict[bytes, tuple[Grant, float]] = OrderedDict()
        self._on_revoked: list[Callable[[str], None]] = []

    def on_revoked(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every session that ends before its time."""
        self._on_revoked.append(listener)

    # --- refresh tokens

    def start(self, identity: Identity, now: float) -> Tokens:
        """Begin a session after a log-in."""
        session_id = secrets.token_urlsafe(16)
        family = _Family(identity.username, b"", now, now)
        self._families[session_id] = family
        mine = self._by_user.setdefault(identity.username, [])
        mine.append(session_id)
        while len(mine) > self._per_user:
            self.revoke(mine[0], now)
        while len(self._families) > self._capacity:
            self.revoke(next(iter(self._families)), now)
        return self._issue(session_id, family, identity, now)

    def refresh(self, token: str, now: float) -> tuple[Identity, Tokens]:
        """Exchange a refresh token for fresh tokens.

        Raises:
            SessionError: it is not good (any more), or it was used before.
        """
        session_id, _, _ = token.partition(".")
        family = self._families.get(session_id)
        if family is None:
            raise SessionError("unknown session")
        if not hmac.compare_digest(_digest(token), family.current):
            self.revoke(session_id, now)
            raise SessionError("refresh token used twice")
        identity = self._accounts.identity(family.username)
        if identity is None or now >= family.idle_until or now >= family.started + self._settings.session_max_s:
            self.revoke(session_id, now)
            raise SessionError("session over")
        return identity, self._issue(session_id, family, identity, now)

    def end(self, token: str, now: float) -> None:
        """Log out: end the session of a refresh token. Unknown ones are ignored; a used one ends it too."""
        session_id, _, _ = token.partition(".")
        self.revoke(session_id, now)

    def revoke(self, session_id: str, now: float) -> None:
        """End a session; its access tokens and event streams end with it."""
        family = self._families.pop(session_id, None)
        if family is None:
            return
        mine = self._by_user[family.username]
        mine.remove(session_id)
        if not mine:
            del self._by_user[family.username]
        while self._revoked and next(iter(self._revoked.values())) <= now:
            self._revoked.popitem(last=False)
        self._revoked[session_id] = now + self._settings.access_lifetime_s
        for listener in self._on_revoked:
            listener(session_id)

    def _issue(self, session_id: str, family: _Family, identity: Identity, now: float) -> Tokens:
        refresh = f"{session_id}.{secrets.token_urlsafe(32)}"
        family.current = _digest(refresh)
        family.idle_until = min(now + self._settings.refresh_idle_s, family.started + self._settings.session_max_s)
        access = jwt.encode(
            {
                "iss": ISSUER,
                "sub": identity.username,
                "role": identity.role.value,
                "iat": int(now),
                "exp": int(now) + self._settings.access_lifetime_s,
                "jti": secrets.token_urlsafe(12),
                "sid": session_id,
            },
            self._settings.jwt_secret,
            algorithm="HS256",
        )
        return Tokens(access, self._settings.access_lifetime_s, refresh, max(1, int(family.idle_until - now)))

    # --- access tokens

    def check(self, token: str, now: float) -> Grant:
        """Who an access token speaks for; the account's role now counts, not the one in the token.

        Raises:
            SessionError: it is malformed, forged, expired, revoked, or its account is gone.
        """
        if not token.isascii():
            raise SessionError("invalid token")
        try:
            claims = jwt.decode(
                token,
                self._settings.jwt_secret,
                algorithms=["HS256"],
                issuer=ISSUER,
                # The times are checked below, against the clock that we were given.
                options={"require": _CLAIMS, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except jwt.InvalidTokenError as exc:
            raise SessionError("invalid token") from exc
        username, session_id, expires = claims["sub"], claims["sid"], claims["exp"]
        if not (isinstance(username, str) and isinstance(session_id, str) and isinstance(expires, int)):
            raise SessionError("invalid token")
        if now >= expires:
            raise SessionError("expired token")
        if session_id in self._revoked:
            raise SessionError("session over")
        identity = self._accounts.identity(username)
        if identity is None:
            raise SessionError("no such account")
        return Grant(identity, session_id)

    # --- WebSocket tickets

    def ticket(self, grant: Grant, now: float) -> str:
        """A ticket that opens one event stream, once, within `ticket_lifetime_s`."""
        while self._tickets and next(iter(self._tickets.values()))[1] <= now:
            self._tickets.popitem(last=False)
        while len(self._tickets) >= self._capacity:
            self._tickets.popitem(last=False)
        ticket = secrets.token_urlsafe(24)
        self._tickets[_digest(ticket)] = (grant, now + self._settings.ticket_lifetime_s)
        return ticket

    def redeem(self, ticket: str, now: float) -> Grant:
        """Use a ticket up.

        Raises:
            SessionError: it is unknown, used, expired, or its session or account is gone.
        """
        grant, expires = self._tickets.pop(_digest(ticket), (None, 0.0))
        if grant is None or now >= expires or not self.valid(grant):
            raise SessionError("invalid ticket")
        return grant

    def valid(self, grant: Grant) -> bool:
        """False once the session was revoked or the account changed or went away."""
        return grant.session_id not in self._revoked and self._accounts.identity(grant.identity.username) == (
            grant.identity
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
