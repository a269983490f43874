from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.location import (
    MAX_TARGETS,
    Avoided,
    Missing,
    Naptr,
    Question,
    Record,
    Srv,
    Target,
    Way,
    by_weight,
    is_address,
    locate,
)

ALL: tuple[Way, ...] = (("udp", 4), ("tcp", 4), ("tls", 4))
EVERY = (*ALL, ("udp", 6), ("tcp", 6), ("tls", 6))


Zone = dict[tuple[str, str], Sequence[Record]]


def draw(seed: int = 1) -> Callable[[int], int]:
    return random.Random(seed).randrange


def find(
    uri: str, zone: Mapping[tuple[str, str], Sequence[Record]], ways: Sequence[Way] = ALL
) -> tuple[list[tuple[str, str, int]], list[list[str]]]:
    """Targets, and the questions of each round."""
    known: dict[Question, Sequence[Record]] = {}
    rounds: list[list[str]] = []
    for _ in range(4):
        found = locate(SipUri.parse(uri), known.get, ways, draw())
        if not isinstance(found, Missing):
            return [(target.transport, target.host, target.port) for target in found], rounds
        rounds.append([f"{question.name} {question.kind}" for question in found.questions])
        for question in found.questions:
            assert question not in known
            known[question] = zone.get((question.name, str(question.kind)), ())
    raise AssertionError("more than three rounds")


A: Zone = {("example.com", "A"): ["192.0.2.1"]}
SRV: Zone = {
    ("_sip._udp.example.com", "SRV"): [Srv(10, 0, 5070, "one.example.com"), Srv(20, 0, 5071, "two.example.com")],
    ("one.example.com", "A"): ["192.0.2.1"],
    ("two.example.com", "A"): ["192.0.2.2", "192.0.2.3"],
}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:a@192.0.2.9", [("udp", "192.0.2.9", 5060)]),
        ("sip:a@192.0.2.9:5070", [("udp", "192.0.2.9", 5070)]),
        ("sip:a@192.0.2.9;transport=TCP", [("tcp", "192.0.2.9", 5060)]),
        ("sip:a@192.0.2.9;transport=tls", [("tls", "192.0.2.9", 5061)]),
        ("sips:a@192.0.2.9", [("tls", "192.0.2.9", 5061)]),
        ("sips:a@192.0.2.9:5099;transport=tcp", [("tls", "192.0.2.9", 5099)]),
        ("sips:a@192.0.2.9;transport=udp", []),
        ("sip:a@192.0.2.9;transport=sctp", []),
        ("sip:a@[2001:db8::9]", [("udp", "2001:db8::9", 5060)]),
        ("sip:a@example.com;maddr=192.0.2.7", [("udp", "192.0.2.7", 5060)]),
        ("sip:a@example.com:5090;maddr=192.0.2.7;transport=tcp", [("tcp", "192.0.2.7", 5090)]),
        ("tel:+49301234", []),
    ],
)
def test_an_address_needs_no_question(uri: str, expected: list[tuple[str, str, int]]) -> None:
    assert find(uri, {}, EVERY) == (expected, [])


def test_an_address_that_no_socket_reaches_is_no_target() -> None:
    assert find("sip:a@[2001:db8::9]", {}) == ([], [])
    assert find("sips:a@192.0.2.9", {}, [("udp", 4)]) == ([], [])


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:a@example.com:5099", [("udp", "192.0.2.1", 5099)]),
        ("sip:a@EXAMPLE.com.:5099;transport=tcp", [("tcp", "192.0.2.1", 5099)]),
        ("sips:a@example.com:5099", [("tls", "192.0.2.1", 5099)]),
    ],
)
def test_a_port_means_the_host_itself(uri: str, expected: list[tuple[str, str, int]]) -> None:
    assert find(uri, A) == (expected, [["example.com A"]])


def test_a_transport_without_port_asks_for_its_service() -> None:
    found, rounds = find("sip:a@example.com;transport=udp", SRV)
    assert found == [("udp", "192.0.2.1", 5070), ("udp", "192.0.2.2", 5071), ("udp", "192.0.2.3", 5071)]
    assert rounds == [["_sip._udp.example.com SRV"], ["one.example.com A", "two.example.com A"]]
    assert find("sip:a@example.com;transport=tcp", A) == (
        [("tcp", "192.0.2.1", 5060)],
        [["_sip._tcp.example.com SRV"], ["example.com A"]],
    )


