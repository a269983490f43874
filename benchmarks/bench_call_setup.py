"""How much CPU time does murima spend on one complete call, in all its processes together?

Three kinds of call, none with callers' audio:

* bridged: INVITE from a caller, answered by the queue, offered to an agent (INVITE, 180,
  200), bridged, BYE, and everything recorded in PostgreSQL;
* answered: number 600, answered and hung up;
* prompt: number 601, answered, a prompt of 1 s played, hung up.

SIPp is the caller and all agents; its own time is not counted. The time is utime and stime
of the supervisor and all processes below it (/proc/PID/stat, 10 ms resolution, so ±0.05 ms a
call at 400 calls). The baseline of the same run is SIPp as the server of the same direct
call: a server in C++ that only answers.

    .venv/bin/python -m benchmarks.bench_call_setup [--runs 5] [--seconds 10] [--rate 40]

Budgets (docs and design): 2.0 ms bridged, 1.2 ms answered, 2.0 ms with the prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.audio import save_wav
from tests.peers.murima import MurimaProcess
from tests.peers.process import PeerError
from tests.peers.sipp import Sipp
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech

AGENTS = 100
TALK_MS = 200
_SETTLE_S = 3.0  # what starting left behind: pages, caches, a first vacuum
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BUDGET_MS = {"bridged": 2.0, "answered": 1.2, "prompt": 2.0}
NUMBERS = {"bridged": ("500", TALK_MS), "answered": ("600", TALK_MS), "prompt": ("601", 1200)}

Split = dict[str, float]


def config(carrier: str, agents: str) -> dict[str, object]:
    return {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "prompts": {"welcome": "welcome.wav"},
        "agents": [
            {"id": name, "name": name, "password": "secret", "contact": f"sip:{name}@{agents}", "auto_ready": True}
            for name in (f"a{number:04}" for number in range(AGENTS))
        ],
        "queues": [{"id": "bench", "members": [f"a{n:04}" for n in range(AGENTS)], "wrap_up_s": 0, "music": None}],
        "numbers": {
            "500": {"queue": "bench"},
            "600": {"answer": "silence"},
            "601": {"play": "welcome", "then": "silence"},
        },
    }


def cpu_ms(pid: int) -> Split:
    """CPU time so far of a process and all below it, those included that have ended; by kind of process."""
    parents: dict[int, int] = {}
    spent: dict[int, tuple[str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        spent[int(entry.name)] = kind_of(command), sum(map(int, fields[11:15])) * 1000 / TICKS_PER_S
    split: Split = {}
    for process, (kind, time_ms) in spent.items():
        above = process
        while above not in (pid, 0):
            above = parents.get(above, 0)
        if above == pid:
            split[kind] = split.get(kind, 0.0) + time_ms
    return split


def since(before: Split, now: Split) -> Split:
    return {kind: now[kind] - before.get(kind, 0.0) for kind in now}


def kind_of(command: str) -> str:
    for text, kind in (("engine.start", "engine"), ("media.worker", "worker"), ("postgres", "database")):
        if text in command:
            return kind
    return "database" if "adapters.store" in command else "supervisor"


async def load(
    folder: Path, server: int, remote: str, address: str, number: str, talk_ms: int, calls: int, rate: float
) -> Split:
    """Make calls at a steady rate; returns the server's CPU time per call, in ms, by kind of process."""
    before = cpu_ms(server)
    async with Sipp(
        folder,
        "uac_silent",
        remote=remote,
        service=number,
        address=address,
        calls=calls,
        rate=rate,
        talk_ms=talk_ms,
        timeout_s=calls / rate + 30,
        trace=False,
    ) as caller:
        result = await caller.result()
    if result.failed or result.succeeded != calls:
        raise PeerError(f"{result.failed} of {calls} calls failed: {result.errors[:1000]}")
    await asyncio.sleep(1.0)  # what is recorded after the call belongs to it
    return {kind: spent / calls for kind, spent in since(before, cpu_ms(server)).items()}


async def measure(runs: int, seconds: float, rate: float) -> None:
    calls = round(rate * seconds)
    carrier, seat = loopback_address(), loopback_address()
    agents = f"{seat}:{free_port(seat)}"
    with tempfile.TemporaryDirectory(prefix="murima-bench-") as name:
        folder = Path(name)
        save_wav(folder / "welcome.wav", speech(1.0), RATE)
        async with (
            MurimaProcess(config(carrier, agents), folder, rtp_ports=2000) as murima,
            Sipp(
                folder / "agents",
                "uas",
                address=seat,
                port=int(agents.rpartition(":")[2]),
                calls=(runs + 2) * calls,
                timeout_s=3600,
                trace=False,
            ),
            Sipp(
                folder / "baseline",
                "uas",
                address=seat,
                calls=(runs + 2) * calls,
                timeout_s=3600,
                trace=False,
            ) as baseline,
        ):
            await murima.login()
            await murima.until("/readyz", has_database)
            await asyncio.sleep(_SETTLE_S)
            before = cpu_ms(murima.pid)
            await asyncio.sleep(seconds)
            idle = sum(since(before, cpu_ms(murima.pid)).values()) / seconds
            print(f"idle: {idle:.2f} ms CPU per second in all processes")
            found: dict[str, list[Split]] = {kind: [] for kind in (*NUMBERS, "baseline")}
            for run in range(-1, runs):  # the first one warms up
                for kind, (number, talk_ms) in NUMBERS.items():
                    spent = await load(
                        folder / f"{kind}{run}", murima.pid, murima.remote, carrier, number, talk_ms, calls, rate
                    )
                    found[kind] += [spent] if run >= 0 else []
                direct = f"{baseline.address}:{baseline.port}"
                spent = await load(folder / f"direct{run}", baseline.pid, direct, carrier, "1", TALK_MS, calls, rate)
                found["baseline"] += [spent] if run >= 0 else []
    for kind, splits in found.items():
        report(kind, splits)


def has_database(document: dict[str, Any]) -> bool:
    return any(part["name"] == "database" and part["ok"] for part in document["data"]["components"])


def report(kind: str, splits: Sequence[Split]) -> None:
    totals = [sum(split.values()) for split in splits]
    p50 = statistics.median(totals)
    budget = f", budget {BUDGET_MS[kind]:.1f} ms" if kind in BUDGET_MS else " (SIPp answering the same call itself)"
    print(f"{kind:<9} p50 {p50:.2f} ms a call, best {min(totals):.2f}, worst {max(totals):.2f}{budget}")
    if kind in BUDGET_MS:
        names = sorted({name for split in splits for name in split})
        parts = ", ".join(f"{name} {statistics.median(split.get(name, 0.0) for split in splits):.2f}" for name in names)
        print(f"{'':<9} of it {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=40.0, help="calls per second")
    options = parser.parse_args()
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    sipp = subprocess.run(["sipp", "-v"], capture_output=True, text=True, check=False).stdout.split("\n")[1].strip()
    print(f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    print(f"murima {version('murima')}, uvloop {version('uvloop')}, {sipp}; load average {os.getloadavg()[0]:.1f}")
    print(f"{options.runs} runs of {options.seconds:g} s at {options.rate:g} calls/s, after one to warm up")
    asyncio.run(measure(options.runs, options.seconds, options.rate))


if __name__ == "__main__":
    main()
