"""What trunks and routes owe to the rest of the document; part of `config.references`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from config.numbers import PatternError, compile_pattern, is_pattern
from config.problems import KeyPath, did_you_mean, shown
from config.schema import Document
from config.trunks import Identify
from config.values import MAX_DIALLED

Finding = tuple[KeyPath, str, str]


def check(document: Document) -> Iterator[Finding]:
    """Find what trunks and routes refer to in vain, and what two of them claim at once."""
    yield from _logins(document)
    for index, trunk in enumerate(document.sip.trunks):
        path: KeyPath = ("sip", "trunks", index)
        yield from _patterns((*path, "reach"), trunk.reach or ())
        if trunk.caller_id.allow != "any":
            yield from _patterns((*path, "caller_id", "allow"), trunk.caller_id.allow)
        for place, gateway in enumerate(trunk.gateways):
            if any(gateway.address == other.address for other in trunk.gateways[:place]):
                yield (*path, "gateways", place), f"{gateway.address} stands twice", "remove one of the two"
    yield from _routes(document)


def _logins(document: Document) -> Iterator[Finding]:
    """A name that logs in means one party: an agent or a trunk."""
    agents = {agent.id for agent in document.agents}
    seen: dict[str, str] = {}
    for index, trunk in enumerate(document.sip.trunks):
        if trunk.login is None:
            continue
        path: KeyPath = ("sip", "trunks", index, "login", "username")
        name = trunk.login.username
        if name in agents:
            yield path, f'"{shown(name)}" is the id of an agent, whose phone logs in by it', "give another"
        elif name in seen:
            yield path, f'"{shown(name)}" already logs in for the trunk "{seen[name]}"', "give another"
        seen.setdefault(name, trunk.name)


def _routes(document: Document) -> Iterator[Finding]:
    trunks = {trunk.name: trunk for trunk in document.sip.trunks}
    agents = {agent.id for agent in document.agents}
    names: dict[str, int] = {}
    for index, route in enumerate(document.routes):
        path: KeyPath = ("routes", index)
        if route.name in names:
            yield (*path, "name"), f'"{route.name}" is taken by routes[{names[route.name]}]', "give another"
        names.setdefault(route.name, index)
        yield from _patterns((*path, "match"), route.match)
        for place, item in enumerate(route.trunks):
            where = (*path, "trunks", place)
            found = trunks.get(item.trunk)
            if found is None:
                yield where, f'no trunk has the name "{item.trunk}"', did_you_mean(item.trunk, trunks, "trunks")
            elif not found.targets:
                message = f'the trunk "{item.trunk}" has no address that calls could go to'
                yield where, message, 'add one, like address: "sip:192.0.2.10"'
            if any(item.trunk == other.trunk for other in route.trunks[:place]):
                yield where, f'"{item.trunk}" stands twice', "remove one of the two"
        for place, agent in enumerate(route.allow or ()):
            if agent not in agents:
                yield (
                    (*path, "allow", place),
                    f'no agent has the id "{agent}"',
                    did_you_mean(agent, agents, "agents"),
                )


def _patterns(path: KeyPath, entries: Iterable[str]) -> Iterator[Finding]:
    for place, entry in enumerate(entries):
        if is_pattern(entry):
            try:
                compile_pattern(entry)
            except PatternError as exc:
                message, _, remedy = str(exc).partition("; ")
                yield (*path, place), message, remedy
        elif len(entry) > MAX_DIALLED:
            yield (
                (*path, place),
                f'"{shown(entry)}" is longer than any number',
                "give a number, or the beginning of one",
            )


def unused(document: Document) -> Iterator[Finding]:
    """Find trunks that nothing comes from or goes to: allowed, and hardly meant."""
    routed = {item.trunk for route in document.routes for item in route.trunks}
    for index, trunk in enumerate(document.sip.trunks):
        if trunk.identified_by is Identify.NONE and trunk.name not in routed:
            message = f'no route leads to the trunk "{trunk.name}", and no call is known to come from it'
            yield ("sip", "trunks", index, "name"), message, "name it in routes, or add match"
