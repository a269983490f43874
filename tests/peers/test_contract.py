"""The contract of docs: what load generators and acceptance checks rely on, each number and each route of it.

One murima serves the contract's configuration; only addresses and ports are other ones, so
that tests can run side by side.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.audio import Samples, align_and_correlate, load_wav, save_wav
from tests.peers.murima import PROGRAM, MurimaProcess
from tests.peers.process import PeerError, PeerProcess
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipCall, SipPhone
from tests.ports import free_port, loopback_address
from tests.speech import RATE, sentence, speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

CARRIER = loopback_address()
SUPERVISION = loopback_address()
AGENT = loopback_address()
AGENT_PORT = free_port(AGENT)
WELCOME = speech(1.2, variant=5)
MUSIC = speech(2.0, variant=6)

CONTRACT = r"""
domain: pbx.local
sip:
  listen: ["udp:@ADDRESS@:@SIP_PORT@", "tcp:@ADDRESS@:@SIP_PORT@"]
  trunks:
    - {name: carrier, match: ["@CARRIER@"], supervise: false}   # calls from these addresses need no password
media: {address: @ADDRESS@, ports: [@RTP_FIRST@, @RTP_LAST@], workers: 1}
http: {listen: "@ADDRESS@:@HTTP_PORT@"}
prompts: {welcome: "prompts/welcome.wav"}          # paths relative to this file
users: [{username: admin, password: "secret", role: administrator}]   # people who take no calls; agents log in by id
agents:
  - {id: "a0001", name: "Agent 1", password: "secret", contact: "sip:a0001@@AGENT@",   # fixed contact: no REGISTER needed
     skills: {billing: 80}, auto_ready: true}
queues:
  - {id: bench, strategy: longest_idle, members: ["a0001"], ring_timeout_s: 15, wrap_up_s: 0, music: null}
  - {id: expert, strategy: top_skill, requires: {billing: 1}, ring_timeout_s: 15, wrap_up_s: 0, music: "prompts/music.wav"}
numbers:                                 # exact, or a regular expression after "~" (whole number, groups as \1)
  "500": {queue: bench}                  # answer at once, wait, talk to the agent found, hang up when either does
  "600": {answer: silence}               # answer, send nothing, keep the call up
  "601": {play: welcome, then: silence}  # answer, play; then: silence | hangup | {queue: …} …
  "602": {echo: true}
  '~7(\d{4})': {agent: 'a\1'}          # ring this agent (180 to the caller, answered when the agent answers), media through us
  '~6(\d{4})': {agent: 'a\1', record: true}
  '~8(\d{4})': {listen: 'a\1'}         # also whisper:, barge: the call that this agent is in; only from a supervisor or a trunk with supervise: true
""".replace("@CARRIER@", CARRIER).replace("@AGENT@", f"{AGENT}:{AGENT_PORT}")  # noqa: E501 - the contract's own lines

# What the contract only mentions: numbers for the second queue, and more of everything.
EXTENDED = (
    CONTRACT.replace(
        "  trunks:\n", f'  trunks:\n    - {{name: supervision, match: ["{SUPERVISION}"], supervise: true}}\n'
    )
    .replace(
        "queues:\n",
        """queues:
  - {id: strict, members: ["a0001"], ring_timeout_s: 1, wrap_up_s: 0.5, music: null}
  - {id: lenient, members: ["a0001"], ring_timeout_s: 1, music: null, no_answer: ready}
""",
    )
    .replace(
        "numbers: ",
        """numbers:
  '~6000(.)': {play: welcome, then: hangup}
  "501": {queue: expert}
  "502": {queue: strict}
  "503": {queue: lenient}
  "60001": {echo: true}
