"""Small fakes of the API's protocols, and the real application served on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json as jsonlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from engine.api import ApiSettings, Identity, Role, create_app, serve
from engine.bus import EventBus
from engine.events import AgentId, CallId, LogEvent, QueueId, TransferId
from engine.operations import (
    AgentStateRequest,
    AgentView,
    BanView,
    CallView,
    ComponentHealth,
    ConflictError,
    GatewayLine,
    NotFoundError,
    Page,
    QueueView,
    RecordsUnavailableError,
    TransferRequest,
    TrunkView,
)

START = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
SECRET = b"a secret of the tests, 32 bytes and more"
PASSWORD = "correct horse"
USERS = {
    "admin": Identity("admin", Role.ADMINISTRATOR),
    "boss": Identity("boss", Role.MANAGER),
    "a0001": Identity("a0001", Role.AGENT, AgentId("a0001")),
    "watcher": Identity("watcher", Role.VIEWER),
    "agentless": Identity("agentless", Role.AGENT, None),
}


class SteppedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> datetime:
        return START + timedelta(seconds=self.now - 1000.0)

    def step(self, seconds: float) -> None:
        self.now += seconds


def call(call_id: str, *, queue: str | None = None, agent: str | None = None, state: str = "talking") -> CallView:
    return CallView(
        call_id=CallId(call_id),
        state=state,
        caller="+358401234567",
        caller_name="Aino",
        dialled="500",
        trunk="carrier",
        started_at=START + timedelta(seconds=len(call_id)),
        answered_at=None if state == "waiting" else START,
        queue_id=QueueId(queue) if queue else None,
        agent_id=AgentId(agent) if agent else None,
        recording=False,
        explanation={"candidates": ["a0001"]} if agent else None,
    )


def queue(queue_id: str, members: Sequence[str] = ()) -> QueueView:
    ids = [AgentId(m) for m in members]
    return QueueView(QueueId(queue_id), "longest_idle", 1, 0, 1, 4.5, 1, 1, ids)


def agent(agent_id: str, queues: Sequence[str] = (), state: str = "ready") -> AgentView:
    return AgentView(
        AgentId(agent_id),
        f"Agent {agent_id}",
        state,
        "",
        START,
        True,
        None,
        {"billing": 80},
        [QueueId(q) for q in queues],
    )


class FakeOperations:
    def __init__(self) -> None:
        self.call_views = [
            call("c1", queue="support", agent="a0001"),
            call("c22", queue="support", state="waiting"),
            call("c333", agent="a0002"),
        ]
        self.queue_views = [queue("support", ["a0001", "a0002"]), queue("sales", ["a0002"])]
        self.agent_views = [agent("a0001", ["support"]), agent("a0002", ["support", "sales"], "talking")]
        self.components = [ComponentHealth("sip", True, True), ComponentHealth("database", True, False, "pool 1/5")]
        self.figures: dict[str, float] = {
            "calls_total": 7.0,
            "calls_active": 3.0,
            'sip_rejected_total{status="403"}': 2.0,
            'sip_rejected_total{status="404"}': 1.0,
            "broken name": 1.0,
        }
        self.trunk_views = [
            TrunkView("carrier", "up", 3, 30, None, True, START, [GatewayLine("sip:192.0.2.10", True)], ""),
            TrunkView("backup", "down", 0, None, 2.0, False, None, [GatewayLine("sip:192.0.2.11", False, "no")], "no"),
        ]
        self.placed: list[tuple[AgentId, str]] = []
        self.hung_up: list[str] = []
        self.held: dict[CallId, str] = {}
        self.transferred: list[tuple[CallId, TransferRequest]] = []
        self.broken = False

    def calls(self) -> Sequence[CallView]:
        if self.broken:
            raise RuntimeError("a fault of ours")
        return tuple(self.call_views)

    def queues(self) -> Sequence[QueueView]:
        return tuple(self.queue_views)

    def agents(self) -> Sequence[AgentView]:
        return tuple(self.agent_views)

    def trunks(self) -> Sequence[TrunkView]:
        return tuple(self.trunk_views)

    def place_call(self, agent_id: AgentId, number: str) -> CallId:
        if number == "999":
            raise ConflictError("no number and no route leads there")
        self.placed.append((agent_id, number))
        return CallId("placed")

    def hang_up(self, call_id: CallId) -> None:
        for view in self.call_views:
            if view.call_id == call_id:
                if view.state == "ending":
                    raise ConflictError("The call is ending already.")
                self.hung_up.append(call_id)
                return
        raise NotFoundError("There is no such call.")

    def hold(self, call_id: CallId, *, by: str) -> None:
        if call_id in self.held:
            raise ConflictError("The call is on hold already.")
        self.held[call_id] = by

    def resume(self, call_id: CallId) -> None:
        if self.held.pop(call_id, None) is None:
            raise ConflictError("The call is not on hold.")

    def transfer(self, call_id: CallId, request: TransferRequest) -> TransferId:
        if request.target == "999":
            raise NotFoundError("Nobody can be reached there.")
        if request.target == "busy":
            raise ConflictError("Another transfer of this call is in progress.")
        self.transferred.append((call_id, request))
        return TransferId(f"t{len(self.transferred)}")

    def set_agent_state(self, agent_id: AgentId, state: AgentStateRequest, reason: str) -> AgentView:
        for place, view in enumerate(self.agent_views):
            if view.agent_id == agent_id:
                if state is AgentStateRequest.OFFLINE and view.state == "talking":
                    raise ConflictError("The agent is in a call.")
                changed = dataclasses.replace(view, state=state.value, reason=reason)
                self.agent_views[place] = changed
                return changed
        raise NotFoundError("There is no such agent.")

    def health(self) -> Sequence[ComponentHealth]:
        return tuple(self.components)

    def counters(self) -> Mapping[str, float]:
        return self.figures


class FakeBans:
    def __init__(self) -> None:
        self.views = [
            BanView(address, reason, START, START + timedelta(minutes=minutes), minutes)
            for address, reason, minutes in (
                ("192.0.2.9", "passwords", 10),
                ("2001:db8::/64", "flood", 30),
                ("192.0.2.10", "scanner", 20),
            )
        ]

    def bans(self) -> Sequence[BanView]:
        return tuple(self.views)

    def lift_ban(self, address: str) -> None:
        left = [view for view in self.views if view.address != address]
        if len(left) == len(self.views):
            raise NotFoundError("This address is not banned.")
        self.views = left


class FakeRecords:
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = [
            {"call_id": f"r{n}", "queue": "support", "agent": "a0001" if n % 2 else "a0002", "started_at": START}
            for n in range(5)
        ]
        self.away = False

    async def interactions(
        self, *, filters: Mapping[str, str], sort: str, descending: bool, page: int, limit: int
    ) -> Page:
        if self.away:
            raise RecordsUnavailableError
        if sort not in ("started_at", "call_id"):
            raise ValueError(f"cannot sort by {sort!r}")
        if unknown := set(filters) - {"queue", "agent"}:
            raise ValueError(f"unknown filter {unknown.pop()!r}")
        rows = [row for row in self.rows if all(row[key] == value for key, value in filters.items())]
        return Page(rows[(page - 1) * limit : page * limit], len(rows))


class FakeAccounts:
    def __init__(self) -> None:
        self.users = dict(USERS)
        self.verified = 0

    def verify(self, username: str, password: str) -> Identity | None:
        self.verified += 1
        return self.users.get(username) if password == PASSWORD else None

    def identity(self, username: str) -> Identity | None:
        return self.users.get(username)


def settings(**changes: object) -> ApiSettings:
    return dataclasses.replace(ApiSettings(jwt_secret=SECRET), **changes)  # type: ignore[arg-type] # checked by each field's use


class Rig:
    """The served application and what lies behind it."""

    def __init__(self, api_settings: ApiSettings) -> None:
        self.operations = FakeOperations()
        self.records = FakeRecords()
        self.accounts = FakeAccounts()
        self.bans = FakeBans()
        self.bus = EventBus()
        self.clock = SteppedClock()
        self.app = create_app(
            self.operations, self.records, self.accounts, self.bus, api_settings, self.clock, bans=self.bans
        )
        self.server: asyncio.Task[None] | None = None
        self.port = 0
        self.http: aiohttp.ClientSession

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def token(self, username: str = "admin") -> str:
        answer = await self.ask("POST", "/api/v1/auth/login", json={"username": username, "password": PASSWORD})
        assert answer.status == 200, answer.body
        return str(answer.json["data"]["access_token"])

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        async with self.http.request(
            method, self.base + path, json=json, data=data, headers=sent, allow_redirects=False
        ) as response:
            return Answer(response.status, response.headers.copy(), await response.read(), response)

    def publish(self, event: LogEvent) -> None:
        self.bus.publish(event)

    async def stop(self) -> None:
        if self.server is not None and not self.server.done():
            self.server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.server


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, response: aiohttp.ClientResponse) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.cookies = response.cookies

    @property
    def json(self) -> Any:
        return jsonlib.loads(self.body)


@contextlib.asynccontextmanager
async def running(**changes: object) -> AsyncIterator[Rig]:
    """Serve the API on a free port of loopback until the block ends."""
    rig = Rig(settings(**changes))
    sock = socket.create_server(("127.0.0.1", 0))
    rig.port = sock.getsockname()[1]
    rig.server = asyncio.create_task(serve(rig.app, sock))
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        rig.http = http
        try:
            yield rig
        finally:
            await rig.stop()
