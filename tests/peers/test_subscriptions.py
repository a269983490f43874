"""A real phone watches a colleague and its own messages."""

from __future__ import annotations

from pathlib import Path

from tests.peers.murima import MurimaProcess
from tests.peers.pjsua import Pjsua
from tests.ports import loopback_address


async def test_pjsua_watches_a_colleague_and_its_messages(tmp_path: Path) -> None:
    config = {
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [{"id": f"a000{n}", "password": "secret", "auto_ready": True} for n in (1, 2)],
        "numbers": {"600": {"answer": "silence"}},
    }
    async with MurimaProcess(config, tmp_path / "murima") as murima:
        await murima.login()

        def phone(name: str, *, messages: bool = False) -> Pjsua:
            return Pjsua(
                tmp_path / name,
                name,
                address=loopback_address(),
                domain="pbx.local",
                proxy=murima.remote,
                password="secret",
                register=True,
                messages=messages,
            )

        async with phone("a0001", messages=True) as watcher:
            told = await watcher.expect("messages")
            assert "Messages-Waiting: no" in str(told["text"])
            await watcher.watch("sip:a0002@pbx.local")
            await watcher.expect("presence", online=False)
            async with phone("a0002") as colleague:
                await watcher.expect("presence", online=True)
                call = await colleague.dial("sip:600@pbx.local")
                await watcher.expect("presence", online=True, activity="In a call")
                await colleague.hang_up(call)
                await watcher.expect("presence", online=True, activity="Available")
            assert "murima_sip_subscriptions 2" in await murima.metrics()
