"""Who a call is from: trunks known by their address, by the line that we registered, or by their password."""

from __future__ import annotations

import os
from ipaddress import ip_network

import pytest

from adapters.sip.protection.access import AccessPolicy, Admitted, Refused, Trunk
from adapters.sip.protection.digest import ALGORITHMS, Challenge, DigestVerifier, answer_challenge, ha1
from adapters.sip.syntax.message import Request
from adapters.sip.transactions.transaction import Flow

REALM = "pbx.test"
NET = (ip_network("192.0.2.4/32"),)


def hashes(user: str, password: str) -> dict[str, str]:
    return {algorithm: ha1(user, REALM, password, algorithm) for algorithm in ALGORITHMS}


def policy(*trunks: Trunk) -> AccessPolicy:
    verifier = DigestVerifier(REALM, b"x" * 32, random_bytes=os.urandom)
    return AccessPolicy(trunks, {"a0001": hashes("a0001", "secret")}, verifier)


def invite(uri: str = "sip:500@pbx.test", from_: str = "sip:0700111222@carrier.test") -> Request:
    return Request.build(
        "INVITE",
        uri,
        via="SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKx",
        from_=f"<{from_}>;tag=1",
        to="<sip:0800123456@pbx.test>",
        call_id="c",
        cseq=1,
    )


def ask(asked: AccessPolicy, request: Request, host: str = "192.0.2.99") -> Admitted | Refused:
    return asked.admit(request, Flow("udp", 0, host, 5060), 0.0)


def logged_in(asked: AccessPolicy, request: Request, user: str, password: str, host: str = "192.0.2.99") -> object:
    refused = ask(asked, request, host)
    assert isinstance(refused, Refused)
    assert refused.status == 401
    challenges = [Challenge.parse(value) for _, value in refused.headers]
    value = answer_challenge(challenges, method="INVITE", uri=request.uri, username=user, password=password, cnonce="c")
    request.set("authorization", value)
    return ask(asked, request, host)


LINE = Trunk("carrier", (), by_address=False, line="0123456789abcdef")


def test_call_to_the_line_is_the_carriers_wherever_it_comes_from() -> None:
    asked = policy(LINE)
    assert ask(asked, invite("sip:0123456789abcdef@pbx.test")) == Admitted(trunk="carrier", line=True)
    assert ask(asked, invite("sip:500@pbx.test;line=0123456789abcdef")) == Admitted(trunk="carrier")


@pytest.mark.parametrize(
    "uri",
    ["sip:500@pbx.test", "sip:0123456789abcdeF@pbx.test", "sip:pbx.test", "sip:500@pbx.test;line", "sip:x;line=@h"],
)
def test_other_calls_are_asked_for_a_password(uri: str) -> None:
    refused = ask(policy(LINE), invite(uri))
    assert isinstance(refused, Refused)
    assert refused.status == 401


def test_line_does_not_help_strangers_where_addresses_are_given_too() -> None:
    asked = policy(Trunk("carrier", NET, by_address=False, line="0123456789abcdef"))
    assert isinstance(ask(asked, invite("sip:0123456789abcdef@pbx.test")), Refused)
    assert ask(asked, invite("sip:0123456789abcdef@pbx.test"), "192.0.2.4") == Admitted(trunk="carrier", line=True)


def test_address_alone_is_no_proof_where_something_else_is_asked_for() -> None:
    refused = ask(policy(Trunk("carrier", NET, by_address=False, line="0123456789abcdef")), invite(), "192.0.2.4")
    assert isinstance(refused, Refused)


LOGIN = Trunk("peer", (), by_address=False, user="peer", ha1s=hashes("peer", "word"))


def test_trunk_logs_in_whatever_number_calls() -> None:
    assert logged_in(policy(LOGIN), invite(), "peer", "word") == Admitted(trunk="peer")


def test_wrong_password_of_a_trunk_is_refused_like_any_other() -> None:
    refused = logged_in(policy(LOGIN), invite(), "peer", "wrong")
    assert isinstance(refused, Refused)
    assert refused.status == 401


def test_password_of_a_trunk_counts_at_its_addresses_only_where_they_are_given() -> None:
    asked = policy(Trunk("peer", NET, by_address=False, user="peer", ha1s=hashes("peer", "word")))
    refused = logged_in(asked, invite(), "peer", "word")
    assert isinstance(refused, Refused)
    assert refused.status == 403
    assert logged_in(asked, invite(), "peer", "word", "192.0.2.4") == Admitted(trunk="peer")


def test_trunk_does_not_become_an_agent_by_its_from() -> None:
    asked = policy(LOGIN)
    assert logged_in(asked, invite(from_="sip:peer@pbx.test"), "peer", "word") == Admitted(trunk="peer")
    assert logged_in(asked, invite(from_="sip:a0001@pbx.test"), "peer", "word") == Admitted(trunk="peer")


def test_trunk_registers_no_phone() -> None:
    asked = policy(LOGIN)
    register = Request.build(
        "REGISTER",
        "sip:pbx.test",
        via="SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKx",
        from_="<sip:peer@pbx.test>;tag=1",
        to="<sip:peer@pbx.test>",
        call_id="c",
        cseq=1,
    )
    flow = Flow("udp", 0, "192.0.2.99", 5060)
    refused = asked.admit_registration(register, flow, 0.0)
    assert isinstance(refused, Refused)
    challenges = [Challenge.parse(value) for _, value in refused.headers]
    value = answer_challenge(
        challenges, method="REGISTER", uri="sip:pbx.test", username="peer", password="word", cnonce="c"
    )
    register.set("authorization", value)
    answer = asked.admit_registration(register, flow, 0.0)
    assert isinstance(answer, Refused)
    assert answer.status == 403


def test_agents_log_in_as_before() -> None:
    asked = policy(LOGIN, LINE)
    assert logged_in(asked, invite(from_="sip:a0001@pbx.test"), "a0001", "secret") == Admitted(user="a0001")
    refused = logged_in(asked, invite(from_="sip:peer@pbx.test"), "a0001", "secret")
    assert isinstance(refused, Refused)
    assert refused.status == 403
