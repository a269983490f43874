"""How many calls per second can murima bridge on one core, and what happens at twice that rate?

Direct calls to agents, no queue and no media: INVITE from a caller, rung at an agent's phone
(180, 200), bridged, hung up after 100 ms. SIPp is all callers and all agents, on the second
core; the server, with everything that belongs to it (media worker, database), has the first
core to itself. The baseline of the same run is Asterisk 22 with chan_pjsip and Dial(), its
logging down to warnings, on the same core under the same load.

The highest rate is found by going up by a quarter until more than 0.1 % of the calls fail or
are refused, or half of them wait for more than half a second, and then closing in. Overload
is twice that rate: goodput counts the calls that were bridged; a refusal (503) is no failure
there, but no good either.

    .venv/bin/python -m benchmarks.bench_call_rate [--seconds 8] [--only murima]

Budget: goodput at twice the highest rate ≥ 80 % of it (issue: "SIP stack").
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.bench_call_setup import cpu_ms, has_database
from tests.peers.asterisk import Asterisk
from tests.peers.murima import MurimaProcess
from tests.peers.sipp import Sipp
from tests.ports import free_port, loopback_address

AGENTS = 2000  # dialled in turn: nobody is called again before the last call has ended
TALK_MS = 100
MAX_FAILED = 0.001
MAX_WAIT_MS = 500.0
FIRST_RATE = 80
STEP = 1.25
PORTS = 8000
NUMBERS = [f"7{number:04}" for number in range(AGENTS)]
SERVER_CORE, LOAD_CORE = {0}, {1}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: `seconds` to the end of its last call; waits from INVITE to 200 and CPU per call offered, in ms."""

    rate: int
    offered: int
    bridged: int
    refused: int
    seconds: float
    wait_p50: float
    wait_p95: float
    wait_p99: float
    cpu_ms: float

    @property
    def lost(self) -> float:
        """The share of calls that were not bridged."""
        return 1 - self.bridged / self.offered

    @property
    def sustained(self) -> bool:
        return self.lost < MAX_FAILED and self.wait_p50 < MAX_WAIT_MS

    def __str__(self) -> str:
        failed = self.offered - self.bridged - self.refused
        return (
            f"{self.rate:4} calls/s: {self.bridged} of {self.offered} bridged, {self.refused} refused, {failed} failed;"
            f" answered after p50 {self.wait_p50:.0f}, p95 {self.wait_p95:.0f}, p99 {self.wait_p99:.0f} ms;"
            f" {self.cpu_ms:.2f} ms CPU a call offered"
        )


class Bench:
    """One server under load, with the phones of its agents."""

    def __init__(self, folder: Path, name: str, remote: str, pid: int, address: str, numbers: Sequence[str]) -> None:
        self._folder = folder
        self._remote = remote
        self._pid = pid
        self._address = address
        self._numbers = numbers
        self._runs = 0
        self.name = name

    async def run(self, rate: int, seconds: float) -> Outcome:
        self._runs += 1
        calls = round(rate * seconds)
        before, began = cpu_ms(self._pid), asyncio.get_running_loop().time()
        async with Sipp(
            self._folder / f"run{self._runs}",
            "uac_load",
            remote=self._remote,
            services=self._numbers,
            address=self._address,
            calls=calls,
            rate=float(rate),
            at_once=50_000,
            talk_ms=TALK_MS,
            timeout_s=seconds + 45,
            trace=False,
            times=True,
        ) as caller:
            result = await caller.result()
        took = asyncio.get_running_loop().time() - began
        spent = cpu_ms(self._pid)
        waits = sorted(result.waits_ms) or [float("inf")]
        outcome = Outcome(
            rate,
            calls,
            result.succeeded - result.refused,
            result.refused,
            took,
            statistics.median(waits),
            waits[int(len(waits) * 0.95)],
            waits[int(len(waits) * 0.99)],
            sum(spent[kind] - before.get(kind, 0.0) for kind in spent) / calls,
        )
        print(f"  {self.name:<9}{outcome}", flush=True)
        await asyncio.sleep(3.0)  # what was refused is forgotten, and what is recorded after a call is written
        return outcome


@contextlib.asynccontextmanager
async def agents(folder: Path, address: str) -> AsyncIterator[int]:
    """The phones of all agents; yields their port."""
    port = free_port(address)
    async with Sipp(
        folder, "uas", address=address, port=port, calls=10_000_000, at_once=100_000, timeout_s=7200, trace=False
    ):
        yield port


