from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.start import phones as subject
from engine.start.phones import Phones, run_demo
from tests.native_rig import udp_socket
from tests.ports import loopback_address


async def test_phones_that_cannot_start_leave_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_WORKER_READY_S", 0.0)
    ended: list[asyncio.subprocess.Process] = []

    async def end(worker: asyncio.subprocess.Process) -> None:
        await end_worker(worker)
        ended.append(worker)

    end_worker = subject._end_worker
    monkeypatch.setattr(subject, "_end_worker", end)
    host = loopback_address()
    sip = udp_socket(host)
    with pytest.raises(TimeoutError):
        await Phones(host, tmp_path, {"callee": "sip:1@127.0.0.1"}, {}).start(lambda _: None, sip)
    assert [worker.returncode is not None for worker in ended] == [True]
    assert sip.fileno() == -1


async def test_demo_says_when_its_phones_cannot_reach_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tcp.yaml"
    config.write_text(
        """
domain: pbx.local
sip: {listen: ["tcp:127.0.0.1:5060"]}
media: {address: 127.0.0.1, ports: [20000, 29999]}
http: {listen: "127.0.0.1:8080"}
agents: [{id: "a1", name: "A", password: "secret", contact: "sip:a1@127.0.0.2", skills: {}}]
queues: [{id: q, members: ["a1"]}]
numbers: {"500": {queue: q}}
"""
    )
    assert await run_demo(config, tmp_path, 1.0, 1) == 1
    assert "UDP" in capsys.readouterr().err
