"""Transfers between phones of several makes: who asked for it is gone, and the other two hear each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.asterisk import Asterisk
from tests.peers.interop import account, all_of, assert_heard, office, until_call_is, until_free
from tests.peers.linphone import Linphone
from tests.peers.murima import MurimaProcess
from tests.peers.parties import SPEECH_S, Party, party, write_words
from tests.ports import free_port, loopback_address
from tests.speech import speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRUNK, CARRIER = loopback_address(), loopback_address()
CARRIER_PORT = free_port(CARRIER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    config = office(*(f"a{number:04}" for number in range(1, 11)))
    config |= {
        "sip": {
            "trunks": [
                {"name": "switch", "match": [TRUNK], "transfer": True},
                {"name": "carrier", "address": f"sip:{CARRIER}:{CARRIER_PORT}"},
            ]
        },
        "routes": [{"name": "world", "match": "~0\\d{9}", "trunks": ["carrier"]}],
        "numbers": {"~7(\\d{4})": {"agent": "a\\1"}},
    }
    async with MurimaProcess(config, tmp_path_factory.mktemp("murima")) as running:
        await running.login()
        yield running


async def talk_to_the_end(one: Party, other: Party) -> None:
    """Both speak, one hangs up, and both have heard the other."""
    await asyncio.gather(one.say_again(), other.say_again())
    await one.hang_up()
    await asyncio.gather(one.ended(), other.ended())
    assert_heard(one.words, other.heard())
    assert_heard(other.words, one.heard())


async def blind_by_linphone(murima: MurimaProcess, folder: Path) -> None:
    options = account(murima)
    async with (
        party("baresip", folder / "caller", "a0001", variant=1, **options) as caller,
        Linphone(folder / "agent", "a0002", address=loopback_address(), **options) as agent,
        party("pjsua", folder / "target", "a0003", variant=3, **options) as target,
    ):
        await until_free(murima, "a0001", "a0002", "a0003")
        await caller.dial("sip:a0002@pbx.local")
        call = (await agent.expect("connected"))["call"]
        await agent.expect("streams", call=call)
        await caller.talking()
        await agent.transfer(call, "sip:a0003@pbx.local")
        await target.talking()
        await agent.expect("transferred", call=call)
        await until_call_is(murima, "talking", "a0003")
        await until_free(murima, "a0002")
        await talk_to_the_end(target, caller)


async def attended_by_linphone(murima: MurimaProcess, folder: Path) -> None:
    options = account(murima)
    async with (
        party("pjsua", folder / "caller", "a0004", variant=4, **options) as caller,
        Linphone(folder / "agent", "a0005", address=loopback_address(), **options) as agent,
        party("baresip", folder / "target", "a0006", variant=6, **options) as target,
    ):
        await until_free(murima, "a0004", "a0005", "a0006")
        await caller.dial("sip:a0005@pbx.local")
        call = (await agent.expect("connected"))["call"]
        await agent.expect("streams", call=call)
        await caller.talking()
        await agent.hold()
        await agent.expect("paused", call=call)
        consultation = await agent.dial("sip:a0006@pbx.local")
        await agent.expect("streams", call=consultation)
        await target.talking()
        await agent.transfer_to_call(call, consultation)
        for ended in (call, consultation):
            await agent.expect("ended", call=ended)
        await until_call_is(murima, "talking", "a0006")
        await talk_to_the_end(caller, target)


async def blind_by_asterisk(murima: MurimaProcess, folder: Path) -> None:
    """Asterisk calls an agent, and sends the agent on to another one."""
    options = account(murima)
    async with (
        Asterisk(
            folder / "switch",
            murima.remote,
            address=TRUNK,
            numbers={"away": "Wait(1)\nTransfer(PJSIP/sip:70008@pbx.local)\nNoOp(${TRANSFERSTATUS})\nWait(1)"},
        ) as switch,
        party("linphone", folder / "agent", "a0007", variant=7, **options) as agent,
        party("pjsua", folder / "target", "a0008", variant=8, **options) as target,
    ):
        await until_free(murima, "a0007", "a0008")
        await switch.dial("70007", leads_to="away")
        await agent.talking()
        await target.talking()
        await switch.expect("hangup")
        await talk_to_the_end(agent, target)


async def to_the_outside_by_pjsua(murima: MurimaProcess, folder: Path) -> None:
    """The agent sends a colleague to a number that a carrier reaches."""
    options = account(murima)
    async with (
        Asterisk(
            folder / "carrier",
            murima.remote,
            address=CARRIER,
            port=CARRIER_PORT,
            numbers={"0700111222": "talk"},
            play=write_words(folder / "said", 11),
        ) as carrier,
        party("linphone", folder / "caller", "a0009", variant=9, **options) as caller,
        party("pjsua", folder / "agent", "a0010", variant=10, **options) as agent,
    ):
        await until_free(murima, "a0009", "a0010")
        await caller.dial("sip:a0010@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await agent.transfer("sip:0700111222@pbx.local")
        await carrier.expect("mixmonitorstart")
        await agent.ended()
        await caller.say_again()
        await caller.hang_up()
        await caller.ended()
        await carrier.expect("hangup")
        assert_heard(caller.words, await carrier.heard())
        assert_heard(speech(SPEECH_S, 11), caller.heard())


async def test_phones_and_switches_transfer(tmp_path: Path, murima: MurimaProcess) -> None:
    await all_of(
        blind_by_linphone(murima, tmp_path / "1"),
        attended_by_linphone(murima, tmp_path / "2"),
        blind_by_asterisk(murima, tmp_path / "3"),
        to_the_outside_by_pjsua(murima, tmp_path / "4"),
    )
