"""From a configuration file to a `Document`, or to every problem with its line and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config import references, text
from config.problems import ConfigurationError, Key, KeyPath, Problem, did_you_mean, key_text, shown
from config.protection import Digest, Guard, Overload
from config.schema import (
    ACTION_KEYS,
    Agent,
    AnswerSilence,
    Barge,
    DialOut,
    Document,
    EchoBack,
    Ha1,
    Http,
    Listen,
    Media,
    Password,
    PlayPrompt,
    Queue,
    RingAgent,
    Sip,
    ToQueue,
    User,
    Whisper,
)
from config.tls import HttpTls, NamedCertificate, SipTls
from config.trunks import CallerId, Credentials, Gateway, Registration, Route, RouteTrunk, Trunk, When

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "sip": Sip,
    "trunks": Trunk,
    "media": Media,
    "http": Http,
    "tls": SipTls,
    "certificates": NamedCertificate,
    "users": User,
    "agents": Agent,
    "queues": Queue,
    "password": Password,
    "ha1": Ha1,
    "guard": Guard,
    "overload": Overload,
    "gateways": Gateway,
    "register": Registration,
    "digest": Credentials,
    "login": Credentials,
    "caller_id": CallerId,
    "routes": Route,
    "when": When,
}
# The same key under another section.
_ELSEWHERE: Mapping[tuple[str, str], type[BaseModel]] = {
    ("routes", "trunks"): RouteTrunk,
    ("http", "tls"): HttpTls,
    ("sip", "digest"): Digest,
}
_ACTIONS: Mapping[str, type[BaseModel]] = dict(
    zip(
        ACTION_KEYS,
        (ToQueue, AnswerSilence, PlayPrompt, EchoBack, RingAgent, DialOut, Listen, Whisper, Barge),
        strict=True,
    )
)
# What a key looks like, for keys that are missing or hold another kind of value.
_EXAMPLES: Mapping[str, str] = {
    "domain": "domain: pbx.example.org",
    "sip": 'sip: {listen: ["udp:127.0.0.1:5060"]}',
    "sip.listen": 'listen: ["udp:127.0.0.1:5060"]',
    "sip.trunks": 'trunks: [{name: carrier, match: ["192.0.2.10"]}]',
    "match": 'match: ["192.0.2.10"]',
    "media": "media: {address: 127.0.0.1, ports: [20000, 29999]}",
    "address": "address: 127.0.0.1",
    "ports": "ports: [20000, 29999]",
    "http": 'http: {listen: "127.0.0.1:8080"}',
    "http.listen": 'listen: "127.0.0.1:8080"',
    "tls": "tls: {certificate: tls/cert.pem, key: tls/key.pem}",
    "certificate": "certificate: tls/cert.pem",
    "key": "key: tls/key.pem",
    "names": "names: [sip.example.org]",
    "certificates": "certificates: [{names: [sip.example.org], certificate: tls/sip.pem, key: tls/sip.key}]",
    "origins": 'origins: ["https://desk.example.org"]',
    "prompts": "prompts: {welcome: prompts/welcome.wav}",
    "users": 'users: [{username: admin, password: "…", role: administrator}]',
    "agents": 'agents: [{id: a0001, password: "…"}]',
    "queues": "queues: [{id: support}]",
    "members": "members: [a0001, a0002]",
    "requires": "requires: {billing: 50}",
    "skills": "skills: {billing: 80}",
    "numbers": 'numbers: {"500": {queue: support}}',
    "id": "id: a0001",
    "name": "name: carrier",
    "username": "username: admin",
    "password": 'password: "…"',
    "role": "role: manager",
    "ha1": "ha1: {md5: …, sha256: …}",
    "sip.digest": "digest: {algorithms: [SHA-256, MD5]}",
    "listen.digest": "digest: [SHA-256, MD5]",
    "algorithms": "algorithms: [SHA-256, MD5]",
    "guard": 'guard: {trusted: ["192.0.2.0/24"], failures: 20}',
    "trusted": 'trusted: ["192.0.2.0/24"]',
    "scanners": "scanners: [friendly-scanner]",
    "overload": "overload: {max_calls_per_s: 100}",
    "emergency": 'emergency: ["112", "911"]',
    "routes": "routes: [{name: world, match: '~\\+.*', trunks: [carrier]}]",
    "routes.trunks": "trunks: [carrier]",
    "routes.match": "match: ['+254*']",
    "gateways": 'gateways: [{address: "sip:192.0.2.10", priority: 1}]',
    "register": 'register: {username: "me", password: "…"}',
    "digest": 'digest: {username: "me", password: "…"}',
    "login": 'login: {username: "them", password: "…"}',
    "caller_id": 'caller_id: {number: "+254201234567"}',
    "when": 'when: {days: [mon, tue], hours: "08:00-18:00", time_zone: Africa/Nairobi}',
    "reach": 'reach: ["+254201234*"]',
    "short_numbers": 'short_numbers: ["999"]',
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used.

    Attributes:
        document: the values; prompt paths are absolute, secrets resolved.
        text: as written.
        path: the file, absolute; None for a text that came another way.
        warnings: what is allowed and yet hardly meant.
    """

    document: Document
    text: str
    path: Path | None
    warnings: tuple[Problem, ...] = ()


