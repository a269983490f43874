"""Digest authentication: the vectors of the RFCs, and both our sides against each other."""

from __future__ import annotations

import sys
from itertools import count
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.protection.digest import (
    ALGORITHMS,
    Challenge,
    Credentials,
    DigestResult,
    DigestVerifier,
    answer_challenge,
    digest_response,
    ha1,
)

REALM = "pbx.local"
SECRET = b"0123456789abcdef"
PASSWORD = "correct horse"


def verifier(**options: object) -> DigestVerifier:
    numbers = count()
    settings = {"random_bytes": lambda size: next(numbers).to_bytes(size, "big"), **options}
    return DigestVerifier(REALM, SECRET, **settings)  # type: ignore[arg-type]  # options of each test


def lookup(username: str, algorithm: str) -> str | None:
    return ha1(username, REALM, PASSWORD, algorithm) if username == "alice" else None


def answer(challenges: list[Challenge], *, username: str = "alice", password: str = PASSWORD, nc: int = 1) -> str:
    value = answer_challenge(
        challenges, method="REGISTER", uri="sip:pbx.local", username=username, password=password, nc=nc, cnonce="c0"
    )
    assert value is not None
    return value


def check(server: DigestVerifier, value: str, now: float = 0.0) -> DigestResult:
    return server.check([value], "REGISTER", lookup, now)[0]