""",
    )
)


@pytest.fixture(scope="module")
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    folder = tmp_path_factory.mktemp("contract")
    write_prompts(folder)
    async with MurimaProcess(CONTRACT, folder) as murima:
        await murima.login()
        await murima.database_connected()
        yield murima


def write_prompts(folder: Path) -> None:
    (folder / "prompts").mkdir()
    save_wav(folder / "prompts" / "welcome.wav", WELCOME, RATE)
    save_wav(folder / "prompts" / "music.wav", MUSIC, RATE)


def caller_phone(bank: RtpBank, user: str = "1000", address: str = CARRIER) -> SipPhone:
    return SipPhone(user, bank, address=address)


def agent_phone(bank: RtpBank, answer: int = 180) -> SipPhone:
    return SipPhone("a0001", bank, address=AGENT, port=AGENT_PORT, answer=answer)


async def rings(phone: SipPhone) -> SipCall:
    async with asyncio.timeout(5):
        return await phone.incoming.get()


async def nothing_arrives(call: SipCall, seconds: float) -> None:
    """Listen for a while: that no packet comes can only be seen by waiting."""
    before = call.rtp.received
    await asyncio.sleep(seconds)
    assert call.rtp.received == before


async def agent_is(murima: MurimaProcess, state: str, reason: str | None = None) -> None:
    def fits(document: dict[str, list[dict[str, object]]]) -> bool:
        (agent,) = document["data"]
        return agent["state"] == state and reason in (None, agent["reason"])

    await murima.until("/api/v1/agents", fits)


async def no_call(murima: MurimaProcess) -> None:
    await murima.until("/api/v1/calls", lambda document: document["data"] == [])


async def only_call(murima: MurimaProcess) -> dict[str, object]:
    (call,) = (await murima.get("/api/v1/calls"))["data"]
    assert isinstance(call, dict)
    return call


async def both_hear_each_other(caller: SipCall, agent: SipCall) -> tuple[Samples, Samples]:
    said_by_caller, said_by_agent = speech(1.5, variant=7), speech(1.5, variant=8)
    caller.rtp.say(said_by_caller)
    agent.rtp.say(said_by_agent)
    await caller.rtp.until_quiet()
    await agent.rtp.until_quiet()
    assert align_and_correlate(said_by_caller, agent.rtp.heard(), RATE).correlation >= 0.95
    assert align_and_correlate(said_by_agent, caller.rtp.heard(), RATE).correlation >= 0.95
    return said_by_caller, said_by_agent


async def refused(phone: SipPhone, number: str, murima: MurimaProcess) -> int:
    call = phone.dial(number, murima.sip)
    assert await call.ended(5) == "refused"
    return call.status


# --- the numbers, in the contract's order -------------------------------------------------


@pytest.mark.parametrize("first_to_hang_up", ["caller", "agent"])
async def test_500_answers_waits_silently_and_connects(
    murima: MurimaProcess, bank: RtpBank, first_to_hang_up: str
) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank, "0700111222") as phone:
        call = phone.dial("500", murima.sip)
        offered = await rings(agent)
        await call.answered()  # at once: the agent's phone still rings
        await nothing_arrives(call, 0.4)
        shown = await only_call(murima)
        assert (shown["state"], shown["queue_id"], shown["agent_id"]) == ("ringing", "bench", "a0001")
        assert (shown["caller"], shown["dialled"], shown["trunk"]) == ("0700111222", "500", "carrier")
        assert offered.request is not None
        assert "sip:0700111222@" in offered.request.get("from")
        assert offered.request.get("x-murima-call-id") == shown["id"]
        (bench, expert) = (await murima.get("/api/v1/queues"))["data"]
        assert (bench["id"], bench["ringing"], expert["id"], expert["members"]) == ("bench", 1, "expert", ["a0001"])
        offered.answer()
        await both_hear_each_other(call, offered)
        await agent_is(murima, "talking")
        one, other = (call, offered) if first_to_hang_up == "caller" else (offered, call)
        await one.hang_up()
        assert await other.ended() == "bye"
        await no_call(murima)
        await agent_is(murima, "ready")  # auto_ready, and no wrap-up


async def test_600_answers_and_sends_nothing(murima: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank) as phone:
        call = phone.dial("600", murima.sip)
        await call.answered()
        call.rtp.say(speech(0.5))
        await nothing_arrives(call, 1.0)
        assert (await only_call(murima))["answered_at"] is not None
        await call.hang_up()
    await no_call(murima)


async def test_601_plays_then_is_silent(murima: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank) as phone:
        call = phone.dial("601", murima.sip)
        await call.answered()
        await asyncio.sleep(WELCOME.size / RATE + 0.3)  # the prompt takes its time
        assert align_and_correlate(WELCOME, call.rtp.heard(), RATE).correlation >= 0.95
        assert call.rtp.lost() == 0
        await nothing_arrives(call, 0.5)
        assert (await only_call(murima))["state"] == "playing"
        await call.hang_up()


async def test_602_sends_back_what_is_said(murima: MurimaProcess, bank: RtpBank) -> None:
    said = sentence(1)[: 3 * RATE]
    async with caller_phone(bank) as phone:
        call = phone.dial("602", murima.sip)
        await call.answered()
        call.rtp.say(said)
        await call.rtp.until_quiet()
        assert align_and_correlate(said, call.rtp.heard(), RATE).correlation >= 0.95
        await call.hang_up()


@pytest.mark.parametrize("number", ["70001", "60001"])
async def test_7_and_6_ring_the_agent_through_us(murima: MurimaProcess, bank: RtpBank, number: str) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank) as phone:
        call = phone.dial(number, murima.sip)
        offered = await rings(agent)
        await call.ringing()
        assert call.status == 180
        await asyncio.sleep(0.2)  # an answer that comes too early would come now
        assert call.status == 180
        offered.answer()
        await call.answered()
        shown = await only_call(murima)
        assert (shown["state"], shown["agent_id"], shown["queue_id"]) == ("talking", "a0001", None)
        assert shown["recording"] is (number == "60001")
        assert call.rtp.remote is not None
        assert offered.rtp.remote is not None
        assert call.rtp.remote[0] == offered.rtp.remote[0] == murima.address  # media through us
        said_by_caller, said_by_agent = await both_hear_each_other(call, offered)
        await call.hang_up()
        assert await offered.ended() == "bye"
    await no_call(murima)
    file = murima.data / "recordings" / f"{shown['id']}.wav"
    await stored(murima, str(shown["id"]))
    if number == "70001":
        assert not file.exists()
        return
    recorded, rate = load_wav(await existing(file))
    assert (rate, recorded.ndim) == (RATE, 2)
    assert align_and_correlate(said_by_caller, recorded[:, 0], RATE).correlation >= 0.95
    assert align_and_correlate(said_by_agent, recorded[:, 1], RATE).correlation >= 0.95


async def existing(file: Path) -> Path:
    async with asyncio.timeout(5):
        while not file.exists():  # noqa: ASYNC110, ASYNC240 - the file system does not tell
            await asyncio.sleep(0.05)
    return file


async def stored(murima: MurimaProcess, call_id: str) -> dict[str, object]:
    path = f"/api/v1/interactions?filter={quote(f'call_id:{call_id}')}"
    document = await murima.until(path, lambda document: document["data"] and document["data"][0]["ended_at"])
    (interaction,) = document["data"]
    assert isinstance(interaction, dict)
    return interaction


async def test_8_is_refused_to_a_trunk_that_may_not_supervise(murima: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank) as phone:
        assert await refused(phone, "80001", murima) == 403


async def test_other_numbers_do_not_exist(murima: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank) as phone:
        for number in ("999", "5000", "7000", "700011", "6\\d{4}", "a0001", "~7(\\d{4})".replace("\\", "%5C")):
            assert await refused(phone, number, murima) == 404, number
        assert await refused(phone, "79999", murima) == 404  # the pattern fits, but there is no such agent


# --- HTTP ---------------------------------------------------------------------------------


async def test_an_operator_hangs_up_and_finds_the_call(murima: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank, "0700999888") as phone:
        call = phone.dial("600", murima.sip)
        await call.answered()
        call_id = str((await only_call(murima))["id"])
        await murima.post(f"/api/v1/calls/{call_id}/hangup")
        assert await call.ended() == "bye"
    interaction = await stored(murima, call_id)
    assert (interaction["caller"], interaction["dialled"]) == ("0700999888", "600")
    by_caller = await murima.get("/api/v1/interactions?filter=caller:0700999888&limit=5")
    assert by_caller["pagination"] == {"total": 1, "page": 1, "limit": 5, "pages": 1}
    with pytest.raises(PeerError, match="404"):
        await murima.post(f"/api/v1/calls/{call_id}/hangup")


async def test_an_agent_on_break_gets_no_call_until_ready(murima: MurimaProcess, bank: RtpBank) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank) as phone:
        answer = await murima.put("/api/v1/agents/a0001/state", {"state": "break", "reason": "lunch"})
        assert (answer["data"]["state"], answer["data"]["reason"]) == ("break", "lunch")
        call = phone.dial("500", murima.sip)
        await call.answered()
        assert (await only_call(murima))["state"] == "waiting"
        assert agent.incoming.empty()
        await murima.put("/api/v1/agents/a0001/state", {"state": "ready"})
        offered = await rings(agent)
        offered.answer()
        await murima.until("/api/v1/calls", lambda document: document["data"][0]["state"] == "talking")
        await call.hang_up()
        await offered.ended()
    await agent_is(murima, "ready")


async def test_agents_log_in_by_id_and_strangers_do_not(murima: MurimaProcess) -> None:
    assert murima.http is not None
    url = f"{murima.base_url}/api/v1/auth/login"
    for username, password, status in (
        ("a0001", "secret", 200),
        ("a0001", "wrong", 401),
        ("nobody", "secret", 401),
    ):
        async with murima.http.post(url, json={"username": username, "password": password}) as response:
            assert response.status == status, username
            if status == 200:
                assert (await response.json())["data"]["access_token"]


async def test_check_accepts_the_contract(murima: MurimaProcess, tmp_path: Path) -> None:
    check = PeerProcess("murima check", tmp_path / "check.log")
    await check.start([PROGRAM, "check", murima.config_file])
    assert await check.wait(20) == 0


# --- reloading ------------------------------------------------------------------------------


@asynccontextmanager
async def call_up(murima: MurimaProcess, bank: RtpBank) -> AsyncIterator[SipCall]:
    """A call with echo that must still be up, and heard, at the end."""
    async with caller_phone(bank, "1999") as phone:
        call = phone.dial("602", murima.sip)
        await call.answered()
        since = time.monotonic()
        yield call
        said = speech(0.8, variant=9)
        call.rtp.say(said)
        await call.rtp.until_quiet()
        assert align_and_correlate(said, call.rtp.heard(), RATE).correlation >= 0.95
        assert call.rtp.longest_gap_ms(since + 0.1) < 200
        assert not call.end_reason
        await call.hang_up()


async def logged(murima: MurimaProcess, text: str, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while murima.log().count(text) < times:  # noqa: ASYNC110 - a log file does not tell
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def extended(murima: MurimaProcess) -> MurimaProcess:
    """From here on, murima serves more numbers; every test above has used the contract's."""
    murima.write_config(EXTENDED)
    murima.reload()
    await logged(murima, "config.activated")
    return murima