def load(path: Path, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read and validate a file.

    Args:
        path: the YAML file; paths inside start from its folder.
        environ: where `{env: NAME}` is looked up; None: the process environment.

    Raises:
        ConfigurationError: the file cannot be read or used; it holds every problem found.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(text.MAX_BYTES + 1)
        path = path.resolve()
    except FileNotFoundError:
        raise _unreadable(path, "the file does not exist", "check the path") from None
    except IsADirectoryError:
        raise _unreadable(path, "this is a folder", "name the YAML file in it") from None
    except PermissionError:
        raise _unreadable(path, "the file is not readable", "let the user that runs murima read it") from None
    except (OSError, ValueError) as exc:
        raise _unreadable(path, f"the file cannot be read: {exc}", "check the path") from None
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        column = exc.start - (data.rfind(b"\n", 0, exc.start) + 1) + 1
        problem = Problem("", line, column, "this is not UTF-8 text", "save the file as UTF-8")
        raise ConfigurationError(path, [problem]) from None
    return parse(content, base=path.parent, path=path, environ=environ)


def parse(content: str, *, base: Path, path: Path | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Validate a text (YAML, or JSON, which is YAML too).

    Args:
        content: the document.
        base: folder that relative paths start from.
        path: named in messages.
        environ: where `{env: NAME}` is looked up; None: the process environment.

    Raises:
        ConfigurationError: the text cannot be used; it holds every problem found.
    """
    source, problems = text.parse(content)
    if not problems and not isinstance(source.value, dict):
        remedy = "begin with domain, sip, media and http; docs/configuration.md shows a whole document"
        what = "the document is empty" if source.value is None else "the document is not a mapping of keys"
        problems.append(Problem("", *source.position(()), what, remedy))
    if not isinstance(source.value, dict):
        raise ConfigurationError(path, problems)
    context = {"environ": os.environ if environ is None else environ}
    try:
        document = Document.model_validate(source.value, context=context)
    except ValidationError as exc:
        known = {problem.key for problem in problems}
        errors = exc.errors(include_url=False)
        # A list whose items are wrong is also reported as too short; the items say it better.
        parents = {error["loc"][:length] for error in errors for length in range(len(error["loc"]))}
        found = [_translate(error, source) for error in errors if error["loc"] not in parents]
        problems.extend(problem for problem in found if problem.key not in known)
        raise ConfigurationError(path, problems) from None
    problems.extend(_locate(references.check(document, base), source))
    if problems:
        raise ConfigurationError(path, problems)
    warnings = sorted(
        _locate(references.warnings(document, base), source), key=lambda warning: (warning.line, warning.column)
    )
    return Loaded(references.resolve_paths(document, base), content, path, tuple(warnings))


def _unreadable(path: Path, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(path, [Problem("", 0, 0, message, remedy)])


def _locate(findings: Iterable[references.Finding], source: text.Source) -> list[Problem]:
    return [Problem(key_text(path), *source.position(path), message, remedy) for path, message, remedy in findings]


def _translate(error: ErrorDetails, source: text.Source) -> Problem:
    """Turn a validation error into a problem with its place in the text."""
    path, model, whole_key = _walk(error["loc"])
    message, remedy = _words(error, path, model, whole_key=whole_key)
    return Problem(key_text(path), *source.position(path), message, remedy)


def _walk(loc: tuple[Key, ...]) -> tuple[KeyPath, type[BaseModel] | None, bool]:
    """From pydantic's location to a key path of the text, the model around its end, and whether a key is meant.

    Pydantic adds the tag of the chosen kind of action after a number and after
    `then`, and `[key]` where a key itself is wrong; neither stands in the text.
    """
    path: list[Key] = []
    model: type[BaseModel] | None = Document
    parents: list[type[BaseModel] | None] = []
    tags = 0
    for step in loc:
        if tags and isinstance(step, str) and (step in _ACTIONS or step in ("word", "action")):
            tags = tags - 1 if step in ("action", "word") or tags == 1 else 0
            model = _ACTIONS.get(step, model)
            continue
        tags = 0
        if step == "[key]":
            return tuple(path), None, True
        path.append(step)
        parents.append(model)
        if isinstance(step, int):
            continue
        if len(path) == 2 and path[0] == "numbers":
            tags, model = 1, None
        elif step == "then":
            tags, model = 2, None
        elif path[0] != "numbers" and path[:-1] != ["prompts"]:
            model = _ELSEWHERE.get((str(path[0]), step)) or _SECTIONS.get(step)
    return tuple(path), parents[-1] if parents else Document, False


def _words(error: ErrorDetails, path: KeyPath, model: type[BaseModel] | None, *, whole_key: bool) -> tuple[str, str]:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    name = str(next((key for key in reversed(path) if isinstance(key, str)), ""))
    key = str(path[-1]) if path else ""
    secret = "password" in path or "ha1" in path
    value = "the value" if secret else _kind_of(given)
    if kind == "missing":
        return "is missing", f"add {_example(path)}"
    if kind == "extra_forbidden":
        known = model.model_fields if model is not None else {}
        if model is Password:
            known = {name: field for name, field in known.items() if name != "plain"}
        return "this key is not known", did_you_mean(key, known, "keys")
    if kind == "string_pattern_mismatch" or (kind in ("string_too_long", "string_too_short") and not secret):
        what = f'"{shown(given)}" is no {"name" if name != "id" else "id"}'
        return what, "use letters, digits, dot, dash and underscore, beginning with a letter or digit; 64 at most"
    if kind in ("enum", "literal_error") and not secret:
        expected = str(context.get("expected", "")).replace("'", '"')
        if expected == "True":
            return f"wants true, not {value}", "write true, or leave the number out"
        words = [word.strip('" ') for word in expected.replace(" or ", ",").split(",")]
        if isinstance(given, str):
            return f'"{shown(given)}" is not possible here', _close_or_all(given, words)
        return f"{value} is not possible here", f"give one of {', '.join(words)}"
    if kind in ("value_error", "unknown_action"):
        message, _, remedy = error["msg"].removeprefix("Value error, ").partition("; ")
        return (message, remedy) if remedy else ("the value cannot be used", message)
    return _wrong_kind(kind, given, value, context, path, whole_key=whole_key)


def _wrong_kind(
    kind: str,
    given: object,
    value: str,
    context: Mapping[str, Any],
    path: KeyPath,
    *,
    whole_key: bool,
) -> tuple[str, str]:
    where = "the key" if whole_key else ""
    match kind:
        case "string_type" | "path_type":
            if isinstance(given, int | float) and not isinstance(given, bool) and "password" not in path:
                return f"{where} wants text, not {value}".strip(), f'put it in quotes: "{given}"'
            return f"wants text, not {value}", f"write {_example(path)}"
        case "int_type" | "int_from_float":
            return f"wants a whole number, not {value}", "write one without quotes and without a decimal point"
        case "float_type" | "finite_number":
            return f"wants a number, not {value}", "write one without quotes, like 15 or 2.5"
        case "bool_type":
            return f"wants true or false, not {value}", "write true or false, without quotes"
        case "greater_than_equal":
            return f"{shown(given)} is too small", f"give {context.get('ge'):g} or more"
        case "less_than_equal":
            return f"{shown(given)} is too large", f"give {context.get('le'):g} or less"
        case "tuple_type" | "list_type":
            return f"wants a list, not {value}", f"write {_example(path)}"
        case "too_short" | "too_long":
            return "the list has the wrong length", f"write {_example(path)}"
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type" | "is_instance_of":
            return f"wants keys and values, not {value}", f"write {_example(path)}"
        case _:
            return "the value cannot be used", f"write {_example(path)}"


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {shown(value)}"
        case str():
            return f'the text "{shown(value)}"'
        case list() | tuple():
            return "a list"
        case _:
            return "keys and values"


def _close_or_all(word: str, words: list[str]) -> str:
    remedy = did_you_mean(word, words, "values")
    return remedy.replace("known values: ", "give one of ")


def _example(path: KeyPath) -> str:
    """What would be right at a path, as one would write it."""
    names = [key for key in path if isinstance(key, str)]
    if not names:
        return "keys and values"
    item = isinstance(path[-1], int)
    parent = names[-2] if len(names) > 1 else ""
    example = _EXAMPLES.get(f"{parent}.{names[-1]}") or _EXAMPLES.get(names[-1])
    if names[-1] == "id" and parent == "queues":
        example = "id: support"
    if names[0] == "numbers" and len(names) > 1:
        return "an action, like {queue: support}"
    if example is None:
        return f"{names[-1]}: …"
    return f"it as in {example}" if item else example
