from __future__ import annotations

import asyncio
import socket
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from adapters.sip.dialogs.session import Login
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from engine.bus import EventBus
from engine.control import CallControl
from engine.events import AgentId, CallId, Forwarded, LegAnswered, LegEnded, LegId, LegIncoming, Party, Presence
from engine.telephony import Originate
from engine.watching import PRESENCE, AgentWatch
from routing.model import AgentState
from tests.engine.fakes import FakeTelephony, SteppedClock
from tests.engine.world import settings as control_settings
from tests.native_rig import PASSWORD, WAIT_S, FakeWorker, Phone, Rig, make_rig, settings, udp_socket
from tests.ports import loopback_address

DIALOG_INFO = "{urn:ietf:params:xml:ns:dialog-info}"
PIDF = "{urn:ietf:params:xml:ns:pidf}"
_branches = count(1)


class Lamps:
    """A switchboard console: subscribes, and answers each NOTIFY."""

    def __init__(self, rig: Rig, host: str) -> None:
        self._rig = rig
        self._socket: socket.socket = udp_socket(host)
        self._socket.setblocking(False)
        self._host, self._port = self._socket.getsockname()

    def close(self) -> None:
        self._socket.close()

    async def _receive(self) -> Request | Response:
        async with asyncio.timeout(WAIT_S):
            return parse_message(await asyncio.get_running_loop().sock_recv(self._socket, 65536))

    async def subscribe(self, event: str, resource: str, *, expires: int = 600) -> int:
        request = Request.build(
            "SUBSCRIBE",
            self._rig.number(resource),
            via=f"SIP/2.0/UDP {self._host}:{self._port};branch=z9hG4bK{next(_branches)}",
            from_="<sip:console@pbx.test>;tag=x",
            to=f"<sip:{resource}@pbx.test>",
            call_id=f"{event}-{resource}-{next(_branches)}",
            cseq=1,
        )
        request.set("contact", f"<sip:console@{self._host}:{self._port}>")
        request.set("event", event)
        request.set("expires", expires)
        self._socket.sendto(request.serialise(), ("127.0.0.1", self._rig.port))
        answer = await self._receive()
        assert isinstance(answer, Response)
        return answer.status

    async def notified(self) -> Request:
        request = await self._receive()
        assert isinstance(request, Request)
        assert request.method == "NOTIFY"
        self._socket.sendto(build_response(request, 200).serialise(), ("127.0.0.1", self._rig.port))
        return request

    async def dialogs(self) -> list[ET.Element]:
        request = await self.notified()
        assert request.content_type == "application/dialog-info+xml"
        return ET.fromstring(request.body).findall(f"{DIALOG_INFO}dialog")


class Scene:
    def __init__(self, rig: Rig, trunk: Phone, agent: Phone, lamps: Lamps) -> None:
        self.rig = rig
        self.trunk = trunk
        self.agent = agent
        self.lamps = lamps


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        trunk, agent, console = Phone(loopback_address()), Phone(loopback_address()), loopback_address()
        for phone in (trunk, agent):
            await phone.start()
            stack.push_async_callback(phone.close)
        first = settings(tmp_path, trunk=trunk.host, contacts={"a0001": f"sip:a0001@{agent.host}:{agent.port}"})
        (carrier,) = first.trunks
        first = replace(first, trunks=(carrier, replace(carrier, name="console", networks=(console,), watch=True)))
        rig = await stack.enter_async_context(make_rig(first))
        rig.worker = FakeWorker(rig.telephony)
        rig.worker.attach()
        lamps = Lamps(rig, console)
        stack.callback(lamps.close)
        yield Scene(rig, trunk, agent, lamps)


def state_of(dialog: ET.Element) -> str:
    return dialog.findtext(f"{DIALOG_INFO}state") or ""


async def test_lamp_follows_a_call_from_ringing_to_its_end(scene: Scene) -> None:
    assert await scene.lamps.subscribe("dialog", "a0001") == 200
    assert await scene.lamps.dialogs() == []
    telephony = scene.rig.telephony
    caller = Party("4930123", 'Ann <"&\x01')
    telephony.originate(LegId("one"), Originate(CallId("c"), AgentId("a0001"), caller, None, 30))
    phone = await scene.agent.ringing()
    scene.agent.ring(phone)
    (dialog,) = await scene.lamps.dialogs()
    assert (state_of(dialog), dialog.get("direction")) == ("early", "recipient")
    identity = dialog.find(f"{DIALOG_INFO}remote/{DIALOG_INFO}identity")
    assert identity is not None
    assert (identity.text, identity.get("display")) == ("sip:4930123@pbx.test", 'Ann <"& ')
    # What a phone needs to pick it up: the dialog as the ringing phone has it.
    assert (dialog.get("call-id"), dialog.get("local-tag")) == (phone.sip_call_id, phone.local_tag)
    assert phone.dialog is not None
    assert dialog.get("remote-tag") == phone.dialog.remote_tag
    await scene.agent.pick_up(phone)
    (dialog,) = await scene.lamps.dialogs()
    assert (state_of(dialog), dialog.get("call-id")) == ("confirmed", None)  # nobody else's to take
    telephony.hang_up(LegId("one"))
    assert await scene.lamps.dialogs() == []


