from __future__ import annotations

import itertools

import pytest

from adapters.sip.protection.digest import ha1
from adapters.sip.protection.login import Login
from adapters.sip.registration.registrant import LONGEST_PAUSE_S, Account, Register, Registrant, RegistrationState
from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.syntax.uri import SipUri

LOGIN = Login("me", "secret")


def account(*gateways: str, realm: str | None = None) -> Account:
    uris = tuple(SipUri.parse(f"sip:{gateway}") for gateway in gateways or ("carrier.example",))
    return Account(uris, LOGIN, "line1", realm)


def registrant(*gateways: str, realm: str | None = None, draw: float = 0.0) -> Registrant:
    tokens = itertools.count()
    return Registrant(account(*gateways, realm=realm), lambda: f"token{next(tokens)}", lambda: draw)


def sent(register: Register | None) -> Request:
    assert register is not None
    request = Request.build(
        "REGISTER",
        SipUri.parse("sip:carrier.example"),
        via="SIP/2.0/UDP 192.0.2.5;branch=z9hG4bKx",
        from_="<sip:me@carrier.example>;tag=1",
        to="<sip:me@carrier.example>",
        call_id="one",
        cseq=register.cseq,
    )
    request.set("expires", register.expires_s)
    return request


def answer(request: Request, status: int, **headers: str) -> Response:
    response = build_response(request, status, to_tag="x")
    for name, value in headers.items():
        response.add(name.replace("_", "-"), value)
    return response


def challenge(request: Request, *, status: int = 401, stale: bool = False, realm: str = "carrier") -> Response:
    name = "www_authenticate" if status == 401 else "proxy_authenticate"
    more = ", stale=true" if stale else ""
    return answer(request, status, **{name: f'Digest realm="{realm}", nonce="n{stale}", qop="auth"{more}'})


def ok(request: Request, expires: int = 3600) -> Response:
    return answer(request, 200, contact=f"<sip:line1@192.0.2.5:5060;line=line1>;expires={expires}")


def registered(machine: Registrant, now: float, expires: int = 3600) -> None:
    request = sent(machine.start())
    assert machine.on_response(request, ok(request, expires), now) is None


def test_registers_with_a_password_and_renews_before_the_end() -> None:
    machine = registrant()
    first = sent(machine.start())
    assert first.get("expires") == "3600"
    retry = machine.on_response(first, challenge(first), 0.0)
    assert isinstance(retry, Request)
    assert retry.cseq.number == 2
    assert 'username="me"' in (retry.get("authorization") or "")
    assert machine.on_response(retry, ok(retry), 0.0) is None
    assert machine.state is RegistrationState.REGISTERED
    assert machine.error == ""
    assert machine.registered_until == 3600
    assert machine.deadline() == pytest.approx(3600 * 0.7)
    assert machine.on_time(2519.0) is None
    renewal = sent(machine.on_time(2520.0))
    assert renewal.cseq.number == 3
    assert renewal.get("expires") == "3600"


def test_proxy_challenge_is_answered_too() -> None:
    machine = registrant()
    first = sent(machine.start())
    retry = machine.on_response(first, challenge(first, status=407), 0.0)
    assert isinstance(retry, Request)
    assert retry.has("proxy-authorization")


def test_wrong_password_is_not_tried_in_a_loop() -> None:
    machine = registrant()
    first = sent(machine.start())
    retry = machine.on_response(first, challenge(first), 0.0)
    assert isinstance(retry, Request)
    assert machine.on_response(retry, challenge(retry), 0.0) is None
    assert machine.state is RegistrationState.UNREGISTERED
    assert machine.error == "401 the carrier does not take our password"
    assert (machine.deadline() or 0) >= 45.0


def test_stale_nonce_is_answered_once_more_but_not_for_ever() -> None:
    machine = registrant()
    request = sent(machine.start())
    rounds = 0
    following: object = machine.on_response(request, challenge(request), 0.0)
    while isinstance(following, Request):
        rounds += 1
        following = machine.on_response(following, challenge(following, stale=True), 0.0)
    assert rounds == 2
    assert machine.state is RegistrationState.UNREGISTERED


def test_challenge_of_another_realm_gets_no_answer() -> None:
    machine = registrant(realm="carrier")
    request = sent(machine.start())
    assert machine.on_response(request, challenge(request, realm="evil"), 0.0) is None
    assert machine.error == "401 another realm"


def test_too_brief_an_interval_is_corrected() -> None:
    machine = registrant()
    request = sent(machine.start())
    again = machine.on_response(request, answer(request, 423, min_expires="7200"), 0.0)
    assert isinstance(again, Register)
    assert again.expires_s == 7200
    second = sent(again)
    assert machine.on_response(second, answer(second, 423, min_expires="9000"), 0.0) is None  # not for ever


