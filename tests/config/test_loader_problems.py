"""Every broken document names the key, the line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.documents import GOOD, changed, problems

LONG = "a" * 65

# what is replaced, by what, line, key, message, remedy
BROKEN = [
    ("domain: pbx.local", "domain: 5", 1, "domain", "wants text, not the number 5", 'put it in quotes: "5"'),
    ("domain: pbx.local", "domain: -bad-", 1, "domain", "the value cannot be used",
     "give a host name, like pbx.example.org"),
    ("domain: pbx.local\n", "", 1, "domain", "is missing", "add domain: pbx.example.org"),
    ("udp:127", "upd:127", 3, "sip.listen[0]", "'upd' is not a transport",
     "begin with udp:, tcp: or tls:, like udp:127.0.0.1:5060"),
    ("udp:127.0.0.1:5060", "udp:localhost:5060", 3, "sip.listen[0]", "'localhost' is not an IP address",
     "give one, like 127.0.0.1, or 0.0.0.0 for all"),
    ("udp:127.0.0.1:5060", "udp:::1:5060", 3, "sip.listen[0]", "the value cannot be used",
     "put the IPv6 address in brackets, like [::1]:5060"),
    ("udp:127.0.0.1:5060", "udp:127.0.0.1:70000", 3, "sip.listen[0]", "'70000' is not a port",
     "give a number from 1 to 65535"),
    ("tcp:127.0.0.1:5060", "udp:127.0.0.1:5060", 3, "sip.listen[1]", "udp:127.0.0.1:5060 stands twice",
     "remove one of the two"),
    ("tcp:127.0.0.1:5060", "udp:127.0.0.1:20010", 3, "sip.listen[1]", "port 20010 lies within media.ports",
     "move one of the two"),
    ("tcp:127.0.0.1:5060", "tls:127.0.0.1:5061", 3, "sip.listen[1]", "tls:127.0.0.1:5061 needs a certificate",
     "add tls: {certificate: tls/cert.pem, key: tls/key.pem} under sip"),
    ("udp:127.0.0.1:5060", "tls:127.0.0.1:5060", 3, "sip.listen[1]",
     "tls:127.0.0.1:5060 is on the same port, and TLS travels on TCP", "give another port, like 5061"),
    ("trunks:", "tls: {certificate: c.pem}\n  trunks:", 4, "sip.tls", "certificate and key belong together",
     "add key: tls/key.pem"),
    ("trunks:", "tls: {certificat: c.pem}\n  trunks:", 4, "sip.tls.certificat", "this key is not known",
     'did you mean "certificate"?'),
    ("trunks:", 'dns: {servers: ["ns.example.com"]}\n  trunks:', 4, "sip.dns.servers[0]",
     "'ns.example.com' is not the address of a DNS server", "give one, like 192.0.2.53 or 192.0.2.53:5353"),
    ("trunks:", 'dns: {servers: ["192.0.2.53:0"]}\n  trunks:', 4, "sip.dns.servers[0]", "'0' is not a port",
     "give a number from 1 to 65535"),
    ("trunks:", "dns: {timeout_s: 0.05}\n  trunks:", 4, "sip.dns.timeout_s", "0.05 is too small",
     "give 0.1 or more"),
    ("trunks:", "session_expires_s: 60\n  trunks:", 4, "sip.session_expires_s",
     "nobody may ask for a session timer below 90 s (RFC 4028)", "write 0 for none"),
    ("trunks:", "connections_per_address: 0\n  trunks:", 4, "sip.connections_per_address", "0 is too small",
     "give 1 or more"),
    ('"127.0.0.4"', '"127.0.0.4/8"', 5, "sip.trunks[0].match[0]",
     "'127.0.0.4/8' names an address and a network at once", "write 127.0.0.0/8 for the whole network"),
    ("supervise: false", "supervise: no", 5, "sip.trunks[0].supervise", 'wants true or false, not the text "no"',
     "write true or false, without quotes"),
    ("trunks:", "trunk:", 4, "sip.trunk", "this key is not known", 'did you mean "trunks"?'),
    ("[20000, 29999]", "[20001, 29999]", 6, "media.ports", "the first port must be even (RTP is even, RTCP odd)",
     "write [20002, 29999]"),
    ("[20000, 29999]", "[29998, 20000]", 6, "media.ports", "a call needs two pairs of ports",
     "give a range like [20000, 29999]"),
    ("[20000, 29999], workers: 1", "[20000, 20009], workers: 4", 6, "media.ports",
     "ports 20000–20009 are too few for 4 workers: each needs at least two pairs",
     "widen the range, like [20000, 29999], or use fewer workers"),
    ("address: 127.0.0.1", "address: 0.0.0.0", 6, "media.address",
     "0.0.0.0 is no address that a phone can send audio to",
     "give one address of this machine, or add advertise with the one phones see"),
    ("127.0.0.1:8080", "127.0.0.1:5060", 7, "http.listen", "127.0.0.1:5060 is already used by SIP over TCP",
     "give another port"),
    ("role: administrator", "role: managr", 9, "users[0].role", '"managr" is not possible here',
     'did you mean "manager"?'),
    ("username: admin", "username: a0001", 9, "users[0].username",
     '"a0001" is also the id of an agent, and agents log in by id', "give another"),
    ('password: "secret", role', "password: {env: NOT_SET}, role", 9, "users[0].password",
     "the environment variable NOT_SET is not set", "set it before starting murima"),
    ('password: "secret", role', "password: {argon2id: foo}, role", 9, "users[0].password.argon2id",
     "the value cannot be used", "give an Argon2id hash that begins with $argon2id$v="),
    ('id: "a0001"', "id: 1", 11, "agents[0].id", "wants text, not the number 1", 'put it in quotes: "1"'),
    ('id: "a0001"', f"id: {LONG}", 11, "agents[0].id", f'"{"a" * 60}…" is no id',
     "use letters, digits, dot, dash and underscore, beginning with a letter or digit; 64 at most"),
    ("sip:a0001@127.0.0.2:7000", "a0001@127.0.0.2", 11, "agents[0].contact", "the value cannot be used",
     "give a SIP address, like sip:a0001@192.0.2.20:5060"),
    ("billing: 80", "billing: 800", 12, "agents[0].skills.billing", "800 is too large", "give 100 or less"),
    ("billing: 80", 'billing: "80"', 12, "agents[0].skills.billing", 'wants a whole number, not the text "80"',
     "write one without quotes and without a decimal point"),
    ("longest_idle", "longest-idle", 14, "queues[0].strategy", '"longest-idle" is not possible here',
     'did you mean "longest_idle"?'),
    ('members: ["a0001"]', 'members: ["a0002"]', 14, "queues[0].members[0]", 'no agent has the id "a0002"',
     'did you mean "a0001"?'),
    ('members: ["a0001"]', "members: a0001", 14, "queues[0].members", 'wants a list, not the text "a0001"',
     "write members: [a0001, a0002]"),
    ("ring_timeout_s: 15", "ring_timeout_s: 0", 14, "queues[0].ring_timeout_s", "0 is too small", "give 1 or more"),
    ("id: expert", "id: bench", 15, "queues[1].id", '"bench" is taken by queues[0]', "give another"),
    ("wrap_up_s: 0, music: null", "wrap_up_s: 0, wrap_up_s: 1", 14, "queues[0].wrap_up_s",
     "the key stands twice, first in line 14", "remove one of the two"),
    ("music: null", "music: welcom", 14, "queues[0].music", 'no prompt has the name "welcom"',
     'did you mean "welcome"?'),
    ('"500": {queue: bench}', "500: {queue: bench}", 17, 'numbers["500"]', "the key 500 is not text",
     'put it in quotes: "500"'),
    ("{queue: bench}", "{queue: bensh}", 17, 'numbers["500"].queue', 'no queue has the id "bensh"',
     'did you mean "bench"?'),
    ("{queue: bench}", "{quue: bench}", 17, 'numbers["500"]', "no action is named",
     "give one of queue, answer, play, echo, agent, dial, listen, whisper, barge, like {queue: support}"),
    ("{queue: bench}", "{queue: bench, record: true}", 17, 'numbers["500"].record', "this key is not known",
     "known keys: queue"),
    ("{answer: silence}", "{answer: musik}", 19, 'numbers["600"].answer', '"musik" is not possible here',
     "give one of silence"),
    ("then: silence", "then: hangpu", 20, 'numbers["601"].then', '"hangpu" is not possible here',
     'did you mean "hangup"?'),
    ("then: silence", "then: {queue: nope}", 20, 'numbers["601"].then.queue', 'no queue has the id "nope"',
     "known queues: bench, expert"),
    ("{echo: true}", "{echo: false}", 21, 'numbers["602"].echo', "wants true, not false",
     "write true, or leave the number out"),
    (r"'~7(\d{4})'", r"'~7(\d{4}'", 22, r'numbers["~7(\d{4}"]',
     "not a regular expression: missing ), unterminated subpattern at position 1", r"write one like ~7(\d{4})"),
    (r"'~7(\d{4})'", r"'~7(\d+)+'", 22, r'numbers["~7(\d+)+"]', "the pattern could take very long on some numbers",
     "repeat characters rather than groups, and use at most three of * + {m,n}"),
    (r"{agent: 'a\1'}", r"{agent: 'a\2'}", 22, r'numbers["~7(\d{4})"].agent',
     r"\2 stands for nothing: the pattern has 1 group", "put brackets around the part you mean"),
    ("{queue: bench}", r"{agent: 'a\1'}", 17, 'numbers["500"].agent', "an exact number has no groups",
     'write the agent\'s id, or begin the number with "~"'),
    ('"500":', '"5 00":', 17, 'numbers["5 00"]', '"5 00" cannot be dialled',
     'use up to 64 of 0-9 A-Z a-z + * # . _ -, or begin a pattern with "~"'),
    ("sip:\n", "sip: &again\n  again: *again\n", 2, "sip.again", "an alias (*name) stands inside what it names",
     "write the value out"),
    ("sip:\n", "x: &x {y: 1}\nsip:\n  <<: *x\n", 4, "sip", "merge keys (<<) are not part of YAML 1.2",
     "write the keys out"),
    ("domain: pbx.local", "domain: !!python/object:os.system x", 1, "domain",
     "the tag tag:yaml.org,2002:python/object:os.system is not supported", "write the plain value"),
    ("http: {", "http: {{", 8, "", "this is not YAML 1.2: expected ',' or '}', but got '<scalar>'",
     "look for a missing quote, colon, comma or bracket, or a wrong indent, here or just above"),
    ("http: {", "\thttp: {", 7, "", "this is not YAML 1.2: found character '\\t' that cannot start any token",
     "indent with spaces, not tabs"),
    ("http: {", "---\nhttp: {", 7, "", "this is not YAML 1.2: but found another document",
     "keep one document in the file, without a second ---"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "key", "message", "remedy"), BROKEN)
def test_problem_is_precise(tmp_path: Path, old: str, new: str, line: int, key: str, message: str, remedy: str) -> None:
    found = problems(tmp_path, changed((old, new)))
    assert found, "it loaded"
    seen = [(problem.line, problem.key, problem.message, problem.remedy) for problem in found]
    assert (line, key, message, remedy) in seen
    assert all(problem.column >= 1 for problem in found)


def test_missing_and_empty_prompts_are_named(tmp_path: Path) -> None:
    text = changed(("prompts/welcome.wav", "prompts/absent.wav"), ("prompts/music.wav", "prompts"))
    (tmp_path / "prompts").mkdir()
    first, second = problems(tmp_path, text)
    assert (first.line, first.key) == (8, "prompts.welcome")
    assert first.message == f"{tmp_path}/prompts/absent.wav does not exist"
    assert (second.line, second.key) == (15, "queues[1].music")
    assert second.message == 'no prompt has the name "prompts"'


def test_all_problems_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = changed(("pbx.local", ".."), ("workers: 1", "workers: none"), ("echo: true", "ecco: true"))
    found = problems(tmp_path, text)
    assert [problem.key for problem in found] == ["domain", "media.workers", 'numbers["602"]']


def test_no_problem_shows_a_secret(tmp_path: Path) -> None:
    for secret in ("12345678", "[hunter2]", "{ha1: {md5: hunter2}}", "{plain: hunter2}", "{env: hunter2, x: hunter2}"):
        found = problems(tmp_path, changed(('password: "secret", contact', f"password: {secret}, contact")))
        assert found
        text = "\n".join(map(str, found))
        assert "hunter2" not in text
        assert "12345678" not in text


@pytest.mark.parametrize("text", ["", "# nothing", "null", "5", "- a", "just text"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.remedy == "begin with domain, sip, media and http; docs/configuration.md shows a whole document"


def test_alias_bomb_ends_soon(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    found = problems(tmp_path, GOOD + bomb)
    assert any(problem.message == "the document holds more than 500000 values" for problem in found)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 2000, "- " * 3000, "a: " + "[" * 40 + "]" * 40])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)
