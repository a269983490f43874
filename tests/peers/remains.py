"""What calls leave behind in a running murima, counted; and what its agents went through, as it tells."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.peers.murima import MurimaProcess
from tests.peers.process import PeerError

State = tuple[str, str]

_AT_ONCE = ("calls", "sip_calls", "sip_legs", "sip_media_legs")
_LATER = ("sip_dialogs", "sip_transactions")


@dataclass(frozen=True, slots=True)
class Remains:
    """What is there at one moment.

    Attributes:
        calls, waiting, ringing, talking: as the API shows them (the last three are sums over the queues).
        reserved: agents who belong to a call.
        legs: gauges of `/metrics` that fall to 0 with the last call, added up.
        late: dialogs and transactions, which stay for late messages up to 32 s.
        ports: bound UDP ports of the media range.
        files: open file handles of supervisor, engine and media workers.
        unfinished: recordings that are still being written.
    """

    calls: int
    waiting: int
    ringing: int
    talking: int
    reserved: int
    legs: int
    late: int
    ports: int
    files: tuple[int, ...]
    unfinished: int

    def nothing_but(self, files: tuple[int, ...]) -> bool:
        """Whether all calls have gone without a trace, given how many file handles there were before."""
        live = (self.calls, self.waiting, self.ringing, self.talking, self.reserved, self.legs, self.ports)
        return not any(live) and not self.unfinished and self.files == files


async def count(murima: MurimaProcess) -> Remains:
    """Count now."""
    queues = (await murima.get("/api/v1/queues?limit=100"))["data"]
    agents = (await murima.get("/api/v1/agents?limit=100"))["data"]
    gauges = await metrics(murima)
    return Remains(
        calls=len((await murima.get("/api/v1/calls"))["data"]),
        waiting=sum(queue["waiting"] for queue in queues),
        ringing=sum(queue["ringing"] for queue in queues),
        talking=sum(queue["talking"] for queue in queues),
        reserved=sum(agent["call_id"] is not None for agent in agents),
        legs=sum(gauges[f"murima_{name}"] for name in _AT_ONCE),
        late=sum(gauges[f"murima_{name}"] for name in _LATER),
        ports=len(murima.open_udp_ports()),
        files=tuple(murima.open_files(pid) for pid in processes(murima)),
        unfinished=len(list((murima.data / "recordings").glob("*.part*"))),
    )


async def nothing_left(murima: MurimaProcess, files: tuple[int, ...], timeout_s: float = 5.0) -> Remains:
    """Wait until all calls have gone without a trace.

    Raises:
        PeerError: something is left.
    """
    pids = processes(murima)
    remains = await count(murima)
    try:
        async with asyncio.timeout(timeout_s):
            while not remains.nothing_but(files):
                await asyncio.sleep(0.05)  # can only be asked for
                remains = await count(murima)
    except TimeoutError:
        handles = [open_handles(pid) for pid in pids]
        raise PeerError(f"left: {remains}; file handles before: {files}; now: {handles}") from None
    return remains


async def metrics(murima: MurimaProcess) -> dict[str, int]:
    """Return the whole numbers of `/metrics` by name, without those that have labels."""
    lines = (line.split() for line in (await murima.metrics()).splitlines() if not line.startswith("#"))
    return {line[0]: int(float(line[1])) for line in lines if len(line) == 2 and "{" not in line[0]}


def processes(murima: MurimaProcess) -> list[int]:
    """Return the process ids of supervisor, engine and media workers."""
    return [murima.pid, murima.engine_pid(), *murima.worker_pids()]


def open_handles(pid: int) -> list[str]:
    """Return what a process has open."""
    return sorted(str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())


async def database_connected(murima: MurimaProcess, timeout_s: float = 10.0) -> None:
    """Wait until events reach the database; murima is ready before. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not (await metrics(murima))["murima_database_connected"]:  # noqa: ASYNC110  # can only be asked for
            await asyncio.sleep(0.05)


def resident_kb(pid: int) -> int:
    """Return how much memory a process holds, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


class Histories:
    """Follows murima's event stream; `async with Histories(murima) as histories`."""

    def __init__(self, murima: MurimaProcess) -> None:
        self._murima = murima
        self._states: dict[str, list[State]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        ticket = (await self._murima.post("/api/v1/events/ticket"))["data"]["ticket"]
        assert self._murima.http is not None
        url = f"{self._murima.base_url}/api/v1/events?names=agent.state&ticket={ticket}"
        self._socket = await self._murima.http.ws_connect(url)
        self._reading = asyncio.create_task(self._read(self._socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._socket is not None
        assert self._reading is not None
        await self._socket.close()
        await self._reading

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            event: dict[str, Any] = json.loads(message.data)
            async with self._changed:
                self._states[event["agent_id"]].append((event["data"]["new"], event["data"]["reason"]))
                self._changed.notify_all()

    async def expect(self, agent_id: str, *states: State, timeout_s: float = 5.0) -> None:
        """Wait until the agent has gone through these states and reasons since the last time; forgets them.

        Raises:
            PeerError: the agent went through others, or not all of them came in time.
        """
        wanted = list(states)
        found = self._states[agent_id]
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: len(found) >= len(wanted))
        except TimeoutError:
            pass
        taken, found[:] = found[: len(wanted)], found[len(wanted) :]
        if taken != wanted:
            raise PeerError(f"{agent_id} went through {taken}, not {wanted}")
