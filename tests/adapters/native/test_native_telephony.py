from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.native.causes import STATUS, cause_of, status_of
from adapters.native.exchange import Exchange
from adapters.sip.dialogs.session import (
    EndReason,
    Login,
    SessionEnded,
    SessionReoffered,
)
from adapters.sip.endpoint import RegistrationChanged
from adapters.sip.syntax.message import Request, parse_message
from adapters.sip.syntax.uri import SipUri
from engine.events import (
    AgentId,
    AgentReachability,
    CallAbandonedByEngine,
    CallId,
    EndCause,
    LegAnswered,
    LegDtmf,
    LegEnded,
    LegHeld,
    LegId,
    LegIncoming,
    LegReport,
    LegResumed,
    LegRinging,
    LegTrying,
    OrphanEnded,
    Party,
    PlayFinished,
    PlayId,
    RecordingFinished,
    Source,
)
from engine.telephony import Originate
from media import client as media
from tests.native_rig import (
    PASSWORD,
    FakeWorker,
    Phone,
    register_over_tcp,
    settings,
    udp_socket,
)
from tests.native_scene import AGENT, Scene, make_scene
from tests.ports import loopback_address


@pytest.fixture(params=["fake", "real"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=request.param == "fake")


@pytest.fixture
async def faked(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=True)


async def test_caller_and_agent_talk_and_nothing_is_left(scene: Scene, tmp_path: Path) -> None:
    incoming, caller = await scene.incoming()
    assert incoming.caller == Party("4930123", "Ann")
    assert incoming.dialled == "500"
    assert incoming.source == Source(trunk="carrier")
    assert incoming.peer_reference == caller.sip_call_id
    scene.telephony.ring(incoming.leg_id)
    scene.telephony.answer(incoming.leg_id)
    await scene.rig.inbox.wait(LegAnswered)
    assert b"m=audio" in (await scene.trunk.answered()).body
    leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
    await scene.rig.inbox.wait(LegTrying)
    phone = await scene.agent.ringing()
    invite = phone.request
    assert invite.from_.display_name == "Ann"
    assert str(invite.from_.uri) == "sip:4930123@pbx.test"
    assert invite.get("x-murima-call-id") == incoming.call_id
    assert invite.max_forwards == 69
    scene.agent.ring(phone)
    assert (await scene.rig.inbox.wait(LegRinging)).leg_id == leg_id
    await scene.agent.pick_up(phone)
    assert (await scene.rig.inbox.wait(LegAnswered)).leg_id == leg_id
    scene.telephony.bridge(incoming.leg_id, leg_id)
    scene.telephony.start_recording(incoming.call_id, incoming.leg_id, leg_id)
    scene.telephony.save_snapshot(incoming.call_id, b"state")
    scene.trunk.hang_up(caller)
    assert await scene.ended(incoming.leg_id) == LegEnded(incoming.leg_id, EndCause.NORMAL)
    scene.telephony.hang_up(leg_id)
    assert await scene.ended(leg_id) == LegEnded(leg_id, EndCause.NORMAL)
    scene.telephony.release_call(incoming.call_id)
    report = await scene.rig.inbox.wait(LegReport, lambda r: r.leg_id == leg_id)
    assert report.call_id == incoming.call_id
    recorded = await scene.rig.inbox.wait(RecordingFinished)
    assert recorded.path == f"{tmp_path}/{incoming.call_id}.wav"
    await scene.rig.settled()
    assert (await scene.agent.inbox.wait(SessionEnded)).reason is EndReason.BYE
    assert len(scene.rig.inbox.of(LegEnded)) == 2


async def test_agent_refuses(scene: Scene) -> None:
    incoming, _ = await scene.incoming()
    for status, cause in ((486, EndCause.BUSY), (603, EndCause.REJECTED), (302, EndCause.UNREACHABLE)):
        leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
        scene.agent.refuse(await scene.agent.ringing(), status)
        ended = await scene.ended(leg_id)
        assert (ended.cause, ended.status) == (cause, status)
    scene.telephony.reject(incoming.leg_id, EndCause.NOT_FOUND)
    assert (await scene.ended(incoming.leg_id)).cause is EndCause.NOT_FOUND
    assert (await scene.trunk.inbox.wait(SessionEnded)).status == 404
    scene.telephony.release_call(incoming.call_id)
    await scene.rig.settled()


async def test_ring_timeout_is_no_answer(scene: Scene) -> None:
    leg_id = scene.ring_agent(CallId("c1"), None, ring_timeout_s=0.2)
    scene.agent.ring(await scene.agent.ringing())
    assert (await scene.ended(leg_id)).cause is EndCause.NO_ANSWER
    assert (await scene.agent.inbox.wait(SessionEnded)).reason is EndReason.CANCELLED
    scene.telephony.release_call(CallId("c1"))
    await scene.rig.settled()


async def test_caller_gives_up_while_ringing(scene: Scene) -> None:
    incoming, caller = await scene.incoming()
    scene.telephony.ring(incoming.leg_id)
    leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
    await scene.agent.ringing()
    scene.trunk.hang_up(caller)
    assert (await scene.ended(incoming.leg_id)).cause is EndCause.CANCELLED
    scene.telephony.hang_up(leg_id, EndCause.CANCELLED)
    assert (await scene.ended(leg_id)).cause is EndCause.CANCELLED
    scene.telephony.release_call(incoming.call_id)
    await scene.rig.settled()


async def test_agent_without_registration_is_unreachable(scene: Scene) -> None:
    scene.telephony.originate(
        LegId("x"), Originate(CallId("c"), AgentId("a0002"), Party("1"), peer=None, ring_timeout_s=5)
    )
    assert (await scene.ended(LegId("x"))).cause is EndCause.UNREACHABLE
    assert not scene.rig.telephony.reachable(AgentId("a0002"))
    assert scene.rig.telephony.reachable(AGENT)


async def test_callers_codec_is_offered_first_to_the_agent(scene: Scene) -> None:
    scene.trunk.codecs = ("PCMA", "PCMU")
    incoming, _ = await scene.incoming()
    scene.telephony.answer(incoming.leg_id)
    assert b"RTP/AVP 8 101" in (await scene.trunk.answered()).body
    scene.ring_agent(incoming.call_id, incoming.leg_id)
    phone = await scene.agent.ringing()
    assert b"RTP/AVP 8 0 101" in phone.offered


async def test_answer_prefers_the_codec_of_the_peer(scene: Scene) -> None:
    incoming, _ = await scene.incoming()
    scene.agent.codecs = ("PCMA",)
    leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
    await scene.agent.pick_up(await scene.agent.ringing())
    await scene.rig.inbox.wait(LegAnswered)
    scene.telephony.answer(incoming.leg_id, peer=leg_id)
    assert b"RTP/AVP 8 101" in (await scene.trunk.answered()).body


async def test_hold_and_resume(scene: Scene) -> None:
    incoming, caller, _, _ = await scene.talking()
    scene.trunk.reinvite(caller, scene.trunk.offer(direction="sendonly", version=2))
    assert await scene.rig.inbox.wait(LegHeld) == LegHeld(incoming.leg_id)
    answer = await scene.trunk.inbox.wait(SessionReoffered)
    assert b"a=recvonly" in answer.body
    scene.trunk.reinvite(caller, scene.trunk.offer(version=3))
    assert await scene.rig.inbox.wait(LegResumed) == LegResumed(incoming.leg_id)
    assert b"a=sendrecv" in (await scene.trunk.inbox.wait(SessionReoffered)).body


async def test_unusable_reoffer_leaves_the_call_as_it_was(scene: Scene) -> None:
    _, caller, _, _ = await scene.talking()
    for body in (b"garbage", scene.trunk.offer().replace(b"RTP/AVP 0 8", b"RTP/AVP 18 3")):
        scene.trunk.reinvite(caller, body)
        assert (await scene.trunk.inbox.wait(SessionReoffered)).status in (400, 488)
    assert not scene.rig.inbox.of(LegEnded)


@pytest.mark.parametrize(
    "body",
    [
        b"v=0\r\nnonsense",
        b"v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\nm=audio 9 RTP/AVP 18\r\n",
        b"v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\nc=IN IP4 1.1.1.1\r\nm=audio 9 RTP/SAVP 0\r\n",
        b"v=0\r\no=- 1 1 IN IP4 1.1.1.1\r\nm=audio 9 RTP/AVP 0\r\n",  # no address
    ],
)
async def test_calls_without_usable_audio_are_refused_before_anybody_rings(faked: Scene, body: bytes) -> None:
    faked.trunk.call(faked.rig.number("500"), body=body)
    ended = await faked.trunk.inbox.wait(SessionEnded)
    assert ended.status in (400, 488)
    assert not faked.rig.inbox.seen
    await faked.rig.settled()


@pytest.mark.parametrize(
    ("caller", "party"),
    [
        ('"Jos\udce9" <sip:100@x>', Party("100", "José")),  # Latin-1, as old gateways send it
        ('"Zoë" <sip:1%ff0@x>', Party("1ÿ0", "Zoë")),
        ('"a\x1b[2Jb" <sip:%00%0a7@x>', Party("  7", "a [2Jb")),
        (f'"{"n" * 5000}" <sip:{"1" * 5000}@x>', Party("1" * 128, "n" * 128)),
    ],
)
async def test_callers_are_named_in_text_that_all_can_take(faked: Scene, caller: str, party: Party) -> None:
    session, effects = faked.trunk.endpoint.invite(
        SipUri.parse(faked.rig.number("500")), faked.trunk.offer(), from_=caller, now=faked.trunk.now
    )
    assert session is not None
    faked.trunk.transport.carry_out(effects)
    incoming = await faked.rig.inbox.wait(LegIncoming)
    assert incoming.caller == party
    faked.telephony.reject(incoming.leg_id, EndCause.BUSY)
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


@pytest.mark.parametrize(("user", "status"), [("1%00", 404), ("1" * 200, 414)])
async def test_numbers_that_nobody_can_dial_are_refused(faked: Scene, user: str, status: int) -> None:
    faked.trunk.call(faked.rig.number(user))
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == status
    await faked.rig.settled()


async def test_fault_of_ours_ends_one_call_only(faked: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    _, caller, _, _ = await faked.talking()
    incoming, _ = await faked.incoming("501")

    def broken(leg: object, port: int) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(faked.rig.telephony, "_answer", broken)
        faked.telephony.answer(incoming.leg_id)  # the port comes from the worker: the fault is in its event
        assert (await faked.ended(incoming.leg_id)).cause is EndCause.FAILED
        assert (await faked.trunk.inbox.wait(SessionEnded)).status == 500
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "next_sdp_session", broken)
        faked.trunk.call(faked.rig.number("502"))
        assert (await faked.trunk.inbox.wait(SessionEnded)).status == 500
    assert faked.rig.telephony.counters()["telephony_faults_total"] == 2
    faked.trunk.hang_up(caller)
    await faked.rig.inbox.wait(LegEnded)


async def test_delayed_offer_without_an_answer_ends_the_call(scene: Scene) -> None:
    incoming, _ = await scene.incoming(body=b"")
    scene.telephony.answer(incoming.leg_id)
    await scene.trunk.answered()  # our offer; the ACK of this phone has no body
    assert (await scene.ended(incoming.leg_id)).cause is EndCause.UNSUPPORTED
    scene.telephony.release_call(incoming.call_id)
    await scene.rig.settled()


async def test_delayed_offer_is_answered_in_the_ack(faked: Scene) -> None:
    host = faked.trunk.host
    loop = asyncio.get_running_loop()
    with udp_socket(host) as sock:
        sock.setblocking(False)
        port = sock.getsockname()[1]

        def request(method: str, to: str) -> Request:
            made = Request.build(
                method,
                faked.rig.number("500"),
                via=f"SIP/2.0/UDP {host}:{port};branch=z9hG4bK{method}",
                from_="<sip:1@x>;tag=1",
                to=to,
                call_id="delayed",
                cseq=1,
            )
            made.set("contact", f"<sip:1@{host}:{port}>")
            return made

        async def send(made: Request) -> None:
            await loop.sock_sendto(sock, made.serialise(), ("127.0.0.1", faked.rig.port))

        await send(request("INVITE", "<sip:500@x>"))
        incoming = await faked.rig.inbox.wait(LegIncoming)
        faked.telephony.answer(incoming.leg_id)
        async with asyncio.timeout(5):
            while (ok := parse_message(await loop.sock_recv(sock, 65536))).cseq.method != "INVITE" or not ok.body:
                continue
        assert not faked.rig.inbox.of(LegAnswered)  # nobody knows yet where the audio goes
        ack = request("ACK", str(ok.to))
        ack.set("content-type", "application/sdp")
        ack.body = faked.trunk.answer_to(ok.body)
        await send(ack)
        assert await faked.rig.inbox.wait(LegAnswered) == LegAnswered(incoming.leg_id)
        assert faked.worker.sent(media.SetRemote)[0].address == host


async def test_agent_that_answers_with_garbage_ends_that_leg_only(scene: Scene) -> None:
    incoming, _ = await scene.incoming()
    leg_id = scene.ring_agent(incoming.call_id, incoming.leg_id)
    phone = await scene.agent.ringing()
    scene.agent.transport.carry_out(scene.agent.endpoint.answer(phone, b"???", scene.agent.now))
    assert (await scene.ended(leg_id)).cause is EndCause.BROKEN
    scene.telephony.answer(incoming.leg_id)
    await scene.trunk.answered()


async def test_stranger_and_agent_with_password(scene: Scene, tmp_path: Path) -> None:
    stranger = Phone(loopback_address())
    await stranger.start()
    try:
        stranger.call(scene.rig.number("500"), user="nobody")
        assert (await stranger.inbox.wait(SessionEnded)).status == 401
        stranger.call(scene.rig.number("500"), user="a0002", login=Login("a0002", "wrong"))
        assert (await stranger.inbox.wait(SessionEnded)).status == 401
        stranger.call(scene.rig.number("500"), user="a0001", login=Login("a0002", PASSWORD))
        assert (await stranger.inbox.wait(SessionEnded)).status == 403
        assert not scene.rig.inbox.seen
        stranger.call(scene.rig.number("500"), user="a0002", login=Login("a0002", PASSWORD))
        incoming = await scene.rig.inbox.wait(LegIncoming)
        assert incoming.source == Source(agent_id=AgentId("a0002"))
        counters = scene.rig.telephony.counters()
        assert counters['sip_auth_refused_total{reason="wrong"}'] == 1
        assert counters['sip_auth_refused_total{reason="forbidden"}'] == 1
    finally:
        await stranger.close()


async def test_prompts_and_echo(scene: Scene, tmp_path: Path) -> None:
    incoming, _ = await scene.incoming()
    scene.telephony.play(incoming.leg_id, PlayId("early"), "welcome")
    assert await scene.rig.inbox.wait(PlayFinished) == PlayFinished(incoming.leg_id, PlayId("early"), completed=False)
    scene.telephony.answer(incoming.leg_id)
    await scene.rig.inbox.wait(LegAnswered)
    scene.telephony.echo(incoming.leg_id)
    scene.telephony.play(incoming.leg_id, PlayId("p1"), "welcome", loop=True)
    scene.telephony.stop_play(incoming.leg_id)
    finished = await scene.rig.inbox.wait(PlayFinished)
    assert finished == PlayFinished(incoming.leg_id, PlayId("p1"), completed=False)
    scene.telephony.hang_up(incoming.leg_id)
    await scene.rig.inbox.wait(LegReport)


async def test_commands_for_legs_that_ended_are_ignored(faked: Scene) -> None:
    gone = LegId("gone")
    t = faked.telephony
    t.ring(gone)
    t.answer(gone)
    t.reject(gone, EndCause.BUSY)
    t.hang_up(gone)
    t.bridge(gone, LegId("other"))
    t.unbridge(gone, LegId("other"))
    t.stop_play(gone)
    t.echo(gone)
    t.send_dtmf(gone, "1")
    t.stop_recording(CallId("none"))
    t.save_snapshot(CallId("none"), b"")
    t.release_call(CallId("none"))
    assert faked.worker.commands == []


async def test_no_event_comes_from_within_a_command(faked: Scene) -> None:
    incoming, _ = await faked.incoming()
    before = len(faked.rig.inbox.seen)
    faked.telephony.hang_up(incoming.leg_id, EndCause.BUSY)
    assert len(faked.rig.inbox.seen) == before
    assert (await faked.ended(incoming.leg_id)).cause is EndCause.BUSY
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == 486


async def test_dtmf_both_ways(faked: Scene) -> None:
    incoming, _, leg_id, _ = await faked.talking()
    faked.worker.say(media.Dtmf(leg_id, "5", 120))
    assert await faked.rig.inbox.wait(LegDtmf) == LegDtmf(leg_id, "5", 120)
    faked.telephony.send_dtmf(incoming.leg_id, "42#")
    assert faked.worker.sent(media.SendDtmf) == [media.SendDtmf(incoming.leg_id, "42#")]


async def test_exhausted_ports_are_503(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        scene = await make_scene(stack, tmp_path, fake=True, ports=1)
        first, _ = await scene.incoming()
        scene.telephony.answer(first.leg_id)
        await scene.rig.inbox.wait(LegAnswered)
        second, session = await scene.incoming()
        scene.telephony.answer(second.leg_id)
        ended = await scene.ended(second.leg_id)
        assert ended.cause is EndCause.OVERLOADED
        refused = await scene.trunk.inbox.wait(SessionEnded)
        assert (refused.session, refused.status) == (session, 503)
        assert scene.rig.telephony.counters()["media_ports_exhausted_total"] == 1


async def test_without_a_worker_calls_are_503_and_come_back(faked: Scene) -> None:
    incoming, _, leg_id, _ = await faked.talking()
    faked.telephony.start_recording(incoming.call_id, incoming.leg_id, leg_id)
    faked.worker.lose()
    assert {(await faked.rig.inbox.wait(LegEnded)).cause for _ in range(2)} == {EndCause.FAILED}
    assert (await faked.rig.inbox.wait(RecordingFinished)).error
    assert (await faked.trunk.inbox.wait(SessionEnded)).reason is EndReason.BYE
    assert (await faked.agent.inbox.wait(SessionEnded)).reason is EndReason.BYE
    faked.telephony.release_call(incoming.call_id)
    faked.trunk.call(faked.rig.number("500"))
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == 503
    kept = [media.KeptCall(incoming.call_id, [], b""), media.KeptCall("old", ["x"], b"snap")]
    faked.worker.attach(kept)
    assert faked.worker.sent(media.ReleaseCall) == [media.ReleaseCall(incoming.call_id)]
    assert await faked.rig.inbox.wait(CallAbandonedByEngine) == CallAbandonedByEngine(CallId("old"), b"snap")
    faked.worker.say(media.OrphanEnded("old"))
    assert await faked.rig.inbox.wait(OrphanEnded) == OrphanEnded(CallId("old"))
    again, _ = await faked.incoming()
    faked.telephony.answer(again.leg_id)
    await faked.rig.inbox.wait(LegAnswered)


async def test_other_workers_go_on_when_one_is_lost(faked: Scene) -> None:
    other = FakeWorker(faked.rig.telephony, "worker-1")
    other.attach()
    legs = []
    for _ in range(2):
        incoming, _ = await faked.incoming()
        faked.telephony.answer(incoming.leg_id)
        await faked.rig.inbox.wait(LegAnswered)
        legs.append(incoming.leg_id)
    assert (len(faked.worker.legs), len(other.legs)) == (1, 1)  # the least loaded worker gets the next call
    faked.worker.lose()
    assert (await faked.rig.inbox.wait(LegEnded)).leg_id == legs[0]
    assert faked.rig.telephony.live_counts()["legs"] == 1


async def test_silent_phone_is_asked_again_and_again(faked: Scene) -> None:
    incoming, caller, _, _ = await faked.talking()
    faked.rig.telephony.on_worker_event("worker-0", media.MediaSilent(incoming.leg_id, 30))
    # The phone has answered the probe by the time it has the answer to what it sent after that.
    faked.trunk.reinvite(caller, faked.trunk.offer(version=2))
    await faked.trunk.inbox.wait(SessionReoffered)
    assert not faked.rig.inbox.of(LegEnded)
    faked.trunk.endpoint.forget(caller)
    assert (await faked.ended(incoming.leg_id)).cause is EndCause.FAILED


async def test_audio_that_comes_back_ends_the_questions(faked: Scene) -> None:
    incoming, caller, leg_id, phone = await faked.talking()
    faked.rig.telephony.on_worker_event("worker-0", media.MediaSilent(incoming.leg_id, 30))
    faked.rig.telephony.on_worker_event("worker-0", media.MediaSilent(leg_id, 60))
    faked.trunk.reinvite(caller, faked.trunk.offer(version=2))
    await faked.trunk.inbox.wait(SessionReoffered)
    faked.rig.telephony.on_worker_event("worker-0", media.MediaResumed(incoming.leg_id))
    faked.trunk.endpoint.forget(caller)
    faked.agent.endpoint.forget(phone)
    assert (await faked.rig.inbox.wait(LegEnded)).leg_id == leg_id  # the caller's would have come first


async def test_phone_that_forgot_the_call_ends_it(faked: Scene) -> None:
    incoming, caller, _, _ = await faked.talking()
    faked.trunk.endpoint.forget(caller)
    faked.worker.say(media.MediaSilent(incoming.leg_id, 30_000))
    ended = await faked.ended(incoming.leg_id)
    assert (ended.cause, ended.status) == (EndCause.FAILED, 481)


async def test_phone_that_dropped_off_the_network_is_media_lost(faked: Scene, tmp_path: Path) -> None:
    contact = f"sip:a0001@{faked.agent.host}:{faked.agent.port}"
    old = settings(tmp_path, trunk=faked.trunk.host, contacts={AGENT: contact})
    faked.rig.telephony.reconfigure(replace(old, probe_timeout_s=0.3))
    _, _, leg_id, _ = await faked.talking()
    await faked.agent.close()
    faked.worker.say(media.MediaSilent(leg_id, 30_000))
    ended = await faked.ended(leg_id)
    assert (ended.cause, ended.status) == (EndCause.MEDIA_LOST, None)


async def test_draining_refuses_new_calls_and_keeps_old_ones(faked: Scene) -> None:
    await faked.talking()
    faked.rig.telephony.draining = True
    faked.trunk.call(faked.rig.number("500"))
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == 503
    assert not faked.rig.inbox.of(LegEnded)


async def test_reconfigure_swaps_agents_trunks_and_prompts(faked: Scene, tmp_path: Path) -> None:
    telephony = faked.rig.telephony
    old = settings(tmp_path, trunk=faked.trunk.host, contacts={"a0002": None})
    telephony.reconfigure(replace(old, prompts={"welcome": "/w.wav"}))
    assert faked.worker.sent(media.LoadPrompt) == [media.LoadPrompt("welcome", "/w.wav")]
    assert not telephony.reachable(AGENT)
    telephony.reconfigure(replace(old, trunks=(), prompts={"welcome": "/w.wav"}))
    assert len(faked.worker.sent(media.LoadPrompt)) == 1
    faked.trunk.call(faked.rig.number("500"))
    assert (await faked.trunk.inbox.wait(SessionEnded)).status == 401
    with pytest.raises(ValueError, match="contact of agent"):
        telephony.reconfigure(settings(tmp_path, contacts={"a": "not a uri"}))


async def test_registration_is_announced(faked: Scene, tmp_path: Path) -> None:
    faked.rig.telephony.on_sip_event(RegistrationChanged("a0002", reachable=True))
    assert await faked.rig.inbox.wait(AgentReachability) == AgentReachability(AgentId("a0002"), reachable=True)


async def test_phone_registered_over_tcp_is_called_there_and_then_at_its_contact(faked: Scene) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", faked.rig.port, local_addr=(faked.agent.host, 0))
    contact = f"sip:a0002@{faked.agent.host}:{faked.agent.tcp_port};transport=tcp"
    answer = await register_over_tcp(reader, writer, "a0002", contact)
    assert (answer.status, answer.get("contact")) == (200, f"<{contact}>;expires=3600")
    assert await faked.rig.inbox.wait(AgentReachability) == AgentReachability(AgentId("a0002"), reachable=True)
    request = Originate(CallId("c"), AgentId("a0002"), Party("1"), peer=None, ring_timeout_s=5)
    faked.telephony.originate(LegId("one"), request)
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(f"INVITE {contact} SIP/2.0".encode())
    faked.telephony.hang_up(LegId("one"))
    writer.close()
    await writer.wait_closed()
    while faked.rig.transport.connections:  # noqa: ASYNC110 - the end of a connection is no event
        await asyncio.sleep(0)
    faked.telephony.originate(LegId("two"), request)
    assert (await faked.agent.ringing()).request.uri == contact


def test_each_cause_has_a_status_and_each_ending_a_cause() -> None:
    assert set(STATUS) == set(EndCause)
    assert all(400 <= status_of(cause) < 700 for cause in EndCause)
    for reason in EndReason:
        assert cause_of(reason, None) in EndCause
    for status in range(300, 700):
        assert cause_of(EndReason.REFUSED, status) is not EndCause.NORMAL
