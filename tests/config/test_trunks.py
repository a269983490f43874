"""Trunks and routes in the document: what is right, and precise words for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.loader import parse
from config.numbering import Numbering
from config.numbers import NumberSet
from config.problems import ConfigurationError
from config.schema import DialOut, Document
from config.trunks import Identify, NumberFormat
from tests.config.documents import changed, folder

TRUNK = '    - {name: out, address: "sip:sip.example.net", register: {username: me, password: {env: CARRIER}}}\n'
ROUTES = 'country: KE\nroutes:\n  - {name: world, match: "+254*", trunks: [out]}\n'
GOOD = (
    ("users:", ROUTES + "users:"),
    ("    - {name: carrier", TRUNK + "    - {name: carrier"),
    ('"600": {answer: silence}', '"600": {dial: "112"}'),
)


def load(tmp_path: Path, *changes: tuple[str, str]) -> Document:
    text = changed(*GOOD)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return parse(text, base=folder(tmp_path), environ={"CARRIER": "hunter2"}).document


def problems(tmp_path: Path, *changes: tuple[str, str]) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, *changes)
    text = str(caught.value)
    assert "hunter2" not in text
    return [(problem.key, problem.message, problem.remedy) for problem in caught.value.problems]


def test_whole_trunk_and_route(tmp_path: Path) -> None:
    document = load(tmp_path)
    out, carrier = document.sip.trunks
    assert out.register_ is not None
    assert out.register_.password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(document)
    assert [gateway.address for gateway in out.targets] == ["sip:sip.example.net"]
    assert (out.identified_by, carrier.identified_by) == (Identify.REGISTRATION, Identify.ADDRESS)
    assert carrier.reach is None
    assert not carrier.dial_out
    (route,) = document.routes
    assert route.match == ("+254*",)
    assert [(item.trunk, item.priority) for item in route.trunks] == [("out", 1)]
    assert document.numbers["600"] == DialOut(dial="112")


OUT = 'address: "sip:sip.example.net", register: {username: me, password: {env: CARRIER}}'
ANY = "the value cannot be used"

BROKEN = [
    (OUT, "supervise: true", "sip.trunks[0]", "nothing leads to or from it",
     'add match: ["192.0.2.10"] or address: "sip:192.0.2.10"'),
    (OUT, 'address: "sip:me@sip.example.net"', "sip.trunks[0].address", ANY,
     "give a SIP address without a user, like sip:sip.example.net or sip:192.0.2.10:5060"),
    (OUT, 'address: "sip:192.0.2.300"', "sip.trunks[0].address", "'192.0.2.300' is not an IP address",
     "give one, like 192.0.2.10"),
    (OUT, 'address: "sip:x;transport=sctp"', "sip.trunks[0].address", ANY,
     "give a SIP address without a user, like sip:sip.example.net or sip:192.0.2.10:5060"),
    (OUT, 'address: "sip:x:0"', "sip.trunks[0].address", "0 is not a port", "give a number from 1 to 65535"),
    (OUT, 'address: "sip:a", gateways: ["sip:b"]', "sip.trunks[0]", "it has both address and gateways",
     "move the address into gateways"),
    (OUT, 'gateways: ["sip:b", "sip:b"]', "sip.trunks[0].gateways[1]", "sip:b stands twice", "remove one of the two"),
    (OUT, 'match: ["192.0.2.9"], register: {username: me, password: x}', "sip.trunks[0]",
     "register needs to know where", 'add address: "sip:sip.example.net"'),
    (OUT, 'match: ["192.0.2.9"], options_interval_s: 30', "sip.trunks[0]",
     "options_interval_s needs to know whom to ask", 'add address: "sip:sip.example.net"'),
    (OUT, 'address: "sip:a", options_interval_s: 1', "sip.trunks[0].options_interval_s",
     "asking more often than every 5 seconds is a flood", "give 5 or more, or 0 for never"),
    (OUT, 'address: "sip:a", identify: registration', "sip.trunks[0]", "identify: registration needs one",
     'add register: {username: …, password: "…"}'),
    (OUT, 'address: "sip:a", identify: digest', "sip.trunks[0]", "identify: digest needs credentials",
     'add login: {username: …, password: "…"}'),
    (OUT, 'address: "sip:a", identify: address', "sip.trunks[0]", "identify: address needs addresses",
     'add match: ["192.0.2.10"]'),
    (OUT, 'match: ["192.0.2.9"], login: {username: x, password: y}', "sip.trunks[0]",
     "login is only asked for with identify: digest", "add that, or remove login"),
    (OUT, 'address: "sip:a", identify: digest, login: {username: a0001, password: y}',
     "sip.trunks[0].login.username", '"a0001" is the id of an agent, whose phone logs in by it', "give another"),
    (OUT, 'address: "sip:a", srtp: required', "sip.trunks[0].srtp",
     "this release carries audio without encryption (RTP), so it can neither promise nor offer SRTP",
     "write never, or leave the trunk out"),
    (OUT, 'address: "sip:a", reach: ["~(\\\\d+)+"]', "sip.trunks[0].reach[0]",
     "the pattern could take very long on some numbers",
     "repeat characters rather than groups, and use at most three of * + {m,n}"),
    (OUT, 'address: "sip:a", caller_id: {number: abc}', "sip.trunks[0].caller_id.number", ANY,
     'give a number in quotes, like "+254201234567"'),
    (OUT, 'address: "sip:a", caller_id: {nmuber: "1"}', "sip.trunks[0].caller_id.nmuber", "this key is not known",
     'did you mean "number"?'),
    (OUT, 'address: "sip:a", register: {username: me, password: {env: NOT_SET}}',
     "sip.trunks[0].register.password", "the environment variable NOT_SET is not set",
     "set it before starting murima"),
    (OUT, 'address: "sip:a", max_calls: 0', "sip.trunks[0].max_calls", "0 is too small", "give 1 or more"),
    (OUT, 'address: "sip:a", country: XX', "sip.trunks[0].country", "XX is no country with telephone numbers",
     "give the two letters of ISO 3166, like KE"),
    ("country: KE", "country: ke", "country", ANY, "give the two capital letters of ISO 3166, like KE or DE"),
    ("trunks: [out]", "trunks: [uot]", "routes[0].trunks[0]", 'no trunk has the name "uot"', 'did you mean "out"?'),
    ("trunks: [out]", "trunks: [carrier]", "routes[0].trunks[0]",
     'the trunk "carrier" has no address that calls could go to', 'add one, like address: "sip:192.0.2.10"'),
    ("trunks: [out]", "trunks: [out, out]", "routes[0].trunks[1]", '"out" stands twice', "remove one of the two"),
    ("trunks: [out]", "trunks: [out, {trunk: out}]", "routes[0].trunks", "names and mappings cannot be mixed",
     "write {trunk: …, priority: …} for all"),
    ("trunks: [out]", "trunks: [out], allow: [nobody]", "routes[0].allow[0]", 'no agent has the id "nobody"',
     "known agents: a0001"),
    ("trunks: [out]", "trunks: [out], when: {hours: 8-18}", "routes[0].when.hours", ANY,
     'give two times of the day, like "08:00-18:00"'),
    ("trunks: [out]", 'trunks: [out], when: {hours: "08:00-08:00"}', "routes[0].when.hours",
     "the two times are the same", 'write "00:00-24:00" for the whole day'),
    ("trunks: [out]", "trunks: [out], when: {time_zone: Mars/Base}", "routes[0].when.time_zone",
     "'Mars/Base' is no time zone", "give one like Africa/Nairobi or UTC"),
    ("trunks: [out]", "trunks: [out], when: {days: [monday]}", "routes[0].when.days[0]",
     '"monday" is not possible here', 'did you mean "mon"?'),
    ('match: "+254*"', "match: '~(a'", "routes[0].match[0]",
     "not a regular expression: missing ), unterminated subpattern at position 0", r"write one like ~7(\d{4})"),
    (ROUTES, "", 'numbers["600"].dial', "there are no routes to the outside", "add some under routes"),
    ('{dial: "112"}', r"{dial: '\1'}", 'numbers["600"].dial', "an exact number has no groups",
     'write the agent\'s id, or begin the number with "~"'),
    ("  - {name: world", '  - {name: world, match: "1", trunks: [out]}\n  - {name: world', "routes[1].name",
     '"world" is taken by routes[0]', "give another"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "message", "remedy"), BROKEN)
def test_problem_is_precise(tmp_path: Path, old: str, new: str, key: str, message: str, remedy: str) -> None:
    assert (key, message, remedy) in problems(tmp_path, (old, new))


def test_trunk_that_nothing_uses_is_warned_of(tmp_path: Path) -> None:
    text = changed(("    - {name: carrier", '    - {name: out, address: "sip:a"}\n    - {name: carrier'))
    warnings = parse(text, base=folder(tmp_path), environ={}).warnings
    assert ("sip.trunks[0].name", 'no route leads to the trunk "out", and no call is known to come from it') in [
        (warning.key, warning.message) for warning in warnings
    ]


# --- numbers ------------------------------------------------------------------------------


def test_lists_of_numbers_know_exact_ones_beginnings_and_patterns() -> None:
    numbers = NumberSet(["112", "+254*", r"~0\d{9}"])
    for inside in ("112", "+254", "+254700111222", "0700111222"):
        assert inside in numbers
    for outside in ("1122", "254700111222", "070011122", "", "9" * 100, 112):
        assert outside not in numbers
    assert "anything" in NumberSet(["*"])


@pytest.mark.parametrize(
    ("dialled", "forms"),
    [
        ("0700 111-222", ("+254700111222", "0700111222")),
        ("+254700111222", ("+254700111222",)),
        ("000441632960000", ("+441632960000", "000441632960000")),
        ("999", ("999",)),
        ("112", ("112",)),
        ("1234567", ("1234567",)),
        ("a0001", ("a0001",)),
        ("*100#", ("*100#",)),
        ("", ("",)),
    ],
)
def test_numbers_become_international_where_they_are(dialled: str, forms: tuple[str, ...]) -> None:
    assert Numbering("KE", ["1234567"]).forms(dialled) == forms


def test_numbers_without_a_country_stay_as_dialled() -> None:
    assert Numbering().forms("0700111222") == ("0700111222",)
    assert Numbering().forms("+254 700 111222") == ("+254700111222",)
    assert Numbering("DE").forms("0700111222", "KE")[0] == "+254700111222"
    assert Numbering("KE").forms("0700111222;rn=+88213000;npdi") == ("+254700111222", "0700111222")
    assert Numbering("KE").forms("112;phone-context=x") == ("112",)


@pytest.mark.parametrize("country", ["KE", "DE", "US", "GB", "IN"])
def test_emergency_numbers_stay_as_they_are(country: str) -> None:
    for number in ("112", "911" if country == "US" else "112"):
        assert Numbering(country).forms(number) == (number,)


@pytest.mark.parametrize(
    ("number", "style", "written"),
    [
        ("0700111222", NumberFormat.E164, "+254700111222"),
        ("+254700111222", NumberFormat.NATIONAL, "0700111222"),
        ("+441632960000", NumberFormat.NATIONAL, "+441632960000"),
        ("0700111222", NumberFormat.AS_IS, "0700111222"),
        ("a0001", NumberFormat.E164, "a0001"),
    ],
)
def test_numbers_are_written_as_asked_for(number: str, style: NumberFormat, written: str) -> None:
    assert Numbering("KE").written(number, style) == written


@given(st.text(max_size=80), st.sampled_from([None, "KE", "US"]))
def test_whatever_is_dialled_has_a_form(dialled: str, country: str | None) -> None:
    forms = Numbering(country).forms(dialled)
    assert 1 <= len(forms) <= 2
    assert all(isinstance(form, str) for form in forms)
