"""The small RTP and SIP phones work, with each other and with phones of another make."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.audio import align_and_correlate
from tests.peers.baresip import Baresip
from tests.peers.process import PeerError
from tests.peers.rtp_phone import RtpBank, RtpPhone
from tests.peers.sip_phone import SipPhone
from tests.ports import loopback_address
from tests.speech import RATE, speech, write_speech


@pytest.fixture
def bank() -> Iterator[RtpBank]:
    with RtpBank() as running:
        yield running


@pytest.fixture
async def pair(bank: RtpBank) -> AsyncIterator[tuple[SipPhone, SipPhone]]:
    async with (
        SipPhone("caller", bank, address=loopback_address()) as caller,
        SipPhone("agent", bank, address=loopback_address(), answer=180) as agent,
    ):
        yield caller, agent


@pytest.mark.parametrize("payload_type", [0, 8])
async def test_rtp_phones_hear_each_other_without_loss_or_gap(bank: RtpBank, payload_type: int) -> None:
    one, two = (bank.add(RtpPhone(loopback_address(), payload_type=payload_type)) for _ in range(2))
    one.remote, two.remote = (two.address, two.port), (one.address, one.port)
    said = speech(1.5, variant=6)
    one.say(said)
    one.press("12#")
    await one.until_quiet()
    assert two.digits() == "12#"
    assert two.lost() == 0
    assert two.longest_gap_ms() < 100
    assert align_and_correlate(said, two.heard(), RATE).correlation >= 0.99


async def test_a_phone_that_stops_sending_leaves_a_gap(bank: RtpBank) -> None:
    one, two = (bank.add(RtpPhone(loopback_address())) for _ in range(2))
    one.remote = (two.address, two.port)
    await asyncio.sleep(0.1)
    one.sending = False
    await asyncio.sleep(0.3)
    one.sending = True
    since_s = time.monotonic()
    await asyncio.sleep(0.2)
    assert two.longest_gap_ms() >= 280
    assert two.longest_gap_ms(since_s) < 150
    assert two.lost() == 0


async def test_sip_phones_call_ring_answer_and_hang_up(pair: tuple[SipPhone, SipPhone]) -> None:
    caller, agent = pair
    call = caller.dial("agent", (agent.address, agent.port))
    await call.ringing()
    taken = await agent.incoming.get()
    taken.answer()
    await call.answered()
    call.rtp.say(speech(0.5))
    await call.rtp.until_quiet()
    assert taken.rtp.received > 20
    await taken.hang_up()
    assert await call.ended() == "bye"


async def test_a_caller_gives_up(pair: tuple[SipPhone, SipPhone]) -> None:
    caller, agent = pair
    call = caller.dial("agent", (agent.address, agent.port))
    await call.ringing()
    await call.hang_up()
    assert await call.ended() == "cancel"
    assert await (await agent.incoming.get()).ended() == "cancel"


async def test_an_agent_refuses(pair: tuple[SipPhone, SipPhone]) -> None:
    caller, agent = pair
    call = caller.dial("agent", (agent.address, agent.port))
    (await agent.incoming.get()).refuse(603, "Decline")
    with pytest.raises(PeerError, match="refused 603"):
        await call.answered()


async def test_a_sip_phone_calls_baresip(bank: RtpBank, tmp_path: Path) -> None:
    answer = write_speech(tmp_path / "answer.wav", 2.0, variant=7)
    async with (
        Baresip(tmp_path / "baresip", "agent", address=loopback_address(), play=answer) as agent,
        SipPhone("caller", bank, address=loopback_address()) as caller,
    ):
        call = caller.dial("agent", (agent.address, agent.port))
        await call.answered()
        call.rtp.say(speech(2.0, variant=8))
        await call.rtp.until_quiet()
        await call.hang_up()
        await agent.expect("call_closed")
        assert align_and_correlate(speech(2.0, variant=8), agent.heard(), RATE).correlation >= 0.95
        assert align_and_correlate(speech(2.0, variant=7), call.rtp.heard(), RATE).correlation >= 0.95
        await agent.dial(caller.uri)
        taken = await caller.incoming.get()
        await agent.expect("call_established")
        await taken.hang_up()
        await agent.expect("call_closed")


async def test_the_bank_keeps_time_for_a_hundred_phones(bank: RtpBank) -> None:
    phones = [bank.add(RtpPhone("127.0.0.1")) for _ in range(100)]
    for one, two in zip(phones[::2], phones[1::2], strict=True):
        one.remote, two.remote = (two.address, two.port), (one.address, one.port)
    await asyncio.sleep(1.0)
    assert min(phone.received for phone in phones) >= 30
    assert sum(phone.lost() for phone in phones) == 0