def test_without_records_the_host_is_asked_over_udp_or_tls() -> None:
    assert find("sip:a@example.com", A) == (
        [("udp", "192.0.2.1", 5060)],
        [
            [
                "example.com NAPTR",
                "_sip._udp.example.com SRV",
                "_sip._tcp.example.com SRV",
                "_sips._tcp.example.com SRV",
            ],
            ["example.com A"],
        ],
    )
    found, rounds = find("sips:a@example.com", A)
    assert found == [("tls", "192.0.2.1", 5061)]
    assert rounds[0] == ["example.com NAPTR", "_sips._tcp.example.com SRV"]


def test_maddr_is_asked_instead_of_the_host() -> None:
    assert find("sip:a@other.example;maddr=example.com;transport=udp", SRV)[0][0] == ("udp", "192.0.2.1", 5070)


NAPTR: Zone = {
    ("example.com", "NAPTR"): [
        Naptr(60, 50, "s", "SIP+D2U", "_sip._udp.example.com"),
        Naptr(50, 50, "S", "SIPS+D2T", "_sips._tcp.hosted.example"),
        Naptr(50, 90, "s", "sip+d2t", "_sip._tcp.example.com"),
        Naptr(10, 10, "u", "E2U+sip", ""),
        Naptr(10, 10, "", "SIP+D2U", "loop.example.com"),
        Naptr(10, 10, "s", "SIP+D2S", "_sip._sctp.example.com"),
    ],
    ("_sips._tcp.hosted.example", "SRV"): [Srv(0, 0, 5061, "tls.hosted.example")],
    ("_sip._tcp.example.com", "SRV"): [Srv(0, 0, 5060, "one.example.com")],
    ("tls.hosted.example", "A"): ["192.0.2.50"],
    **SRV,
}


def test_naptr_chooses_transports_in_its_order() -> None:
    found, rounds = find("sip:a@example.com", NAPTR)
    assert found == [
        ("tls", "192.0.2.50", 5061),
        ("tcp", "192.0.2.1", 5060),
        ("udp", "192.0.2.1", 5070),
        ("udp", "192.0.2.2", 5071),
        ("udp", "192.0.2.3", 5071),
    ]
    assert len(rounds) == 3
    assert find("sip:a@example.com", NAPTR, [("udp", 4)])[0][0] == ("udp", "192.0.2.1", 5070)


def test_sips_uses_only_what_is_safe_and_keeps_the_name_for_the_certificate() -> None:
    assert find("sips:a@example.com", NAPTR)[0] == [("tls", "192.0.2.50", 5061)]

    def known(question: Question) -> Sequence[Record]:
        return NAPTR.get((question.name, str(question.kind)), ())

    found = locate(SipUri.parse("sips:a@example.com"), known, ALL, draw())
    assert isinstance(found, tuple)
    assert found[0].name == "example.com"


def test_a_service_that_is_not_offered_is_not_tried() -> None:
    zone: Zone = {**A, ("_sip._udp.example.com", "SRV"): [Srv(0, 0, 0, "")]}
    assert find("sip:a@example.com;transport=udp", zone)[0] == []


def test_addresses_come_in_the_order_of_our_sockets() -> None:
    zone: Zone = {("example.com", "A"): ["192.0.2.1"], ("example.com", "AAAA"): ["2001:db8::1"]}
    uri = "sip:a@example.com:5060"
    assert [host for _, host, _ in find(uri, zone, [("udp", 4), ("udp", 6)])[0]] == ["192.0.2.1", "2001:db8::1"]
    assert [host for _, host, _ in find(uri, zone, [("udp", 6), ("udp", 4)])[0]] == ["2001:db8::1", "192.0.2.1"]


def test_a_huge_answer_gives_few_targets() -> None:
    zone: Zone = {("_sip._udp.example.com", "SRV"): [Srv(0, 1, 5060, f"h{n}.example.com") for n in range(500)]}
    zone |= {(f"h{n}.example.com", "A"): [f"10.0.{n % 250}.{m}" for m in range(200)] for n in range(500)}
    found, rounds = find("sip:a@example.com;transport=udp", zone)
    assert len(found) == MAX_TARGETS
    assert len(rounds[1]) <= MAX_TARGETS


