"""What a document's places owe to one another: ids, references, files, patterns.

`check` finds errors, `warnings` what is allowed but hardly meant. Both give
(key path, message, remedy); the loader adds lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from config import certificates, trunk_references
from config.numbers import TEMPLATES, PatternError, compile_pattern, is_pattern, references, template
from config.problems import KeyPath, did_you_mean, shown
from config.schema import Action, DialOut, Document, Listener, PlayPrompt, Queue, ToQueue
from config.secrets import ALGORITHMS, HA1_KEYS
from config.values import MAX_DIALLED

Finding = tuple[KeyPath, str, str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(rf"[0-9A-Za-z+*#._-]{{1,{MAX_DIALLED}}}")


def check(document: Document, base: Path) -> Iterator[Finding]:
    """Find what contradicts itself. `base`: the folder that relative paths start from."""
    yield from _duplicates(document)
    yield from _media(document)
    yield from _passwords(document)
    yield from _algorithms(document)
    yield from _prompts(document, base)
    yield from _members(document)
    yield from trunk_references.check(document)
    yield from certificates.check(document, base)
    for number, action in document.numbers.items():
        yield from _number(document, number, action)


def resolve_paths(document: Document, base: Path) -> Document:
    """Make paths absolute, and a path given as music or prompt a prompt of that name."""
    prompts = {name: _absolute(base, path) for name, path in document.prompts.items()}
    for name, _ in _played(document):
        if name not in prompts and is_path(name):
            prompts[name] = _absolute(base, Path(name))
    return certificates.resolve(document.model_copy(update={"prompts": prompts}), base)


def is_path(name: str) -> bool:
    """Whether the name of a prompt is a path rather than a name under `prompts`."""
    return "/" in name or "." in name.lstrip(".")


def _absolute(base: Path, path: Path) -> Path:
    return (base / path.expanduser()).resolve()


def _duplicates(document: Document) -> Iterator[Finding]:
    lists: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("users", "username", (user.username for user in document.users)),
        ("agents", "id", (agent.id for agent in document.agents)),
        ("queues", "id", (queue.id for queue in document.queues)),
    )
    for section, field, ids in lists:
        first: dict[str, int] = {}
        for index, name in enumerate(ids):
            if name in first:
                yield (section, index, field), f'"{name}" is taken by {section}[{first[name]}]', "give another"
            first.setdefault(name, index)
    first = {}
    for index, trunk in enumerate(document.sip.trunks):
        if trunk.name in first:
            taken = f'"{trunk.name}" is taken by sip.trunks[{first[trunk.name]}]'
            yield ("sip", "trunks", index, "name"), taken, "give another"
        first.setdefault(trunk.name, index)
    agents = {agent.id for agent in document.agents}
    for index, user in enumerate(document.users):
        if user.username in agents:
            message = f'"{user.username}" is also the id of an agent, and agents log in by id'
            yield ("users", index, "username"), message, "give another"
    seen: dict[str, int] = {}
    streams: dict[tuple[str, int], Listener] = {}
    for index, listener in enumerate(document.sip.listen):
        if str(listener) in seen:
            yield ("sip", "listen", index), f"{listener} stands twice", "remove one of the two"
        seen[str(listener)] = index
        if listener.transport == "udp":
            continue
        address = (listener.host, listener.port)
        if address == (document.http.listen.host, document.http.listen.port):
            yield ("http", "listen"), f"{document.http.listen} is already used by SIP over TCP", "give another port"
        if address in streams and listener.transport != streams[address].transport:
            message = f"{streams[address]} is on the same port, and TLS travels on TCP"
            yield ("sip", "listen", index), message, "give another port, like 5061"
        streams.setdefault(address, listener)
    networks: dict[object, str] = {}
    for index, trunk in enumerate(document.sip.trunks):
        for place, network in enumerate(trunk.match):
            if network in networks:
                message = f'{network} already belongs to the trunk "{networks[network]}"'
                yield ("sip", "trunks", index, "match", place), message, "remove one of the two"
            networks.setdefault(network, trunk.name)


def _media(document: Document) -> Iterator[Finding]:
    media = document.media
    low, high = media.ports
    if (high - low + 1) // 2 // media.workers < 2:
        message = f"ports {low}–{high} are too few for {media.workers} workers: each needs at least two pairs"
        yield ("media", "ports"), message, "widen the range, like [20000, 29999], or use fewer workers"
    if media.address.is_unspecified and media.advertise is None:
        message = f"{media.address} is no address that a phone can send audio to"
        yield (
            ("media", "address"),
            message,
            "give one address of this machine, or add advertise with the one phones see",
        )
    if media.advertise is not None and media.advertise.is_unspecified:
        yield ("media", "advertise"), f"{media.advertise} names no machine", "give the address that phones see"
    udp = [listener for listener in document.sip.listen if listener.transport == "udp"]
    for index, listener in enumerate(document.sip.listen):
        if listener in udp and low <= listener.port <= high and listener.host in (str(media.address), "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            yield ("sip", "listen", index), f"port {listener.port} lies within media.ports", "move one of the two"


def _passwords(document: Document) -> Iterator[Finding]:
    for index, agent in enumerate(document.agents):
        password = agent.password
        if password.plain is None and password.ha1 is None:
            message = "without ha1 the agent's phone cannot authenticate"
            yield (
                ("agents", index, "password"),
                message,
                "add ha1: {md5: …, sha256: …}, or give the password as text or env",
            )
        if password.plain is None and password.argon2id is None:
            message = "without argon2id the agent cannot log in to the web"
            yield ("agents", index, "password"), message, "add argon2id, or give the password as text or env"


def _algorithms(document: Document) -> Iterator[Finding]:
    """Digest algorithms that this machine's OpenSSL lacks."""
    offered: list[tuple[KeyPath, Iterable[str]]] = [(("sip", "digest", "algorithms"), document.sip.digest.algorithms)]
    offered += [(("sip", "listen", index), item.digest or ()) for index, item in enumerate(document.sip.listen)]
    for path, algorithms in offered:
        for algorithm in algorithms:
            if algorithm not in ALGORITHMS:
                yield path, f"{algorithm} is not known to this machine's OpenSSL", "leave it out"


