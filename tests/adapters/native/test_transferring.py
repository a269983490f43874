from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from adapters.sip.dialogs.session import Login, Session, SessionEnded, SessionState
from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.syntax.refer import read_sipfrag, sipfrag
from adapters.sip.syntax.replaces import Replaces
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow, ServerTransaction
from engine.events import (
    AgentId,
    EndCause,
    LegAnswered,
    LegEnded,
    LegId,
    LegIncoming,
    LegReferred,
    LegTransferAsked,
    Party,
    Source,
    TransferId,
    TransferState,
)
from engine.telephony import Originate, Telephony
from media import client as media
from tests.native_rig import PASSWORD, REALM, FakeWorker, Inbox, Phone, Rig, make_rig, real_worker, settings
from tests.ports import loopback_address

AGENT = AgentId("a0001")
_numbers = count(1)


@dataclass
class Wires:
    """What a phone heard besides sessions: NOTIFYs and REFERs in its dialogs, and outcomes of its own requests."""

    phone: Phone
    inbox: Inbox = field(default_factory=Inbox)
    answers: dict[str, int] = field(default_factory=lambda: {"REFER": 202, "NOTIFY": 200})
    served_in: list[SessionState] = field(default_factory=list)

    def __post_init__(self) -> None:
        for method in self.answers:
            self.phone.endpoint.serve_in_dialog(method, self._serve)

    def _serve(self, session: Session, tx: ServerTransaction, _source: Flow, now: float) -> None:
        self.inbox.put(tx.request)
        self.served_in.append(session.state)
        status = self.answers[tx.request.method]
        self.phone.endpoint.respond(tx, build_response(tx.request, status, to_tag="x"), now)

    def send(self, session: Session, method: str, *headers: tuple[str, str], body: bytes = b"") -> None:
        def told(_status: int, response: Response | None, _now: float) -> None:
            assert response is not None
            self.inbox.put(response)

        self.phone.transport.carry_out(
            self.phone.endpoint.send_within(
                session, method, self.phone.now, headers=headers, body=body, on_outcome=told
            )
        )

    async def refer(self, session: Session, target: str, *headers: tuple[str, str]) -> Response:
        self.send(session, "REFER", ("refer-to", target), ("contact", f"<sip:x@{self.phone.host}>"), *headers)
        return await self.inbox.wait(Response)

    async def told(self) -> tuple[int | None, str]:
        request = await self.inbox.wait(Request)
        assert request.method == "NOTIFY"
        assert request.content_type == "message/sipfrag"
        return read_sipfrag(request.body), request.get("subscription-state") or ""

    def notify(self, session: Session, status: int, state: str = "active") -> None:
        self.send(
            session,
            "NOTIFY",
            ("event", "refer"),
            ("subscription-state", state),
            ("content-type", "message/sipfrag"),
            body=sipfrag(status),
        )


@dataclass
class Scene:
    rig: Rig
    trunk: Phone
    agent: Phone
    wires: Wires
    trunk_wires: Wires

    @property
    def telephony(self) -> Telephony:
        return self.rig.telephony

    async def incoming(self, number: str = "500") -> tuple[LegIncoming, Session]:
        session = self.trunk.call(self.rig.number(number))
        incoming = await self.rig.inbox.wait(LegIncoming)
        self.telephony.answer(incoming.leg_id)
        await self.rig.inbox.wait(LegAnswered)
        await self.trunk.answered()
        return incoming, session

    async def ring(self, incoming: LegIncoming) -> tuple[LegId, Session]:
        leg_id = LegId(f"agent-leg-{next(_numbers)}")
        self.telephony.originate(leg_id, Originate(incoming.call_id, AGENT, Party("1"), incoming.leg_id, 15))
        return leg_id, await self.agent.ringing()

    async def talking(self) -> tuple[LegIncoming, Session, LegId, Session]:
        incoming, caller = await self.incoming()
        leg_id, phone = await self.ring(incoming)
        await self.agent.pick_up(phone)
        await self.rig.inbox.wait(LegAnswered)
        self.telephony.bridge(incoming.leg_id, leg_id)
        return incoming, caller, leg_id, phone

    async def consult(self) -> tuple[LegIncoming, Session]:
        """The agent's phone calls us."""
        session = self.agent.call(self.rig.number("700"), user=AGENT, login=Login(AGENT, PASSWORD))
        incoming = await self.rig.inbox.wait(LegIncoming)
        assert incoming.source == Source(agent_id=AGENT)
        self.telephony.answer(incoming.leg_id)
        await self.rig.inbox.wait(LegAnswered)
        await self.agent.answered()
        return incoming, session

    def replacing(self, replaces: str) -> Session:
        session, effects = self.agent.endpoint.invite(
            SipUri.parse(self.rig.number("x")),
            self.agent.offer(),
            from_=f"<sip:{AGENT}@{REALM}>",
            now=self.agent.now,
            headers=[("replaces", replaces), ("require", "replaces")],
            login=Login(AGENT, PASSWORD),
        )
        assert session is not None
        self.agent.transport.carry_out(effects)
        return session