def test_records_of_the_wrong_kind_are_passed_over() -> None:
    zone: Zone = {
        ("example.com", "NAPTR"): [Srv(0, 0, 1, "x.example"), "192.0.2.1"],
        ("_sip._udp.example.com", "SRV"): [Naptr(0, 0, "s", "SIP+D2U", "example.com")],
        ("example.com", "A"): [Srv(0, 0, 1, "x.example"), "192.0.2.1"],
    }
    assert find("sip:a@example.com", zone)[0] == [("udp", "192.0.2.1", 5060)]


NAMES = st.sampled_from(["example.com", "a.example", "_sip._udp.example.com", "_sips._tcp.example.com", ""])
RECORDS = st.one_of(
    st.builds(
        Naptr,
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from(["s", "S", "a", ""]),
        st.sampled_from(["SIP+D2U", "SIPS+D2T", "x"]),
        NAMES,
    ),
    st.builds(Srv, st.integers(0, 3), st.integers(0, 65535), st.sampled_from([0, 5060]), NAMES),
    st.sampled_from(["192.0.2.1", "2001:db8::1", "junk"]),
)


@given(
    st.dictionaries(st.tuples(NAMES, st.sampled_from(["NAPTR", "SRV", "A", "AAAA"])), st.lists(RECORDS, max_size=20)),
    st.sampled_from(["sip:example.com", "sips:example.com", "sip:a.example;transport=tcp", "sip:example.com:5070"]),
)
def test_any_records_end_in_three_rounds(zone: dict[tuple[str, str], list[Record]], uri: str) -> None:
    found, _ = find(uri, zone, EVERY)
    assert len(found) == len(set(found)) <= MAX_TARGETS


@given(st.lists(st.builds(Srv, st.integers(0, 2), st.integers(0, 9), st.just(5060), st.text("ab", max_size=2))))
def test_each_record_comes_once_and_in_the_order_of_priorities(records: list[Srv]) -> None:
    ordered = by_weight(records, draw())
    assert Counter(ordered) == Counter(records)
    assert [record.priority for record in ordered] == sorted(record.priority for record in records)


def test_weights_share_the_load() -> None:
    records = [Srv(1, weight, 5060, f"w{weight}") for weight in (60, 30, 10, 0)]
    chance = draw(7)
    first = Counter(by_weight(records, chance)[0].target for _ in range(10_000))
    assert first["w60"] == pytest.approx(6000, rel=0.05)
    assert first["w30"] == pytest.approx(3000, rel=0.07)
    assert first["w10"] == pytest.approx(1000, rel=0.12)
    assert 0 < first["w0"] < 300  # a very small chance (RFC 2782)


def test_targets_that_failed_go_last_until_their_time_is_over() -> None:
    avoided = Avoided()
    one, two, three = (Target("udp", f"192.0.2.{n}", 5060, "example.com") for n in (1, 2, 3))
    avoided.avoid("udp", "192.0.2.1", 5060, 30.0)
    assert avoided.order([one, two, three], 10.0) == [two, three, one]
    avoided.avoid("udp", "192.0.2.2", 5060, 20.0)
    assert avoided.order([one, two], 10.0) == [one, two]  # the last resort
    assert avoided.order([one, two], 25.0) == [two, one]
    avoided.forgive("udp", "192.0.2.1", 5060)
    assert avoided.order([one, two], 26.0) == [one, two]
    assert len(avoided) == 0


def test_what_is_avoided_is_bounded() -> None:
    avoided = Avoided(limit=10)
    for n in range(100):
        avoided.avoid("udp", f"10.0.0.{n}", 5060, 30.0)
    assert len(avoided) == 10
    assert avoided.is_avoided("udp", "10.0.0.99", 5060, 0.0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("192.0.2.1", True), ("2001:db8::1", True), ("fe80::1%eth0", True), ("host1", False), ("1.2.3", False)],
)
def test_is_address(host: str, expected: bool) -> None:
    assert is_address(host) is expected
