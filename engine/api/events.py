"""The event stream: what happens, sent to WebSocket clients as it happens.

The engine publishes and goes on. Each client has a bounded queue of its own;
one that does not keep up is told how many events it missed, and one that takes
nothing at all is closed. Clients are judged by role: agents see their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Sequence

from aiohttp import WSCloseCode, WSMsgType, web

from engine.api.errors import ApiError, Detail
from engine.api.models import Data, Empty, Event, Ticket
from engine.api.origin import check_origin
from engine.api.permissions import Permission, Scope
from engine.api.routes import Asked, Auth, Parameter, Route, encode, json_answer
from engine.api.sessions import Grant, Sessions
from engine.api.settings import ApiSettings
from engine.bus import EventBus
from engine.clock import Clock
from engine.events import AgentId, CallId, LogEvent, QueueId
from engine.operations import Operations

OWN_CALLS_KEPT = 64
MAX_TERMS = 20


class Subscription:
    """What one client wants and may see. Empty sets mean: everything."""

    def __init__(
        self,
        *,
        names: Iterable[str] = (),
        queues: Iterable[str] = (),
        agents: Iterable[str] = (),
        own: AgentId | None = None,
        everything: bool = True,
        own_queues: Iterable[QueueId] = (),
        own_calls: Iterable[CallId] = (),
    ) -> None:
        self._names = tuple(names)
        self._queues = frozenset(queues)
        self._agents = frozenset(agents)
        self._own = own
        self._everything = everything
        self._own_queues = frozenset(own_queues)
        self._own_calls = dict.fromkeys(own_calls)  # ordered, oldest first

    def admits(self, event: LogEvent) -> bool:
        """Whether to send this event; also learns which calls are the agent's own."""
        if not self._everything and not self._own_event(event):
            return False
        return (
            (not self._names or event.name.startswith(self._names))
            and (not self._queues or event.queue_id in self._queues)
            and (not self._agents or event.agent_id in self._agents)
        )

    def _own_event(self, event: LogEvent) -> bool:
        """Own: about the agent, about a call offered to the agent, or about others waiting in own queues."""
        if self._own is None:
            return False
        call_id = event.call_id
        if event.agent_id == self._own:
            if call_id is not None:
                if event.name in ("offer.failed", "call.ended"):
                    self._own_calls.pop(call_id, None)
                else:
                    self._own_calls[call_id] = None
                    if len(self._own_calls) > OWN_CALLS_KEPT:
                        del self._own_calls[next(iter(self._own_calls))]
            return True
        if call_id is not None and call_id in self._own_calls:
            if event.name == "call.ended":
                del self._own_calls[call_id]
            # A call handed on to another agent is that agent's from there.
            return event.agent_id is None
        return event.name.startswith("queue.") and event.agent_id is None and event.queue_id in self._own_queues


class Client:
    """One connection's bounded queue."""

    def __init__(self, grant: Grant, subscription: Subscription, limit: int) -> None:
        self.grant = grant
        self.subscription = subscription
        self.close_code: int | None = None
        self._limit = limit
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()

    def push(self, line: str) -> bool:
        """Queue one message; False when the queue is full and it was dropped."""
        self._wake.set()
        if len(self._lines) >= self._limit:
            self._dropped += 1
            return False
        self._lines.append(line)
        return True

    def close(self, code: int) -> None:
        """Ask the writer to close the connection, before anything still queued."""
        if self.close_code is None:
            self.close_code = code
        self._wake.set()

    async def batch(self) -> list[str]:
        """Wait for something to send. A notice of dropped events stands where they are missing."""
        await self._wake.wait()
        self._wake.clear()
        lines = list(self._lines)
        self._lines.clear()
        if self._dropped:
            lines.append(f'{{"dropped":{self._dropped}}}')
            self._dropped = 0
        return lines