def _prompts(document: Document, base: Path) -> Iterator[Finding]:
    for name, path in document.prompts.items():
        if not _NAME.fullmatch(name):
            message = f'"{shown(name)}" is no name'
            yield ("prompts", name), message, "use letters, digits, dot, dash and underscore; 64 characters at most"
        yield from _file(("prompts", name), _absolute(base, path))
    for name, path_in_document in _played(document):
        if name in document.prompts:
            continue
        if is_path(name):
            yield from _file(path_in_document, _absolute(base, Path(name)))
        else:
            message = f'no prompt has the name "{shown(name)}"'
            yield path_in_document, message, did_you_mean(name, document.prompts, "prompts")


def _file(path: KeyPath, file: Path) -> Iterator[Finding]:
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                yield path, f"{file} is empty", "give an audio file, for example WAV"
    except IsADirectoryError:
        yield path, f"{file} is a folder", "give an audio file, for example WAV"
    except FileNotFoundError:
        yield (
            path,
            f"{file} does not exist",
            "create it, or correct the path (it starts from the folder of this document)",
        )
    except PermissionError:
        yield path, f"{file} is not readable", "let the user that runs murima read it"
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        yield path, f"{shown(file, 200)} cannot be read: {reason}", "correct the path"


def _played(document: Document) -> Iterator[tuple[str, KeyPath]]:
    """Every place that names a prompt."""
    for index, queue in enumerate(document.queues):
        if queue.music is not None:
            yield queue.music, ("queues", index, "music")
    for number, action in document.numbers.items():
        for path, step in _steps(("numbers", number), action):
            if isinstance(step, PlayPrompt):
                yield step.play, (*path, "play")


def _steps(path: KeyPath, action: Action) -> Iterator[tuple[KeyPath, Action]]:
    """An action and those that follow it."""
    yield path, action
    while isinstance(action, PlayPrompt) and isinstance(action.then, Action):
        path, action = (*path, "then"), action.then
        yield path, action


def _members(document: Document) -> Iterator[Finding]:
    agents = {agent.id for agent in document.agents}
    for index, queue in enumerate(document.queues):
        seen: set[str] = set()
        for place, member in enumerate(queue.members or ()):
            path = ("queues", index, "members", place)
            if member not in agents:
                yield path, f'no agent has the id "{member}"', did_you_mean(member, agents, "agents")
            if member in seen:
                yield path, f'"{member}" stands twice', "remove one of the two"
            seen.add(member)