async def test_reload_with_calls_up(murima: MurimaProcess, bank: RtpBank) -> None:
    async with call_up(murima, bank), caller_phone(bank) as phone, agent_phone(bank):
        murima.config_file.write_text(murima.config_file.read_text().replace("  - {id: bench,", "  - {idd: bench,"))
        murima.reload()
        await logged(murima, "config.refused")
        assert "idd" in murima.log()
        murima.config_file.unlink()
        murima.reload()
        await logged(murima, "config.refused", times=2)
        assert await refused(phone, "501", murima) == 404
        murima.write_config(EXTENDED)
        murima.reload()
        await logged(murima, "config.activated")
        call = phone.dial("501", murima.sip)
        await call.answered()
        await call.hang_up()
    await no_call(murima)


async def test_exact_numbers_win_then_patterns_in_order(extended: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank) as phone, agent_phone(bank) as agent:
        exact = phone.dial("60001", extended.sip)  # two patterns fit as well
        await exact.answered()
        exact.rtp.say(speech(0.4))
        await exact.rtp.until_quiet()
        assert exact.rtp.received > 0  # the echo
        first = phone.dial("60002", extended.sip)  # the pattern that comes first plays and hangs up
        await first.answered()
        assert await first.ended() == "bye"
        assert align_and_correlate(WELCOME, first.rtp.heard(), RATE).correlation >= 0.95
        assert agent.incoming.empty()
        await exact.hang_up()