def test_rfc_2617_example() -> None:
    assert (
        digest_response(
            ha1_hex=ha1("Mufasa", "testrealm@host.com", "Circle Of Life"),
            algorithm="MD5",
            method="GET",
            uri="/dir/index.html",
            nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093",
            qop="auth",
            cnonce="0a4f113b",
            nc="00000001",
        )
        == "6629fae49393a05397450978507c4ef1"
    )


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_rfc_7616_examples(algorithm: str, response: str) -> None:
    challenge = Challenge.parse(
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=' + algorithm + ", "
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    value = answer_challenge(
        [challenge],
        method="GET",
        uri="/dir/index.html",
        username="Mufasa",
        password="Circle of Life",
        cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
    )
    assert value is not None
    credentials = Credentials.parse(value)
    assert credentials.response == response
    assert credentials.opaque == "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
    assert (credentials.qop, credentials.nc) == ("auth", "00000001")


def test_rfc_7616_sha_512_256_example() -> None:
    assert "SHA-512-256" in ALGORITHMS
    assert (
        digest_response(
            ha1_hex=ha1("Jäsøn Doe", "api@example.org", "Secret, or not?", "SHA-512-256"),
            algorithm="SHA-512-256",
            method="GET",
            uri="/doe.json",
            nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK",
            qop="auth",
            cnonce="NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v",
            nc="00000001",
        )
        == "3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5"  # erratum 4897
    )


def test_without_qop_it_is_rfc_2069() -> None:
    challenge = Challenge.parse('Digest realm="r", nonce="n"')
    assert challenge == Challenge("r", "n", "MD5", ())
    credentials = Credentials.parse(
        answer_challenge([challenge], method="INVITE", uri="sip:a@b", username="u", password="p", cnonce="c") or ""
    )
    assert (credentials.qop, credentials.nc, credentials.cnonce) == (None, None, None)
    assert credentials.response == digest_response(
        ha1_hex=ha1("u", "r", "p"), algorithm="MD5", method="INVITE", uri="sip:a@b", nonce="n"
    )


def test_auth_int_covers_the_body() -> None:
    server = verifier(qop=["auth-int"])
    value = answer_challenge(
        server.challenges(0.0),
        method="MESSAGE",
        uri="sip:a",
        username="alice",
        password=PASSWORD,
        body=b"one",
        cnonce="c",
    )
    assert value is not None
    assert Credentials.parse(value).qop == "auth-int"
    assert server.check([value], "MESSAGE", lookup, 0.0, b"two")[0] is DigestResult.WRONG
    assert server.check([value], "MESSAGE", lookup, 0.0, b"one") == (DigestResult.OK, "alice")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_right_and_wrong_passwords(algorithm: str) -> None:
    server = verifier(algorithms=[algorithm])
    challenges = server.challenges(0.0)
    assert check(server, answer(challenges, password="guess")) is DigestResult.WRONG
    assert check(server, answer(challenges, username="mallory")) is DigestResult.WRONG
    assert check(server, answer(challenges)) is DigestResult.OK
    assert server.check([answer(challenges, nc=2)], "INVITE", lookup, 0.0)[0] is DigestResult.WRONG


def test_the_strongest_challenge_is_answered_and_a_stored_ha1_is_enough() -> None:
    server = verifier(algorithms=["MD5", "SHA-256"])
    challenges = [Challenge.parse(str(challenge)) for challenge in server.challenges(0.0)]
    assert [challenge.algorithm for challenge in challenges] == ["MD5", "SHA-256"]
    assert Credentials.parse(answer(challenges)).algorithm == "SHA-256"
    stored = {"MD5": ha1("alice", REALM, PASSWORD)}
    value = answer_challenge(
        challenges, method="REGISTER", uri="sip:pbx.local", username="alice", ha1s=stored, cnonce="c"
    )
    assert value is not None
    assert Credentials.parse(value).algorithm == "MD5"
    assert check(server, value) is DigestResult.OK


def test_challenges_that_cannot_be_answered() -> None:
    unknown = [Challenge("r", "n", "MD5-SESS"), Challenge("r", "n", "MD5", ("token",))]
    assert answer_challenge(unknown, method="X", uri="y", username="u", password="p", cnonce="c") is None
    assert answer_challenge([], method="X", uri="y", username="u", password="p", cnonce="c") is None
    assert answer_challenge([Challenge("r", "n")], method="X", uri="y", username="u", cnonce="c") is None


def test_credentials_for_others_are_missing() -> None:
    server = verifier()
    assert server.check([], "REGISTER", lookup, 0.0) == (DigestResult.MISSING, None)
    other = answer([Challenge("elsewhere", "n")])
    stronger = answer([Challenge(REALM, "n", "SHA-256")])
    assert server.check([other, stronger, "Basic eDp5"], "REGISTER", lookup, 0.0) == (DigestResult.MISSING, None)
    right = answer(server.challenges(0.0))
    assert server.check([other, right], "REGISTER", lookup, 0.0) == (DigestResult.OK, "alice")


def test_an_old_nonce_is_stale_only_for_who_knows_the_password() -> None:
    server = verifier(nonce_lifetime_s=60.0)
    challenges = server.challenges(1000.0)
    assert check(server, answer(challenges), 1060.0) is DigestResult.OK
    assert check(server, answer(challenges, nc=2), 1061.0) is DigestResult.STALE
    assert check(server, answer(challenges, nc=3, password="guess"), 1061.0) is DigestResult.WRONG
    assert check(server, answer(challenges, username="mallory"), 1061.0) is DigestResult.WRONG
    assert check(server, answer(challenges, nc=4), 900.0) is DigestResult.STALE  # issued in the future
    assert str(server.challenges(0.0, stale=True)[0]).count("stale=true") == 1


def test_a_nonce_that_we_did_not_issue_never_opens() -> None:
    server = verifier()
    nonce = server.challenges(0.0)[0].nonce
    for forged in ("", "n", nonce[:-1], nonce + "00", nonce.upper(), f" {nonce[1:]}", "0" * len(nonce), "é"):
        challenge = Challenge(REALM, forged)
        if challenge.nonce:
            assert check(server, answer([challenge])) in (DigestResult.STALE, DigestResult.WRONG)
            # The same answer to a wrong one: nothing can be guessed under a nonce that was not sent there.
            assert check(server, answer([challenge], password="guess")) is DigestResult.STALE
    elsewhere = DigestVerifier("other.realm", SECRET, random_bytes=bytes).challenges(0.0)[0].nonce
    assert check(server, answer([Challenge(REALM, elsewhere)])) is DigestResult.STALE


def test_a_nonce_serves_only_where_it_was_sent() -> None:
    server = verifier()
    challenges = server.challenges(0.0, origin="192.0.2")
    for password in (PASSWORD, "guess"):
        value = answer(challenges, password=password)
        assert server.check([value], "REGISTER", lookup, 0.0, origin="198.51.100")[0] is DigestResult.STALE
        assert check(server, value) is DigestResult.STALE
    wrong = answer(challenges, password="guess")
    assert server.check([wrong], "REGISTER", lookup, 0.0, origin="192.0.2")[0] is DigestResult.WRONG
    right = answer(challenges)
    assert server.check([right], "REGISTER", lookup, 0.0, origin="192.0.2")[0] is DigestResult.OK


def test_each_listener_has_its_algorithms() -> None:
    server = verifier()
    offered = ["SHA-512-256", "SHA-256"]
    challenges = [Challenge.parse(str(challenge)) for challenge in server.challenges(0.0, algorithms=offered)]
    assert [challenge.algorithm for challenge in challenges] == offered
    for challenge in challenges:
        value = answer([challenge])
        assert server.check([value], "REGISTER", lookup, 0.0, algorithms=["MD5"]) == (DigestResult.MISSING, None)
        assert check(server, value) is DigestResult.MISSING
    value = answer(challenges)
    assert Credentials.parse(value).algorithm == "SHA-512-256"
    assert server.check([value], "REGISTER", lookup, 0.0, algorithms=offered) == (DigestResult.OK, "alice")


def steps(server: DigestVerifier, value: str, method: str) -> list[tuple[str, str]]:
    """Every call that a check makes, into Python and into C, in order."""
    made: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        name = getattr(arg, "__qualname__", "") if event.startswith("c_") else frame.f_code.co_qualname
        made.append((event, name))

    def find(username: str, algorithm: str) -> str | None:
        return HASHES.get(username, {}).get(algorithm)

    sys.setprofile(note)
    try:
        server.check([value], method, find, 0.0)
    finally:
        sys.setprofile(None)
    return made


HASHES = {"alice": {name: ha1("alice", REALM, PASSWORD, name) for name in ALGORITHMS}}


@pytest.mark.parametrize("method", ["REGISTER", "INVITE"])
def test_an_unknown_user_costs_exactly_the_work_of_a_wrong_password(method: str) -> None:
    server = verifier()
    challenges = server.challenges(0.0)
    names = ("alice", "mallo")
    guesses = [answer_for(challenges, method, name, "wrong") for name in names]
    known, unknown = (steps(server, value, method) for value in guesses)
    assert known == unknown
    assert sum(name.endswith(("openssl_md5", "HASH.hexdigest", "new")) for _, name in known) >= 3


def answer_for(challenges: list[Challenge], method: str, username: str, password: str) -> str:
    value = answer_challenge(
        challenges, method=method, uri="sip:5@b", username=username, password=password, cnonce="c0"
    )
    assert value is not None
    return value


def test_nodes_with_one_secret_accept_each_others_nonces() -> None:
    assert check(verifier(), answer(verifier().challenges(0.0))) is DigestResult.OK


def test_a_count_is_taken_once_also_out_of_order() -> None:
    server = verifier()
    challenges = server.challenges(0.0)
    results = [check(server, answer(challenges, nc=nc)) for nc in (1, 1, 5, 3, 3, 5, 2, 100, 37, 36, 101)]
    ok, stale = DigestResult.OK, DigestResult.STALE
    assert results == [ok, stale, ok, ok, stale, stale, ok, ok, ok, stale, ok]


@given(st.lists(st.integers(0, 150)))
def test_no_count_is_ever_taken_twice(counts: list[int]) -> None:
    server = verifier()
    challenges = server.challenges(0.0)
    taken = [nc for nc in counts if check(server, answer(challenges, nc=nc)) is DigestResult.OK]
    assert len(taken) == len(set(taken))
    assert max(counts, default=0) in (taken or [0])


def test_memory_is_bounded_and_forgotten_nonces_cannot_be_replayed() -> None:
    server = verifier(remembered_nonces=3)
    values = [answer(server.challenges(float(second))) for second in range(6)]
    assert [check(server, value, 6.0) for value in values] == [DigestResult.OK] * 6
    assert [check(server, value, 6.0) for value in values] == [DigestResult.STALE] * 6
    assert check(server, answer(server.challenges(6.0)), 6.0) is DigestResult.OK


def test_without_qop_a_nonce_serves_once() -> None:
    server = verifier(qop=[])
    value = answer(server.challenges(0.0))
    assert [check(server, value), check(server, value)] == [DigestResult.OK, DigestResult.STALE]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Digest",
        "Basic abc",
        "Digest username",
        'Digest username="a',
        'Digest username="a" realm="b"',
        'Digest username="a", username="b", realm="r", nonce="n", uri="u", response="00"',
        'Digest username="a", realm="r", nonce="n", uri="u"',
        'Digest username="a", realm="r", nonce="n", uri="u", response="xyz"',
        'Digest username="a", realm="r", nonce="n", uri="u", response="00", qop=auth',
        'Digest username="a", realm="r", nonce="n", uri="u", response="00", qop=auth, nc=1, cnonce="c"',
        'Digest username="a", realm="r", nonce="n", uri="u", response="00", qop=auth, nc=0000000g, cnonce="c"',
        f'Digest username="{"a" * 2000}", realm="r", nonce="n", uri="u", response="00"',
    ],
)
def test_malformed_credentials_are_400(value: str) -> None:
    with pytest.raises(PeerError) as caught:
        Credentials.parse(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "value", ["Digest", 'Digest realm="r"', 'Digest nonce="n"', 'Digest realm="r", nonce=""', "NTLM"]
)
def test_malformed_challenges_are_400(value: str) -> None:
    with pytest.raises(PeerError):
        Challenge.parse(value)