def _number(document: Document, number: str, action: Action) -> Iterator[Finding]:
    path: KeyPath = ("numbers", number)
    groups = None
    if is_pattern(number):
        try:
            groups = compile_pattern(number).groups
        except PatternError as exc:
            message, _, remedy = str(exc).partition("; ")
            yield path, message, remedy
            return
    elif not _NUMBER.fullmatch(number):
        message = f'"{shown(number)}" cannot be dialled'
        yield path, message, f'use up to {MAX_DIALLED} of 0-9 A-Z a-z + * # . _ -, or begin a pattern with "~"'
    for place, step in _steps(path, action):
        if isinstance(step, ToQueue):
            queues = {queue.id for queue in document.queues}
            if step.queue not in queues:
                message = f'no queue has the id "{step.queue}"'
                yield (*place, "queue"), message, did_you_mean(step.queue, queues, "queues")
        yield from _template(document, place, step, groups)


def _template(document: Document, path: KeyPath, action: Action, groups: int | None) -> Iterator[Finding]:
    text = template(action)
    if text is None:
        return
    key = next(name for name in TEMPLATES if name in type(action).model_fields)
    used = references(text)
    if groups is None and used:
        yield (*path, key), "an exact number has no groups", 'write the agent\'s id, or begin the number with "~"'
    elif groups is not None and used and max(used) > groups:
        has = f"the pattern has {groups} group{'' if groups == 1 else 's'}"
        yield (*path, key), f"\\{max(used)} stands for nothing: {has}", "put brackets around the part you mean"
    elif isinstance(action, DialOut):
        if not document.routes:
            yield (*path, key), "there are no routes to the outside", "add some under routes"
    elif not used:
        agents = {agent.id for agent in document.agents}
        if text not in agents:
            yield (*path, key), f'no agent has the id "{shown(text)}"', did_you_mean(text, agents, "agents")


# --- warnings -----------------------------------------------------------------------------


def warnings(document: Document, base: Path) -> Iterator[Finding]:
    """Find what is allowed and yet hardly meant. `base`: as in `check`."""
    yield from certificates.warnings(document, base)
    used_queues = {
        step.queue
        for number, action in document.numbers.items()
        for _, step in _steps(("numbers", number), action)
        if isinstance(step, ToQueue)
    }
    for index, queue in enumerate(document.queues):
        yield from _nobody_serves(document, index, queue)
        if queue.id not in used_queues:
            yield ("queues", index, "id"), f'no number leads to the queue "{queue.id}"', "add one under numbers"
    played = {name for name, _ in _played(document)}
    for name in document.prompts:
        if name not in played and not is_path(name):
            yield ("prompts", name), f'nothing plays the prompt "{name}"', "remove it, or use it"
    yield from trunk_references.unused(document)
    yield from _unanswerable(document)
    if not document.numbers:
        yield ("numbers",), "no number is configured: every call is refused", 'add one, like "500": {echo: true}'


def _unanswerable(document: Document) -> Iterator[Finding]:
    """Agents whose stored hashes answer no challenge of some listener, or not the one that is offered first."""
    default = document.sip.digest.algorithms
    places = {item.digest or default: str(item) for item in reversed(document.sip.listen)}
    for index, agent in enumerate(document.agents):
        if agent.password.plain is not None or agent.password.ha1 is None:
            continue
        stored = [name for name, key in HA1_KEYS.items() if getattr(agent.password.ha1, key) is not None]
        for offered, place in places.items():
            missing = [name for name in offered if name not in stored]
            if not missing:
                continue
            path = ("agents", index, "password", "ha1")
            if len(missing) == len(offered):
                message = f"the phone cannot log in at {place}: only {', '.join(offered)} is offered there"
                yield path, message, f"add the hash {HA1_KEYS[missing[0]]}, or offer {stored[0]} there (digest)"
            else:
                message = f"a phone that answers {missing[0]} at {place} is refused: there is no such hash"
                yield path, message, f"add {HA1_KEYS[missing[0]]}"


def _nobody_serves(document: Document, index: int, queue: Queue) -> Iterator[Finding]:
    def meets(skills: object) -> bool:
        return isinstance(skills, dict) and all(
            skills.get(skill, 0) >= level for skill, level in queue.requires.items()
        )

    members = None if queue.members is None else set(queue.members)
    candidates = [agent for agent in document.agents if members is None or agent.id in members]
    if any(meets(agent.skills) for agent in candidates):
        return
    if queue.members is not None and not queue.members:
        message, remedy = (
            "it has no members",
            "name some, or leave members out to let every agent with the skills serve",
        )
    elif queue.requires:
        wanted = ", ".join(f"{skill} {level}" for skill, level in queue.requires.items())
        message, remedy = f"no agent who serves it has the skills required ({wanted})", "give the skills to an agent"
    else:
        message, remedy = "there is no agent", "add one under agents"
    yield ("queues", index), f'nobody can serve the queue "{queue.id}": {message}', remedy
