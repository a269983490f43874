"""However a call ends, nothing of it is left, and the agent is in the state that docs/agent-states.md says.

One murima takes all the calls. Each test has agents and queues of its own; after each, calls, legs,
reservations, ports of the media range, unfinished recordings and file handles are counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.agent_states import documented_rows
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError
from tests.peers.remains import (
    Histories,
    State,
    count,
    database_connected,
    metrics,
    nothing_left,
    processes,
    resident_kb,
)
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipCall, SipPhone
from tests.peers.sipp import Sipp
from tests.ports import free_port, loopback_address
from tests.speech import write_speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

CARRIER = loopback_address()
PHONES = loopback_address()
SILENCE_TIMEOUT_S = 1.0
DEAD_S = SILENCE_TIMEOUT_S + 5.0 + 3.0  # a phone that dropped off is found dead by then, on a busy machine, too
LATE_MESSAGES_S = 32.0  # how long SIP keeps a transaction or a dialog for late messages
SHORT_CALLS = 100

RINGING: State = ("ringing", "queue")
TALKING: State = ("talking", "queue")
ROWS = documented_rows()


@dataclass(frozen=True, slots=True)
class Desk:
    """An agent and the queue that nobody else serves. `registers`: has no fixed contact."""

    number: int
    wrap_up_s: float = 1.0
    ring_timeout_s: float = 15.0
    registers: bool = False
    transport: str = "udp"

    @property
    def agent(self) -> str:
        return f"a{self.number:04}"

    @property
    def queue(self) -> str:
        return f"5{self.number:02}"

    @property
    def direct(self) -> str:
        return f"7{self.number:04}"

    @property
    def port(self) -> int:
        return PORTS + 2 * self.number  # baresip takes the next one, too

    @property
    def contact(self) -> str:
        return f"sip:{self.agent}@{PHONES}:{self.port};transport={self.transport}"


REJECTS, BUSY, GARBAGE = Desk(1), Desk(2), Desk(3)
NO_ANSWER, MUTE, DROPS_RINGING = (Desk(number, ring_timeout_s=1) for number in (4, 5, 6))
DROPS, DROPS_REGISTERED, DROPS_TCP = Desk(7), Desk(8, wrap_up_s=0, registers=True), Desk(9, transport="tcp")
LOSES_CALLER, HANGS_UP, HAS_QUEUE, RINGS, DIRECT, REFUSES_DIRECT = (Desk(number) for number in range(10, 16))
STEERED, STEERED_RINGING, LOAD = Desk(16), Desk(17), Desk(18, wrap_up_s=0)
ABSENT, WARM_UP, CROSSES = Desk(19, registers=True), Desk(20, wrap_up_s=0), Desk(21, wrap_up_s=0)
DESKS = (
    *(REJECTS, BUSY, GARBAGE, NO_ANSWER, MUTE, DROPS_RINGING, DROPS, DROPS_REGISTERED, DROPS_TCP),
    *(LOSES_CALLER, HANGS_UP, HAS_QUEUE, RINGS, DIRECT, REFUSES_DIRECT, STEERED, STEERED_RINGING),
    *(LOAD, ABSENT, WARM_UP, CROSSES),
)
PORTS = free_port(PHONES, span=2 * len(DESKS) + 4)


def config() -> dict[str, object]:
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [CARRIER]}]},
        "media": {"silence_timeout_s": SILENCE_TIMEOUT_S},
        "drain_s": 1,
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [
            {"id": desk.agent, "password": "secret", "auto_ready": True}
            | ({} if desk.registers else {"contact": desk.contact})
            for desk in DESKS
        ],
        "queues": [
            {
                "id": desk.queue,
                "members": [desk.agent],
                "ring_timeout_s": desk.ring_timeout_s,
                "wrap_up_s": desk.wrap_up_s,
                "music": None,
                "record": True,
            }
            for desk in DESKS
        ],
        "numbers": {**{desk.queue: {"queue": desk.queue} for desk in DESKS}, r"~7(\d{4})": {"agent": r"a\1"}},
    }


def ends_as(case: str) -> State:
    state, reason, _ = ROWS[case]
    return state, reason


@pytest.fixture(scope="module")
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


class World:
    """The running murima, what its agents go through, and the file handles it had before the calls."""

    def __init__(self, murima: MurimaProcess, histories: Histories, bank: RtpBank) -> None:
        self.murima = murima
        self.histories = histories
        self.bank = bank
        self.files: tuple[int, ...] = ()

    def caller(self, user: str = "1000") -> SipPhone:
        return SipPhone(user, self.bank, address=CARRIER)

    def agent(self, desk: Desk, answer: int = 200) -> SipPhone:
        return SipPhone(desk.agent, self.bank, address=PHONES, port=desk.port, answer=answer)

    def sipp(self, folder: Path, scenario: str, desk: Desk, **values: int | str) -> Sipp:
        return Sipp(folder, scenario, address=PHONES, port=desk.port, **values)  # type: ignore[arg-type]  # passed on

    def baresip(self, folder: Path, desk: Desk, answer: str = "auto") -> Baresip:
        if desk.registers:
            return Baresip(
                folder,
                desk.agent,
                address=PHONES,
                port=desk.port,
                domain="pbx.local",
                proxy=self.murima.remote,
                password="secret",
                register=True,
            )
        return Baresip(folder, desk.agent, address=PHONES, port=desk.port, answer=answer, transport=desk.transport)

    async def went(self, desk: Desk, *states: State, timeout_s: float = 5.0) -> None:
        await self.histories.expect(desk.agent, *states, timeout_s=timeout_s)

    async def call_is(self, desk: Desk, state: str) -> str:
        """Wait for the queue's only call to be in a state; returns its id."""
        document = await self.murima.until(
            f"/api/v1/calls?filter=queue:{desk.queue}",
            lambda document: [call["state"] for call in document["data"]] == [state],
        )
        return str(document["data"][0]["id"])

    async def is_ready(self, desk: Desk) -> None:
        await self.murima.until(
            f"/api/v1/agents?filter=queue:{desk.queue}", lambda document: document["data"][0]["state"] == "ready"
        )

    async def no_call(self, desk: Desk) -> None:
        await self.murima.until(f"/api/v1/calls?filter=queue:{desk.queue}", lambda document: document["data"] == [])

    async def hang_up(self, call_id: str) -> None:
        """An operator ends the call."""
        await self.murima.post(f"/api/v1/calls/{call_id}/hangup")

    async def caller_waits(self, desk: Desk, call: SipCall) -> None:
        """The offer failed: the caller, whom nobody told, waits on and then gives up."""
        await self.call_is(desk, "waiting")
        assert not call.end_reason
        await call.hang_up()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory, bank: RtpBank) -> AsyncIterator[World]:
    async with MurimaProcess(config(), tmp_path_factory.mktemp("endings")) as murima:
        await murima.login()
        async with Histories(murima) as histories:
            world = World(murima, histories, bank)
            await one_call(world, WARM_UP)
            # What is opened once and kept is open now, the connections to the database included.
            await database_connected(murima)
            await murima.until("/api/v1/interactions", lambda document: document["pagination"]["total"] == 1)
            world.files = (await count(murima)).files
            yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(served: World) -> AsyncIterator[World]:
    yield served
    await nothing_left(served.murima, served.files)


