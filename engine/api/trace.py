"""The SIP trace: over the API for administrators, and on a Unix socket for whoever owns the data folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from engine.api.errors import ApiError, Detail
from engine.api.models import Data
from engine.api.permissions import Permission
from engine.api.routes import Asked, Parameter, Route, encode
from engine.pcap import capture
from engine.tracing import Findings, TraceSource

log = logging.getLogger("murima.http")

DEFAULT_CALLS = 50
MAX_CALLS = 500

_PARAMETERS = (
    Parameter("call", "Only this call: our id, or a SIP Call-ID."),
    Parameter("number", "Only calls from or to this number."),
    Parameter("limit", f"At most so many calls, the newest ones (default {DEFAULT_CALLS}, at most {MAX_CALLS})."),
)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Message(_Answer):
    """One SIP message; credentials, keys pressed and SRTP keys are asterisks."""

    at: float = Field(description="UNIX time in seconds.")
    incoming: bool
    transport: str
    local: tuple[str, int]
    remote: tuple[str, int]
    data: str = Field(description="The message, in base64.")


class TracedCall(_Answer):
    call_id: str | None = Field(description="None for what belongs to no call, such as a registration.")
    sip_call_ids: Sequence[str]
    summary: str
    outcome: str
    messages: Sequence[Message]


class Trace(_Answer):
    """Recent SIP messages by call, the newest call last."""

    since: float | None = Field(description="UNIX time of the oldest message kept.")
    calls: Sequence[TracedCall]


class TraceRoutes:
    """Reading what phones and trunks said lately."""

    def __init__(self, source: TraceSource) -> None:
        self._source = source

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "GET",
                "/api/v1/sip/trace",
                self.messages,
                "Recent SIP messages by call",
                "sip",
                Data[Trace],
                permission=Permission.SIP_TRACE,
                parameters=_PARAMETERS,
                errors=(400,),
            ),
            Route(
                "GET",
                "/api/v1/sip/trace.pcap",
                self.capture_file,
                "Recent SIP messages as a capture file for Wireshark or sngrep",
                "sip",
                None,
                permission=Permission.SIP_TRACE,
                parameters=_PARAMETERS,
                errors=(400,),
                media_type="application/vnd.tcpdump.pcap",
            ),
        )

    async def messages(self, asked: Asked) -> web.StreamResponse:
        found = await find(self._source, asked.request)
        body = await asyncio.to_thread(encode, {"data": found})  # up to 50 MB: calls must not wait for it
        return web.Response(body=body, content_type="application/json")

    async def capture_file(self, asked: Asked) -> web.StreamResponse:
        found = await find(self._source, asked.request)
        messages = sorted((message for call in found.calls for message in call.messages), key=lambda m: m.at)
        return web.Response(
            body=await asyncio.to_thread(capture, messages),
            content_type="application/vnd.tcpdump.pcap",
            headers={"Content-Disposition": 'attachment; filename="murima-sip.pcap"'},
        )


async def find(source: TraceSource, request: web.Request) -> Findings:
    """Search as a request's query says.

    Raises:
        ApiError: 400, the limit is no number.
    """
    query = request.query
    limit = query.get("limit", str(DEFAULT_CALLS))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:6]) <= MAX_CALLS):
        problem = Detail("limit", f"give a number from 1 to {MAX_CALLS}")
        raise ApiError(400, "The query is not valid.", details=[problem])
    return await source.find(call=query.get("call"), number=query.get("number"), limit=int(limit))


@asynccontextmanager
async def served_locally(source: TraceSource, path: Path) -> AsyncIterator[None]:
    """Serve `murima sip trace` on a Unix socket in a folder that only its owner may enter."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            found = await find(source, request)
        except ApiError as exc:
            return web.Response(status=exc.status, text=exc.message)
        return web.Response(body=await asyncio.to_thread(encode, found), content_type="application/json")

    app = web.Application()
    app.router.add_get("/sip/trace", answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
    except OSError as exc:  # calls matter more than looking at them
        log.warning("trace.not_served", extra={"path": str(path), "reason": exc.strerror or str(exc)})
    try:
        yield
    finally:
        await runner.cleanup()
