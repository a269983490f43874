"""How much memory does one bridged call take in a media worker?

Opens calls of two bridged legs in a real worker, lets packets flow through each leg (so sockets,
streams and reports exist), and divides the growth of the resident set by the calls. The worker is
warmed up with a few calls first, so that what every process needs once does not count. Kernel
socket buffers are not in the resident set. Beside it, the same worker's resident set without calls.

Budget (design section 11): at most 60 kB per bridged call.

    .venv/bin/python -m benchmarks.bench_media_memory --calls 500
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import sys
import tempfile
from pathlib import Path

from benchmarks.bench_relay import hardware, running_worker
from media.client import AskStatistics, Bridge, Codec, Event, LegOpened, MediaClient, OpenLeg, SetRemote

BUDGET_KB = 60.0
_WARM_CALLS = 20


def resident_kb(pid: int) -> float:
    """Resident set of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


async def add_calls(
    client: MediaClient, events: asyncio.Queue[Event], phone: socket.socket, first: int, calls: int
) -> None:
    """Open calls and send ten packets into each leg; one socket plays all phones."""
    names = [(f"call-{c}", f"leg-{c}-{side}") for c in range(first, first + calls) for side in "ab"]
    port = phone.getsockname()[1]
    for call, leg in names:
        client.send(OpenLeg(leg, call))
    ports = []
    for _ in names:
        opened = await asyncio.wait_for(events.get(), 10)
        assert isinstance(opened, LegOpened), opened
        ports.append(opened.port)
        client.send(SetRemote(opened.leg, "127.0.0.1", port, Codec.PCMU, 0, 101))
    for (_, a), (_, b) in zip(names[::2], names[1::2], strict=True):
        client.send(Bridge(a, b))
    for sequence in range(10):
        packet = struct.pack("!BBHII", 0x80, 0, sequence, sequence * 160, 1) + bytes(160)
        for each in ports:
            phone.sendto(packet, ("127.0.0.1", each))
        await asyncio.sleep(0.02)
    client.send(AskStatistics())
    await asyncio.wait_for(events.get(), 10)


async def run(calls: int, rounds: int) -> bool:
    figures = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                async with running_worker(Path(folder), 2 * (calls + _WARM_CALLS)) as (client, pid, events):
                    empty = resident_kb(pid)
                    await add_calls(client, events, phone, 0, _WARM_CALLS)
                    before = resident_kb(pid)
                    await add_calls(client, events, phone, _WARM_CALLS, calls)
                    figures.append((resident_kb(pid) - before) / calls)
    worst = max(figures)
    kept = worst <= BUDGET_KB
    each = ", ".join(f"{figure:.1f}" for figure in figures)
    print(f"{each} kB per bridged call (rounds); an empty worker: {empty / 1024:.1f} MB")
    print(f"worst {worst:.1f} kB, budget {BUDGET_KB:.0f} kB: {'kept' if kept else 'NOT KEPT'}")
    return kept


def main() -> int:
    assert __doc__ is not None
    print(__doc__.splitlines()[0])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{hardware()}; {options.calls} calls")
    return 0 if asyncio.run(run(options.calls, options.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