async def test_lamp_keeps_a_withheld_number(scene: Scene) -> None:
    await scene.lamps.subscribe("dialog", "a0001")
    await scene.lamps.notified()
    request = Originate(
        CallId("c"),
        AgentId("a0001"),
        Party("0151", "Ann"),
        None,
        30,
        forwarded=Forwarded(withheld=True),
        referred_by="a0002",
    )
    scene.rig.telephony.originate(LegId("one"), request)
    phone = await scene.agent.ringing()
    assert phone.request.get("referred-by") == "<sip:a0002@pbx.test>"
    scene.agent.ring(phone)
    told = await scene.lamps.notified()
    assert b"sip:anonymous@pbx.test" in told.body
    assert b"0151" not in told.body
    assert b"Ann" not in told.body


async def test_lamp_shows_whom_the_agent_calls(scene: Scene) -> None:
    await scene.lamps.subscribe("dialog", "a0001")
    await scene.lamps.notified()
    scene.agent.call(scene.rig.number("500"), user="a0001", login=Login("a0001", PASSWORD))
    incoming = await scene.rig.inbox.wait(LegIncoming)
    (dialog,) = await scene.lamps.dialogs()
    assert (state_of(dialog), dialog.get("direction")) == ("trying", "initiator")
    assert dialog.findtext(f"{DIALOG_INFO}remote/{DIALOG_INFO}identity") == "sip:500@pbx.test"
    scene.rig.telephony.answer(incoming.leg_id)
    await scene.rig.inbox.wait(LegAnswered)
    (dialog,) = await scene.lamps.dialogs()
    assert state_of(dialog) == "confirmed"
    scene.rig.telephony.hang_up(incoming.leg_id)
    await scene.rig.inbox.wait(LegEnded)
    assert await scene.lamps.dialogs() == []


async def test_presence_follows_the_agent(scene: Scene) -> None:
    seen = {"now": Presence.AVAILABLE}
    scene.rig.telephony.watching.presence = lambda _: seen["now"]
    await scene.lamps.subscribe("presence", "a0001")
    told = []
    for presence in (Presence.IN_CALL, Presence.OFFLINE, None):
        request = await scene.lamps.notified()
        assert request.content_type == "application/pidf+xml"
        document = ET.fromstring(request.body)
        told.append((document.findtext(f".//{PIDF}basic"), b"on-the-phone" in request.body))
        if presence is not None:
            seen["now"] = presence
            scene.rig.telephony.watching.on_presence(AgentId("a0001"))
    assert told == [("open", False), ("open", True), ("closed", False)]


@pytest.mark.parametrize(
    ("event", "resource", "status"),
    [("dialog", "nobody", 404), ("message-summary", "a0001", 403), ("reg", "a0001", 403), ("weather", "a0001", 489)],
)
async def test_what_may_not_be_watched(scene: Scene, event: str, resource: str, status: int) -> None:
    assert await scene.lamps.subscribe(event, resource) == status


async def test_documents_of_ones_own(scene: Scene) -> None:
    packages = scene.rig.telephony.watching.notifier._packages
    assert packages["message-summary"].document("a0001", 0) == (
        b"Messages-Waiting: no\r\nMessage-Account: sip:a0001@pbx.test\r\nVoice-Message: 0/0 (0/0)\r\n"
    )
    found = ET.fromstring(packages["reg"].document("a0001", 3))
    assert found.get("version") == "3"
    (registration,) = found
    assert (registration.get("state"), list(registration)) == ("terminated", [])


async def test_agents_who_are_removed_are_watched_no_longer(scene: Scene, tmp_path: Path) -> None:
    await scene.lamps.subscribe("dialog", "a0001")
    await scene.lamps.notified()
    assert scene.rig.telephony.counters()["sip_subscriptions"] == 1
    scene.rig.telephony.reconfigure(settings(tmp_path, trunk=scene.trunk.host))
    last = await scene.lamps.notified()
    assert last.get("subscription-state") == "terminated;reason=noresource"


async def test_everybody_subscribes_again_after_a_restart(scene: Scene) -> None:
    await scene.lamps.subscribe("presence", "a0001")
    await scene.lamps.notified()
    scene.rig.telephony.watching.end()
    assert (await scene.lamps.notified()).get("subscription-state") == "terminated;reason=deactivated"


def test_each_state_of_an_agent_is_told() -> None:
    assert set(PRESENCE) == set(AgentState)
    bus = EventBus()
    changed: list[AgentId] = []
    phones = FakeTelephony()
    control = CallControl(phones, control_settings(), bus, SteppedClock(), lambda: "id")
    watch = AgentWatch(control, bus, changed.append)
    control.start()
    assert watch.presence(AgentId("a0001")) is Presence.AVAILABLE
    assert watch.presence(AgentId("nobody")) is Presence.OFFLINE
    control.ask_agent_state(AgentId("a0001"), AgentState.BREAK, "")
    assert changed == ["a0001"]
    assert watch.presence(AgentId("a0001")) is Presence.AWAY
