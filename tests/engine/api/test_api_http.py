"""Every route over real HTTP: who may, what comes back, and the one form of errors."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from engine.api.app import ROUTES
from engine.api.routes import Auth
from engine.api.settings import Rate
from engine.events import AgentId
from engine.operations import AgentStateRequest as AgentState
from engine.operations import ComponentHealth, TransferRequest
from tests.engine.api.fakes import PASSWORD, START, USERS, Answer, Rig, agent, call, running


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as served:
        yield served


def is_error(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"].startswith("application/json")
    error = answer.json["error"]
    assert error["code"] == code
    assert error["message"]
    assert all(set(detail) == {"field", "message"} for detail in error["details"])


# --- every role × every route -------------------------------------------------------------

PATHS = {
    ("GET", "/api/v1/calls"): (200, 200, 200, 200),
    ("GET", "/api/v1/calls/c1"): (200, 200, 200, 200),
    ("GET", "/api/v1/calls/c333"): (200, 200, 404, 200),
    ("POST", "/api/v1/calls/c1/hangup"): (204, 204, 204, 403),
    ("POST", "/api/v1/calls/c333/hangup"): (204, 204, 404, 403),
    ("POST", "/api/v1/calls/c1/hold"): (204, 204, 204, 403),
    ("POST", "/api/v1/calls/c333/hold"): (204, 204, 404, 403),
    ("POST", "/api/v1/calls/c1/resume"): (204, 204, 204, 403),
    ("POST", "/api/v1/calls/c333/resume"): (204, 204, 404, 403),
    ("POST", "/api/v1/calls/c1/transfer"): (202, 202, 202, 403),
    ("POST", "/api/v1/calls/c333/transfer"): (202, 202, 404, 403),
    ("POST", "/api/v1/calls"): (201, 201, 201, 403),
    ("GET", "/api/v1/trunks"): (200, 200, 200, 200),
    ("GET", "/api/v1/queues"): (200, 200, 200, 200),
    ("GET", "/api/v1/queues/support"): (200, 200, 200, 200),
    ("GET", "/api/v1/queues/sales"): (200, 200, 404, 200),
    ("GET", "/api/v1/agents"): (200, 200, 200, 200),
    ("GET", "/api/v1/agents/a0001"): (200, 200, 200, 200),
    ("GET", "/api/v1/agents/a0002"): (200, 200, 404, 200),
    ("PUT", "/api/v1/agents/a0001/state"): (200, 200, 200, 403),
    ("PUT", "/api/v1/agents/a0002/state"): (200, 200, 403, 403),
    ("GET", "/api/v1/interactions"): (200, 200, 200, 200),
    ("POST", "/api/v1/events/ticket"): (200, 200, 200, 200),
    ("GET", "/api/v1/events"): (400, 400, 400, 400),  # allowed, but not a WebSocket upgrade
    ("GET", "/api/v1/auth/me"): (200, 200, 200, 200),
    ("GET", "/api/v1/sip/bans"): (200, 403, 403, 403),
    ("DELETE", "/api/v1/sip/bans/192.0.2.9"): (204, 403, 403, 403),
    ("GET", "/healthz"): (200, 200, 200, 200),
    ("GET", "/readyz"): (200, 200, 200, 200),
    ("GET", "/metrics"): (200, 200, 200, 200),
    ("GET", "/api/v1/openapi.json"): (200, 200, 200, 200),
}


@pytest.mark.parametrize(("place", "username"), list(enumerate(("admin", "boss", "a0001", "watcher"))))
async def test_each_role_on_each_route(rig: Rig, place: int, username: str) -> None:
    token = await rig.token(username)
    for (method, path), expected in PATHS.items():
        body = {"state": "break", "reason": "lunch"} if method == "PUT" else None
        if path.endswith("/transfer"):
            body = {"target": "500"}
        elif (method, path) == ("POST", "/api/v1/calls"):
            body = {"from": "a0001", "to": "500"}
        answer = await rig.ask(method, path, token=token, json=body)
        assert answer.status == expected[place], (method, path, answer.body)


async def test_without_a_token_only_what_needs_none(rig: Rig) -> None:
    for method, path in PATHS:
        answer = await rig.ask(method, path)
        if path in ("/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"):
            assert answer.status == 200
        else:
            is_error(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_tables_above_miss_no_route() -> None:
    tested = {(method, path) for method, path in PATHS}
    from tests.engine.api.fakes import settings

    for route in Rig(settings()).app[ROUTES]:
        if route.auth is Auth.COOKIE or route.path.endswith("/login"):
            continue
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path))
        assert any(method == route.method and pattern.fullmatch(path) for method, path in tested), route.path


async def test_agents_see_only_what_is_theirs(rig: Rig) -> None:
    token = await rig.token("a0001")
    calls = await rig.ask("GET", "/api/v1/calls", token=token)
    queues = await rig.ask("GET", "/api/v1/queues", token=token)
    agents = await rig.ask("GET", "/api/v1/agents", token=token)
    interactions = await rig.ask("GET", "/api/v1/interactions", token=token)
    assert [row["id"] for row in calls.json["data"]] == ["c1"]
    assert [row["id"] for row in queues.json["data"]] == ["support"]
    assert [row["id"] for row in agents.json["data"]] == ["a0001"]
    assert {row["agent"] for row in interactions.json["data"]} == {"a0001"}
    others = await rig.ask("GET", "/api/v1/interactions?filter=agent:a0002", token=token)
    assert others.json == {"data": [], "pagination": {"total": 0, "page": 1, "limit": 50, "pages": 0}}


async def test_a_call_is_also_that_of_the_agent_who_calls(rig: Rig) -> None:
    outside = dataclasses.replace(call("c4444", agent="a0001"), trunk=None, trunk_out="carrier")
    colleague = dataclasses.replace(call("c55555", agent="a0002"), from_agent=AgentId("a0001"))
    rig.operations.call_views += [outside, colleague]
    token = await rig.token("a0001")
    for query in ("", "?filter=agent:a0001"):
        calls = await rig.ask("GET", f"/api/v1/calls{query}", token=token)
        assert {row["id"] for row in calls.json["data"]} == {"c1", "c4444", "c55555"}
    assert (await rig.ask("POST", "/api/v1/calls/c55555/hangup", token=token)).status == 204
    calls = await rig.ask("GET", "/api/v1/calls?filter=trunk:carrier&sort=id&order=asc", token=token)
    assert [row["trunk_out"] for row in calls.json["data"] if row["id"] == "c4444"] == ["carrier"]


async def test_an_agent_account_without_an_agent_sees_nothing(rig: Rig) -> None:
    rig.operations.call_views = [call("c1")]
    token = await rig.token("agentless")
    for name in ("calls", "queues", "agents", "interactions"):
        answer = await rig.ask("GET", f"/api/v1/{name}", token=token)
        assert answer.json["data"] == []


# --- the form of answers and errors ---------------------------------------------------------


async def test_a_call_and_a_collection_have_the_agreed_form(rig: Rig) -> None:
    token = await rig.token()
    one = await rig.ask("GET", "/api/v1/calls/c1", token=token)
    assert one.json["data"]["queue_id"] == "support"
    assert one.json["data"]["explanation"] == {"candidates": ["a0001"]}
    for name, key in (("calls", "call_id"), ("queues", "queue_id"), ("agents", "agent_id")):
        rows = (await rig.ask("GET", f"/api/v1/{name}", token=token)).json["data"]
        assert all(row["id"] == row[key] for row in rows)
    page = await rig.ask("GET", "/api/v1/calls?limit=2&sort=id&order=desc", token=token)
    assert [row["id"] for row in page.json["data"]] == ["c333", "c22"]
    assert page.json["pagination"] == {"total": 3, "page": 1, "limit": 2, "pages": 2}
    beyond = await rig.ask("GET", "/api/v1/calls?page=9", token=token)
    assert beyond.json["data"] == []
    some = await rig.ask("GET", "/api/v1/calls?filter=queue:support,state:waiting", token=token)
    assert [row["id"] for row in some.json["data"]] == ["c22"]


async def test_explanations_of_any_kind_can_be_shown(rig: Rig) -> None:
    reason = {"at": START, "agent": AgentState.BREAK, "tried": frozenset({"a0001"}), "odd": re.compile("x")}
    rig.operations.call_views = [dataclasses.replace(call("c1"), explanation=reason)]
    token = await rig.token()
    for path in ("/api/v1/calls/c1", "/api/v1/calls"):
        answer = await rig.ask("GET", path, token=token)
        assert answer.status == 200
        assert b'"tried":["a0001"]' in answer.body


@pytest.mark.parametrize("name", ["calls", "queues", "agents"])
async def test_every_sort_and_filter_offered_works(rig: Rig, name: str) -> None:
    token = await rig.token()
    route = next(route for route in rig.app[ROUTES] if route.path == f"/api/v1/{name}")
    assert route.listing is not None
    assert route.listing.filters is not None
    for sort in route.listing.sorts:
        for order in ("asc", "desc"):
            answer = await rig.ask("GET", f"/api/v1/{name}?sort={sort}&order={order}", token=token)
            assert answer.status == 200
    for key in route.listing.filters:
        answer = await rig.ask("GET", f"/api/v1/{name}?filter={key}:nothing", token=token)
        assert answer.json["data"] == []


async def test_errors_have_one_form(rig: Rig) -> None:
    token = await rig.token()
    is_error(await rig.ask("GET", "/nowhere"), 404, "not_found")
    wrong_method = await rig.ask("DELETE", "/api/v1/calls", token=token)
    is_error(wrong_method, 405, "method_not_allowed")
    assert "GET" in wrong_method.headers["Allow"]
    is_error(await rig.ask("GET", "/api/v1/calls/none", token=token), 404, "not_found")
    is_error(await rig.ask("GET", "/api/v1/calls?limit=500", token=token), 400, "bad_request")
    is_error(await rig.ask("GET", "/api/v1/calls?page=1&page=2", token=token), 400, "bad_request")
    state = "/api/v1/agents/a0002/state"
    is_error(await rig.ask("PUT", "/api/v1/agents/x/state", token=token, json={"state": "ready"}), 404, "not_found")
    is_error(await rig.ask("PUT", state, token=token, json={"state": "offline"}), 409, "conflict")
    json_type = {"Content-Type": "application/json"}
    is_error(await rig.ask("PUT", state, token=token, data=b"{", headers=json_type), 400, "bad_request")
    is_error(await rig.ask("PUT", state, token=token, data=b"\xff", headers=json_type), 400, "bad_request")
    is_error(await rig.ask("PUT", state, token=token, data=b"state=ready"), 415, "unsupported_media_type")
    is_error(await rig.ask("PUT", state, token=token, data=b" " * 70_000, headers=json_type), 413, "too_large")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"state": "talking"}, "state"),
        ({}, "state"),
        ({"state": "ready", "reason": 7}, "reason"),
        ({"state": "ready", "reason": "x" * 101}, "reason"),
        ({"state": "ready", "colour": "red"}, "colour"),
    ],
)
async def test_an_invalid_body_names_the_field(rig: Rig, body: dict[str, object], field: str) -> None:
    answer = await rig.ask("PUT", "/api/v1/agents/a0001/state", token=await rig.token(), json=body)
    is_error(answer, 422, "invalid")
    assert [detail["field"] for detail in answer.json["error"]["details"]] == [field]


async def test_our_own_fault_is_a_500_that_names_only_the_request(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    token = await rig.token()
    rig.operations.broken = True
    answer = await rig.ask("GET", "/api/v1/calls", token=token, headers={"X-Request-ID": "req-1"})
    is_error(answer, 500, "internal_error")
    assert b"a fault of ours" not in answer.body
    assert b"req-1" in answer.body
    assert any(record.message == "http.failed" for record in caplog.records)


async def test_what_is_not_http_gets_our_error_and_no_log_line(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"INVITE sip:x SIP/2.0\r\n\r\n")
    raw = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    assert raw.startswith(b"HTTP/1.")
    assert b" 400 " in raw.splitlines()[0]
    assert b'"code":"bad_request"' in raw
    assert b"aiohttp" not in raw
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_every_answer_carries_the_headers(rig: Rig) -> None:
    for path in ("/", "/healthz", "/nowhere", "/api/v1/calls", "/assets/style.css"):
        answer = await rig.ask("GET", path)
        assert answer.headers["Server"] == "murima"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Request-ID"]
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Strict-Transport-Security" not in answer.headers
    assert (await rig.ask("GET", "/api/v1/calls")).headers["Cache-Control"] == "no-store"


async def test_request_ids_are_taken_over_when_they_are_harmless(rig: Rig) -> None:
    good = await rig.ask("GET", "/healthz", headers={"X-Request-ID": "trace-7.a"})
    assert good.headers["X-Request-ID"] == "trace-7.a"
    bad = await rig.ask("GET", "/healthz", headers={"X-Request-ID": "a b" * 40})
    assert re.fullmatch(r"[0-9a-f]{32}", bad.headers["X-Request-ID"])


async def test_the_access_log_holds_no_numbers_and_no_tickets(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "murima.http")
    token = await rig.token()
    await rig.ask("GET", "/api/v1/calls?filter=caller:%2B358401234567", token=token)
    await rig.ask("GET", "/api/v1/agents/+358401234567", token=token)
    await rig.ask("GET", "/api/v1/events?ticket=s3cret-ticket")
    text = repr([record.__dict__ for record in caplog.records])
    assert "358401234567" not in text
    assert "s3cret-ticket" not in text
    assert PASSWORD not in text
    assert any(record.__dict__.get("route") == "/api/v1/agents/{id}" for record in caplog.records)


# --- health and figures ---------------------------------------------------------------------


async def test_readiness_follows_the_critical_components(rig: Rig) -> None:
    rig.operations.components = [ComponentHealth("sip", True, True), ComponentHealth("database", False, False, "down")]
    ready = await rig.ask("GET", "/readyz")
    assert ready.status == 200
    assert ready.json["data"]["components"][1] == {
        "name": "database",
        "ok": False,
        "critical": False,
        "detail": "down",
    }
    rig.operations.components = [ComponentHealth("sip", False, True, "port in use")]
    down = await rig.ask("GET", "/readyz")
    is_error(down, 503, "unavailable")
    assert down.json["error"]["details"] == [{"field": "sip", "message": "port in use"}]
    far = await rig.ask("GET", "/readyz", headers={"X-Forwarded-For": "192.0.2.1"})
    assert far.json["error"]["details"] == [{"field": "sip", "message": "does not work"}]
    assert (await rig.ask("GET", "/healthz")).status == 200


async def test_figures_are_prometheus_text(rig: Rig) -> None:
    await rig.ask("GET", "/nowhere")
    await rig.ask("GET", "/api/v1/queues/%00")
    answer = await rig.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = answer.body.decode().splitlines()
    for line in (
        "murima_calls_total 7.0",
        "murima_calls_active 3.0",
        'murima_sip_rejected_total{status="403"} 2.0',
        'murima_component_up{component="sip"} 1.0',
        'murima_http_requests_total{method="GET",route="unknown",status="404"} 1.0',
        'murima_http_requests_total{method="GET",route="/api/v1/queues/{id}",status="401"} 1.0',
        "murima_event_clients 0.0",
    ):
        assert line in lines
    assert any(line.startswith("murima_http_request_duration_seconds_bucket") for line in lines)
    assert any(line.startswith("murima_process_") for line in lines)
    assert all(line.startswith(("#", "murima_")) for line in lines)


async def test_figures_are_for_this_machine_and_for_the_token() -> None:
    far = {"X-Forwarded-For": "192.0.2.1"}
    async with running(metrics_token="tok") as rig:
        is_error(await rig.ask("GET", "/metrics", headers=far), 403, "forbidden")
        is_error(await rig.ask("GET", "/metrics", token="wrong"), 403, "forbidden")
        assert (await rig.ask("GET", "/metrics", headers=far, token="tok")).status == 200
    async with running(metrics_public=True) as rig:
        assert (await rig.ask("GET", "/metrics", headers=far)).status == 200


# --- logging in -----------------------------------------------------------------------------


def cookie_header(answer: Answer) -> dict[str, str]:
    return {"Cookie": f"murima_refresh={answer.cookies['murima_refresh'].value}"}


async def log_in(rig: Rig, username: str = "boss", password: str = PASSWORD, **headers: str) -> Answer:
    body = {"username": username, "password": password}
    return await rig.ask("POST", "/api/v1/auth/login", json=body, headers=headers)


async def test_login_gives_a_token_and_a_guarded_cookie(rig: Rig) -> None:
    answer = await log_in(rig)
    data = answer.json["data"]
    assert data["token_type"] == "Bearer"
    assert data["expires_in"] == 600
    assert data["user"] == {"username": "boss", "role": "manager", "agent_id": None}
    cookie = answer.cookies["murima_refresh"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/api/v1/auth"
    assert not cookie["secure"]
    assert cookie.value not in answer.body.decode()
    me = await rig.ask("GET", "/api/v1/auth/me", token=data["access_token"])
    assert me.json == {"data": data["user"]}


async def test_the_cookie_is_secure_over_https() -> None:
    async with running(cookie_secure=True) as rig:
        answer = await log_in(rig)
        assert answer.cookies["murima_refresh"]["secure"]
        assert "max-age" in answer.headers["Strict-Transport-Security"]


async def test_unknown_user_and_wrong_password_get_the_same_answer(rig: Rig) -> None:
    wrong = await log_in(rig, password="wrong")
    unknown = await log_in(rig, "nobody", "wrong")
    is_error(wrong, 401, "unauthorized")
    assert wrong.body == unknown.body
    assert rig.accounts.verified == 2


async def test_refresh_rotates_and_reuse_ends_the_session(rig: Rig) -> None:
    first = await log_in(rig)
    second = await rig.ask("POST", "/api/v1/auth/refresh", headers=cookie_header(first))
    assert second.status == 200
    assert cookie_header(second) != cookie_header(first)
    token = second.json["data"]["access_token"]
    assert (await rig.ask("GET", "/api/v1/calls", token=token)).status == 200
    is_error(await rig.ask("POST", "/api/v1/auth/refresh", headers=cookie_header(first)), 401, "unauthorized")
    is_error(await rig.ask("POST", "/api/v1/auth/refresh", headers=cookie_header(second)), 401, "unauthorized")
    is_error(await rig.ask("GET", "/api/v1/calls", token=token), 401, "unauthorized")


async def test_logout_ends_the_session(rig: Rig) -> None:
    answer = await log_in(rig)
    out = await rig.ask("POST", "/api/v1/auth/logout", headers=cookie_header(answer))
    assert out.status == 204
    assert out.cookies["murima_refresh"].value == ""
    is_error(await rig.ask("GET", "/api/v1/calls", token=answer.json["data"]["access_token"]), 401, "unauthorized")
    is_error(await rig.ask("POST", "/api/v1/auth/refresh", headers=cookie_header(answer)), 401, "unauthorized")
    assert (await rig.ask("POST", "/api/v1/auth/logout")).status == 204


async def test_other_sites_cannot_use_the_cookie() -> None:
    async with running(allowed_origins=("https://desk.example.org",)) as rig:
        answer = await log_in(rig)
        for path in ("refresh", "logout"):
            foreign = cookie_header(answer) | {"Origin": "https://evil.example"}
            is_error(await rig.ask("POST", f"/api/v1/auth/{path}", headers=foreign), 403, "forbidden")
        for origin in (rig.base, "https://desk.example.org"):
            headers = cookie_header(answer) | {"Origin": origin}
            answer = await rig.ask("POST", "/api/v1/auth/refresh", headers=headers)
            assert answer.status == 200


async def test_access_tokens_expire(rig: Rig) -> None:
    token = await rig.token()
    rig.clock.step(599)
    assert (await rig.ask("GET", "/api/v1/calls", token=token)).status == 200
    rig.clock.step(1)
    is_error(await rig.ask("GET", "/api/v1/calls", token=token), 401, "unauthorized")


async def test_guessing_is_slowed_per_user_and_good_log_ins_are_free() -> None:
    async with running(login_per_user=Rate(3, 30.0), login_per_source=Rate(100, 1.0)) as rig:
        for _ in range(10):
            assert (await log_in(rig)).status == 200
        for _ in range(3):
            assert (await log_in(rig, password="wrong")).status == 401
        checked = rig.accounts.verified
        slowed = await log_in(rig)
        is_error(slowed, 429, "too_many_requests")
        assert slowed.headers["Retry-After"] == "10"
        assert rig.accounts.verified == checked
        assert (await log_in(rig, "admin")).status == 200
        rig.clock.step(10)
        assert (await log_in(rig)).status == 200


async def test_guessing_is_slowed_per_source_as_proxies_report_it() -> None:
    from ipaddress import ip_network

    async with running(
        login_per_user=Rate(100, 1.0),
        login_per_source=Rate(2, 30.0),
        trusted_proxies=(ip_network("127.0.0.0/8"),),
    ) as rig:
        for name in ("x", "y"):
            answer = await log_in(rig, name, "wrong", **{"X-Forwarded-For": "203.0.113.9, 192.0.2.1"})
            assert answer.status == 401
        # What the client itself wrote in front does not buy it another bucket.
        again = await log_in(rig, **{"X-Forwarded-For": "198.51.100.4, 192.0.2.1"})
        is_error(again, 429, "too_many_requests")
        assert (await log_in(rig, **{"X-Forwarded-For": "192.0.2.2"})).status == 200


async def test_forwarded_addresses_are_not_believed_from_just_anyone() -> None:
    async with running(login_per_source=Rate(1, 30.0)) as rig:
        assert (await log_in(rig, "x", "wrong", **{"X-Forwarded-For": "192.0.2.1"})).status == 401
        is_error(await log_in(rig, **{"X-Forwarded-For": "192.0.2.2"}), 429, "too_many_requests")


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "boss"}, {"username": "", "password": "x"}, {"username": "boss", "password": "x" * 1025}, [], 1],
)
async def test_an_incomplete_login_is_refused(rig: Rig, body: object) -> None:
    is_error(await rig.ask("POST", "/api/v1/auth/login", json=body), 422, "invalid")
    assert rig.accounts.verified == 0


# --- commands and records -------------------------------------------------------------------


async def test_commands_reach_the_engine(rig: Rig) -> None:
    token = await rig.token("boss")
    assert (await rig.ask("POST", "/api/v1/calls/c333/hangup", token=token)).status == 204
    assert rig.operations.hung_up == ["c333"]
    answer = await rig.ask("PUT", "/api/v1/agents/a0001/state", token=token, json={"state": "break", "reason": "lunch"})
    assert (answer.json["data"]["state"], answer.json["data"]["reason"]) == ("break", "lunch")
    rig.operations.call_views = [dataclasses.replace(call("c9"), state="ending")]
    is_error(await rig.ask("POST", "/api/v1/calls/c9/hangup", token=token), 409, "conflict")


async def test_holds_reach_the_engine(rig: Rig) -> None:
    where = "/api/v1/calls/c1"
    assert (await rig.ask("POST", f"{where}/hold", token=await rig.token("boss"))).status == 204
    assert (await rig.ask("POST", f"{where}/resume", token=await rig.token("boss"))).status == 204
    assert (await rig.ask("POST", f"{where}/hold", token=await rig.token("a0001"))).status == 204
    assert rig.operations.held == {"c1": "agent"}
    is_error(await rig.ask("POST", f"{where}/hold", token=await rig.token("boss")), 409, "conflict")


async def test_transfers_reach_the_engine(rig: Rig) -> None:
    where = "/api/v1/calls/c1/transfer"
    boss, agent = await rig.token("boss"), await rig.token("a0001")
    answer = await rig.ask("POST", where, token=boss, json={"target": "500"})
    assert (answer.status, answer.json) == (202, {"data": {"transfer_id": "t1"}})
    await rig.ask("POST", where, token=agent, json={"attended": True})
    await rig.ask("POST", where, token=boss, json={"target": "0800", "mode": "refer"})
    assert rig.operations.transferred == [
        ("c1", TransferRequest("500")),
        ("c1", TransferRequest("", AgentId("a0001"), attended=True)),
        ("c1", TransferRequest("0800", release=True)),
    ]
    is_error(await rig.ask("POST", where, token=boss, json={"target": "999"}), 404, "not_found")
    is_error(await rig.ask("POST", where, token=boss, json={"target": "busy"}), 409, "conflict")
    for body in ({}, {"target": "1" * 200}, {"target": "1", "mode": "magic"}, {"attended": True, "mode": "refer"}):
        is_error(await rig.ask("POST", where, token=boss, json=body), 422, "invalid")


async def test_interactions_come_from_the_records(rig: Rig) -> None:
    token = await rig.token()
    answer = await rig.ask("GET", "/api/v1/interactions?filter=queue:support,agent:a0002&limit=2", token=token)
    assert [row["call_id"] for row in answer.json["data"]] == ["r0", "r2"]
    assert answer.json["pagination"] == {"total": 3, "page": 1, "limit": 2, "pages": 2}
    for query in ("sort=shape", "filter=shape:round"):
        is_error(await rig.ask("GET", f"/api/v1/interactions?{query}", token=token), 400, "bad_request")
    rig.records.away = True
    away = await rig.ask("GET", "/api/v1/interactions", token=token)
    is_error(away, 503, "unavailable")
    assert away.headers["Retry-After"]


async def test_many_agents_are_paged(rig: Rig) -> None:
    rig.operations.agent_views = [agent(f"a{n:04}") for n in range(250)]
    token = await rig.token()
    last = await rig.ask("GET", "/api/v1/agents?limit=100&page=3", token=token)
    assert len(last.json["data"]) == 50
    assert last.json["pagination"] == {"total": 250, "page": 3, "limit": 100, "pages": 3}


def test_every_user_of_the_tests_has_a_role() -> None:
    assert {user.role.value for user in USERS.values()} == {"administrator", "manager", "agent", "viewer"}


ODD = [
    ("GET", "/api/v1/queues/%ff", {}, b""),
    ("GET", "/api/v1/queues/%00", {}, b""),
    ("GET", "/api/v1/queues/%ed%a0%80", {}, b""),
    ("GET", "/api/v1/calls?filter=caller:%ed%a0%80", {}, b""),
    ("GET", "/api/v1/calls?filter=caller:%00", {}, b""),
    ("GET", "/api/v1/calls?%ff=%ff", {}, b""),
    ("GET", "/api/v1/interactions?sort=%00%ff", {}, b""),
    ("GET", "/api/v1/events?ticket=%ed%a0%80", {}, b""),
    ("GET", "/assets/%2e%2e%2f%2e%2e%2fapp.py", {}, b""),
    ("GET", "/readyz", {"X-Forwarded-For": "rubbish, ,", "Authorization": "Bearer \xff"}, b""),
    ("POST", "/api/v1/auth/refresh", {"Cookie": "murima_refresh=\xff.\xfe; x"}, b""),
    ("POST", "/api/v1/auth/refresh", {"Origin": "http://[::1"}, b""),
    ("POST", "/api/v1/auth/login", {"Content-Type": "application/json"}, b'{"username":"\\ud800","password":"x"}'),
    ("POST", "/api/v1/auth/login", {"Content-Type": "application/json"}, b'{"username":' * 10_000),
    ("POST", "/api/v1/auth/login", {"Content-Type": "\xff/json; charset=nonsense"}, b"{}"),
    ("POST", "/api/v1/auth/login", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"not gzip"),
]


@pytest.mark.parametrize(("method", "path", "headers", "body"), ODD)
async def test_odd_input_is_refused_and_never_fails(
    rig: Rig, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    sent = {"Host": "x", "Connection": "close", "Content-Length": str(len(body))} | headers
    if "Authorization" not in sent:
        sent["Authorization"] = f"Bearer {await rig.token()}"
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
    raw = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    status = int(raw.split(b" ", 2)[1])
    assert status == 200 or 400 <= status < 500, raw
    assert status == 200 or b'{"error":{"code":"' in raw


async def test_a_body_that_breaks_off_is_no_fault_of_ours(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "murima.http")
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while not any(record.message == "http.request" for record in caplog.records):
            await rig.ask("GET", "/healthz")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
