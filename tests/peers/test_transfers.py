"""Transfers that real phones ask for: blind and attended, by pjsua2 and by baresip; the new party hears the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.audio import align_and_correlate, load_wav
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipCall, SipPhone
from tests.ports import loopback_address
from tests.speech import RATE, speech

SPEECH_S = 2.0
AUDIBLE = 0.9


class Office:
    """murima with two agents on pjsua2, one of whom talks to a caller."""

    def __init__(self, murima: MurimaProcess, agent: Pjsua, colleague: Pjsua, caller: SipPhone) -> None:
        self.murima = murima
        self.agent = agent
        self.colleague = colleague
        self.caller = caller

    async def talk(self) -> tuple[SipCall, int]:
        call = self.caller.dial("500", self.murima.sip)
        await call.answered()
        number = (await self.agent.expect("call", state="confirmed"))["call"]
        await self.is_state("a0001", "talking")
        return call, number

    async def is_state(self, agent: str, state: str) -> None:
        await self.murima.until(f"/api/v1/agents/{agent}", lambda answer: answer["data"]["state"] == state)

    async def assert_colleague_hears(self, call: SipCall, variant: int) -> None:
        for _ in range(2):  # the phone's jitter buffer settles during the first
            call.rtp.say(speech(SPEECH_S, variant))
            await call.rtp.until_quiet()
        await asyncio.sleep(0.3)
        await call.hang_up()
        await self.colleague.expect("call", state="disconnected")
        assert align_and_correlate(speech(SPEECH_S, variant), self.colleague.heard(), RATE).correlation >= AUDIBLE

    async def one_call(self) -> dict[str, Any]:
        answer = await self.murima.until("/api/v1/calls", lambda answer: len(answer["data"]) == 1)
        call: dict[str, Any] = answer["data"][0]
        return call


@pytest.fixture
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


@pytest.fixture
async def office(tmp_path: Path, bank: RtpBank) -> AsyncIterator[Office]:
    carrier = loopback_address()
    config = {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [{"id": f"a000{n}", "password": "secret", "auto_ready": True} for n in (1, 2, 3)],
        "queues": [{"id": "support", "members": ["a0001"], "wrap_up_s": 1, "record": True}],
        "numbers": {"500": {"queue": "support"}, "503": {"agent": "a0003"}},
    }
    async with AsyncExitStack() as stack:
        murima = await stack.enter_async_context(MurimaProcess(config, tmp_path / "murima"))
        await murima.login()
        agent, colleague = [
            await stack.enter_async_context(
                Pjsua(
                    tmp_path / name,
                    name,
                    address=loopback_address(),
                    domain="pbx.local",
                    proxy=murima.remote,
                    password="secret",
                    register=True,
                )
            )
            for name in ("a0001", "a0002")
        ]
        caller = await stack.enter_async_context(SipPhone("0700111222", bank, address=carrier))
        office = Office(murima, agent, colleague, caller)
        await office.is_state("a0001", "ready")
        yield office


async def test_blind_transfer_by_pjsua(office: Office) -> None:
    call, number = await office.talk()
    await office.agent.hold(number)
    await office.agent.transfer(number, "sip:a0002@pbx.local")
    await office.agent.expect("transfer", code=200, final=True)
    await office.agent.expect("call", call=number, state="disconnected")
    await office.colleague.expect("call", state="confirmed")
    live = await office.one_call()
    assert (live["agent_id"], live["caller"]) == ("a0002", "0700111222")
    await office.is_state("a0001", "ready")  # after its wrap-up
    await office.assert_colleague_hears(call, 3)
    answer = await office.murima.until(
        "/api/v1/interactions", lambda a: len(a["data"]) == 1 and a["data"][0]["recording_sha256"]
    )
    (row,) = answer["data"]
    assert (row["caller"], row["agent_id"]) == ("0700111222", "a0002")
    # One recording, which goes on with the colleague.
    stereo, rate = load_wav(office.murima.data / "recordings" / f"{row['call_id']}.wav")
    assert align_and_correlate(speech(SPEECH_S, 3), stereo[:, 0], rate).correlation >= AUDIBLE
    assert row["recording_error"] is None


async def test_blind_transfer_to_nobody_leaves_the_conversation(office: Office) -> None:
    call, number = await office.talk()
    await office.agent.transfer(number, "sip:999@pbx.local")
    await office.agent.expect("transfer", code=404, final=True)
    assert (await office.one_call())["agent_id"] == "a0001"
    await office.agent.hang_up(number)
    assert await call.ended() == "bye"


async def test_attended_transfer_by_pjsua(office: Office) -> None:
    call, number = await office.talk()
    await office.agent.hold(number)
    consult = await office.agent.dial("sip:a0002@pbx.local")
    await office.agent.expect("call", call=consult, state="confirmed")
    await office.is_state("a0002", "talking")
    await office.agent.transfer_to_call(number, consult)
    for ended in (number, consult):
        await office.agent.expect("call", call=ended, state="disconnected")
    live = await office.one_call()
    assert (live["agent_id"], live["caller"], live["state"]) == ("a0002", "0700111222", "talking")
    await office.assert_colleague_hears(call, 4)
    await office.murima.until("/api/v1/calls", lambda answer: not answer["data"])
    for agent in ("a0001", "a0002"):
        await office.is_state(agent, "ready")


async def test_blind_transfer_by_baresip(office: Office, tmp_path: Path) -> None:
    async with Baresip(
        tmp_path / "baresip",
        "a0003",
        address=loopback_address(),
        domain="pbx.local",
        proxy=office.murima.remote,
        password="secret",
        register=True,
    ) as agent:
        call = office.caller.dial("503", office.murima.sip)
        await call.answered()
        await agent.expect("call_established")
        await agent.command("transfer", "sip:a0002@pbx.local")
        await office.colleague.expect("call", state="confirmed")
        await agent.expect("call_closed")
        await office.assert_colleague_hears(call, 5)


async def test_operator_transfers_over_http(office: Office) -> None:
    call, number = await office.talk()
    live = await office.one_call()
    with pytest.raises(PeerError, match="404"):
        await office.murima.post(f"/api/v1/calls/{live['id']}/transfer", {"target": "999"})
    await office.murima.post(f"/api/v1/calls/{live['id']}/transfer", {"target": "a0002"})
    await office.colleague.expect("call", state="confirmed")
    await office.agent.expect("call", call=number, state="disconnected")
    await office.assert_colleague_hears(call, 6)
