"""How our processes start one another: the same interpreter, the same packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs one of our modules.

    `-P` keeps the working folder off the import path: a folder called `config`
    there must not be mistaken for ours.
    """
    return (sys.executable, "-P", "-m", name, *arguments)


def child_environment() -> dict[str, str]:
    """This process's environment, with our packages on the import path of the child."""
    path = os.environ.get("PYTHONPATH", "")
    entries = path.split(os.pathsep) if path else []
    if _ROOT not in entries:
        entries.insert(0, _ROOT)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