async def test_expert_queue_plays_music_until_the_agent_answers(extended: MurimaProcess, bank: RtpBank) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank) as phone:
        call = phone.dial("501", extended.sip)
        offered = await rings(agent)
        await call.answered()
        await asyncio.sleep(MUSIC.size / RATE + 0.2)  # music takes its time
        assert align_and_correlate(MUSIC, call.rtp.heard(), RATE).correlation >= 0.95
        explanation = (await only_call(extended))["explanation"]
        assert isinstance(explanation, dict)
        assert explanation["strategy"] == "top_skill"
        offered.answer()
        await both_hear_each_other(call, offered)
        await offered.hang_up()
        assert await call.ended() == "bye"
    await agent_is(extended, "ready")


async def test_wrap_up_then_ready_by_itself(extended: MurimaProcess, bank: RtpBank) -> None:
    async with agent_phone(bank, 200) as agent, caller_phone(bank) as phone:
        call = phone.dial("502", extended.sip)
        await rings(agent)
        await extended.until("/api/v1/calls", lambda document: document["data"][0]["state"] == "talking")
        await call.hang_up()
        await agent_is(extended, "wrap_up")
        await agent_is(extended, "ready")


async def test_a_missed_offer_costs_the_ready_state(extended: MurimaProcess, bank: RtpBank) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank) as phone:
        call = phone.dial("502", extended.sip)
        offered = await rings(agent)
        assert await offered.ended(5) == "cancel"
        await agent_is(extended, "break", "no-answer")
        assert not call.end_reason  # the caller waits on
        await extended.put("/api/v1/agents/a0001/state", {"state": "ready"})
        (await rings(agent)).answer()  # the same caller is offered again
        await extended.until("/api/v1/calls", lambda document: document["data"][0]["state"] == "talking")
        await call.hang_up()
    await agent_is(extended, "ready")