async def until_audio_flows(talking: Sequence[SipCall], waiting: SipCall) -> None:
    """Wait until some was heard, or was said to the queue: only then does its end mean something."""
    async with asyncio.timeout(5):
        # The bank's thread, which sends and receives, knows no event loop.
        while not (all(call.rtp.received for call in talking) and waiting.rtp.sent > 5):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def one_call(world: World, desk: Desk) -> None:
    """A call as it should be, ended by the caller."""
    async with world.agent(desk) as agent, world.caller() as phone:
        call = phone.dial(desk.queue, world.murima.sip)
        async with asyncio.timeout(5):
            taken = await agent.incoming.get()
        await world.went(desk, RINGING, TALKING)
        await call.hang_up()
        assert await taken.ended() == "bye"
    await world.went(desk, ends_as("caller hangs up while talking, no wrap-up"))
    await nothing_left(world.murima, (await count(world.murima)).files)


# --- the many come first: what SIP keeps of them for late messages is gone when the rest is done ------------


async def test_many_short_calls_leave_nothing(world: World, tmp_path: Path) -> None:
    murima = world.murima
    pids = processes(murima)
    before = [resident_kb(pid) for pid in pids]
    sound = write_speech(tmp_path / "caller.wav", 2.0)
    async with (
        world.sipp(tmp_path / "agent", "uas_hangs_up", LOAD, calls=SHORT_CALLS, talk_ms=50) as agent,
        Sipp(
            tmp_path / "caller",
            "uac_until_bye",
            remote=murima.remote,
            service=LOAD.queue,
            address=CARRIER,
            audio=sound,
            calls=SHORT_CALLS,
            rate=50,
            at_once=5,
        ) as caller,
    ):
        for result in await asyncio.gather(caller.result(), agent.result()):
            assert (result.status, result.succeeded, result.failed) == (0, SHORT_CALLS, 0), result.errors
    remains = await nothing_left(murima, world.files)
    grown = [resident_kb(pid) - kb for pid, kb in zip(pids, before, strict=True)]
    logging.getLogger("tests").info("after %d calls: %s; memory grown by %s kB", SHORT_CALLS, remains, grown)
    assert len(list((murima.data / "recordings").glob("*.wav"))) >= SHORT_CALLS
    for _ in range(SHORT_CALLS):
        await world.went(LOAD, RINGING, TALKING, ends_as("caller hangs up while talking, no wrap-up"))
    # What SIP keeps for 32 s of 100 calls is about 2 MB; a leak of 50 kB a call would be seen.
    assert all(kb < 5000 for kb in grown), grown


