"""How long does one routing decision take, and how does that grow with agents and callers?

Budget (design section 11): p99 ≤ 200 µs at 2,000 agents, 5,000 waiting, 50
skills; growth no faster than log n.

A decision is one call of `Router.handle` that makes an Offer: an agent's call
ends and the next caller is chosen among all who wait (`waiting` above 0), or a
caller arrives and an agent is chosen among all who are free (`waiting` 0, half
of the agents free). `event` is every other call of `handle` in the same run.
Agents have 5 of the skills at random levels; each skill has a queue, with the
strategies in rotation, and one more queue is served by everybody.

The baseline, in the same run, chooses the same way by walking over all
contacts or all agents, as a switch that polls does.

    .venv/bin/python -m benchmarks.bench_router [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
from dataclasses import dataclass, field
from math import log
from time import perf_counter

from routing.decisions import Decision, Offer
from routing.events import ContactArrived, ConversationEnded, Event, OfferAccepted
from routing.model import AgentSettings, QueueSettings, RoutingSettings, Strategy
from routing.router import Router

SIZES = (
    (100, 0), (1000, 0), (2000, 0), (10_000, 0),
    (2000, 500), (2000, 5000), (2000, 10_000),
    (100, 5000), (10_000, 10_000),
)  # fmt: skip
BUDGET = (2000, 5000)
BUDGET_US = 200.0
SKILLS_PER_AGENT = 5
IN_ROTATION = (Strategy.LONGEST_IDLE, Strategy.ROUND_ROBIN, Strategy.TOP_SKILL)


@dataclass
class Figures:
    decisions_us: list[float] = field(default_factory=list)
    events_us: list[float] = field(default_factory=list)
    baseline_us: list[float] = field(default_factory=list)


class Centre:
    """A call centre in steady state around one router."""

    def __init__(self, agents: int, waiting: int, skills: int, seed: int) -> None:
        self.random = random.Random(seed)
        names = [f"skill{n:02}" for n in range(skills)]
        self.agents = tuple(
            AgentSettings(
                f"a{n:05}",
                {s: self.random.randint(1, 100) for s in self.random.sample(names, min(skills, SKILLS_PER_AGENT))},
                auto_ready=True,
                fixed_contact=True,
            )
            for n in range(agents)
        )
        queues = [
            QueueSettings(name, IN_ROTATION[n % 3], requires={name: self.random.randint(1, 20)})
            for n, name in enumerate(names)
        ]
        self.queues = (*queues, QueueSettings("everybody"))
        self.now = 0.0
        self.figures = Figures()
        self.talking: list[tuple[str, str]] = []
        self.waiting: dict[str, tuple[float, str]] = {}
        self.arrived = 0
        self.router = Router(RoutingSettings(self.agents, self.queues), 0.0)
        self.target = waiting
        while len(self.talking) < (agents if waiting else agents // 2):
            self.arrive(queue_id="everybody")
        while len(self.waiting) < waiting:
            self.arrive()

    def arrive(self, queue_id: str | None = None) -> None:
        self.arrived += 1
        self.now += 0.01
        contact_id = f"c{self.arrived}"
        queue_id = queue_id or self.random.choice(self.queues).queue_id
        self.waiting[contact_id] = (self.now, queue_id)
        self.send(ContactArrived(contact_id, queue_id, self.now))

    def end_a_call(self) -> None:
        at = self.random.randrange(len(self.talking))
        self.talking[at], self.talking[-1] = self.talking[-1], self.talking[at]
        self.now += 0.01
        self.send(ConversationEnded(*self.talking.pop()))

    def send(self, event: Event) -> None:
        begin = perf_counter()
        decisions: list[Decision] = self.router.handle(event, self.now)
        took_us = (perf_counter() - begin) * 1e6
        offers = [d for d in decisions if isinstance(d, Offer)]
        (self.figures.decisions_us if offers else self.figures.events_us).append(took_us)
        for offer in offers:
            del self.waiting[offer.contact_id]
            self.talking.append((offer.contact_id, offer.agent_id))
            self.send(OfferAccepted(offer.contact_id, offer.agent_id))

    def run(self, decisions: int) -> Figures:
        for _ in range(decisions // 10):  # warm-up
            self.turn()
        self.figures = Figures()
        while len(self.figures.decisions_us) < decisions:
            self.turn()
        for _ in range(max(20, min(200, 400_000 // (len(self.agents) + len(self.waiting))))):
            self.figures.baseline_us.append(self.scan())
        return self.figures

    def turn(self) -> None:
        if self.target:
            self.end_a_call()
            while len(self.waiting) < self.target:
                self.arrive()
        else:
            self.arrive()
            while len(self.talking) > len(self.agents) // 2:
                self.end_a_call()

    def scan(self) -> float:
        """The same choice made by walking over everything; microseconds."""
        requires = {q.queue_id: q.requires for q in self.queues}
        busy = {agent_id for _, agent_id in self.talking}
        idle_since = {a.agent_id: self.random.random() for a in self.agents}
        begin = perf_counter()
        if self.target:
            skills = self.random.choice(self.agents).skills
            min(
                (key, i)
                for i, key in self.waiting.items()
                if all(skills.get(s, 0) >= level for s, level in requires[key[1]].items())
            )
        else:
            needed = requires["everybody"]
            min(
                (idle_since[a.agent_id], a.agent_id)
                for a in self.agents
                if a.agent_id not in busy and all(a.skills.get(s, 0) >= level for s, level in needed.items())
            )
        return (perf_counter() - begin) * 1e6


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time one routing decision.")
    parser.add_argument("--quick", action="store_true", help="one run of 2,000 decisions each")
    quick: bool = parser.parse_args().quick
    runs, decisions = (1, 2000) if quick else (3, 10_000)
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores;", end=" ")
    print(f"{runs} runs of {decisions:,} decisions each, seeds 1 to {runs}; microseconds")
    print(
        f"{'agents':>7} {'waiting':>8} {'skills':>7} | {'p50':>7} {'p95':>7} {'p99':>7} {'p99 spread':>13} {'max':>8}",
        end="",
    )
    print(f" | {'event p99':>9} | {'scan p50':>9}")
    medians: dict[tuple[int, int, int], float] = {}
    within = True
    for agents, waiting, skills in [(*size, 50) for size in SIZES] + [(*BUDGET, 1)]:
        figures = [Centre(agents, waiting, skills, seed).run(decisions) for seed in range(1, runs + 1)]
        p99s = [percentile(f.decisions_us, 0.99) for f in figures]
        p50, p95, p99 = (
            statistics.median(percentile(f.decisions_us, share) for f in figures) for share in (0.5, 0.95, 0.99)
        )
        medians[agents, waiting, skills] = p50
        worst = max(max(f.decisions_us) for f in figures)
        event_p99 = statistics.median(percentile(f.events_us, 0.99) for f in figures)
        scan = statistics.median(percentile(f.baseline_us, 0.5) for f in figures)
        spread = f"{min(p99s):.0f}-{max(p99s):.0f}"
        print(
            f"{agents:>7,} {waiting:>8,} {skills:>7} | {p50:>7.1f} {p95:>7.1f} {p99:>7.1f} {spread:>13} {worst:>8.0f}",
            end="",
        )
        print(f" | {event_p99:>9.1f} | {scan:>9.1f}")
        if (agents, waiting, skills) == (*BUDGET, 50):
            within = p99 <= BUDGET_US
    print("growth of p50, beside log n:")
    for small, large, n_small, n_large in (
        ((100, 0, 50), (10_000, 0, 50), 100, 10_000),
        ((2000, 500, 50), (2000, 10_000, 50), 500, 10_000),
        ((100, 5000, 50), (10_000, 10_000, 50), 5100, 20_000),
    ):
        growth = medians[large] / medians[small]
        print(f"  {small} to {large}: x {growth:.2f} (log n: x {log(n_large) / log(n_small):.2f})")
    print(f"budget, p99 at {BUDGET[0]:,} agents, {BUDGET[1]:,} waiting, 50 skills: {'kept' if within else 'MISSED'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
