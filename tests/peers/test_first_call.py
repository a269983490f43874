"""A caller's phone reaches an agent's phone through a queue, and both hear each other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.audio import align_and_correlate, load_wav, save_wav
from tests.peers.baresip import Baresip
from tests.peers.murima import MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.peers.process import PeerError
from tests.peers.sipp import Sipp
from tests.ports import free_port, loopback_address
from tests.speech import RATE, sentence, speech, write_speech

DIGITS = "42#"


def config(carrier: str, contact: str | None = None) -> dict[str, object]:
    agent: dict[str, object] = {"id": "a0001", "name": "Agent 1", "password": "secret", "auto_ready": True}
    if contact is not None:
        agent["contact"] = contact
    queue = {
        "id": "bench",
        "strategy": "longest_idle",
        "members": ["a0001"],
        "ring_timeout_s": 15,
        "wrap_up_s": 0,
        "music": None,
        "record": True,
    }
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [agent],
        "queues": [queue],
        "numbers": {"500": {"queue": "bench"}},
    }


async def recording(murima: MurimaProcess) -> Path:
    """Return the only recording once the call is over and the file is complete."""
    await murima.until("/api/v1/calls", lambda document: document["data"] == [])
    async with asyncio.timeout(10):
        while True:
            files = list((murima.data / "recordings").glob("*.wav"))
            if files and not list((murima.data / "recordings").glob("*.part*")):
                assert len(files) == 1
                return files[0]
            await asyncio.sleep(0.05)  # the file system does not tell


async def test_pjsua_reaches_baresip_through_the_queue(tmp_path: Path) -> None:
    carrier = loopback_address()
    caller_says = sentence(0)
    agent_says = speech(caller_says.size / RATE, variant=2)
    async with (
        MurimaProcess(config(carrier), tmp_path / "murima") as murima,
        Baresip(
            tmp_path / "agent",
            "a0001",
            address=loopback_address(),
            domain="pbx.local",
            proxy=murima.remote,
            password="secret",
            register=True,
        ) as agent,
        Pjsua(tmp_path / "caller", "1000", address=carrier) as caller,
    ):
        await murima.login()
        call = await caller.dial(murima.uri("500"))
        await caller.expect("call", state="confirmed", code=200)
        await agent.expect("call_established")
        await caller.play(call, save_wav(tmp_path / "caller.wav", caller_says, RATE))
        await agent.play(save_wav(tmp_path / "agent.wav", agent_says, RATE))
        await asyncio.sleep(caller_says.size / RATE + 0.5)  # the speech takes its time
        await caller.send_dtmf(call, DIGITS)
        for digit in DIGITS:
            await agent.expect("call_dtmf_start", param=digit)
        await caller.hang_up(call)
        await caller.expect("call", state="disconnected")
        await agent.expect("call_closed")
        recorded, rate = load_wav(await recording(murima))
        assert murima.open_udp_ports() == set()
        heard_by_agent, heard_by_caller = agent.heard(), caller.heard()
    assert align_and_correlate(caller_says, heard_by_agent, RATE).correlation >= 0.95
    assert align_and_correlate(agent_says, heard_by_caller, RATE).correlation >= 0.95
    assert rate == RATE
    assert align_and_correlate(caller_says, recorded[:, 0], RATE).correlation >= 0.95
    assert align_and_correlate(agent_says, recorded[:, 1], RATE).correlation >= 0.95


async def test_baresip_reaches_pjsua_that_registered_over_tcp(tmp_path: Path) -> None:
    carrier = loopback_address()
    said = speech(2.0, variant=9)
    async with (
        MurimaProcess(config(carrier), tmp_path / "murima") as murima,
        Pjsua(
            tmp_path / "agent",
            "a0001",
            address=loopback_address(),
            domain="pbx.local",
            proxy=murima.remote,
            password="secret",
            register=True,
            answer=180,
            transport="tcp",
        ) as agent,
        Baresip(tmp_path / "caller", "1000", address=carrier) as caller,
    ):
        await caller.dial(murima.uri("500"))
        await caller.expect("call_established")  # the queue answers at once
        call = (await agent.expect("incoming"))["call"]
        await agent.answer(call)
        await agent.expect("call", state="confirmed")
        await caller.play(save_wav(tmp_path / "said.wav", said, RATE))
        await asyncio.sleep(2.5)  # the speech takes its time
        await agent.hang_up(call)
        await agent.expect("call", state="disconnected")
        await caller.expect("call_closed")
        assert align_and_correlate(said, agent.heard(), RATE).correlation >= 0.95


async def test_a_wrong_password_registers_nobody(tmp_path: Path) -> None:
    async with MurimaProcess(config("127.0.0.4"), tmp_path / "murima") as murima:
        phone = Baresip(
            tmp_path / "agent",
            "a0001",
            address=loopback_address(),
            domain="pbx.local",
            proxy=murima.remote,
            password="guessed",
            register=True,
        )
        with pytest.raises(PeerError, match="refused registration"):
            await phone.__aenter__()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_sipp_reaches_sipp_through_the_queue(tmp_path: Path, transport: str) -> None:
    carrier, agent_address = loopback_address(), loopback_address()
    agent_port = free_port(agent_address)
    contact = f"sip:a0001@{agent_address}:{agent_port};transport={transport}"
    said = {
        "caller": write_speech(tmp_path / "caller.wav", 3.0, variant=3),
        "agent": write_speech(tmp_path / "agent.wav", 3.0, variant=4),
    }
    async with (
        MurimaProcess(config(carrier, contact), tmp_path / "murima") as murima,
        Sipp(
            tmp_path / "agent",
            "uas_plays",
            address=agent_address,
            port=agent_port,
            audio=said["agent"],
            ring_ms=200,
            transport=transport,
        ) as agent,
        Sipp(
            tmp_path / "caller",
            "uac",
            remote=murima.remote,
            address=carrier,
            audio=said["caller"],
            talk_ms=5000,
            transport=transport,
        ) as caller,
    ):
        await murima.login()
        for result in await asyncio.gather(caller.result(), agent.result()):
            assert (result.status, result.succeeded, result.failed) == (0, 1, 0), result.errors
        recorded, _ = load_wav(await recording(murima))
    assert align_and_correlate(load_wav(said["agent"])[0], recorded[:, 1], RATE).correlation >= 0.95
    # The caller speaks while the queue still rings the agent: what the agent could hear is on the recording.
    assert align_and_correlate(recorded[:, 0][: 2 * RATE], load_wav(said["caller"])[0], RATE).correlation >= 0.9
