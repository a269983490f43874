"""Bans over HTTP: who is kept off, and letting them in again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.engine.api.fakes import Rig, running


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as served:
        yield served


async def test_bans_are_listed_with_reason_and_end(rig: Rig) -> None:
    answer = await rig.ask("GET", "/api/v1/sip/bans", token=await rig.token())
    assert [row["address"] for row in answer.json["data"]] == ["2001:db8::/64", "192.0.2.10", "192.0.2.9"]
    assert answer.json["data"][2] == {
        "id": "192.0.2.9",
        "address": "192.0.2.9",
        "reason": "passwords",
        "since": "2026-01-31T09:00:00Z",
        "until": "2026-01-31T09:10:00Z",
        "dropped": 10,
    }
    assert answer.json["pagination"] == {"total": 3, "page": 1, "limit": 50, "pages": 1}


@pytest.mark.parametrize(
    ("query", "addresses"),
    [
        ("?filter=reason:scanner", ["192.0.2.10"]),
        ("?sort=address&order=asc&limit=1", ["192.0.2.10"]),
        ("?sort=dropped&order=asc", ["192.0.2.9", "192.0.2.10", "2001:db8::/64"]),
    ],
)
async def test_bans_are_filtered_and_sorted(rig: Rig, query: str, addresses: list[str]) -> None:
    answer = await rig.ask("GET", f"/api/v1/sip/bans{query}", token=await rig.token())
    assert [row["address"] for row in answer.json["data"]] == addresses


@pytest.mark.parametrize("path", ["192.0.2.9", "2001:db8::%2F64"])
async def test_a_ban_is_lifted_once(rig: Rig, path: str) -> None:
    token = await rig.token()
    assert (await rig.ask("DELETE", f"/api/v1/sip/bans/{path}", token=token)).status == 204
    assert len(rig.bans.views) == 2
    again = await rig.ask("DELETE", f"/api/v1/sip/bans/{path}", token=token)
    assert again.status == 404
    assert again.json["error"]["code"] == "not_found"