@given(
    st.text(max_size=80).map("Digest ".__add__) | st.text('abcdnounce="\\, username realm uri response', max_size=80)
)
def test_any_text_parses_or_raises_peer_error(value: str) -> None:
    for parse in (Challenge.parse, Credentials.parse):
        try:
            parse(value)
        except PeerError:
            continue
    server = verifier()
    try:
        result, _ = server.check([value], "REGISTER", lookup, 0.0)
    except PeerError:
        return
    assert result is not DigestResult.OK


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.sampled_from(ALGORITHMS))
def test_values_come_back_whatever_the_names(username: str, realm: str, algorithm: str) -> None:
    challenge = Challenge.parse(str(Challenge(realm, "n", algorithm)))
    value = answer([challenge], username=username)
    assert not set(value) & set("\r\n\0")
    credentials = Credentials.parse(value)
    assert credentials.realm == challenge.realm
    assert Credentials.parse(str(credentials)) == credentials


def test_wrong_settings_are_our_bug() -> None:
    with pytest.raises(UsageError):
        DigestVerifier(REALM, b"short", random_bytes=bytes)
    with pytest.raises(UsageError):
        verifier(algorithms=["MD4"])
    with pytest.raises(UsageError):
        verifier(algorithms=[])
    with pytest.raises(UsageError):
        ha1("a", "b", "c", "MD4")