@contextlib.asynccontextmanager
async def murima(folder: Path) -> AsyncIterator[Bench]:
    callers, seats = loopback_address(), loopback_address()
    async with agents(folder / "agents", seats) as port:
        config = {
            "sip": {"trunks": [{"name": "carrier", "match": [callers]}]},
            "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
            "agents": [
                {"id": f"a{n:04}", "password": "secret", "contact": f"sip:a{n:04}@{seats}:{port}", "auto_ready": True}
                for n in range(AGENTS)
            ],
            "numbers": {"~7(\\d{4})": {"agent": "a\\1"}},
        }
        os.sched_setaffinity(0, SERVER_CORE)
        async with MurimaProcess(config, folder / "murima", rtp_ports=PORTS) as server:
            os.sched_setaffinity(0, LOAD_CORE)
            await server.login()
            await server.until("/readyz", has_database)
            yield Bench(folder, "murima", server.remote, server.pid, callers, NUMBERS)


@contextlib.asynccontextmanager
async def asterisk(folder: Path) -> AsyncIterator[Bench]:
    address, seats = loopback_address(), loopback_address()
    async with agents(folder / "agents", seats) as port:
        os.sched_setaffinity(0, SERVER_CORE)
        async with Asterisk(
            folder / "asterisk",
            f"{seats}:{port}",
            address=address,
            numbers={"_7XXXX": "Dial(PJSIP/${EXTEN}@murima)"},
            rtp_ports=PORTS,
            quiet=True,
        ) as server:
            os.sched_setaffinity(0, LOAD_CORE)
            yield Bench(folder, "asterisk", server.remote, server.pid, seats, NUMBERS)


async def tried_twice(bench: Bench, rate: int, seconds: float) -> Outcome:
    """A run, and another one if it failed: a hiccup of the machine is no limit of the server."""
    outcome = await bench.run(rate, seconds)
    return outcome if outcome.sustained else await bench.run(rate, seconds)


async def highest_rate(bench: Bench, seconds: float) -> Outcome:
    """The best sustained run: up by a quarter, then three times into the middle."""
    rate, best, above = FIRST_RATE, None, None
    await bench.run(FIRST_RATE // 2, seconds)  # warms up
    while above is None:
        outcome = await tried_twice(bench, rate, seconds)
        if outcome.sustained:
            best, rate = outcome, round(rate * STEP)
        else:
            above = rate
    for _ in range(3):
        rate = ((best.rate if best else 0) + above) // 2
        outcome = await tried_twice(bench, rate, seconds)
        if outcome.sustained:
            best = outcome
        else:
            above = rate
    if best is None:
        raise SystemExit(f"{bench.name} sustains no rate at all")
    return best


async def measure(names: Sequence[str], seconds: float) -> None:
    for name in names:
        with tempfile.TemporaryDirectory(prefix="murima-bench-") as folder:
            async with {"murima": murima, "asterisk": asterisk}[name](Path(folder)) as bench:
                best = await highest_rate(bench, seconds)
                over = await bench.run(2 * best.rate, 2 * seconds)
                after = await bench.run(best.rate // 2, seconds)
        goodput = over.bridged / over.seconds
        print(f"{name:<9} highest rate {best.rate} calls/s at {best.cpu_ms:.2f} ms CPU a bridged call")
        print(
            f"{'':<9} at {over.rate} calls/s {goodput:.0f} bridged a second, {goodput / best.rate:.0%} of that "
            f"(budget 80 %); answered after p50 {over.wait_p50:.0f}, p95 {over.wait_p95:.0f} ms"
        )
        print(f"{'':<9} afterwards, at half the rate: {after.lost:.2%} not bridged, p95 {after.wait_p95:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--only", choices=("murima", "asterisk"))
    options = parser.parse_args()
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if "model name" in line), platform.machine())
    sipp = subprocess.run(["sipp", "-v"], capture_output=True, text=True, check=False).stdout.split("\n")[1].strip()
    print(f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    print(f"murima {version('murima')}, uvloop {version('uvloop')}, Asterisk 22, {sipp}")
    print(f"runs of {options.seconds:g} s; server on core 0, phones on core 1; load average {os.getloadavg()[0]:.1f}")
    asyncio.run(measure([options.only] if options.only else ["asterisk", "murima"], options.seconds))


if __name__ == "__main__":
    main()
