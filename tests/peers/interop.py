"""What the calls between phones of several makes share: murima's configuration, accounts, and what is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tests.audio import Samples, align_and_correlate
from tests.peers.murima import MurimaProcess
from tests.speech import RATE

# What the phones' jitter buffers leave of speech on a busy machine; other speech has 0.35 at most.
AUDIBLE = 0.7


def office(*agents: str, **document: Any) -> dict[str, Any]:
    """Return a configuration with an administrator and these agents, who may call each other by id."""
    return {
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [{"id": name, "name": name, "password": "secret", "auto_ready": True} for name in agents],
        **document,
    }


def account(murima: MurimaProcess, **options: Any) -> dict[str, Any]:
    """Return the options of a phone that registers as one of these agents."""
    return {"domain": "pbx.local", "proxy": murima.remote, "password": "secret", "register": True, **options}


async def until_free(murima: MurimaProcess, *agents: str) -> None:
    """Wait until these agents are in no call."""
    for agent in agents:
        await murima.until(f"/api/v1/agents/{agent}", lambda answer: answer["data"]["state"] in ("ready", "offline"))


async def until_call_is(murima: MurimaProcess, state: str, agent: str) -> dict[str, Any]:
    """Wait until the call to this agent is in this state; returns the call."""

    def found(answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [call for call in answer["data"] if (call["agent_id"], call["state"]) == (agent, state)]

    return found(await murima.until("/api/v1/calls", found))[0]


async def all_of(*calls: Coroutine[Any, Any, None]) -> None:
    """Make these calls at the same time, because each takes its real time; a failure of one ends the others."""
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


def assert_heard(words: Samples, heard: Samples) -> None:
    match = align_and_correlate(words, heard, RATE)
    assert match.correlation >= AUDIBLE, match
