"""An agent with several phones: all ring, one takes the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from adapters.sip.dialogs.session import EndReason, Session, SessionEnded
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow
from engine.events import (
    AgentId,
    CallId,
    EndCause,
    LegAnswered,
    LegEarlyMedia,
    LegEnded,
    LegId,
    LegIncoming,
    LegRinging,
    Party,
)
from engine.telephony import Originate
from tests.native_rig import Phone
from tests.native_scene import Scene, make_scene
from tests.ports import loopback_address

CALL, LEG = CallId("c"), LegId("leg")


class Desk(Scene):
    """An agent, a0002, with phones that are registered."""

    phones: list[Phone]

    def register(self, phone: Phone, q: float = 1.0) -> None:
        request = Request.build(
            "REGISTER",
            "sip:pbx.test",
            via=f"SIP/2.0/UDP {phone.host};branch=z9hG4bK{phone.port}",
            from_="<sip:a0002@pbx.test>;tag=1",
            to="<sip:a0002@pbx.test>",
            call_id=f"{phone.host}:{phone.port}",
            cseq=1,
        )
        request.set("contact", f"<sip:a0002@{phone.host}:{phone.port}>;q={q}")
        registrar = self.rig.endpoint.registrar
        assert registrar is not None
        registrar.register(request, "a0002", Flow("udp", 0, phone.host, phone.port), self.rig.transport.clock())

    def call(self, ring_timeout_s: float = 15) -> None:
        self.telephony.originate(LEG, Originate(CALL, AgentId("a0002"), Party("1"), None, ring_timeout_s))

    async def over(self, phone: Phone) -> SessionEnded:
        return await phone.inbox.wait(SessionEnded)

    async def finish(self) -> None:
        self.telephony.release_call(CALL)
        await self.rig.settled()
        assert len(self.rig.inbox.of(LegEnded)) == 1


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        scene = await make_scene(stack, tmp_path, fake=True)
        desk = Desk(scene.rig, scene.trunk, scene.agent)
        desk.phones = [Phone(loopback_address()) for _ in range(3)]
        for phone in desk.phones:
            await phone.start()
            stack.push_async_callback(phone.close)
        yield desk


async def ringing(*phones: Phone) -> list[Session]:
    sessions = [await phone.ringing() for phone in phones]
    for phone, session in zip(phones, sessions, strict=True):
        phone.ring(session)
    return sessions


async def test_first_answer_wins_and_the_others_are_told(desk: Desk) -> None:
    one, two, three = desk.phones
    for phone in desk.phones:
        desk.register(phone)
    desk.call()
    _, taken, _ = await ringing(one, two, three)
    await desk.rig.inbox.wait(LegRinging)
    await two.pick_up(taken)
    assert await desk.rig.inbox.wait(LegAnswered) == LegAnswered(LEG)
    for phone in (one, three):
        ended = await desk.over(phone)
        assert (ended.reason, ended.detail) == (EndReason.CANCELLED, 'SIP;cause=200;text="Call completed elsewhere"')
    assert len(desk.rig.inbox.of(LegRinging)) == 1
    two.hang_up(taken)
    assert (await desk.ended(LEG)).cause is EndCause.NORMAL
    await desk.finish()


async def test_busy_phone_does_not_end_the_call_at_another(desk: Desk) -> None:
    one, two, _ = desk.phones
    desk.register(one)
    desk.register(two)
    desk.call()
    busy, free = await ringing(one, two)
    one.refuse(busy, 486)
    await two.pick_up(free)
    await desk.rig.inbox.wait(LegAnswered)
    await desk.finish()


async def test_failures_are_told_as_one(desk: Desk) -> None:
    one, two, three = desk.phones
    for phone in desk.phones:
        desk.register(phone)
    desk.call()
    for phone, session, status in zip((one, two, three), await ringing(one, two, three), (404, 486, 408), strict=True):
        phone.refuse(session, status)
    ended = await desk.ended(LEG)
    assert (ended.cause, ended.status) == (EndCause.BUSY, 486)
    await desk.finish()


async def test_phone_that_declines_for_its_owner_ends_all(desk: Desk) -> None:
    one, two, _ = desk.phones
    desk.register(one)
    desk.register(two, q=0.5)
    desk.call()
    (session,) = await ringing(one)
    one.refuse(session, 603)
    assert (await desk.ended(LEG)).cause is EndCause.REJECTED
    assert two.inbox.seen == []
    await desk.finish()


async def test_phones_of_lower_preference_ring_after_the_others_have_failed(desk: Desk) -> None:
    one, two, three = desk.phones
    desk.register(one, q=0.3)
    desk.register(two, q=0.9)
    desk.register(three, q=0.9)
    desk.call()
    busy = await ringing(two, three)
    assert one.inbox.seen == []
    for phone, session in zip((two, three), busy, strict=True):
        phone.refuse(session, 486)
    (session,) = await ringing(one)
    await one.pick_up(session)
    await desk.rig.inbox.wait(LegAnswered)
    await desk.finish()


async def test_phones_share_the_time_by_preference(desk: Desk) -> None:
    one, two, _ = desk.phones
    desk.register(one, q=0.3)
    desk.register(two, q=0.9)
    desk.call(ring_timeout_s=0.3)
    await ringing(two)
    await ringing(one)
    assert (await desk.ended(LEG)).cause is EndCause.NO_ANSWER
    assert (await desk.over(one)).reason is EndReason.CANCELLED
    await desk.finish()


async def test_call_that_is_withdrawn_rings_nowhere(desk: Desk) -> None:
    for phone in desk.phones:
        desk.register(phone)
    desk.call()
    await ringing(*desk.phones)
    desk.telephony.hang_up(LEG, EndCause.CANCELLED)
    for phone in desk.phones:
        assert (await desk.over(phone)).reason is EndReason.CANCELLED
    await desk.finish()


async def test_early_media_of_one_of_the_phones_is_heard(desk: Desk) -> None:
    one, two, _ = desk.phones
    desk.register(one)
    desk.register(two)
    desk.call()
    first, second = await ringing(one, two)
    one.progress(first)
    await desk.rig.inbox.wait(LegEarlyMedia)
    await two.pick_up(second)
    await desk.rig.inbox.wait(LegAnswered)
    await desk.finish()


@pytest.mark.parametrize("rings", [0, 1])
async def test_call_that_rings_at_several_phones_is_picked_up_by_the_names_of_any(desk: Desk, rings: int) -> None:
    for phone in desk.phones[:2]:
        desk.register(phone)
    desk.call()
    sessions = await ringing(*desk.phones[:2])
    await desk.rig.inbox.wait(LegRinging)
    (facts,) = desk.rig.telephony.watching.dialogs("a0002")
    assert facts.state == "early"
    assert facts.sip_call_id in (sessions[0].sip_call_id, sessions[1].sip_call_id)
    dialog = sessions[rings].dialog
    assert dialog is not None
    replaces = f"{dialog.sip_call_id};to-tag={dialog.local_tag};from-tag={dialog.remote_tag};early-only"
    session, effects = desk.trunk.endpoint.invite(
        SipUri.parse(desk.rig.number("x")),
        desk.trunk.offer(),
        from_="<sip:1@pbx.test>",
        now=desk.trunk.now,
        headers=[("replaces", replaces)],
    )
    assert session is not None
    desk.trunk.transport.carry_out(effects)
    incoming = await desk.rig.inbox.wait(LegIncoming)
    assert (incoming.replaces, incoming.call_id) == (LEG, CALL)
    desk.telephony.hang_up(incoming.leg_id)
    desk.telephony.hang_up(LEG)
    desk.telephony.release_call(CALL)
    await desk.rig.settled()
