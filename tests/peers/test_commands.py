"""`murima call` and `murima demo`, run as a newcomer runs them, against a served murima."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.audio import align_and_correlate, load_wav
from tests.peers.murima import PROGRAM, MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech, write_speech

SPEECH_S = 2.0


def serving(carrier: str, prompt: Path) -> dict[str, Any]:
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "prompts": {"welcome": str(prompt)},
        "numbers": {"601": {"play": "welcome"}, "602": {"echo": True}},
    }


async def murima(*arguments: object) -> tuple[int, str, str]:
    """Run a command; returns exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "120"},
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_test_phone_hears_a_prompt_an_echo_and_a_refusal(tmp_path: Path) -> None:
    carrier = loopback_address()
    said = write_speech(tmp_path / "said.wav", SPEECH_S, variant=1)
    prompt = write_speech(tmp_path / "prompt.wav", SPEECH_S, variant=2)
    async with MurimaProcess(serving(carrier, prompt), tmp_path / "murima") as served:
        status, out, err = await murima(
            "call", served.uri("601"), "--address", carrier, "--record", tmp_path / "prompt-heard.wav", "--duration", 20
        )
        assert (status, err) == (0, "")
        assert "answered" in out
        assert "ended: normal" in out
        assert re.search(r"lost 0,", out)
        heard, rate = load_wav(tmp_path / "prompt-heard.wav")
        assert rate == RATE
        assert align_and_correlate(speech(SPEECH_S, 2), heard, RATE).correlation >= 0.95

        status, out, _ = await murima(
            "call", served.uri("602"), "--address", carrier, "--play", said, "--record", tmp_path / "echo.wav"
        )
        assert status == 0
        heard, _ = load_wav(tmp_path / "echo.wav")
        assert align_and_correlate(speech(SPEECH_S, 1), heard, RATE).correlation >= 0.95

        status, out, _ = await murima("call", served.uri("999"), "--address", carrier)
        assert status == 1
        assert "ended: not_found (404)" in out


@pytest.mark.parametrize("digits", ["42#"])
async def test_the_test_phone_calls_a_foreign_phone_and_presses_keys(tmp_path: Path, digits: str) -> None:
    async with Pjsua(tmp_path / "pjsua", "somebody", address=loopback_address()) as phone:
        call = asyncio.create_task(
            murima("call", phone.uri, "--address", loopback_address(), "--dtmf", digits, "--duration", 2)
        )
        for digit in digits:
            await phone.expect("dtmf", digit=digit)
        status, out, _ = await call
    assert status == 0, out


async def test_the_demo_shows_calls_being_routed_and_answered(tmp_path: Path) -> None:
    address = loopback_address()
    sample = (PROGRAM.parents[2] / "config" / "shipped" / "sample.yaml").read_text()
    shipped = PROGRAM.parents[2] / "config" / "shipped"
    rtp = free_port(address, span=400, align=2)
    text = (
        sample.replace("127.0.0.1:5060", f"{address}:{free_port(address)}")
        .replace("127.0.0.1:8080", f"{address}:{free_port(address)}")
        .replace("{address: 127.0.0.1, ports: [20000, 29999]", f"{{address: {address}, ports: [{rtp}, {rtp + 399}]")
        .replace("prompts/", f"{shipped}/prompts/")
    )
    (tmp_path / "sample.yaml").write_text(text)
    status, out, err = await murima("demo", "--config", tmp_path / "sample.yaml", "--duration", 12, "--seed", 1)
    assert status == 0, err
    last = out[out.rindex("murima demo") :]
    found = re.search(r"(\d+) calls placed, (\d+) talked to an agent", last)
    assert found is not None, out
    placed, talked = map(int, found.groups())
    assert placed >= 2
    assert talked >= 1
    assert "talking" in last
