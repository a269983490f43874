"""Logging in, staying logged in, logging out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from engine.api.accounts import Accounts, Identity
from engine.api.errors import ApiError
from engine.api.limits import RateLimiter
from engine.api.models import Data, Empty, Login, Session, User
from engine.api.origin import check_origin, client_address
from engine.api.routes import Asked, Auth, Route, json_answer, unauthorized
from engine.api.sessions import SessionError, Sessions, Tokens
from engine.api.settings import ApiSettings
from engine.clock import Clock

log = logging.getLogger("murima.http")

COOKIE = "murima_refresh"
COOKIE_PATH = "/api/v1/auth"


class LoginRoutes:
    """Password checks run on their own few threads, so that Argon2 never delays a call."""

    def __init__(self, accounts: Accounts, sessions: Sessions, settings: ApiSettings, clock: Clock) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._by_source = RateLimiter(settings.login_per_source)
        self._by_user = RateLimiter(settings.login_per_user)
        self._workers = ThreadPoolExecutor(settings.login_workers, thread_name_prefix="login")
        self._pending = 0

    def close(self) -> None:
        """Let go of the worker threads; a check in progress finishes unheard."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "POST",
                "/api/v1/auth/login",
                self.login,
                "Log in with user name and password",
                "auth",
                Data[Session],
                Auth.NONE,
                body=Login,
                errors=(401, 429, 503),
            ),
            Route(
                "POST",
                "/api/v1/auth/refresh",
                self.refresh,
                "Exchange the refresh cookie for a new access token and a new cookie",
                "auth",
                Data[Session],
                Auth.COOKIE,
                body=Empty,
                errors=(401, 403),
            ),
            Route(
                "POST",
                "/api/v1/auth/logout",
                self.logout,
                "End the session: its refresh cookie, access tokens and event streams",
                "auth",
                None,
                Auth.COOKIE,
                body=Empty,
                errors=(403,),
                status=204,
            ),
            Route("GET", "/api/v1/auth/me", self.me, "Who I am", "auth", Data[User]),
        )

    async def login(self, asked: Asked) -> web.StreamResponse:
        asked_for = asked.parsed(Login)
        check_origin(asked.request, self._settings)
        source = client_address(asked.request, self._settings)
        now = self._clock.monotonic()
        wait_s = max(self._by_source.wait_s(source, now), self._by_user.wait_s(asked_for.username, now))
        if wait_s:
            raise ApiError(429, "Too many failed log-ins; try again later.", headers={"Retry-After": str(wait_s)})
        if self._pending >= self._settings.login_workers + self._settings.login_backlog:
            raise ApiError(503, "Too many log-ins at once; try again.", headers={"Retry-After": "2"})
        # Taken before the check, so that many guesses at once do not slip through.
        self._by_source.take(source, now)
        self._by_user.take(asked_for.username, now)
        identity = await self._verify(asked_for)
        if identity is None:
            log.info("auth.login_failed", extra={"source": source})
            raise unauthorized("The user name or the password is wrong.")
        now = self._clock.monotonic()
        self._by_source.give_back(source, now)
        self._by_user.give_back(asked_for.username, now)
        log.info("auth.login", extra={"user": identity.username, "source": source})
        tokens = self._sessions.start(identity, self._clock.utc().timestamp())
        return self._answer(identity, tokens)

    async def _verify(self, asked_for: Login) -> Identity | None:
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._workers, self._accounts.verify, asked_for.username, asked_for.password
            )
        finally:
            self._pending -= 1

    async def refresh(self, asked: Asked) -> web.StreamResponse:
        check_origin(asked.request, self._settings)
        try:
            identity, tokens = self._sessions.refresh(
                asked.request.cookies.get(COOKIE, ""), self._clock.utc().timestamp()
            )
        except SessionError as exc:
            raise unauthorized("The session is over; log in again.") from exc
        return self._answer(identity, tokens)

    async def logout(self, asked: Asked) -> web.StreamResponse:
        check_origin(asked.request, self._settings)
        if token := asked.request.cookies.get(COOKIE):
            self._sessions.end(token, self._clock.utc().timestamp())
        response = web.Response(status=204)
        response.del_cookie(
            COOKIE, path=COOKIE_PATH, httponly=True, samesite="Strict", secure=self._settings.cookie_secure
        )
        return response

    async def me(self, asked: Asked) -> web.StreamResponse:
        return json_answer(Data(data=User.of(asked.identity)))

    def _answer(self, identity: Identity, tokens: Tokens) -> web.Response:
        session = Session(access_token=tokens.access, expires_in=tokens.access_lifetime_s, user=User.of(identity))
        response = json_answer(Data(data=session))
        response.set_cookie(
            COOKIE,
            tokens.refresh,
            max_age=tokens.refresh_lifetime_s,
            path=COOKIE_PATH,
            httponly=True,
            samesite="Strict",
            secure=self._settings.cookie_secure,
        )
        return response
