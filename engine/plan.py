"""What the supervisor must know of the configuration, read by a process of its own.

The schema library and a large document stay out of the supervisor's memory:
`python -m engine.plan FILE` validates the file, writes the plan as JSON to
stdout, or the problems to stderr with exit status 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.listeners import Kind, Listener
from engine.python import child_environment, module

_TIMEOUT_S = 60.0


class PlanError(Exception):
    """The configuration cannot be used; `str()` is the text of `murima check`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Listeners, workers and patience. `worker_ports` holds first and last port per worker."""

    listeners: tuple[Listener, ...]
    media_address: str
    worker_ports: tuple[tuple[int, int], ...]
    silence_timeout_s: float
    orphan_grace_s: float
    drain_s: float


def read_plan(config: Path) -> Plan:
    """Validate the file in a short-lived process.

    Raises:
        PlanError: the file cannot be used, with every problem.
    """
    command = module("engine.plan", str(config))
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        raise PlanError(f"{config}: checking it took longer than {_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise PlanError(done.stderr.strip() or f"{config}: the check ended with status {done.returncode}")
    return _from_json(json.loads(done.stdout))


def _from_json(data: Mapping[str, Any]) -> Plan:
    return Plan(
        listeners=tuple(Listener(Kind(item["kind"]), item["host"], item["port"]) for item in data["listeners"]),
        media_address=data["media_address"],
        worker_ports=tuple((low, high) for low, high in data["worker_ports"]),
        silence_timeout_s=data["silence_timeout_s"],
        orphan_grace_s=data["orphan_grace_s"],
        drain_s=data["drain_s"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the module: one argument, the file."""
    from config.loader import load
    from config.problems import ConfigurationError, describe

    (name,) = sys.argv[1:] if arguments is None else arguments
    try:
        loaded = load(Path(name))
    except ConfigurationError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    for line in describe(loaded.path, loaded.warnings, kind="warning"):
        sys.stderr.write(f"{line}\n")
    document = loaded.document
    media = document.media
    listeners = [Listener(Kind(item.transport.value), item.host, item.port) for item in document.sip.listen]
    listeners.append(Listener(Kind.HTTP, document.http.listen.host, document.http.listen.port))
    plan = Plan(
        listeners=tuple(listeners),
        media_address=str(media.address),
        worker_ports=tuple(media.worker_ports(index) for index in range(media.workers)),
        silence_timeout_s=media.silence_timeout_s,
        orphan_grace_s=media.orphan_grace_s,
        drain_s=document.drain_s,
    )
    json.dump(asdict(plan), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
