"""What does relaying one G.711 packet cost a media worker, beside a relay in C?

Calls of two legs, 20 ms PCMU packets evenly spread over the 20 ms, all on loopback. In one
run, round by round: a C epoll relay, the same C paced at 1 ms, and our worker. The C relay uses
connected sockets, as we do: one with recvfrom and sendto would be a slower, easier baseline. CPU is the
scheduler's account (/proc/PID/task/*/schedstat) of all threads of the relay under test, divided
by the packets that the phones sent; delay is from the phone's send to the kernel's receive
timestamp at the other phone.

Budget (design section 11): at most 1.5 × the paced C relay, below the unpaced one, p99 ≤ 3 ms.

    .venv/bin/python -m benchmarks.bench_relay --calls 200 --seconds 10 --rounds 3
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from media.client import Bridge, Codec, Event, LegOpened, MediaClient, OpenLeg, SetRemote, WorkerUnavailable

_SOURCE = Path(__file__).with_name("relay_baseline.c")
_RELAY_BASE = 12000
_PHONE_BASE = 22000
BUDGET_RATIO = 1.5
BUDGET_P99_US = 3000


@dataclass(frozen=True)
class Figures:
    """One round of one relay."""

    cpu_us: float  # per packet
    lost: int
    p50_us: int
    p99_us: int
    max_us: int


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def compile_baseline(folder: Path) -> Path:
    program = folder / "relay_baseline"
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, _SOURCE], check=True)
    return program


async def measure(program: Path, pid: int, ports: list[int], seconds: int) -> Figures:
    load = await asyncio.create_subprocess_exec(
        program, "load", str(len(ports)), str(_PHONE_BASE), str(seconds),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write("\n".join(map(str, ports)).encode() + b"\n")
    await load.stdin.drain()
    load.stdin.close()
    assert await load.stdout.readline() == b"start\n"
    before = cpu_ns(pid)
    assert await load.stdout.readline() == b"stop\n"
    used = cpu_ns(pid) - before
    sent, received, p50, _p95, p99, worst = map(int, (await load.stdout.readline()).split())
    await load.wait()
    return Figures(used / 1000 / sent, sent - received, p50, p99, worst)


async def measure_c(program: Path, legs: int, seconds: int, pace_us: int) -> Figures:
    relay = await asyncio.create_subprocess_exec(
        program, "relay", str(legs), str(_RELAY_BASE), str(_PHONE_BASE), str(pace_us), stdout=subprocess.PIPE
    )
    try:
        assert relay.stdout is not None
        assert await relay.stdout.readline() == b"ready\n"
        return await measure(program, relay.pid, [_RELAY_BASE + 2 * i for i in range(legs)], seconds)
    finally:
        relay.terminate()
        await relay.wait()


@asynccontextmanager
async def running_worker(folder: Path, legs: int) -> AsyncIterator[tuple[MediaClient, int, asyncio.Queue[Event]]]:
    """A worker process, a client of it, its process id and its events."""
    path = folder / "worker.sock"
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "media.worker", "--socket", path, "--address", "127.0.0.1",
        "--ports", f"{_RELAY_BASE}-{_RELAY_BASE + 2 * legs + 199}", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    events: asyncio.Queue[Event] = asyncio.Queue()
    client = MediaClient(str(path), events.put_nowait, "benchmark")
    try:
        for _ in range(100):
            try:
                await client.connect()
                break
            except WorkerUnavailable:
                await asyncio.sleep(0.1)
                client = MediaClient(str(path), events.put_nowait, "benchmark")
        yield client, worker.pid, events
    finally:
        client.close()
        worker.terminate()
        await worker.wait()


async def open_legs(client: MediaClient, events: asyncio.Queue[Event], legs: int) -> list[int]:
    """Open legs in bridged pairs, phones at _PHONE_BASE + 2i; returns our ports."""
    ports: list[int] = []
    for i in range(legs):
        client.send(OpenLeg(f"leg-{i}", f"call-{i // 2}"))
    for i in range(legs):
        opened = await asyncio.wait_for(events.get(), 10)
        assert isinstance(opened, LegOpened), opened
        ports.append(opened.port)
        client.send(SetRemote(opened.leg, "127.0.0.1", _PHONE_BASE + 2 * i, Codec.PCMU, 0))
    for i in range(0, legs, 2):
        client.send(Bridge(f"leg-{i}", f"leg-{i + 1}"))
    return ports


async def measure_worker(program: Path, folder: Path, legs: int, seconds: int) -> Figures:
    async with running_worker(folder, legs) as (client, pid, events):
        ports = await open_legs(client, events, legs)
        await asyncio.sleep(0.2)
        return await measure(program, pid, ports, seconds)


async def run(calls: int, seconds: int, rounds: int) -> bool:
    """Measure and print; True: within the budget."""
    legs = calls * 2
    names = ("C epoll", "C epoll, paced 1 ms", "media worker")
    results: dict[str, list[Figures]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compile_baseline(folder)
        for _ in range(rounds):
            results[names[0]].append(await measure_c(program, legs, seconds, 0))
            results[names[1]].append(await measure_c(program, legs, seconds, 1000))
            results[names[2]].append(await measure_worker(program, folder, legs, seconds))
    print(f"{'':22}{'CPU µs/packet (all rounds)':34}{'p50 µs':>8}{'p99 µs':>8}{'max µs':>9}{'lost':>6}")
    medians: dict[str, float] = {}
    for name, rows in results.items():
        medians[name] = statistics.median(row.cpu_us for row in rows)
        each = " ".join(f"{row.cpu_us:.2f}" for row in rows)
        print(
            f"{name:22}{medians[name]:6.2f}  ({each}){'':4}"
            f"{statistics.median(row.p50_us for row in rows):8.0f}{statistics.median(row.p99_us for row in rows):8.0f}"
            f"{max(row.max_us for row in rows):9}{sum(row.lost for row in rows):6}"
        )
    ours = medians[names[2]]
    ratio = ours / medians[names[1]]
    p99 = statistics.median(row.p99_us for row in results[names[2]])
    kept = ratio <= BUDGET_RATIO and ours < medians[names[0]] and p99 <= BUDGET_P99_US
    print(
        f"worker / paced C = {ratio:.2f} (budget {BUDGET_RATIO}), worker / unpaced C = {ours / medians[names[0]]:.2f}"
        f" (budget 1), p99 {p99 / 1000:.2f} ms (budget 3 ms): {'kept' if kept else 'NOT KEPT'}"
    )
    return kept


def hardware() -> str:
    """Machine and versions, for every report."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    assert __doc__ is not None
    print(__doc__.splitlines()[0])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{hardware()}; load average {os.getloadavg()[0]:.1f}; {options.calls} calls, {options.seconds} s a round")
    return 0 if asyncio.run(run(options.calls, options.seconds, options.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
