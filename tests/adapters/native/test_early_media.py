"""Audio before the answer, through the provider, with a media worker, real or fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from adapters.sip.dialogs.session import SessionAcked, SessionEnded, SessionOfferWanted, SessionProgress
from engine.events import CallId, EndCause, LegAnswered, LegEarlyMedia, LegRinging
from media import client as media
from tests.native_scene import Scene, make_scene


@pytest.fixture(params=["fake", "real"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=request.param == "fake")


@pytest.fixture
async def faked(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=True)


async def test_caller_hears_the_called_phone_before_it_answers(scene: Scene) -> None:
    incoming, caller = await scene.incoming()
    leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
    phone = await scene.agent.ringing()
    scene.agent.progress(phone)
    assert await scene.rig.inbox.wait(LegEarlyMedia) == LegEarlyMedia(leg_id)
    assert not scene.rig.inbox.of(LegRinging)
    scene.telephony.progress(incoming.leg_id, leg_id)
    told = await scene.trunk.inbox.wait(SessionProgress, lambda event: event.status == 183)
    assert b"m=audio" in told.body
    await scene.agent.pick_up(phone)
    await scene.rig.inbox.wait(LegAnswered)
    scene.telephony.answer(incoming.leg_id, peer=leg_id)
    assert (await scene.trunk.answered()).body == told.body
    scene.telephony.bridge(incoming.leg_id, leg_id)
    scene.trunk.hang_up(caller)
    assert (await scene.ended(incoming.leg_id)).cause is EndCause.NORMAL
    scene.telephony.release_call(incoming.call_id)
    await scene.rig.settled()


async def test_legs_are_bridged_before_the_answer(faked: Scene) -> None:
    incoming, _ = await faked.incoming()
    leg_id = faked.ring_agent(incoming.call_id, incoming.leg_id)
    faked.agent.progress(await faked.agent.ringing())
    await faked.rig.inbox.wait(LegEarlyMedia)
    faked.telephony.progress(incoming.leg_id, leg_id)
    await faked.trunk.inbox.wait(SessionProgress, lambda event: event.status == 183)
    assert {command.leg for command in faked.worker.sent(media.SetRemote)} == {incoming.leg_id, leg_id}
    assert faked.worker.sent(media.Bridge) == [media.Bridge(incoming.leg_id, leg_id)]
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_useless_early_description_counts_as_ringing(faked: Scene) -> None:
    incoming, _ = await faked.incoming()
    faked.ring_agent(incoming.call_id, incoming.leg_id)
    phone = await faked.agent.ringing()
    faked.agent.transport.carry_out(faked.agent.endpoint.progress(phone, b"v=0\r\nnonsense", faked.agent.now))
    await faked.rig.inbox.wait(LegRinging)
    assert faked.rig.telephony.counters()["early_media_unusable_total"] == 1
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_caller_without_an_offer_is_told_that_it_rings(faked: Scene) -> None:
    incoming, _ = await faked.incoming(body=b"")
    leg_id = faked.ring_agent(incoming.call_id, incoming.leg_id)
    faked.agent.progress(await faked.agent.ringing())
    await faked.rig.inbox.wait(LegEarlyMedia)
    faked.telephony.progress(incoming.leg_id, leg_id)
    told = await faked.trunk.inbox.wait(SessionProgress, lambda event: event.status > 100)
    assert (told.status, told.body) == (180, b"")
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_call_that_ends_after_early_media_is_refused_with_its_cause(faked: Scene) -> None:
    incoming, _ = await faked.incoming()
    leg_id = faked.ring_agent(incoming.call_id, incoming.leg_id)
    phone = await faked.agent.ringing()
    faked.agent.progress(phone)
    await faked.rig.inbox.wait(LegEarlyMedia)
    faked.telephony.progress(incoming.leg_id, leg_id)
    await faked.trunk.inbox.wait(SessionProgress, lambda event: event.status == 183)
    faked.agent.refuse(phone, 486)
    assert (await faked.ended(leg_id)).cause is EndCause.BUSY
    faked.telephony.reject(incoming.leg_id, EndCause.BUSY)
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == 486
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_session_that_must_be_refreshed_is_offered_anew(faked: Scene) -> None:
    incoming, _, leg_id, phone = await faked.talking()
    session = faked.rig.telephony._exchange.legs[leg_id].session
    assert session is not None
    faked.rig.telephony.on_sip_event(SessionOfferWanted(session))
    assert b"m=audio" in (await faked.agent.reoffered()).body
    await faked.agent.inbox.wait(SessionAcked)
    faked.agent.answers_offers = False
    faked.rig.telephony.on_sip_event(SessionOfferWanted(session))
    await faked.agent.reoffered()
    faked.agent.transport.carry_out(faked.agent.endpoint.accept_offer(phone, b"nonsense", faked.agent.now))
    await faked.agent.inbox.wait(SessionAcked)
    assert faked.rig.telephony.counters()["reoffers_unusable_total"] == 1
    assert faked.rig.telephony.live_counts()["legs"] == 2
    faked.agent.hang_up(phone)
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_caller_that_is_answered_already_hears_the_phone_that_rings(faked: Scene) -> None:
    incoming, _ = await faked.incoming()
    faked.telephony.answer(incoming.leg_id)
    await faked.trunk.answered()
    leg_id = faked.ring_agent(incoming.call_id, incoming.leg_id)
    faked.agent.progress(await faked.agent.ringing())
    await faked.rig.inbox.wait(LegEarlyMedia)
    faked.telephony.progress(incoming.leg_id, leg_id)
    assert faked.worker.sent(media.Bridge) == [media.Bridge(incoming.leg_id, leg_id)]
    assert len([e for e in faked.trunk.inbox.of(SessionProgress) if e.status > 100]) == 0
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


async def test_agent_for_whom_somebody_is_called_hears_them_before_they_answer(faked: Scene) -> None:
    call_id = CallId("placed")
    first = faked.ring_agent(call_id, None)
    await faked.agent.pick_up(await faked.agent.ringing())
    await faked.rig.inbox.wait(LegAnswered)
    second = faked.ring_agent(call_id, first)
    faked.agent.progress(await faked.agent.ringing())
    await faked.rig.inbox.wait(LegEarlyMedia)
    faked.telephony.progress(first, second)
    assert faked.worker.sent(media.Bridge) == [media.Bridge(first, second)]
    faked.telephony.release_call(call_id)
    await faked.rig.settled()
