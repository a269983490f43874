from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.engine.api.fakes import Rig, running


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


async def test_trunks_are_listed_filtered_and_sorted(rig: Rig) -> None:
    token = await rig.token()
    answer = await rig.ask("GET", "/api/v1/trunks?sort=name", token=token)
    assert [trunk["name"] for trunk in answer.json["data"]] == ["backup", "carrier"]
    (carrier,) = (await rig.ask("GET", "/api/v1/trunks?filter=state:up", token=token)).json["data"]
    assert carrier == {
        "name": "carrier",
        "state": "up",
        "calls": 3,
        "max_calls": 30,
        "max_calls_per_s": None,
        "registers": True,
        "registered_until": "2026-01-31T09:00:00Z",
        "gateways": [{"address": "sip:192.0.2.10", "reachable": True, "error": ""}],
        "error": "",
    }


async def test_agents_see_no_trunks(rig: Rig) -> None:
    answer = await rig.ask("GET", "/api/v1/trunks", token=await rig.token("a0001"))
    assert answer.json["data"] == []


async def test_a_call_is_placed_for_an_agent(rig: Rig) -> None:
    body = {"from": "a0001", "to": "0700111222"}
    for user in ("admin", "a0001"):
        answer = await rig.ask("POST", "/api/v1/calls", token=await rig.token(user), json=body)
        assert (answer.status, answer.json) == (201, {"data": {"call_id": "placed"}})
    assert rig.operations.placed == [("a0001", "0700111222")] * 2


async def test_agents_place_calls_from_their_own_phone_only(rig: Rig) -> None:
    body = {"from": "a0002", "to": "0700111222"}
    answer = await rig.ask("POST", "/api/v1/calls", token=await rig.token("a0001"), json=body)
    assert answer.status == 403
    assert rig.operations.placed == []


@pytest.mark.parametrize("body", [{"from": "a0001"}, {"from": "", "to": "1"}, {"from": "a0001", "to": 7}, {"a": 1}])
async def test_calls_need_both_ends(rig: Rig, body: dict[str, object]) -> None:
    answer = await rig.ask("POST", "/api/v1/calls", token=await rig.token(), json=body)
    assert answer.status == 422


async def test_a_number_that_leads_nowhere_is_told(rig: Rig) -> None:
    answer = await rig.ask("POST", "/api/v1/calls", token=await rig.token(), json={"from": "a0001", "to": "999"})
    assert answer.status == 409
