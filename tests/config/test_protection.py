"""Digest algorithms by listener, and the limits of guard and overload."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.loader import Loaded, parse
from config.problems import ConfigurationError
from config.protection import Algorithm
from config.secrets import HA1_KEYS, ha1

MD5 = ha1("a0001", "pbx.local", "secret", "MD5")
SHA = ha1("a0001", "pbx.local", "secret", "SHA-256")


def load(sip: str = "", *, listen: str = '["udp:127.0.0.1:5060"]', password: str = '"secret"') -> Loaded:
    return parse(
        f"""
domain: pbx.local
sip: {{listen: {listen}{", " if sip else ""}{sip}}}
media: {{address: 127.0.0.1, ports: [20000, 20099]}}
http: {{listen: "127.0.0.1:8080"}}
agents: [{{id: a0001, password: {password}}}]
numbers: {{"602": {{echo: true}}}}
""",
        base=Path(),
    )


def test_defaults_offer_md5_and_trust_loopback() -> None:
    sip = load().document.sip
    assert sip.digest.algorithms == (Algorithm.MD5,)
    assert [str(network) for network in sip.guard.trusted] == ["127.0.0.0/8", "::1/128"]
    assert sip.overload.emergency == ("112", "911")


def test_a_listener_may_offer_other_algorithms() -> None:
    listen = '["udp:127.0.0.1:5060", {listen: "tcp:127.0.0.1:5062", digest: [SHA-512-256, SHA-256, MD5]}]'
    first, second = load(listen=listen).document.sip.listen
    assert first.digest is None
    assert second.digest == ("SHA-512-256", "SHA-256", "MD5")
    assert str(second) == "tcp:127.0.0.1:5062"


@pytest.mark.parametrize(
    ("listen", "key", "words"),
    [
        ('[{listen: "udp:127.0.0.1:5060", digest: [SHA-1]}]', "sip.listen[0].digest[0]", "SHA-256"),
        ('[{listen: "udp:127.0.0.1:5060", digest: [MD5, MD5]}]', "sip.listen[0].digest", "twice"),
        ('[{listen: "udp:127.0.0.1:5060", digset: [MD5]}]', "sip.listen[0]", "listen and digest"),
        ("[{digest: [MD5]}]", "sip.listen[0]", "listen and digest"),
        ('[{listen: "sctp:127.0.0.1:5060"}]', "sip.listen[0]", "begin with udp:"),
        ("[7]", "sip.listen[0]", "give text"),
    ],
)
def test_wrong_listeners_are_named(listen: str, key: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(listen=listen)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert words in f"{problem.message}; {problem.remedy}"


@pytest.mark.parametrize(
    ("sip", "key"),
    [
        ("guard: {trusted: [nonsense]}", "sip.guard.trusted[0]"),
        ("guard: {failures: 0}", "sip.guard.failures"),
        ("guard: {bans: 1}", "sip.guard.bans"),
        ("overload: {max_calls_per_s: 0}", "sip.overload.max_calls_per_s"),
        ('overload: {emergency: ["1 1 2"]}', "sip.overload.emergency[0]"),
        ("digest: {algorithms: []}", "sip.digest.algorithms"),
        ("digest: {algorithm: MD5}", "sip.digest.algorithm"),
    ],
)
def test_wrong_limits_are_named(sip: str, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(sip)
    assert [problem.key for problem in caught.value.problems] == [key]


def hashes(**values: str) -> str:
    inner = ", ".join(f'{key}: "{value}"' for key, value in values.items())
    return f'{{argon2id: "$argon2id$v=19$x", ha1: {{{inner}}}}}'


def test_agents_that_cannot_log_in_somewhere_are_warned_of() -> None:
    assert load(password=hashes(md5=MD5)).warnings == ()
    (warning,) = load(password=hashes(sha256=SHA)).warnings
    assert warning.key == "agents[0].password.ha1"
    assert "only MD5 is offered there" in warning.message
    assert "add the hash md5, or offer SHA-256 there" in warning.remedy
    listen = '[{listen: "udp:127.0.0.1:5060", digest: [SHA-256, MD5]}]'
    assert load(listen=listen, password=hashes(md5=MD5, sha256=SHA)).warnings == ()
    assert load(listen=listen).warnings == ()
    (warning,) = load(listen=listen, password=hashes(md5=MD5)).warnings
    assert "answers SHA-256" in warning.message
    (warning,) = load("digest: {algorithms: [SHA-512-256]}", password=hashes(sha256=SHA)).warnings
    assert "sha512_256" in warning.remedy


def test_a_hash_of_each_algorithm_can_be_stored() -> None:
    stored = {key: ha1("a0001", "pbx.local", "secret", name) for name, key in HA1_KEYS.items()}
    password = load(password=hashes(**stored)).document.agents[0].password
    assert password.ha1 is not None
    assert password.ha1.sha512_256 is not None
    assert password.ha1.sha512_256.get_secret_value() == stored["sha512_256"]
