"""Serving the application on a socket that somebody else bound."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.api.app import SETTINGS
from engine.api.errors import error_body


class _Connection(RequestHandler):
    """Answers what is not HTTP in our own form, without a log line for each and without versions."""

    __slots__ = ()

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
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


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
    runner = _Runner(app, access_log=None, handle_signals=False, shutdown_timeout=app[SETTINGS].shutdown_s)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, ssl_context=tls).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
