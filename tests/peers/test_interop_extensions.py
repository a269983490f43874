"""Peers that insist on extensions: reliable provisional responses, session timers, and audio before the answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers.asterisk import Asterisk
from tests.peers.interop import account, all_of, assert_heard, office, until_free
from tests.peers.murima import MurimaProcess
from tests.peers.parties import SPEECH_S, TALK_S, party, write_words
from tests.peers.pjsua import Pjsua
from tests.ports import free_port, loopback_address
from tests.speech import speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROVE = os.environ.get("MURIMA_PROVE") == "1"
INTERVAL_S = 90  # the least that RFC 4028 allows

ASTERISK = loopback_address()
ASTERISK_PORT = free_port(ASTERISK)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    trunk = {"name": "asterisk", "match": [ASTERISK], "address": f"sip:{ASTERISK}:{ASTERISK_PORT}"}
    config = office(
        "a0001",
        "a0002",
        "a0003",
        sip={"trunks": [trunk]},
        numbers={"~7(\\d{4})": {"agent": "a\\1"}},
        routes=[{"name": "world", "match": "~0\\d{9}", "trunks": ["asterisk"]}],
    )
    async with MurimaProcess(config, tmp_path_factory.mktemp("murima")) as running:
        await running.login()
        yield running


async def test_pjsua_demands_reliable_ringing_and_a_session_timer(tmp_path: Path, murima: MurimaProcess) -> None:
    options = account(murima)
    words = write_words(tmp_path, 1)
    async with (
        Pjsua(
            tmp_path / "agent",
            "a0002",
            address=loopback_address(),
            answer=180,
            demands=("100rel", "timer"),
            **options,
        ) as agent,
        Pjsua(
            tmp_path / "caller",
            "a0001",
            address=loopback_address(),
            play=words,
            demands=("100rel", "timer"),
            **options,
        ) as caller,
    ):
        await until_free(murima, "a0001", "a0002")
        call = await caller.dial("sip:a0002@pbx.local")
        taken = (await agent.expect("incoming"))["call"]
        await caller.expect("call", state="early", code=180)
        await agent.answer(taken)
        await caller.expect("call", state="confirmed")
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await caller.hang_up(call)
        await agent.expect("call", state="disconnected")
        assert_heard(speech(SPEECH_S, 1), agent.heard())
    for messages in (caller.messages(), agent.messages()):
        assert "PRACK sip:" in messages
        answers = [text for text in messages.split("SIP/2.0 200 OK")[1:] if "INVITE" in text.split("CSeq")[1][:20]]
        assert any("Session-Expires: " in answer.split("\n\n")[0] for answer in answers)


async def test_asterisk_demands_reliable_ringing_and_a_session_timer(tmp_path: Path, murima: MurimaProcess) -> None:
    async with (
        Asterisk(
            tmp_path / "asterisk",
            murima.remote,
            address=ASTERISK,
            port=ASTERISK_PORT,
            numbers={"0700111222": "Ringing()\nWait(0.5)\nGoto(talk,1)"},
            play=write_words(tmp_path / "said", 3),
            options={"100rel": "required", "timers": "required", "timers_sess_expires": str(INTERVAL_S)},
        ) as asterisk,
        party("baresip", tmp_path / "phone", "a0001", variant=4, **account(murima)) as phone,
    ):
        await asterisk.log_messages()
        await until_free(murima, "a0001")
        await phone.dial("sip:0700111222@pbx.local")
        await phone.talking()
        await phone.say_again()
        await phone.hang_up()
        await phone.ended()
        await asterisk.expect("hangup")
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())
        sent_by_us = asterisk.messages()
        assert "PRACK sip:" in sent_by_us
        await until_free(murima, "a0001")

        await asterisk.dial("70001")
        await phone.talking()
        if PROVE:
            await asyncio.sleep(0.6 * INTERVAL_S)  # one side refreshes at half of the interval
            assert "UPDATE sip:" in asterisk.messages()[len(sent_by_us) :]
        await phone.say_again()
        await asterisk.hang_up()
        await phone.ended()
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())
        sent_by_asterisk = asterisk.messages()[len(sent_by_us) :]
        assert "PRACK sip:" in sent_by_asterisk
        assert f"Session-Expires: {INTERVAL_S};refresher=" in sent_by_asterisk


async def test_phones_hear_what_a_carrier_says_before_it_refuses(tmp_path: Path, murima: MurimaProcess) -> None:
    said = write_words(tmp_path / "said", 5)

    async def hear(make: str, agent: str) -> None:
        async with party(make, tmp_path / make, agent, variant=6, **account(murima)) as phone:
            await until_free(murima, agent)
            await phone.dial("sip:0700111222@pbx.local")
            await phone.ended()
            assert_heard(speech(SPEECH_S, 5), phone.heard())

    async with Asterisk(
        tmp_path / "asterisk",
        murima.remote,
        address=ASTERISK,
        port=ASTERISK_PORT,
        numbers={"0700111222": f"Progress()\nPlayback({said.with_suffix('')},noanswer)\nWait(0.5)\nHangup(17)"},
    ):
        await all_of(hear("pjsua", "a0001"), hear("baresip", "a0002"), hear("linphone", "a0003"))
