"""The main job, with phones we did not write: a caller reaches an agent through a queue, and both are recorded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.audio import align_and_correlate, load_wav
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipPhone
from tests.peers.sipp import Sipp
from tests.ports import loopback_address
from tests.speech import speech, write_speech

RATE = 8000
SPEECH_S = 4.0
# The phones of others keep time by themselves: where they share busy cores, they drop and stretch. Wrong speech
# reaches 0.5 at most.
AUDIBLE = 0.95 if "MURIMA_PROVE" in os.environ else 0.85


@pytest.fixture
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


def queue_config(carrier: str, *, contact: str | None = None) -> dict[str, Any]:
    """One agent, one recorded queue; callers come from the carrier's address."""
    agent: dict[str, Any] = {"id": "a0001", "name": "Agent 1", "password": "secret", "auto_ready": True}
    if contact is not None:
        agent["contact"] = contact
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [agent],
        "queues": [{"id": "support", "members": ["a0001"], "wrap_up_s": 1, "record": True}],
        "numbers": {"500": {"queue": "support"}},
    }


async def agent_is(murima: MurimaProcess, state: str, agent: str = "a0001") -> None:
    await murima.until(f"/api/v1/agents/{agent}", lambda answer: answer["data"]["state"] == state)


async def interaction(murima: MurimaProcess) -> dict[str, Any]:
    """The one finished call, once its recording has been stored too."""
    answer = await murima.until(
        "/api/v1/interactions", lambda a: len(a["data"]) == 1 and a["data"][0]["recording_sha256"]
    )
    row: dict[str, Any] = answer["data"][0]
    return row


def assert_recorded(
    murima: MurimaProcess, call_id: str, caller_variant: int, agent_variant: int, *, early_s: float = 0.0
) -> None:
    """Left is the caller, right the agent, and neither leaks into the other.

    `early_s`: the caller speaks for so long before the agent has answered.
    """
    stereo, rate = load_wav(murima.data / "recordings" / f"{call_id}.wav")
    assert rate == RATE
    caller, agent = speech(SPEECH_S, caller_variant)[int(early_s * RATE) :], speech(SPEECH_S, agent_variant)
    left, right = stereo[:, 0], stereo[:, 1]
    assert align_and_correlate(caller, left, RATE).correlation >= AUDIBLE
    assert align_and_correlate(agent, right, RATE).correlation >= AUDIBLE
    assert align_and_correlate(agent, left, RATE).correlation < 0.5
    assert align_and_correlate(caller, right, RATE).correlation < 0.5


