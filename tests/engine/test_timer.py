"""The timer for a core's deadlines, on both event loops: they differ for times that have passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from engine.timer import DeadlineTimer

LOOPS = pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])


def run(factory: Callable[[], asyncio.AbstractEventLoop], deadlines: list[float | None]) -> tuple[int, float]:
    """Set deadlines (seconds from now) one after the other; returns how often it fired, and when first."""

    async def main() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        fired: list[float] = []
        done = asyncio.Event()

        def on_deadline() -> None:
            fired.append(loop.time())
            done.set()

        timer = DeadlineTimer(loop, on_deadline)
        now = loop.time()
        for deadline in deadlines:
            timer.set(None if deadline is None else now + deadline)
        try:
            async with asyncio.timeout(0.1):
                await done.wait()
                await asyncio.sleep(0.02)  # a second time would come now
        except TimeoutError:
            pass
        timer.cancel()
        return len(fired), fired[0] - now if fired else -1.0

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


@LOOPS
@pytest.mark.parametrize(
    ("deadlines", "least_s"),
    [
        ([0.01], 0.009),
        ([-1.0], 0.0),
        ([-1.0, -0.5, 0.02], 0.019),  # the last word counts
        ([0.01, -1.0, -2.0], 0.0),
        ([5.0, 0.01], 0.009),
        ([-1.0, None, 0.01], 0.009),
    ],
)
def test_fires_once_at_the_last_deadline_set(
    factory: Callable[[], asyncio.AbstractEventLoop], deadlines: list[float | None], least_s: float
) -> None:
    count, after_s = run(factory, deadlines)
    assert count == 1
    assert after_s >= least_s


@LOOPS
@pytest.mark.parametrize("deadlines", [[0.01, None], [-1.0, None], [5.0]])
def test_does_not_fire_before(factory: Callable[[], asyncio.AbstractEventLoop], deadlines: list[float | None]) -> None:
    assert run(factory, deadlines)[0] == 0
