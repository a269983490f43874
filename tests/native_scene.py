"""The native provider between a trunk and an agent's phone."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from adapters.sip.dialogs.session import Session
from engine.events import AgentId, CallId, LegAnswered, LegEnded, LegId, LegIncoming, Party
from engine.telephony import Originate, Telephony
from tests.native_rig import FakeWorker, Phone, Rig, make_rig, real_worker, settings
from tests.ports import loopback_address

AGENT = AgentId("a0001")
_numbers = count(1)


@dataclass
class Scene:
    rig: Rig
    trunk: Phone
    agent: Phone

    @property
    def telephony(self) -> Telephony:
        return self.rig.telephony

    async def incoming(self, number: str = "500", **options: object) -> tuple[LegIncoming, Session]:
        session = self.trunk.call(self.rig.number(number), **options)  # type: ignore[arg-type]  # passed on
        return await self.rig.inbox.wait(LegIncoming), session

    def new_leg(self) -> LegId:
        return LegId(f"agent-leg-{next(_numbers)}")

    def ring_agent(self, call_id: CallId, peer: LegId | None, ring_timeout_s: float = 15) -> LegId:
        leg_id = self.new_leg()
        self.telephony.originate(leg_id, Originate(call_id, AGENT, Party("4930123", "Ann"), peer, ring_timeout_s))
        return leg_id

    async def ended(self, leg_id: LegId) -> LegEnded:
        return await self.rig.inbox.wait(LegEnded, lambda event: event.leg_id == leg_id)

    async def talking(self) -> tuple[LegIncoming, Session, LegId, Session]:
        """A caller and an agent, bridged."""
        incoming, caller = await self.incoming()
        self.telephony.answer(incoming.leg_id)
        await self.rig.inbox.wait(LegAnswered)
        await self.trunk.answered()
        leg_id = self.ring_agent(incoming.call_id, incoming.leg_id)
        phone = await self.agent.ringing()
        await self.agent.pick_up(phone)
        await self.rig.inbox.wait(LegAnswered)
        self.telephony.bridge(incoming.leg_id, leg_id)
        return incoming, caller, leg_id, phone

    @property
    def worker(self) -> FakeWorker:
        assert self.rig.worker is not None
        return self.rig.worker


async def make_scene(
    stack: AsyncExitStack, tmp_path: Path, *, fake: bool, tcp: bool = False, ports: int = 100
) -> Scene:
    trunk, agent = Phone(loopback_address()), Phone(loopback_address())
    for phone in (trunk, agent):
        await phone.start()
        stack.push_async_callback(phone.close)
    first = settings(
        tmp_path, trunk=trunk.host, contacts={AGENT: f"sip:a0001@{agent.host}:{agent.port}", "a0002": None}
    )
    rig = await stack.enter_async_context(make_rig(first, tcp=True))
    if fake:
        rig.worker = FakeWorker(rig.telephony, ports=ports)
        rig.worker.attach()
    else:
        await stack.enter_async_context(real_worker(rig, tmp_path))
        await rig.attached.wait()
    return Scene(rig, trunk, agent)