def test_shorter_grant_of_the_carrier_counts() -> None:
    machine = registrant()
    registered(machine, 0.0, expires=60)
    assert machine.registered_until == 60
    assert machine.deadline() == pytest.approx(42.0)


def test_expires_header_counts_where_the_contact_says_nothing() -> None:
    machine = registrant()
    request = sent(machine.start())
    machine.on_response(request, answer(request, 200, contact="<sip:line1@192.0.2.5>", expires="120"), 0.0)
    assert machine.registered_until == 120


def test_binding_counts_until_its_end_while_renewals_fail() -> None:
    machine = registrant()
    registered(machine, 0.0, expires=100)
    now = machine.deadline()
    assert now == 70.0
    while now is not None and now < 100.0:
        assert machine.state is RegistrationState.REGISTERED
        if machine.on_time(now) is not None:
            assert machine.on_failure(now, reached=True) is None
        now = machine.deadline()
    assert now == 100.0
    machine.on_time(100.0)
    assert machine.state is RegistrationState.UNREGISTERED
    assert machine.error == "no answer"


def test_pauses_grow_up_to_a_limit_and_start_again_after_success() -> None:
    machine = registrant(draw=1.0)
    machine.start()
    machine.on_failure(0.0, reached=False)
    pauses = []
    now = 0.0
    for _ in range(12):
        due = machine.deadline()
        assert due is not None
        pauses.append(due - now)
        now = due
        assert machine.on_time(now) is not None
        machine.on_failure(now, reached=True)
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_gateways_are_tried_in_turn_before_any_pause() -> None:
    machine = registrant("one.example", "two.example")
    first = machine.start()
    assert first.gateway == 0
    second = machine.on_failure(0.0, reached=True)
    assert second is not None
    assert second.gateway == 1
    request = sent(second)
    machine.on_response(request, ok(request), 0.0)
    assert machine.gateway == 1
    assert machine.on_time(machine.deadline() or 0.0) == Register(1, 3, 3600)  # it stays with the one that took it


def test_carrier_says_when_to_come_back() -> None:
    machine = registrant(draw=1.0)
    request = sent(machine.start())
    machine.on_response(request, answer(request, 503, retry_after="120 (maintenance);duration=60"), 0.0)
    assert machine.deadline() == 120.0


def test_stop_removes_the_binding_with_a_password_if_asked() -> None:
    machine = registrant()
    registered(machine, 0.0)
    goodbye = sent(machine.stop())
    assert goodbye.get("expires") == "0"
    assert machine.deadline() is None
    retry = machine.on_response(goodbye, challenge(goodbye), 1.0)
    assert isinstance(retry, Request)
    assert machine.on_response(retry, answer(retry, 200), 1.0) is None
    assert machine.state is RegistrationState.STOPPED
    assert machine.on_time(10_000.0) is None


def test_nothing_to_remove_when_never_registered() -> None:
    machine = registrant()
    machine.start()
    assert machine.stop() is None


def test_lost_flow_is_made_again_soon() -> None:
    machine = registrant(draw=0.5)
    machine.on_flow_lost(0.0)
    assert machine.deadline() is None  # there was none
    registered(machine, 0.0)
    machine.on_flow_lost(10.0)
    assert machine.deadline() == 11.0
    assert sent(machine.on_time(11.0)).get("expires") == "3600"
    machine.on_flow_lost(12.0)
    assert machine.deadline() == 3600.0  # the renewal is on its way


@pytest.mark.parametrize("route", ["<sip:", "garbage", "<http://x>", "<sip:edge;lr>, <sip:", ";"])
def test_service_route_that_leads_nowhere_is_ignored(route: str) -> None:
    machine = registrant()
    request = sent(machine.start())
    machine.on_response(request, answer(request, 200, service_route=route), 0.0)
    assert machine.service_route == ()


def test_service_route_is_kept() -> None:
    machine = registrant()
    request = sent(machine.start())
    response = ok(request)
    response.add("service-route", "<sip:edge.example;lr>")
    machine.on_response(request, response, 0.0)
    assert machine.service_route == ("<sip:edge.example;lr>",)


@pytest.mark.parametrize("contact", ["<sip:", "*", '"', "<sip:other@x>;expires=5"])
def test_malformed_contacts_of_the_carrier_are_survived(contact: str) -> None:
    machine = registrant()
    request = sent(machine.start())
    machine.on_response(request, answer(request, 200, contact=contact), 0.0)
    assert machine.registered_until == 3600


def test_carrier_takes_a_known_hash_instead_of_a_password() -> None:
    hashes = {"MD5": ha1("me", "carrier", "secret", "MD5")}
    tokens = itertools.count()
    with_hash = Account(account().gateways, Login("me", ha1s=hashes), "line1")
    machine = Registrant(with_hash, lambda: f"token{next(tokens)}", lambda: 0.0)
    request = sent(machine.start())
    assert isinstance(machine.on_response(request, challenge(request), 0.0), Request)
