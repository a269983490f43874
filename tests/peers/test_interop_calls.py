"""Phones of each make call each other through murima, each as caller and as callee, and hear each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.interop import account, all_of, assert_heard, office, until_call_is, until_free
from tests.peers.murima import MurimaProcess
from tests.peers.parties import TALK_S, party

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    config = office(*(f"a{number:04}" for number in range(1, 9)))
    async with MurimaProcess(config, tmp_path_factory.mktemp("murima")) as running:
        await running.login()
        yield running


async def talk(
    murima: MurimaProcess, folder: Path, caller_make: str, agent_make: str, first_agent: int, transport: str
) -> None:
    """One phone calls the other, both speak and press a key, and the caller hangs up."""
    caller_id, agent_id = f"a{first_agent:04}", f"a{first_agent + 1:04}"
    options = account(murima, transport=transport)
    async with (
        party(agent_make, folder / agent_id, agent_id, variant=first_agent, **options) as agent,
        party(caller_make, folder / caller_id, caller_id, variant=first_agent + 1, **options) as caller,
    ):
        await until_free(murima, caller_id, agent_id)
        await caller.dial(f"sip:{agent_id}@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await caller.press("4")
        await agent.pressed("4")
        await agent.press("7")
        await caller.pressed("7")
        await caller.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(caller.words, agent.heard())
        assert_heard(agent.words, caller.heard())


async def test_phones_hear_each_other_over_udp(tmp_path: Path, murima: MurimaProcess) -> None:
    await all_of(
        talk(murima, tmp_path, "linphone", "baresip", 1, "udp"),
        talk(murima, tmp_path, "baresip", "pjsua", 3, "udp"),
        talk(murima, tmp_path, "pjsua", "linphone", 5, "udp"),
    )


async def test_phones_hear_each_other_over_tcp(tmp_path: Path, murima: MurimaProcess) -> None:
    await all_of(
        talk(murima, tmp_path, "linphone", "pjsua", 1, "tcp"),
        talk(murima, tmp_path, "baresip", "linphone", 3, "tcp"),
        talk(murima, tmp_path, "pjsua", "baresip", 5, "tcp"),
    )


async def hold_and_talk(
    murima: MurimaProcess, folder: Path, caller_make: str, agent_make: str, first_agent: int, who_holds: str
) -> None:
    """One of the two holds the call and takes it back, both speak, and the other one hangs up."""
    caller_id, agent_id = f"a{first_agent:04}", f"a{first_agent + 1:04}"
    options = account(murima)
    async with (
        party(agent_make, folder / agent_id, agent_id, variant=first_agent, **options) as agent,
        party(caller_make, folder / caller_id, caller_id, variant=first_agent + 1, **options) as caller,
    ):
        holder, other = (caller, agent) if who_holds == "caller" else (agent, caller)
        await until_free(murima, caller_id, agent_id)
        await caller.dial(f"sip:{agent_id}@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await holder.hold()
        await until_call_is(murima, "held", agent_id)
        await holder.resume()
        await until_call_is(murima, "talking", agent_id)
        await asyncio.gather(caller.say_again(), agent.say_again())
        await other.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(holder.words, other.heard())
        if holder.keeps_after_hold:
            assert_heard(other.words, holder.heard())


async def test_phones_hold_and_resume(tmp_path: Path, murima: MurimaProcess) -> None:
    await all_of(
        hold_and_talk(murima, tmp_path, "linphone", "pjsua", 1, "caller"),
        hold_and_talk(murima, tmp_path, "baresip", "linphone", 3, "agent"),
        hold_and_talk(murima, tmp_path, "pjsua", "baresip", 5, "agent"),
        hold_and_talk(murima, tmp_path, "pjsua", "linphone", 7, "caller"),
    )


async def give_up_and_refuse(
    murima: MurimaProcess, folder: Path, caller_make: str, agent_make: str, first_agent: int
) -> None:
    """The caller gives up while the other phone rings; the second time, the other refuses."""
    caller_id, agent_id = f"a{first_agent:04}", f"a{first_agent + 1:04}"
    options = account(murima)
    async with (
        party(agent_make, folder / agent_id, agent_id, variant=1, answers=False, **options) as agent,
        party(caller_make, folder / caller_id, caller_id, variant=2, **options) as caller,
    ):
        for who in (caller, agent):
            await until_free(murima, caller_id, agent_id)
            await caller.dial(f"sip:{agent_id}@pbx.local")
            await agent.ringing()
            await murima.until(f"/api/v1/agents/{agent_id}", lambda answer: answer["data"]["state"] == "ringing")
            await who.hang_up()
            await asyncio.gather(caller.ended(), agent.ended())


async def test_phones_give_up_and_refuse(tmp_path: Path, murima: MurimaProcess) -> None:
    await all_of(
        give_up_and_refuse(murima, tmp_path, "linphone", "baresip", 1),
        give_up_and_refuse(murima, tmp_path, "baresip", "pjsua", 3),
        give_up_and_refuse(murima, tmp_path, "pjsua", "linphone", 5),
    )
