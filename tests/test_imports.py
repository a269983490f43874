"""Who may import whom: reads the imports of every module and keeps the table of the design true."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("routing", "media", "engine", "adapters", "casebridge", "config")

# What joins everything (a module or a package): it may import anything, and only the command line may import it.
START = "engine.start"
STARTS = frozenset({"engine.cli"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What the modules of a folder may import beside the standard library."""

    ours: tuple[str, ...]  # these and what lies below them
    libraries: frozenset[str] | None = frozenset()  # top-level names; None: any


# The most specific rule that fits a module applies.
RULES = {
    "routing": Rule(("routing",)),
    "media": Rule(("media",), frozenset({"msgspec", "numpy", "soundfile", "soxr"})),
    "engine": Rule(("engine", "routing", "config"), None),
    "engine.events": Rule(()),
    "adapters": Rule(
        (
            "adapters",
            "casebridge",
            "engine.bus",
            "engine.events",
            "engine.operations",
            "engine.telephony",
            "engine.tracing",
            "media.client",
            "media.protocol",
        ),
        None,
    ),
    "casebridge": Rule(("casebridge", "engine.events")),
    "config": Rule(("config",), frozenset({"argon2", "phonenumbers", "pydantic", "pydantic_core", "ruamel"})),
    # A script that composes the shipped prompts: it is run by hand and imported by nobody.
    "config.shipped": Rule((), frozenset({"numpy", "soundfile", "soxr"})),
}


def rule_for(module: str) -> Rule:
    while module not in RULES:
        module = module.rpartition(".")[0]
    return RULES[module]


def is_below(module: str, tops: tuple[str, ...]) -> bool:
    return any(module == top or module.startswith(f"{top}.") for top in tops)


def exists(module: str) -> bool:
    """Say whether this dotted name is a module or package of the checkout, and no name inside one."""
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(source: str, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import, lazy ones and those by a fixed name included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=origin, names=names, level=level):
                if level:
                    parts = module.split(".")
                    above = parts[: len(parts) - level + package]
                    origin = ".".join([*above, *([origin] if origin else [])])
                for alias in names:
                    inner = f"{origin}.{alias.name}"
                    yield (
                        node.lineno,
                        inner if inner == START or (inner.startswith(OURS) and exists(inner)) else str(origin),
                    )
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """Return one line for each import that the table forbids."""
    if is_below(module, (START,)):
        return []
    rule = rule_for(module)
    found = []
    for line, name in imports(source, module, package=package):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if is_below(name, (START,)):
            allowed = module in STARTS
        elif top in OURS:
            allowed = is_below(name, rule.ours)
        elif top in ("tests", "benchmarks"):
            allowed = False
        else:
            allowed = rule.libraries is None or top in rule.libraries
        if not allowed:
            found.append(f"{module}:{line} may not import {name}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize("top", OURS)
def test_every_import_is_one_that_the_table_allows(top: str) -> None:
    wrong = [
        line
        for module, path in modules()
        if is_below(module, (top,))
        for line in violations(path.read_text(), module, package=path.name == "__init__.py")
    ]
    assert wrong == []


def test_all_folders_are_read() -> None:
    read = {module for module, _ in modules()}
    assert {"engine.events", "engine.bus", "media.protocol", *OURS} <= read


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("routing.router", "import numpy"),
        ("routing.router", "from engine.events import CallId"),
        ("routing.router", "from engine import events"),
        ("media.worker", "import engine.events"),
        ("media.worker", "import aiohttp"),
        ("engine.call", "from adapters.sip import message"),
        ("engine.call", "def later():\n    import media.client"),
        ("engine.call", "import importlib\nimportlib.import_module('adapters.native')"),
        ("engine.call", "from engine.start import run"),
        ("engine.call", "from tests.audio import tone"),
        ("engine.api.app", "from casebridge import interactions"),
        ("engine.api.app", "from .. import start"),
        ("engine.events", "from engine import bus"),
        ("engine.events", "import msgspec"),
        ("adapters.sip.transactions.layer", "from engine.call import Call"),
        ("adapters.sip.transactions.layer", "import engine"),
        ("adapters.native.provider", "from media.worker import main"),
        ("adapters.native.provider", "from routing.model import Queue"),
        ("casebridge.interactions", "from engine.telephony import Telephony"),
        ("casebridge.interactions", "import asyncpg"),
        ("config.loader", "import engine.clock"),
        ("config.loader", "import aiohttp"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("routing.router", "import heapq\nfrom routing.model import Queue\nfrom . import model"),
        ("engine.call", "from engine.events import CallId\nfrom routing import model\nimport config.schema"),
        ("engine.cli", "def serve():\n    from engine.start import run"),
        ("engine.start", "import adapters.sip.transactions.layer, media.client, casebridge.interactions"),
        ("adapters.native.provider", "from engine.telephony import Telephony\nfrom media import client"),
        ("adapters.store.recorder", "import asyncpg\nfrom casebridge.interactions import Interaction"),
        ("casebridge.interactions", "from engine.events import LogEvent\nfrom engine import events"),
        ("config.loader", "import ruamel.yaml\nfrom pydantic import BaseModel"),
    ],
)
def test_a_permitted_import_is_not_found(module: str, source: str) -> None:
    assert violations(source, module) == []