async def test_pjsua_calls_the_queue_and_baresip_answers_as_a_registered_agent(tmp_path: Path) -> None:
    carrier = loopback_address()
    caller_says = write_speech(tmp_path / "caller.wav", SPEECH_S, variant=1)
    agent_says = write_speech(tmp_path / "agent.wav", SPEECH_S, variant=2)
    async with MurimaProcess(queue_config(carrier), tmp_path / "murima") as murima:
        await murima.login()
        await agent_is(murima, "offline")
        async with (
            Baresip(
                tmp_path / "baresip",
                "a0001",
                address=loopback_address(),
                domain="pbx.local",
                proxy=murima.remote,
                password="secret",
                register=True,
                answer="manual",
            ) as agent,
            Pjsua(tmp_path / "pjsua", "0700111222", address=carrier) as caller,
        ):
            await agent_is(murima, "ready")
            call = await caller.dial(murima.uri("500"))
            await caller.expect("call", state="confirmed", code=200)
            incoming = await agent.expect("call_incoming")
            assert "0700111222" in str(incoming)
            await agent_is(murima, "ringing")
            await agent.accept()
            await agent.expect("call_established")
            await agent_is(murima, "talking")
            (live,) = (await murima.get("/api/v1/calls"))["data"]
            assert (live["caller"], live["queue_id"], live["agent_id"]) == ("0700111222", "support", "a0001")
            assert live["recording"]

            for _ in range(2):  # the phones' own jitter buffers settle during the first
                await caller.play(call, caller_says)
                await agent.play(agent_says)
                await asyncio.sleep(SPEECH_S + 0.5)  # the speech takes its time
            await caller.send_dtmf(call, "42#")
            for digit in "42#":
                await agent.expect("call_dtmf_start", param=digit)
            await agent.send_dtmf("7")
            await caller.expect("dtmf", digit="7")

            await caller.hang_up(call)
            await caller.expect("call", state="disconnected")
            await agent.expect("call_closed")
            await agent_is(murima, "wrap_up")
            await agent_is(murima, "ready")
            heard_by_agent, heard_by_caller = agent.heard(), caller.heard()
        assert align_and_correlate(speech(SPEECH_S, 1), heard_by_agent, RATE).correlation >= AUDIBLE
        assert align_and_correlate(speech(SPEECH_S, 2), heard_by_caller, RATE).correlation >= AUDIBLE
        row = await interaction(murima)
        assert (row["caller"], row["queue_id"], row["agent_id"]) == ("0700111222", "support", "a0001")
        assert (row["cause"], row["ended_by"]) == ("normal", "caller")
        assert_recorded(murima, row["call_id"], 1, 2)
        await agent_is(murima, "offline")  # baresip took its registration away
        assert "0700111222" not in murima.log()  # personal data is masked


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_sipp_calls_the_queue_and_sipp_answers_at_a_fixed_contact(tmp_path: Path, transport: str) -> None:
    carrier, phone = loopback_address(), loopback_address()
    said = write_speech(tmp_path / "caller.wav", SPEECH_S, variant=3)
    answer = write_speech(tmp_path / "agent.wav", SPEECH_S, variant=4)
    talk_ms = int(SPEECH_S * 1000) + 500
    async with Sipp(
        tmp_path / "agent",
        "uas_plays",
        address=phone,
        audio=answer,
        talk_ms=talk_ms,
        ring_ms=200,
        transport=transport,
    ) as agent:
        config = queue_config(carrier, contact=f"{agent.contact('a0001')};transport={transport}")
        async with MurimaProcess(config, tmp_path / "murima") as murima:
            await murima.login()
            await agent_is(murima, "ready")
            async with Sipp(
                tmp_path / "caller",
                "uac",
                remote=murima.remote,
                service="500",
                caller="0700111222",
                address=carrier,
                audio=said,
                talk_ms=talk_ms + 1000,
                transport=transport,
            ) as caller:
                result = await caller.result()
                assert (result.status, result.succeeded, result.failed) == (0, 1, 0), result.errors
                answered = await agent.result()
                assert (answered.status, answered.succeeded, answered.failed) == (0, 1, 0), answered.errors
                assert "sip:0700111222@" in agent.messages()  # the caller's number in From
                assert "X-Murima-Call-ID: " in agent.messages()
            row = await interaction(murima)
            assert row["agent_id"] == "a0001"
            assert_recorded(murima, row["call_id"], 3, 4, early_s=1.0)


async def test_sipp_hears_its_own_words_come_back_from_an_echoing_sipp_agent(tmp_path: Path) -> None:
    """Through two relays: what pjsua says goes to SIPp, which echoes it, and comes back."""
    carrier, phone = loopback_address(), loopback_address()
    said = write_speech(tmp_path / "said.wav", SPEECH_S, variant=5)
    async with Sipp(tmp_path / "agent", "uas", address=phone) as agent:
        config = queue_config(carrier, contact=agent.contact("a0001"))
        async with (
            MurimaProcess(config, tmp_path / "murima") as murima,
            Pjsua(tmp_path / "pjsua", "0700111222", address=carrier) as caller,
        ):
            await murima.login()
            call = await caller.dial(murima.uri("500"))
            await caller.expect("call", state="confirmed")
            await agent_is(murima, "talking")
            await caller.play(call, said)
            await asyncio.sleep(SPEECH_S + 0.5)  # the speech takes its time
            await caller.hang_up(call)
            await caller.expect("call", state="disconnected")
            assert (await agent.result()).succeeded == 1
            assert align_and_correlate(speech(SPEECH_S, 5), caller.heard(), RATE).correlation >= AUDIBLE


