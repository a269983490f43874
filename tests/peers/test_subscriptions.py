"""Real phones watch each other and their messages, and pick up what rings elsewhere."""

from __future__ import annotations

import asyncio
import socket
import xml.etree.ElementTree as ET
from pathlib import Path

from adapters.sip.syntax.message import Request, build_response, parse_message
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


class Console:
    """A trunk that watches one agent's calls."""

    def __init__(self, murima: MurimaProcess, address: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._socket.setblocking(False)
        self._murima = murima

    async def ringing(self, agent: str) -> dict[str, str]:
        """Subscribe, and wait for a dialog that rings; returns its attributes."""
        host, port = self._socket.getsockname()
        request = Request.build(
            "SUBSCRIBE",
            self._murima.uri(agent),
            via=f"SIP/2.0/UDP {host}:{port};branch=z9hG4bKconsole",
            from_="<sip:console@pbx.local>;tag=console",
            to=f"<sip:{agent}@pbx.local>",
            call_id="console",
            cseq=1,
        )
        request.set("event", "dialog")
        request.set("contact", f"<sip:console@{host}:{port}>")
        self._socket.sendto(request.serialise(), self._murima.sip)
        async with asyncio.timeout(10):
            while True:
                message = parse_message(await asyncio.get_running_loop().sock_recv(self._socket, 65536))
                if not isinstance(message, Request):
                    assert message.status == 200
                    continue
                self._socket.sendto(build_response(message, 200).serialise(), self._murima.sip)
                for dialog in ET.fromstring(message.body):
                    if "call-id" in dialog.attrib:
                        return dialog.attrib

    def close(self) -> None:
        self._socket.close()


async def test_pjsua_picks_up_what_rings_at_a_colleague(tmp_path: Path) -> None:
    carrier, console = loopback_address(), loopback_address()
    config = {
        "sip": {
            "trunks": [{"name": "carrier", "match": [carrier]}, {"name": "console", "match": [console], "watch": True}]
        },
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [{"id": f"a000{n}", "password": "secret", "auto_ready": True} for n in (1, 2)],
        "queues": [{"id": "support", "members": ["a0001"]}],
        "numbers": {"500": {"queue": "support"}},
    }
    async with MurimaProcess(config, tmp_path / "murima") as murima:
        await murima.login()

        def phone(name: str, answer: int) -> Pjsua:
            return Pjsua(
                tmp_path / name,
                name,
                address=loopback_address(),
                domain="pbx.local",
                proxy=murima.remote,
                password="secret",
                register=True,
                answer=answer,
            )

        async with (
            phone("a0001", 180) as colleague,
            phone("a0002", 200) as agent,
            Pjsua(tmp_path / "caller", "0700111222", address=carrier) as caller,
        ):
            lamp = Console(murima, console)
            call = await caller.dial(murima.uri("500"))
            ringing = (await colleague.expect("incoming"))["call"]
            names = await lamp.ringing("a0001")
            lamp.close()
            replaces = f"{names['call-id']};to-tag={names['local-tag']};from-tag={names['remote-tag']};early-only"
            await agent.dial("sip:a0001@pbx.local", {"Replaces": replaces, "Require": "replaces"})
            await agent.expect("call", state="confirmed")
            await colleague.expect("call", call=ringing, state="disconnected")
            found = await murima.until(
                "/api/v1/calls", lambda answer: [c["agent_id"] for c in answer["data"]] == ["a0002"]
            )
            assert (found["data"][0]["state"], found["data"][0]["queue_id"]) == ("talking", "support")
            await caller.hang_up(call)
            await agent.expect("call", state="disconnected")
