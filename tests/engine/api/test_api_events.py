"""The event WebSocket: who may open it, what it shows, and what becomes of slow clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import ClientWebSocketResponse, WSMsgType

from config.schema import Role
from engine.api.accounts import Identity
from engine.api.events import Subscription
from engine.events import (
    AgentId,
    AgentStateChanged,
    CallEnded,
    CallId,
    CallStarted,
    EndCause,
    LegMeasured,
    LogEvent,
    MediaStatistics,
    OfferFailed,
    OfferMade,
    Party,
    QueueId,
    QueueJoined,
    TalkStarted,
)
from tests.engine.api.fakes import START, Rig, running


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running(event_queue=10) as served:
        yield served


def state_event(n: int, agent: str = "a0001", reason: str = "") -> AgentStateChanged:
    return AgentStateChanged(
        event_id=f"e{n}", at=START, agent_id=AgentId(agent), old="ready", new="break", reason=reason
    )


async def connect(rig: Rig, username: str = "admin", query: str = "", **headers: str) -> ClientWebSocketResponse:
    token = await rig.token(username)
    sent = {"Authorization": f"Bearer {token}", **headers}
    return await rig.http.ws_connect(f"{rig.base}/api/v1/events{query}", headers=sent, autoclose=True)


async def ticket(rig: Rig, username: str = "admin") -> str:
    answer = await rig.ask("POST", "/api/v1/events/ticket", token=await rig.token(username))
    assert answer.json["data"]["expires_in"] == 30
    return str(answer.json["data"]["ticket"])


async def heard(ws: ClientWebSocketResponse) -> Any:
    message = await ws.receive(timeout=5)
    assert message.type is WSMsgType.TEXT, message
    return json.loads(message.data)


async def closed_with(ws: ClientWebSocketResponse) -> int | None:
    while (await ws.receive(timeout=5)).type is WSMsgType.TEXT:
        pass
    return ws.close_code


async def refused(rig: Rig, query: str, **headers: str) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await rig.http.ws_connect(f"{rig.base}/api/v1/events{query}", headers=headers)
    return caught.value.status


async def test_events_arrive_in_order_and_in_the_agreed_form(rig: Rig) -> None:
    ws = await connect(rig)
    rig.publish(state_event(1, reason="lunch"))
    rig.publish(
        LegMeasured(
            event_id="e2", at=START, call_id=CallId("c1"), party="caller", statistics=MediaStatistics(codec="PCMU")
        )
    )
    assert await heard(ws) == {
        "id": "e1",
        "at": "2026-01-31T09:00:00Z",
        "name": "agent.state",
        "call_id": None,
        "agent_id": "a0001",
        "queue_id": None,
        "data": {"old": "ready", "new": "break", "reason": "lunch"},
    }
    second = await heard(ws)
    assert second["data"]["statistics"]["codec"] == "PCMU"


async def test_a_ticket_opens_one_stream_once(rig: Rig) -> None:
    one = await ticket(rig)
    ws = await rig.http.ws_connect(f"{rig.base}/api/v1/events?ticket={one}", headers={"Origin": rig.base})
    rig.publish(state_event(1))
    assert (await heard(ws))["id"] == "e1"
    assert await refused(rig, f"?ticket={one}") == 401
    late = await ticket(rig)
    rig.clock.step(30)
    assert await refused(rig, f"?ticket={late}") == 401
    assert await refused(rig, "") == 401


async def test_pages_of_other_origins_are_refused(rig: Rig) -> None:
    token = await rig.token()
    for origin in ("https://evil.example", "null", "http://[", f"ftp://127.0.0.1:{rig.port}"):
        assert await refused(rig, "", Origin=origin, Authorization=f"Bearer {token}") == 403


async def test_a_subscription_narrows_the_stream(rig: Rig) -> None:
    ws = await connect(rig, query="?names=queue.,agent.&agent=a0002")
    rig.publish(state_event(1, "a0001"))
    rig.publish(TalkStarted(event_id="e2", at=START, agent_id=AgentId("a0002")))
    rig.publish(state_event(3, "a0002"))
    assert (await heard(ws))["id"] == "e3"
    by_queue = await connect(rig, query="?queue=support")
    rig.publish(QueueJoined(event_id="e4", at=START, queue_id=QueueId("sales")))
    rig.publish(QueueJoined(event_id="e5", at=START, queue_id=QueueId("support")))
    assert (await heard(by_queue))["id"] == "e5"
    headers = {"Authorization": f"Bearer {await rig.token()}"}
    assert await refused(rig, "?names=,", **headers) == 400
    assert await refused(rig, "?agent=" + ",".join("abcdefghijklmnopqrstuvwxyz"), **headers) == 400


async def test_agents_hear_of_their_own_calls_and_queues_only(rig: Rig) -> None:
    ws = await connect(rig, "a0001")
    rig.publish(state_event(1, "a0002"))
    rig.publish(
        CallStarted(event_id="e2", at=START, call_id=CallId("new"), caller=Party("+358401234567"), dialled="500")
    )
    rig.publish(QueueJoined(event_id="e3", at=START, call_id=CallId("new"), queue_id=QueueId("sales")))
    rig.publish(QueueJoined(event_id="e4", at=START, call_id=CallId("new"), queue_id=QueueId("support")))
    rig.publish(state_event(5, "a0001"))
    assert [(await heard(ws))["id"] for _ in range(2)] == ["e4", "e5"]


def own() -> Subscription:
    return Subscription(own=AgentId("a1"), everything=False, own_queues=[QueueId("q")], own_calls=[CallId("mine")])


def ended(call_id: str) -> LogEvent:
    return CallEnded(
        event_id="x", at=START, call_id=CallId(call_id), cause=EndCause.NORMAL, by="caller", duration_s=1.0
    )


def test_a_call_becomes_ones_own_when_offered_and_ceases_to_be() -> None:
    subscription = own()
    offered = OfferMade(event_id="x", at=START, call_id=CallId("c"), agent_id=AgentId("a1"), queue_id=QueueId("q"))
    failed = OfferFailed(event_id="x", at=START, call_id=CallId("c"), agent_id=AgentId("a1"), cause=EndCause.NO_ANSWER)
    assert not subscription.admits(ended("c"))
    assert subscription.admits(offered)
    assert subscription.admits(ended("c"))
    assert not subscription.admits(ended("c"))
    assert subscription.admits(offered)
    assert subscription.admits(failed)
    assert not subscription.admits(ended("c"))
    assert subscription.admits(ended("mine"))


def test_another_agents_part_in_ones_own_call_stays_theirs() -> None:
    theirs = TalkStarted(event_id="x", at=START, call_id=CallId("mine"), agent_id=AgentId("a2"))
    assert not own().admits(theirs)


def test_ones_own_calls_are_remembered_within_bounds() -> None:
    subscription = own()
    for n in range(1000):
        subscription.admits(TalkStarted(event_id="x", at=START, call_id=CallId(f"c{n}"), agent_id=AgentId("a1")))
    assert not subscription.admits(ended("mine"))
    assert subscription.admits(ended("c999"))


async def test_a_slow_client_learns_what_it_missed(rig: Rig) -> None:
    ws = await connect(rig)
    for n in range(25):  # in one go: the writer has no chance to run in between
        rig.publish(state_event(n))
    assert [(await heard(ws))["id"] for _ in range(10)] == [f"e{n}" for n in range(10)]
    assert await heard(ws) == {"dropped": 15}
    rig.publish(state_event(99))
    assert (await heard(ws))["id"] == "e99"
    assert b"murima_event_dropped_total 15.0" in (await rig.ask("GET", "/metrics")).body


async def test_a_client_that_takes_nothing_is_closed_and_others_go_on() -> None:
    async with running(event_stall_s=0.2, event_queue=100) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
        one = await ticket(rig)
        request = (
            f"GET /api/v1/events?ticket={one} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        writer.write(request.encode())
        assert b"101" in await reader.readline()
        quick = await connect(rig, query="?agent=a0001")
        for n in range(40):
            rig.publish(state_event(n, "a0002", "x" * 1_000_000))
        rig.publish(state_event(99, "a0001"))
        assert (await heard(quick))["id"] == "e99"
        async with asyncio.timeout(20):
            while b"murima_event_clients 1.0" not in (await rig.ask("GET", "/metrics")).body:
                pass
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(60_000_000)
        writer.close()


async def test_only_so_many_streams_are_open() -> None:
    async with running(event_clients=1) as rig:
        ws = await connect(rig)
        token = await rig.token()
        assert await refused(rig, "", Authorization=f"Bearer {token}") == 503
        await ws.close()


async def test_a_client_that_talks_is_shown_out(rig: Rig) -> None:
    ws = await connect(rig)
    await ws.send_str("hello")
    assert await closed_with(ws) == 1008


async def test_the_end_of_the_session_ends_its_streams(rig: Rig) -> None:
    login = await rig.ask("POST", "/api/v1/auth/login", json={"username": "boss", "password": "correct horse"})
    headers = {"Authorization": f"Bearer {login.json['data']['access_token']}"}
    ws = await rig.http.ws_connect(f"{rig.base}/api/v1/events", headers=headers)
    other = await connect(rig, "boss")
    cookie = {"Cookie": f"murima_refresh={login.cookies['murima_refresh'].value}"}
    assert (await rig.ask("POST", "/api/v1/auth/logout", headers=cookie)).status == 204
    assert await closed_with(ws) == 1008
    rig.publish(state_event(1))
    assert (await heard(other))["id"] == "e1"


async def test_a_changed_role_ends_the_stream_before_the_next_event(rig: Rig) -> None:
    ws = await connect(rig, "boss")
    rig.accounts.users["boss"] = Identity("boss", Role.AGENT)
    rig.publish(state_event(1))
    message = await ws.receive(timeout=5)
    assert message.type is WSMsgType.CLOSE
    assert ws.close_code == 1008


async def test_streams_are_pinged() -> None:
    async with running(heartbeat_s=0.05) as rig:
        token = await rig.token()
        headers = {"Authorization": f"Bearer {token}"}
        async with rig.http.ws_connect(f"{rig.base}/api/v1/events", headers=headers, autoping=False) as ws:
            assert (await ws.receive(timeout=5)).type is WSMsgType.PING


async def test_stopping_the_server_closes_streams_with_1001() -> None:
    async with running() as rig:
        ws = await connect(rig)
        stop = asyncio.create_task(rig.stop())
        assert await closed_with(ws) == 1001
        await stop
        assert rig.bus._listeners == []
        with pytest.raises(aiohttp.ClientConnectionError):
            await rig.ask("GET", "/healthz")
