from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.native.legs import Link
from adapters.native.workers import keep_connected
from media.client import Event, Welcome
from media.framing import frame


class User:
    """Fails on its first worker."""

    def __init__(self) -> None:
        self.attached = 0
        self.lost = 0
        self.again = asyncio.Event()

    def attach_worker(self, name: str, address: str, link: Link, welcome: Welcome) -> None:
        self.attached += 1
        if self.attached == 1:
            raise RuntimeError("a bug")
        self.again.set()

    def on_worker_event(self, name: str, event: Event) -> None: ...

    def on_worker_lost(self, name: str) -> None:
        self.lost += 1


async def test_fault_of_ours_does_not_cost_the_worker_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(Welcome(1, "w", 1, [])))
        await reader.read()
        writer.close()
        await writer.wait_closed()

    path = str(tmp_path / "w")
    server = await asyncio.start_unix_server(greet, path)
    user = User()
    keeping = asyncio.create_task(
        keep_connected(user, name="worker-0", path=path, address="127.0.0.1", engine_name="e")
    )
    async with asyncio.timeout(5):
        await user.again.wait()
    assert user.lost == 1
    assert "worker.failed" in caplog.messages
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    server.close()
    await server.wait_closed()
