"""The drivers of the phones work: each phone calls another one directly, without murima between them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.audio import align_and_correlate, dominant_frequency, save_wav, tone
from tests.peers.baresip import Baresip
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError
from tests.ports import loopback_address
from tests.speech import RATE, speech, write_speech

SPEECH_S = 4.0

# pjsua_call_media_status
ACTIVE, LOCAL_HOLD, REMOTE_HOLD = 1, 2, 3


async def test_pjsua_and_baresip_hear_each_other(tmp_path: Path) -> None:
    address = loopback_address()
    caller_says = write_speech(tmp_path / "caller.wav", SPEECH_S, variant=1)
    agent_says = write_speech(tmp_path / "agent.wav", SPEECH_S, variant=2)
    async with (
        Baresip(tmp_path / "baresip", "agent", address=address) as agent,
        Pjsua(tmp_path / "pjsua", "caller", address=address) as caller,
    ):
        call = await caller.dial(agent.uri)
        await caller.expect("call", state="confirmed", code=200)
        await agent.expect("call_established")
        await caller.play(call, caller_says)
        await agent.play(agent_says)
        await asyncio.sleep(SPEECH_S + 0.5)  # the speech takes its time
        await caller.send_dtmf(call, "42#")
        for digit in "42#":
            await agent.expect("call_dtmf_start", param=digit)
        await agent.send_dtmf("7")
        await caller.expect("dtmf", digit="7")
        assert (await caller.statistics(call))["received"] > 150
        await caller.hang_up(call)
        await caller.expect("call", state="disconnected")
        await agent.expect("call_closed")
        heard_by_agent, heard_by_caller = agent.heard(), caller.heard()
    assert align_and_correlate(speech(SPEECH_S, variant=2), heard_by_caller, RATE).correlation >= 0.95
    assert align_and_correlate(speech(SPEECH_S, variant=1), heard_by_agent, RATE).correlation >= 0.95


async def test_baresip_calls_pjsua_which_answers_later_and_is_put_on_hold(tmp_path: Path) -> None:
    address = loopback_address()
    sound = save_wav(tmp_path / "tone.wav", tone(700, 3.0), RATE)
    async with (
        Pjsua(tmp_path / "pjsua", "agent", address=address, answer=180, codecs=("PCMA",)) as agent,
        Baresip(tmp_path / "baresip", "caller", address=address, play=sound) as caller,
    ):
        await caller.dial(agent.uri)
        call = (await agent.expect("incoming"))["call"]
        await caller.expect("call_ringing")
        await agent.answer(call)
        await caller.expect("call_established")
        await agent.expect("call", state="confirmed")
        await asyncio.sleep(1)  # of tone
        await agent.expect("media", call=call, status=ACTIVE)
        await caller.hold()
        await agent.expect("media", call=call, status=REMOTE_HOLD)
        await caller.resume()
        await agent.expect("media", call=call, status=ACTIVE)
        await caller.hang_up()
        await agent.expect("call", state="disconnected")
        assert dominant_frequency(agent.heard(), RATE) == pytest.approx(700, abs=2)


async def test_pjsua_holds_baresip_and_rejects_a_call(tmp_path: Path) -> None:
    address = loopback_address()
    async with (
        Baresip(tmp_path / "baresip", "one", address=address) as one,
        Pjsua(tmp_path / "pjsua", "two", address=address, answer=486) as two,
    ):
        call = await two.dial(one.uri)
        await two.expect("call", state="confirmed")
        await two.hold(call)
        await two.expect("media", call=call, status=LOCAL_HOLD)
        await two.resume(call)
        await one.hang_up()
        await two.expect("call", state="disconnected")
        await one.dial(two.uri)
        await one.expect("call_closed", param="486 Busy Here")


async def test_a_peer_that_vanishes_says_nothing_more(tmp_path: Path) -> None:
    address = loopback_address()
    async with (
        Baresip(tmp_path / "baresip", "one", address=address) as one,
        Pjsua(tmp_path / "pjsua", "two", address=address) as two,
    ):
        call = await two.dial(one.uri)
        await two.expect("call", state="confirmed")
        await one.vanish()
        with pytest.raises(PeerError, match="expected call_closed; it ended"):
            await one.expect("call_closed")
        with pytest.raises(PeerError, match="did not within"):
            await two.expect("call", timeout_s=0.2, state="disconnected")
        await two.hang_up(call)