async def test_a_missed_offer_is_forgiven_where_the_queue_says_so(extended: MurimaProcess, bank: RtpBank) -> None:
    async with agent_phone(bank) as agent, caller_phone(bank) as phone:
        call = phone.dial("503", extended.sip)
        offered = await rings(agent)
        assert await offered.ended(5) == "cancel"
        await agent_is(extended, "ready", "no-answer")
        await call.hang_up()
    await no_call(extended)


async def test_8_from_a_trunk_that_may_supervise_is_not_there_yet(extended: MurimaProcess, bank: RtpBank) -> None:
    async with caller_phone(bank, address=SUPERVISION) as phone:
        assert await refused(phone, "80001", extended) == 488


# --- the end ----------------------------------------------------------------------------------


async def test_sigterm_lets_calls_finish(tmp_path: Path, bank: RtpBank) -> None:
    write_prompts(tmp_path)
    async with MurimaProcess("drain_s: 20\n" + CONTRACT, tmp_path) as murima, caller_phone(bank) as phone:
        call = phone.dial("602", murima.sip)
        await call.answered()
        os.kill(murima.pid, signal.SIGTERM)
        await logged(murima, "engine.draining")
        late = phone.dial("602", murima.sip)
        assert await late.ended(5) == "refused"
        assert late.status == 503
        assert late.response is not None
        assert late.response.get("retry-after")
        said = speech(0.8)
        call.rtp.say(said)
        await call.rtp.until_quiet()
        assert align_and_correlate(said, call.rtp.heard(), RATE).correlation >= 0.95
        await call.hang_up()
        assert await murima.wait(20) == 0


async def test_sigterm_ends_calls_after_drain_s(tmp_path: Path, bank: RtpBank) -> None:
    write_prompts(tmp_path)
    async with MurimaProcess("drain_s: 0.5\n" + CONTRACT, tmp_path) as murima, caller_phone(bank) as phone:
        call = phone.dial("600", murima.sip)
        await call.answered()
        os.kill(murima.pid, signal.SIGTERM)
        assert await call.ended(5) == "bye"
        assert await murima.wait(20) == 0
