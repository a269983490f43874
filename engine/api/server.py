"""Serving the application on a socket that somebody else bound."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.api.app import SETTINGS
from engine.api.errors import error_body

FIRST_REQUEST_S = 20.0  # how long the headers of the first may take to arrive
IDLE_S = 75.0  # between requests; longer than proxies keep theirs
MAX_CONNECTIONS = 10_000


class _Connection(RequestHandler):
    """Answers what is not HTTP in our own form, without a log line for each and without versions.

    It waits neither for ever for a first request, nor beside too many others.
    """

    __slots__ = ("_begin", "_crowd")

    def __init__(self, manager: web.Server, crowd: Counter[str], **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin = self._loop.call_later(FIRST_REQUEST_S, self._expect_request)
        self._crowd["open"] += 1
        if self._crowd["open"] > MAX_CONNECTIONS:
            self.force_close()

    def _expect_request(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._begin.cancel()
        self._crowd["open"] -= 1
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; its text names its own internals
    ) -> web.StreamResponse:
        if status >= 500:
            self.log_exception("http.connection_failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun already")
        text = "This is not HTTP as we understand it." if status < 500 else "Something failed here."
        response = web.Response(
            status=status,
            body=error_body(status, text),
            content_type="application/json",
            headers={"Server": "murima", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, handler: Any, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._crowd: Counter[str] = Counter()

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._crowd, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """aiohttp's runner, with our connections. The only place that knows how aiohttp makes them."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,
        )


async def serve(app: web.Application, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
    """Serve until cancelled, then stop gracefully; HTTPS with `tls`.

    Connections that arrive before this runs wait in the socket's backlog. At
    cancellation the socket is no longer listened to, event streams are closed
    with 1001, and requests in progress get `shutdown_s` to finish.
    """
    runner = _Runner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=app[SETTINGS].shutdown_s,
        keepalive_timeout=IDLE_S,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock, ssl_context=tls).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