async def make_scene(stack: AsyncExitStack, tmp_path: Path, *, fake: bool) -> Scene:
    trunk, agent = Phone(loopback_address()), Phone(loopback_address())
    for phone in (trunk, agent):
        await phone.start()
        stack.push_async_callback(phone.close)
    first = settings(tmp_path, trunk=trunk.host, contacts={AGENT: f"sip:a0001@{agent.host}:{agent.port}"})
    rig = await stack.enter_async_context(make_rig(first))
    if fake:
        rig.worker = FakeWorker(rig.telephony)
        rig.worker.attach()
    else:
        await stack.enter_async_context(real_worker(rig, tmp_path))
        await rig.attached.wait()
    return Scene(rig, trunk, agent, Wires(agent), Wires(trunk))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=True)


def names_of(session: Session, *, early_only: bool = False) -> Replaces:
    """A phone's dialog with us, as it names it to others: our tag is the to-tag."""
    dialog = session.dialog
    assert dialog is not None
    return Replaces(session.sip_call_id, dialog.remote_tag or "", session.local_tag, early_only)


async def test_phone_refers_and_is_told_how_it_goes(scene: Scene) -> None:
    _, _, leg_id, phone = await scene.talking()
    for number in range(2):
        scene.wires.send(phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"), ("contact", "<sip:x@192.0.2.1>"))
        asked = await scene.rig.inbox.wait(LegTransferAsked)
        assert (asked.leg_id, asked.target, asked.replaces) == (leg_id, "2000", None)
        scene.telephony.report_transfer(asked.transfer_id, TransferState.TRYING)
        answer = await scene.wires.inbox.wait(Response)
        assert answer.status == 202
        first = await scene.wires.inbox.wait(Request)
        assert (first.get("event") == "refer") is (number == 0)
        assert read_sipfrag(first.body) == 100
        assert (first.get("subscription-state") or "").startswith("active")
        scene.telephony.report_transfer(asked.transfer_id, TransferState.RINGING)
        assert (await scene.wires.told())[0] == 180
        outcome, cause = [(TransferState.FAILED, EndCause.BUSY), (TransferState.DONE, EndCause.NORMAL)][number]
        scene.telephony.report_transfer(asked.transfer_id, outcome, cause)
        assert await scene.wires.told() == ([486, 200][number], "terminated;reason=noresource")
        scene.telephony.report_transfer(asked.transfer_id, TransferState.RINGING)  # too late


async def test_last_report_waits_for_none_and_comes_before_our_bye(scene: Scene) -> None:
    _, _, leg_id, phone = await scene.talking()
    scene.wires.send(phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"), ("contact", "<sip:x@192.0.2.1>"))
    asked = await scene.rig.inbox.wait(LegTransferAsked)
    for state in (TransferState.TRYING, TransferState.RINGING, TransferState.DONE):
        scene.telephony.report_transfer(asked.transfer_id, state)
    scene.telephony.hang_up(leg_id)
    assert (await scene.wires.told())[0] == 100
    assert (await scene.wires.told()) == (200, "terminated;reason=noresource")
    assert scene.wires.served_in == [SessionState.CONFIRMED] * 2
    await scene.agent.inbox.wait(SessionEnded)


@pytest.mark.parametrize(
    ("state", "cause", "status"),
    [
        (TransferState.REFUSED, EndCause.FORBIDDEN, 403),
        (TransferState.REFUSED, EndCause.UNSUPPORTED, 488),
        (TransferState.BUSY, EndCause.BUSY, 491),
    ],
)
async def test_refusals_leave_the_call_alone(scene: Scene, state: TransferState, cause: EndCause, status: int) -> None:
    _, _, _, phone = await scene.talking()
    scene.wires.send(phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"), ("contact", "<sip:x@192.0.2.1>"))
    asked = await scene.rig.inbox.wait(LegTransferAsked)
    scene.telephony.report_transfer(asked.transfer_id, state, cause)
    assert (await scene.wires.inbox.wait(Response)).status == status
    assert not scene.rig.inbox.of(LegEnded)


async def test_number_that_nobody_has_is_told_by_notify(scene: Scene) -> None:
    _, _, _, phone = await scene.talking()
    scene.wires.send(phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"), ("contact", "<sip:x@192.0.2.1>"))
    asked = await scene.rig.inbox.wait(LegTransferAsked)
    scene.telephony.report_transfer(asked.transfer_id, TransferState.REFUSED, EndCause.NOT_FOUND)
    assert (await scene.wires.inbox.wait(Response)).status == 202
    assert (await scene.wires.told())[0] == 404


async def test_phone_that_wants_no_subscription_gets_none(scene: Scene) -> None:
    _, _, _, phone = await scene.talking()
    scene.wires.send(
        phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"), ("refer-sub", "false"), ("require", "norefersub")
    )
    asked = await scene.rig.inbox.wait(LegTransferAsked)
    scene.telephony.report_transfer(asked.transfer_id, TransferState.TRYING)
    answer = await scene.wires.inbox.wait(Response)
    assert (answer.status, answer.get("refer-sub")) == (200, "false")
    scene.telephony.report_transfer(asked.transfer_id, TransferState.DONE)
    assert not scene.wires.inbox.of(Request)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("garbage", 400),
        ("<sip:2000@pbx.test>, <sip:2001@pbx.test>", 400),
        ("<http://pbx.test/>", 416),
        ("<sip:2000@pbx.test;method=BYE>", 501),
        ("<sip:pbx.test>", 404),
        (f"<sip:{'1' * 300}@pbx.test>", 414),
        ("<sip:2000@pbx.test?Replaces=nonsense>", 400),
        ("<sip:2000@pbx.test?Replaces=a%3Bto-tag%3Db%3Bfrom-tag%3Dc>", 603),
    ],
)
async def test_referrals_that_make_no_sense_are_refused(scene: Scene, target: str, status: int) -> None:
    _, _, _, phone = await scene.talking()
    assert (await scene.wires.refer(phone, target)).status == status
    assert not scene.rig.inbox.of(LegTransferAsked)


async def test_phone_refers_to_its_other_call(scene: Scene) -> None:
    _, _, leg_id, phone = await scene.talking()
    consult, other = await scene.consult()
    for one, replaced, asking, meant in (
        (phone, other, leg_id, consult.leg_id),
        (other, phone, consult.leg_id, leg_id),
    ):
        header = names_of(replaced).uri_header()
        scene.wires.send(one, "REFER", ("refer-to", f"<sip:x@pbx.test?{header}>"))
        asked = await scene.rig.inbox.wait(LegTransferAsked)
        assert (asked.leg_id, asked.replaces) == (asking, meant)
    itself = names_of(phone).uri_header()
    scene.wires.send(phone, "REFER", ("refer-to", f"<sip:x@pbx.test?{itself}>"))
    assert (await scene.wires.inbox.wait(Response)).status == 603


async def test_invite_takes_the_place_of_a_phone_that_talks(scene: Scene) -> None:
    incoming, _, leg_id, phone = await scene.talking()
    scene.replacing(str(names_of(phone)))
    taking = await scene.rig.inbox.wait(LegIncoming)
    assert (taking.replaces, taking.call_id, taking.source.agent_id) == (leg_id, incoming.call_id, AGENT)
    scene.telephony.answer(taking.leg_id, peer=incoming.leg_id)
    await scene.agent.answered()
    scene.telephony.bridge(incoming.leg_id, taking.leg_id)
    scene.telephony.hang_up(leg_id)
    scene.telephony.hang_up(taking.leg_id)
    scene.telephony.hang_up(incoming.leg_id)
    scene.telephony.release_call(incoming.call_id)
    await scene.rig.settled()


@pytest.mark.parametrize("as_we_name_it", [True, False])
async def test_invite_picks_up_a_phone_that_rings(scene: Scene, as_we_name_it: bool) -> None:
    incoming, _ = await scene.incoming()
    leg_id, phone = await scene.ring(incoming)
    scene.agent.ring(phone)
    names = names_of(phone, early_only=True)
    if as_we_name_it:  # as the dialog package does for the phone
        names = Replaces(names.sip_call_id, names.from_tag, names.to_tag, early_only=True)
    scene.replacing(str(names))
    assert (await scene.rig.inbox.wait(LegIncoming)).replaces == leg_id


async def test_invites_that_replace_nothing_are_refused(scene: Scene) -> None:
    incoming, caller, leg_id, phone = await scene.talking()
    early = str(names_of(phone, early_only=True))
    for replaces, status in (("nonsense", 400), ("a;to-tag=b;from-tag=c", 481), (early, 486)):
        scene.replacing(replaces)
        assert (await scene.agent.inbox.wait(SessionEnded)).status == status
    names = str(names_of(phone))
    scene.trunk.call(scene.rig.number("501"))  # nobody has answered: this one is the caller's to end
    waiting = await scene.rig.inbox.wait(LegIncoming)
    scene.telephony.hang_up(leg_id)
    await scene.agent.inbox.wait(SessionEnded)
    scene.replacing(names)
    assert (await scene.agent.inbox.wait(SessionEnded)).status in (481, 603)
    for leg in (incoming.leg_id, waiting.leg_id):
        scene.telephony.hang_up(leg)
    assert caller.dialog is not None


async def test_we_refer_a_phone_elsewhere(scene: Scene) -> None:
    incoming, caller, _, _ = await scene.talking()
    scene.telephony.refer(incoming.leg_id, transfer := TransferId("t1"), "+4930123")
    request = await scene.trunk_wires.inbox.wait(Request)
    assert request.get("refer-to") == f"<sip:+4930123@{REALM}>"
    assert request.get("referred-by") == f"<sip:murima@{REALM}>"
    scene.telephony.refer(incoming.leg_id, TransferId("t2"), "1")  # one at a time
    assert (await scene.rig.inbox.wait(LegReferred)).state is TransferState.REFUSED
    scene.trunk_wires.notify(caller, 100)
    scene.trunk_wires.notify(caller, 180)
    scene.trunk_wires.notify(caller, 200, "terminated;reason=noresource")
    told = [await scene.rig.inbox.wait(LegReferred) for _ in range(3)]
    assert {event.transfer_id for event in told} == {transfer}
    assert [event.state for event in told] == [TransferState.TRYING, TransferState.RINGING, TransferState.DONE]
    scene.trunk_wires.notify(caller, 200, "terminated")
    statuses = [(await scene.trunk_wires.inbox.wait(Response)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 481]


async def test_referral_of_ours_that_fails(scene: Scene) -> None:
    incoming, caller, _, _ = await scene.talking()
    scene.trunk_wires.answers["REFER"] = 603
    scene.telephony.refer(incoming.leg_id, TransferId("t1"), "2000")
    failed = await scene.rig.inbox.wait(LegReferred)
    assert (failed.state, failed.cause) == (TransferState.FAILED, EndCause.REJECTED)
    scene.trunk_wires.answers["REFER"] = 202
    scene.telephony.refer(incoming.leg_id, TransferId("t2"), "2000")
    scene.trunk_wires.notify(caller, 486, "terminated")
    failed = await scene.rig.inbox.wait(LegReferred)
    assert (failed.state, failed.cause) == (TransferState.FAILED, EndCause.BUSY)
    scene.telephony.refer(incoming.leg_id, TransferId("t3"), "2000")
    await scene.trunk_wires.inbox.wait(Request, lambda request: request.method == "REFER")
    scene.trunk_wires.notify(caller, 100)
    await scene.rig.inbox.wait(LegReferred)
    scene.trunk.hang_up(caller)  # without a last word: it has what it wanted
    assert (await scene.rig.inbox.wait(LegReferred)).state is TransferState.DONE
    await scene.rig.inbox.wait(LegEnded)


async def test_leg_moves_to_another_call(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        scene = await make_scene(stack, tmp_path, fake=False)
        first, _, leg_id, _ = await scene.talking()
        second, _ = await scene.incoming("501")
        assert scene.telephony.shares_audio(first.leg_id, second.leg_id)
        assert not scene.telephony.shares_audio(first.leg_id, LegId("gone"))
        scene.telephony.unbridge(first.leg_id, leg_id)
        scene.telephony.move_leg(second.leg_id, first.call_id)
        scene.telephony.bridge(first.leg_id, second.leg_id)
        scene.telephony.hang_up(leg_id)
        scene.telephony.release_call(second.call_id)  # must not take the leg with it
        await scene.rig.inbox.wait(LegEnded)
        assert len(scene.rig.inbox.of(LegEnded)) == 1
        scene.telephony.release_call(first.call_id)
        ended = {(await scene.rig.inbox.wait(LegEnded)).leg_id for _ in range(2)}
        assert ended == {first.leg_id, second.leg_id}
        await scene.rig.settled()


async def test_second_call_of_an_agent_goes_to_the_worker_of_the_first(scene: Scene) -> None:
    idle = FakeWorker(scene.rig.telephony, "worker-1")
    _, _, _, _ = await scene.talking()
    idle.attach()
    await scene.consult()
    assert idle.sent(media.OpenLeg) == []
    await scene.incoming("501")
    assert len(idle.sent(media.OpenLeg)) == 1


async def test_phone_renews_its_subscription_and_wants_to_hear_no_more(scene: Scene) -> None:
    _, _, _, phone = await scene.talking()
    refer = ("event", "refer")
    scene.wires.send(phone, "SUBSCRIBE", refer, ("contact", "<sip:x@192.0.2.1>"))
    assert (await scene.wires.inbox.wait(Response)).status == 403
    scene.wires.send(phone, "SUBSCRIBE", ("event", "dialog"), ("contact", "<sip:x@192.0.2.1>"))
    assert (await scene.wires.inbox.wait(Response)).status == 489
    scene.wires.send(phone, "REFER", ("refer-to", "<sip:2000@pbx.test>"))
    asked = await scene.rig.inbox.wait(LegTransferAsked)
    scene.telephony.report_transfer(asked.transfer_id, TransferState.TRYING)
    assert (await scene.wires.told())[0] == 100
    scene.wires.send(phone, "SUBSCRIBE", refer, ("expires", "60"), ("contact", "<sip:x@192.0.2.1>"))
    assert (await scene.wires.inbox.wait(Response)).get("expires") == "60"
    assert (await scene.wires.told())[0] == 100
    scene.wires.send(phone, "SUBSCRIBE", refer, ("expires", "0"), ("contact", "<sip:x@192.0.2.1>"))
    assert await scene.wires.told() == (100, "terminated;reason=timeout")
    scene.telephony.report_transfer(asked.transfer_id, TransferState.DONE)
    scene.agent.hang_up(phone)
    await scene.rig.inbox.wait(LegEnded)
    assert not scene.rig.telephony._transferring._referrals._served
