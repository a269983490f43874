"""The harness starts murima as an operator does, finds its processes, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.murima import MurimaProcess
from tests.peers.process import PeerError

CONFIG = {
    "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
    "numbers": {"600": {"answer": "silence"}},
}


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_murima_becomes_ready_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    async with MurimaProcess(CONFIG, tmp_path) as murima:
        pids = [murima.pid, murima.engine_pid(), *murima.worker_pids()]
        await murima.login()
        assert (await murima.get("/api/v1/calls"))["data"] == []
        assert murima.open_udp_ports() == set()
        assert all(murima.open_files(pid) > 0 for pid in pids)
        data = murima.data
    assert not any(is_running(pid) for pid in pids)
    assert not data.exists()


async def test_a_configuration_that_is_wrong_shows_the_log(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nonsense"):
        async with MurimaProcess({**CONFIG, "nonsense": 1}, tmp_path):
            pass


async def test_yaml_has_its_places_filled_in(tmp_path: Path) -> None:
    text = """
domain: pbx.local
sip: {listen: ["udp:@ADDRESS@:@SIP_PORT@"]}
media: {address: @ADDRESS@, ports: [@RTP_FIRST@, @RTP_LAST@], workers: 2}
http: {listen: "@ADDRESS@:@HTTP_PORT@"}
numbers: {"600": {answer: silence}}
"""
    async with MurimaProcess(text, tmp_path) as murima:
        assert len(murima.worker_pids()) == 2