async def test_digits_arrive_whatever_their_payload_type(tmp_path: Path, bank: RtpBank) -> None:
    """SIPp names its digits 96, the agent's phone 101. SIPp needs a raw socket to press keys, so root."""
    carrier, phone = loopback_address(), loopback_address()
    async with (
        SipPhone("a0001", bank, address=phone) as agent,
        MurimaProcess(queue_config(carrier, contact=agent.uri), tmp_path / "murima") as murima,
        AsyncExitStack() as stack,
    ):
        if os.geteuid() == 0:
            where: dict[str, Any] = {"remote": murima.remote, "address": carrier}
            sipp = Sipp(tmp_path / "caller", "uac_digits", digits="42#", talk_ms=2500, **where)
            await stack.enter_async_context(sipp)
            taken = await agent.incoming.get()
            result = await sipp.result()
            assert (result.status, result.succeeded) == (0, 1), result.errors
        else:
            caller = await stack.enter_async_context(SipPhone("0700111222", bank, address=carrier))
            call = caller.dial("500", murima.sip)
            taken = await agent.incoming.get()
            await taken.answered()
            call.rtp.press("42#")
            await call.rtp.until_quiet()
            await call.hang_up()
        assert await taken.ended() == "bye"
        assert taken.rtp.digits() == "42#"


async def test_registered_phones_call_each_other_by_id(tmp_path: Path) -> None:
    config = queue_config("127.0.0.99")
    config["agents"].append({"id": "a0002", "name": "Agent 2", "password": "secret", "auto_ready": True})
    said = write_speech(tmp_path / "said.wav", SPEECH_S, variant=6)
    async with MurimaProcess(config, tmp_path / "murima") as murima:
        account: dict[str, Any] = {
            "domain": "pbx.local",
            "proxy": murima.remote,
            "password": "secret",
            "register": True,
        }
        async with (
            Baresip(tmp_path / "baresip", "a0001", address=loopback_address(), transport="tcp", **account) as callee,
            Pjsua(tmp_path / "pjsua", "a0002", address=loopback_address(), **account) as caller,
        ):
            await murima.login()
            call = await caller.dial("sip:a0001@pbx.local")
            await caller.expect("call", state="confirmed")
            await agent_is(murima, "talking", "a0001")
            await agent_is(murima, "talking", "a0002")
            await caller.play(call, said)
            await asyncio.sleep(SPEECH_S + 0.5)  # the speech takes its time
            await caller.hang_up(call)
            await callee.expect("call_closed")
            assert align_and_correlate(speech(SPEECH_S, 6), callee.heard(), RATE).correlation >= AUDIBLE
            await agent_is(murima, "ready", "a0001")
            await agent_is(murima, "ready", "a0002")


async def test_a_law_caller_and_mu_law_agent_understand_each_other(tmp_path: Path, bank: RtpBank) -> None:
    carrier, phone = loopback_address(), loopback_address()
    async with (
        SipPhone("a0001", bank, address=phone, payload_type=0) as agent,
        SipPhone("0700111222", bank, address=carrier, payload_type=8) as caller,
        MurimaProcess(queue_config(carrier, contact=agent.uri), tmp_path / "murima") as murima,
    ):
        call = caller.dial("500", murima.sip)
        await call.answered()
        taken = await agent.incoming.get()
        await taken.answered()
        call.rtp.say(speech(SPEECH_S, 7))
        taken.rtp.say(speech(SPEECH_S, 8))
        await call.rtp.until_quiet()
        await taken.rtp.until_quiet()
        await call.hang_up()
        assert await taken.ended() == "bye"
        assert align_and_correlate(speech(SPEECH_S, 7), taken.rtp.heard(), RATE).correlation >= AUDIBLE
        assert align_and_correlate(speech(SPEECH_S, 8), call.rtp.heard(), RATE).correlation >= AUDIBLE
