"""Phones of each make call each other through murima, each as caller and as callee, and hear each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.audio import align_and_correlate
from tests.peers.murima import MurimaProcess
from tests.peers.parties import TALK_S, Party, party
from tests.speech import RATE

pytestmark = pytest.mark.asyncio(loop_scope="module")

AUDIBLE = 0.85  # what the phones' jitter buffers leave on a busy machine; other speech has 0.1
CALLER, AGENT = "a0001", "a0002"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    agents = [{"id": name, "name": name, "password": "secret", "auto_ready": True} for name in (CALLER, AGENT)]
    config = {
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": agents,
    }
    async with MurimaProcess(config, tmp_path_factory.mktemp("murima")) as running:
        await running.login()
        yield running


def registered(murima: MurimaProcess, **options: Any) -> dict[str, Any]:
    account = {"domain": "pbx.local", "proxy": murima.remote, "password": "secret", "register": True}
    return {**account, **options}


async def is_free(murima: MurimaProcess, agent: str) -> None:
    await murima.until(f"/api/v1/agents/{agent}", lambda answer: answer["data"]["state"] in ("ready", "offline"))


def assert_hears(listener: Party, speaker: Party) -> None:
    match = align_and_correlate(speaker.words, listener.heard(), RATE)
    assert match.correlation >= AUDIBLE


@pytest.mark.parametrize(
    ("caller_make", "agent_make", "transport"),
    [
        ("linphone", "baresip", "udp"),
        ("baresip", "pjsua", "udp"),
        ("pjsua", "linphone", "udp"),
        ("linphone", "pjsua", "tcp"),
        ("baresip", "linphone", "tcp"),
    ],
)
async def test_phones_hear_each_other(
    tmp_path: Path, murima: MurimaProcess, caller_make: str, agent_make: str, transport: str
) -> None:
    account = registered(murima, transport=transport)
    async with (
        party(agent_make, tmp_path / "agent", AGENT, variant=1, **account) as agent,
        party(caller_make, tmp_path / "caller", CALLER, variant=2, **account) as caller,
    ):
        await is_free(murima, AGENT)
        await caller.dial(f"sip:{AGENT}@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await caller.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_hears(agent, caller)
        assert_hears(caller, agent)