class EventRoutes:
    """Joins the bus to the clients. Listens to the bus only between `open` and `close`."""

    def __init__(
        self, operations: Operations, sessions: Sessions, bus: EventBus, settings: ApiSettings, clock: Clock
    ) -> None:
        self._operations = operations
        self._sessions = sessions
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._clients: set[Client] = set()
        self._closing = False
        self.dropped = 0  # events not sent to slow clients, ever
        self._unsubscribe = bus.subscribe(self._on_event)
        sessions.on_revoked(self._on_revoked)

    @property
    def clients(self) -> int:
        """Connections now."""
        return len(self._clients)

    def close(self) -> None:
        """Close every stream with 1001 (going away) and stop listening."""
        self._closing = True
        self._unsubscribe()
        for client in self._clients:
            client.close(WSCloseCode.GOING_AWAY)

    def routes(self) -> Sequence[Route]:
        return (
            Route(
                "POST",
                "/api/v1/events/ticket",
                self.ticket,
                "A one-time ticket with which a browser opens the event stream",
                "events",
                Data[Ticket],
                permission=Permission.EVENTS_READ,
                body=Empty,
            ),
            Route(
                "GET",
                "/api/v1/events",
                self.stream,
                "WebSocket: events as they happen, one JSON message each",
                "events",
                Event,
                auth=Auth.TICKET,
                permission=Permission.EVENTS_READ,
                parameters=(
                    Parameter("ticket", "A one-time ticket, instead of the Authorization header."),
                    Parameter(
                        "names", "Only events whose names begin with one of these, comma-separated: call.,queue."
                    ),
                    Parameter("queue", "Only events of these queues, comma-separated."),
                    Parameter("agent", "Only events of these agents, comma-separated."),
                ),
                errors=(400, 503),
                status=101,
            ),
        )

    async def ticket(self, asked: Asked) -> web.StreamResponse:
        assert asked.grant is not None
        ticket = self._sessions.ticket(asked.grant, self._clock.utc().timestamp())
        return json_answer(Data(data=Ticket(ticket=ticket, expires_in=self._settings.ticket_lifetime_s)))

    async def stream(self, asked: Asked) -> web.StreamResponse:
        request = asked.request
        assert asked.grant is not None
        check_origin(request, self._settings)
        subscription = self._subscription(asked)
        if self._closing or len(self._clients) >= self._settings.event_clients:
            raise ApiError(503, "Too many event streams are open.", headers={"Retry-After": "10"})
        ws = web.WebSocketResponse(heartbeat=self._settings.heartbeat_s, max_msg_size=4096, compress=False, timeout=2.0)
        if not ws.can_prepare(request):
            raise ApiError(400, "This is a WebSocket; ask for the upgrade.")
        client = Client(asked.grant, subscription, self._settings.event_queue)
        self._clients.add(client)  # before the upgrade is answered, so that no event is missed after it
        writer: asyncio.Task[None] | None = None
        try:
            await ws.prepare(request)
            writer = asyncio.create_task(self._write(client, ws, request))
            await self._read(ws)
        finally:
            self._clients.discard(client)
            if writer is not None:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer
        return ws

    async def _read(self, ws: web.WebSocketResponse) -> None:
        """Answer pings and closes; a client has nothing to tell us."""
        while True:
            message = await ws.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"this stream goes one way")
                return
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return

    async def _write(self, client: Client, ws: web.WebSocketResponse, request: web.Request) -> None:
        session_over = self._clock.monotonic() + self._settings.session_max_s
        while not ws.closed:
            lines = await client.batch()
            if client.close_code is None and (
                not self._sessions.valid(client.grant) or self._clock.monotonic() >= session_over
            ):
                client.close_code = WSCloseCode.POLICY_VIOLATION
            if client.close_code is not None:
                await ws.close(code=client.close_code)
                return
            try:
                for line in lines:
                    async with asyncio.timeout(self._settings.event_stall_s):
                        await ws.send_str(line)
            except TimeoutError:
                # The close frame waits behind what the client does not take; then the line is cut.
                await ws.close(code=WSCloseCode.TRY_AGAIN_LATER, drain=False)
                if request.transport is not None:
                    request.transport.abort()
                return
            except ConnectionError:
                return

    def _subscription(self, asked: Asked) -> Subscription:
        names, queues, agents = (_terms(asked.request, name) for name in ("names", "queue", "agent"))
        if asked.scope is Scope.ALL:
            return Subscription(names=names, queues=queues, agents=agents)
        own = asked.identity.agent_id
        return Subscription(
            names=names,
            queues=queues,
            agents=agents,
            own=own,
            everything=False,
            own_queues=[q for agent in self._operations.agents() if agent.agent_id == own for q in agent.queues],
            own_calls=[call.call_id for call in self._operations.calls() if call.is_of(own)],
        )

    def _on_event(self, event: LogEvent) -> None:
        line = ""
        for client in self._clients:
            if client.subscription.admits(event):
                line = line or event_line(event)
                if not client.push(line):
                    self.dropped += 1

    def _on_revoked(self, session_id: str) -> None:
        for client in self._clients:
            if client.grant.session_id == session_id:
                client.close(WSCloseCode.POLICY_VIOLATION)


def event_line(event: LogEvent) -> str:
    """One event as the stream sends it."""
    return encode(
        {
            "id": event.event_id,
            "at": event.at,
            "name": event.name,
            "call_id": event.call_id,
            "agent_id": event.agent_id,
            "queue_id": event.queue_id,
            "data": event.facts(),
        }
    ).decode()


def _terms(request: web.Request, name: str) -> list[str]:
    text = request.query.get(name)
    if text is None:
        return []
    terms = [term.strip() for term in text.split(",") if term.strip()]
    if not terms or len(terms) > MAX_TERMS:
        raise ApiError(400, "The query is not valid.", details=[Detail(name, f"give 1 to {MAX_TERMS} values")])
    return terms
