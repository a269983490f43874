"""The drivers of the phones work: each phone calls another one directly, without murima between them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.audio import align_and_correlate, dominant_frequency, save_wav, tone
from tests.peers.baresip import Baresip
from tests.peers.interop import all_of, assert_heard
from tests.peers.parties import TALK_S, party
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError
from tests.peers.sipp import Sipp, run_sipp
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


async def srtp_call(folder: Path, caller_make: str, agent_make: str) -> None:
    async with (
        party(agent_make, folder / "agent", "agent", variant=1, srtp=True) as agent,
        party(caller_make, folder / "caller", "caller", variant=2, srtp=True) as caller,
    ):
        await caller.dial(agent.uri)
        await asyncio.gather(caller.talking(), agent.talking())
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await caller.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(caller.words, agent.heard())
        assert_heard(agent.words, caller.heard())


async def test_phones_encrypt_their_audio(tmp_path: Path) -> None:
    await all_of(
        srtp_call(tmp_path / "1", "pjsua", "baresip"),
        srtp_call(tmp_path / "2", "linphone", "pjsua"),
        srtp_call(tmp_path / "3", "baresip", "linphone"),
    )


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


async def test_sipp_plays_speech_to_baresip_and_hangs_up(tmp_path: Path) -> None:
    address = loopback_address()
    said = write_speech(tmp_path / "said.wav", 3.0, variant=4)
    async with Baresip(tmp_path / "baresip", "agent", address=address) as agent:
        target = f"{agent.address}:{agent.port}"
        result = await run_sipp(
            tmp_path / "sipp", "uac", target, service="agent", address=address, audio=said, talk_ms=3500
        )
        assert (result.status, result.succeeded, result.failed) == (0, 1, 0), result.errors
        await agent.expect("call_closed")
        assert align_and_correlate(speech(3.0, variant=4), agent.heard(), RATE).correlation >= 0.95


async def test_sipp_answers_pjsua_with_an_echo(tmp_path: Path) -> None:
    address = loopback_address()
    said = write_speech(tmp_path / "said.wav", 3.0, variant=5)
    async with (
        Sipp(tmp_path / "sipp", "uas", address=address, ring_ms=100) as agent,
        Pjsua(tmp_path / "pjsua", "caller", address=address, play=said) as caller,
    ):
        call = await caller.dial(agent.contact("a0001"))
        await caller.expect("call", state="early", code=180)
        await caller.expect("call", state="confirmed")
        await asyncio.sleep(3.5)  # the speech takes its time
        await caller.hang_up(call)
        await caller.expect("call", state="disconnected")
        result = await agent.result()
        assert (result.status, result.succeeded) == (0, 1), result.errors
        assert align_and_correlate(speech(3.0, variant=5), caller.heard(), RATE).correlation >= 0.95


@pytest.mark.parametrize(
    ("caller", "agent", "options"),
    [
        ("uac_silent", "uas", {}),
        ("uac_until_bye", "uas_hangs_up", {"talk_ms": 100}),
        ("uac", "uas_plays", {"talk_ms": 300}),
        ("uac_cancel", "uas_no_answer", {"talk_ms": 100}),
        ("uac_refused", "uas_refuses", {"status": 486}),
        ("uac_refused", "uas_refuses", {"status": 603, "reason": "Decline"}),
        ("uac_silent", "uas_garbage", {"talk_ms": 50}),
        ("uac_silent", "uas", {"transport": "tcp", "talk_ms": 50}),
    ],
)
async def test_sipp_scenarios_fit_each_other(
    tmp_path: Path, caller: str, agent: str, options: dict[str, object]
) -> None:
    address = loopback_address()
    audio = save_wav(tmp_path / "tone.wav", tone(500, 0.3), RATE)
    common: dict[str, Any] = {"address": address, "audio": audio, "calls": 3, "timeout_s": 10.0, **options}
    async with Sipp(tmp_path / "agent", agent, **common) as answering:
        remote = f"{answering.address}:{answering.port}"
        async with Sipp(tmp_path / "caller", caller, remote=remote, **common) as calling:
            for result in await asyncio.gather(calling.result(), answering.result()):
                assert (result.status, result.succeeded, result.failed) == (0, 3, 0), result.errors


async def test_sipp_reports_a_call_that_fails(tmp_path: Path) -> None:
    address = loopback_address()
    async with Sipp(tmp_path / "agent", "uas_refuses", address=address) as agent:
        remote = f"{agent.address}:{agent.port}"
        result = await run_sipp(tmp_path / "caller", "uac_silent", remote, address=address)
        assert result.status == 1
        assert result.failed == 1
        assert "486" in result.errors
