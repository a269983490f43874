"""A whole, right document that tests change in one place."""

from __future__ import annotations

from pathlib import Path

from config.loader import Loaded, parse
from config.problems import ConfigurationError, Problem

GOOD = """\
domain: pbx.local
sip:
  listen: ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]
  trunks:
    - {name: carrier, match: ["127.0.0.4"], supervise: false}
media: {address: 127.0.0.1, ports: [20000, 29999], workers: 1}
http: {listen: "127.0.0.1:8080"}
prompts: {welcome: "prompts/welcome.wav"}
users: [{username: admin, password: "secret", role: administrator}]
agents:
  - {id: "a0001", name: "Agent 1", password: "secret", contact: "sip:a0001@127.0.0.2:7000",
     skills: {billing: 80}, auto_ready: true}
queues:
  - {id: bench, strategy: longest_idle, members: ["a0001"], ring_timeout_s: 15, wrap_up_s: 0, music: null}
  - {id: expert, strategy: top_skill, requires: {billing: 1}, ring_timeout_s: 15, music: "prompts/music.wav"}
numbers:
  "500": {queue: bench}
  "501": {queue: expert}
  "600": {answer: silence}
  "601": {play: welcome, then: silence}
  "602": {echo: true}
  '~7(\\d{4})': {agent: 'a\\1'}
  '~6(\\d{4})': {agent: 'a\\1', record: true}
  '~8(\\d{4})': {listen: 'a\\1'}
"""
"""The contract of design section 10."""


def folder(path: Path) -> Path:
    """Make the prompts that GOOD names below `path`."""
    (path / "prompts").mkdir(exist_ok=True)
    for name in ("welcome", "music"):
        (path / "prompts" / f"{name}.wav").write_bytes(b"RIFF")
    return path


def good(path: Path, *changes: tuple[str, str]) -> Loaded:
    """GOOD with parts replaced, loaded."""
    return parse(changed(*changes), base=folder(path), environ={})


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def problems(path: Path, text: str) -> tuple[Problem, ...]:
    """What is wrong with a text; none if it loads."""
    try:
        parse(text, base=folder(path), environ={})
    except ConfigurationError as exc:
        return exc.problems
    return ()