# --- a phone is not there, or drops off the network -----------------------------------------------------------


async def test_agents_phone_never_says_a_word(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((PHONES, MUTE.port))
        async with world.caller() as phone:
            call = phone.dial(MUTE.queue, world.murima.sip)
            await world.went(MUTE, RINGING, ends_as("agent does not answer"))
            await world.caller_waits(MUTE, call)


async def test_phone_drops_off_the_network_while_ringing(world: World, tmp_path: Path) -> None:
    async with world.baresip(tmp_path / "agent", DROPS_RINGING, answer="manual") as agent, world.caller() as phone:
        call = phone.dial(DROPS_RINGING.queue, world.murima.sip)
        await agent.expect("call_incoming")
        await agent.vanish()
        await world.went(DROPS_RINGING, RINGING, ends_as("agent does not answer"))
        await world.caller_waits(DROPS_RINGING, call)


async def test_phones_drop_off_the_network_while_talking(world: World, tmp_path: Path) -> None:
    async with (
        world.baresip(tmp_path / "fixed", DROPS) as fixed,
        world.baresip(tmp_path / "registered", DROPS_REGISTERED) as registered,
        world.baresip(tmp_path / "tcp", DROPS_TCP) as over_tcp,
        world.agent(LOSES_CALLER) as agent,
        world.caller("1001") as phone,
        world.caller("1002") as waiting,
        Pjsua(tmp_path / "caller", "1003", address=CARRIER) as vanishing,
    ):
        await world.went(DROPS_REGISTERED, ends_as("phone is back, auto_ready"))
        calls = [phone.dial(desk.queue, world.murima.sip) for desk in (DROPS, DROPS_REGISTERED, DROPS_TCP)]
        await vanishing.dial(world.murima.uri(LOSES_CALLER.queue))
        for desk in (DROPS, DROPS_REGISTERED, DROPS_TCP, LOSES_CALLER):
            await world.went(desk, RINGING, TALKING)
        await vanishing.expect("call", state="confirmed")
        calls.append(await agent.incoming.get())
        for peer in (fixed, registered, over_tcp):
            await peer.expect("call_established")
        queued = waiting.dial(ABSENT.queue, world.murima.sip)
        await queued.answered()
        await until_audio_flows(calls, queued)
        waiting.vanish()
        await asyncio.gather(fixed.vanish(), registered.vanish(), over_tcp.vanish(), vanishing.vanish())
        assert [await call.ended(DEAD_S) for call in calls] == ["bye"] * 4
        await world.no_call(ABSENT)
        for desk in (DROPS, DROPS_TCP):
            await world.went(
                desk,
                ends_as("agent drops off the network while talking"),
                ends_as("agent dropped off while talking, wrap-up is over"),
            )
        await world.went(DROPS_REGISTERED, ends_as("agent drops off the network while talking, no wrap-up"))
        await world.went(LOSES_CALLER, ends_as("caller hangs up while talking"), ends_as("wrap-up time is over"))
        # The phones come back: one registers again, for the other its agent asks.
        async with world.baresip(tmp_path / "again", DROPS_REGISTERED):
            await world.went(DROPS_REGISTERED, ends_as("phone is back, auto_ready"))
        await world.murima.put(f"/api/v1/agents/{DROPS.agent}/state", {"state": "ready"})
        await world.went(DROPS, ("ready", "asked"))


# --- the agent's phone does not take the call -------------------------------------------------


@pytest.mark.parametrize(
    ("desk", "status", "case"),
    [(REJECTS, 603, "agent rejects"), (BUSY, 486, "agent's phone is busy")],
    ids=["rejects", "busy"],
)
async def test_agent_refuses(world: World, tmp_path: Path, desk: Desk, status: int, case: str) -> None:
    async with (
        world.sipp(tmp_path / "agent", "uas_refuses", desk, status=status, ring_ms=100) as agent,
        world.caller() as phone,
    ):
        call = phone.dial(desk.queue, world.murima.sip)
        await world.went(desk, RINGING, ends_as(case))
        assert (await agent.result()).succeeded == 1
        await world.caller_waits(desk, call)


async def test_agent_does_not_answer(world: World, tmp_path: Path) -> None:
    async with world.sipp(tmp_path / "agent", "uas_no_answer", NO_ANSWER) as agent, world.caller() as phone:
        call = phone.dial(NO_ANSWER.queue, world.murima.sip)
        await world.went(NO_ANSWER, RINGING, ends_as("agent does not answer"))
        assert (await agent.result()).succeeded == 1  # it was cancelled, and its 487 was acknowledged
        await world.caller_waits(NO_ANSWER, call)


async def test_agent_answers_with_garbage(world: World, tmp_path: Path) -> None:
    async with world.sipp(tmp_path / "agent", "uas_garbage", GARBAGE, ring_ms=100) as agent, world.caller() as phone:
        call = phone.dial(GARBAGE.queue, world.murima.sip)
        await world.went(GARBAGE, RINGING, ends_as("agent's phone fails (fault, garbage)"))
        assert (await agent.result()).succeeded == 1  # its answer was acknowledged and ended with BYE
        await world.caller_waits(GARBAGE, call)


# --- the caller hangs up ----------------------------------------------------------------------


async def test_caller_hangs_up_while_queued_and_while_talking(world: World, tmp_path: Path) -> None:
    async with (
        world.baresip(tmp_path / "agent", HAS_QUEUE) as agent,
        Pjsua(tmp_path / "first", "1001", address=CARRIER) as first,
        Pjsua(tmp_path / "second", "1002", address=CARRIER) as second,
    ):
        talking = await first.dial(world.murima.uri(HAS_QUEUE.queue))
        await agent.expect("call_established")
        await world.went(HAS_QUEUE, RINGING, TALKING)
        queued = await second.dial(world.murima.uri(HAS_QUEUE.queue))
        await second.expect("call", state="confirmed")
        (queue,) = (await world.murima.get(f"/api/v1/queues?filter=agent:{HAS_QUEUE.agent}"))["data"]
        assert (queue["waiting"], queue["talking"]) == (1, 1)
        await second.hang_up(queued)
        await world.murima.until(
            f"/api/v1/queues?filter=agent:{HAS_QUEUE.agent}", lambda document: document["data"][0]["waiting"] == 0
        )
        (seen,) = (await world.murima.get("/api/v1/agents?limit=100&filter=queue:" + HAS_QUEUE.queue))["data"]
        assert (seen["state"], seen["reason"]) == ends_as("caller hangs up while queued")
        await first.hang_up(talking)
        await agent.expect("call_closed")
        await world.went(HAS_QUEUE, ends_as("caller hangs up while talking"), ends_as("wrap-up time is over"))


async def test_caller_hangs_up_while_nobody_is_there(world: World) -> None:
    async with world.caller() as phone:
        call = phone.dial(ABSENT.queue, world.murima.sip)
        await call.answered()
        await world.caller_waits(ABSENT, call)


async def test_caller_hangs_up_while_ringing(world: World, tmp_path: Path) -> None:
    async with world.sipp(tmp_path / "agent", "uas_no_answer", RINGS) as agent, world.caller() as phone:
        call = phone.dial(RINGS.queue, world.murima.sip)
        await world.went(RINGS, RINGING)
        await call.answered()
        await call.hang_up()
        assert (await agent.result()).succeeded == 1  # it was cancelled
        await world.went(RINGS, ends_as("caller hangs up while ringing"))


async def test_caller_hangs_up_while_the_agent_answers(world: World) -> None:
    async with world.agent(CROSSES, answer=180) as agent, world.caller() as phone:
        for number in (CROSSES.queue, CROSSES.direct):
            for step in range(8):
                call = phone.dial(number, world.murima.sip)
                async with asyncio.timeout(5):
                    offered = await agent.incoming.get()
                await call.ringing()  # for a call to the queue this is its answer, too
                offered.answer()
                await asyncio.sleep(step / 2000)  # who is first is open, and changes on the way
                await call.hang_up()
                await offered.ended()
                await world.is_ready(CROSSES)


async def test_caller_cancels_a_direct_call(world: World, tmp_path: Path) -> None:
    async with (
        world.sipp(tmp_path / "agent", "uas_no_answer", DIRECT) as agent,
        Sipp(
            tmp_path / "caller",
            "uac_cancel",
            remote=world.murima.remote,
            service=DIRECT.direct,
            address=CARRIER,
            talk_ms=200,
        ) as caller,
    ):
        for result in await asyncio.gather(caller.result(), agent.result()):
            assert (result.status, result.succeeded) == (0, 1), result.errors
        await world.went(
            DIRECT,
            ends_as("direct call to a ready agent"),
            ends_as("direct call, caller hangs up while ringing"),
        )


@pytest.mark.parametrize(
    ("status", "case"), [(603, "direct call, agent rejects"), (486, "direct call, phone is busy")], ids=["603", "486"]
)
async def test_direct_call_is_refused(world: World, tmp_path: Path, status: int, case: str) -> None:
    async with world.sipp(tmp_path / "agent", "uas_refuses", REFUSES_DIRECT, status=status) as agent:
        async with Sipp(
            tmp_path / "caller",
            "uac_refused",
            remote=world.murima.remote,
            service=REFUSES_DIRECT.direct,
            address=CARRIER,
            status=status,
        ) as caller:
            for result in await asyncio.gather(caller.result(), agent.result()):
                assert (result.status, result.succeeded) == (0, 1), result.errors
        await world.went(REFUSES_DIRECT, ends_as("direct call to a ready agent"), ends_as(case))


# --- the agent or an operator hangs up --------------------------------------------------------


async def test_agent_hangs_up(world: World, tmp_path: Path) -> None:
    async with world.baresip(tmp_path / "agent", HANGS_UP) as agent, world.caller() as phone:
        call = phone.dial(HANGS_UP.queue, world.murima.sip)
        await agent.expect("call_established")
        await world.went(HANGS_UP, RINGING, TALKING)
        await agent.hang_up()
        assert await call.ended() == "bye"
        await world.went(HANGS_UP, ends_as("agent hangs up while talking"), ends_as("wrap-up time is over"))


async def test_operator_hangs_up(world: World, tmp_path: Path) -> None:
    async with (
        world.baresip(tmp_path / "talks", STEERED) as agent,
        world.sipp(tmp_path / "rings", "uas_no_answer", STEERED_RINGING) as rung,
        world.caller("1001") as one,
        world.caller("1002") as two,
        world.caller("1003") as three,
    ):
        talking = one.dial(STEERED.queue, world.murima.sip)
        ringing = two.dial(STEERED_RINGING.queue, world.murima.sip)
        queued = three.dial(ABSENT.queue, world.murima.sip)
        await world.went(STEERED, RINGING, TALKING)
        await world.went(STEERED_RINGING, RINGING)
        await world.hang_up(await world.call_is(STEERED, "talking"))
        await world.hang_up(await world.call_is(STEERED_RINGING, "ringing"))
        await world.hang_up(await world.call_is(ABSENT, "waiting"))
        for call in (talking, ringing, queued):
            assert await call.ended() == "bye"
        await agent.expect("call_closed")
        assert (await rung.result()).succeeded == 1
        # For the agent it is as if the caller had hung up.
        await world.went(STEERED, ends_as("caller hangs up while talking"), ends_as("wrap-up time is over"))
        await world.went(STEERED_RINGING, ends_as("caller hangs up while ringing"))


# --- and in the end ---------------------------------------------------------------------------


async def test_what_sip_keeps_for_late_messages_goes_in_time(world: World) -> None:
    murima = world.murima
    figures = await metrics(murima)
    try:
        async with asyncio.timeout(LATE_MESSAGES_S):
            # The few calls since the many, in less than this time, leave fewer transactions than that.
            while figures["murima_sip_dialogs"] or figures["murima_sip_transactions"] > 2 * SHORT_CALLS:
                await asyncio.sleep(0.2)  # can only be asked for
                figures = await metrics(murima)
    except TimeoutError:
        raise PeerError(f"left: {figures}") from None
    assert not re.findall(r".*(?:control\.failed|sip\.fault).*|Traceback(?:.|\n){1,2000}", murima.log())
