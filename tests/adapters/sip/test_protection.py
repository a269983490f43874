"""The endpoint under attack and under load: bounded memory, no oracle, bans that end, calls that go on."""

from __future__ import annotations

import os
import resource
import tracemalloc
from ipaddress import ip_network
from itertools import count

import pytest

from adapters.sip.endpoint import Endpoint, SessionIncoming
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import Challenge, DigestVerifier, answer_challenge, ha1
from adapters.sip.protection.guard import Guard, GuardSettings
from adapters.sip.protection.overload import Admission, Load, OverloadSettings
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.message import Request, Response, parse_message
from adapters.sip.transactions.layer import TransactionLayer
from adapters.sip.transactions.stateless import Refusals
from adapters.sip.transactions.transaction import Flow, Send
from tests.sip_link import REALM, SDP, Link, Node, new_token

HERE = "192.0.2.2"
TRUNK = "192.0.2.4"
STRANGER = "192.0.2.99"
SETTINGS = GuardSettings(trusted=(), failures=5, window_s=60.0, ban_s=100.0, rate=10.0, burst=50)

MANY = 1_000_000 if os.environ.get("MURIMA_PROVE") else 50_000


class Protected(Node):
    """A node with a guard, and the admission control that a test asks for."""

    def __init__(self, settings: GuardSettings = SETTINGS, *, layer: TransactionLayer | None = None) -> None:
        super().__init__(HERE)
        numbers = count()
        verifier = DigestVerifier(
            REALM, bytes(range(32)), random_bytes=lambda size: next(numbers).to_bytes(size, "big")
        )
        self.guard = Guard(
            settings, exempt=lambda host: self.endpoint.policy.trunk_at(host) is not None, max_sources=2000
        )
        self.endpoint = Endpoint(
            network=self,
            policy=AccessPolicy(
                [Trunk("carrier", (ip_network(TRUNK),))],
                {name: {"MD5": ha1(name, REALM, "secret")} for name in ("a0001", "a0002")},
                verifier,
                guard=self.guard,
            ),
            registrar=Registrar(),
            new_token=new_token,
            layer=layer,
        )
        self.endpoint.guard = self.guard


def request(method: str, *extra: str, user: str = "a0001", number: str = "500", host: str = STRANGER) -> bytes:
    token = new_token()
    uri = f"sip:{HERE}" if method == "REGISTER" else f"sip:{number}@{HERE}"
    to = f"<sip:{user}@{HERE}>" if method == "REGISTER" else f"<{uri}>"
    body = SDP if method == "INVITE" else b""
    lines = [
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:5060;branch=z9hG4bK{token}",
        "Max-Forwards: 70",
        f"From: <sip:{user}@{HERE}>;tag=f{token}",
        f"To: {to}",
        f"Call-ID: c{token}",
        f"CSeq: 1 {method}",
        f"Contact: <sip:{user}@{host}>",
        *(("Content-Type: application/sdp",) if body else ()),
        *extra,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def replies(node: Node, data: bytes, host: str = STRANGER, now: float = 0.0) -> list[Response]:
    found = []
    for effect in node.endpoint.on_message(data, Flow("udp", 0, host, 5060), now):
        if isinstance(effect, Send):
            message = parse_message(effect.data)
            assert isinstance(message, Response)
            found.append(message)
    return found


def ask(node: Node, data: bytes, host: str = STRANGER, now: float = 0.0) -> Response:
    return replies(node, data, host, now)[-1]


def login(
    node: Node, method: str, user: str, password: str, *, host: str = STRANGER, now: float = 0.0
) -> list[Response]:
    """Ask, take the challenge, answer it."""
    challenge = ask(node, request(method, user=user, host=host), host, now)
    assert challenge.status == 401
    uri = f"sip:{HERE}" if method == "REGISTER" else f"sip:500@{HERE}"
    value = answer_challenge(
        [Challenge.parse(text) for text in challenge.get_all("www-authenticate")],
        method=method,
        uri=uri,
        username=user,
        password=password,
        cnonce="c",
    )
    return replies(node, request(method, f"Authorization: {value}", user=user, host=host), host, now)


# --- strangers ------------------------------------------------------------------------------


def test_registrations_of_ever_new_users_take_no_memory() -> None:
    """A million of them under MURIMA_PROVE=1, from as many addresses."""
    node = Protected()

    # Half of them guess as well.
    proof = (
        f'Authorization: Digest username="u@N@", realm="{REALM}", nonce="@N@", uri="sip:x", '
        f'response="00", qop=auth, nc=00000001, cnonce="@N@"'
    )
    asking = request("REGISTER", user="u@N@", host="@HOST@").replace(b"branch=", b"branch=z9hG4bK@N@")
    asking = asking.replace(b"Call-ID: ", b"Call-ID: @N@")
    guessing = asking.replace(b"Content-Length", f"{proof}\r\nContent-Length".encode())

    def flood(first: int, many: int) -> None:
        for number in range(first, first + many):
            host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            data = guessing if number % 2 else asking
            data = data.replace(b"@N@", b"%d" % number).replace(b"@HOST@", host.encode())
            (effect,) = node.endpoint.on_message(data, Flow("udp", 0, host, 5060), number / 5000)
            assert isinstance(effect, Send)
            assert effect.data.startswith(b"SIP/2.0 401 ")

    flood(0, MANY // 5)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood(MANY // 5, MANY - MANY // 5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000
    tracemalloc.start()  # slow, but exact
    try:
        flood(MANY, 4096)  # the tables hold nothing older any more, and caches of 4096 hosts are emptied each time
        before = tracemalloc.get_traced_memory()[0]
        flood(MANY + 4096, 4096)
        assert tracemalloc.get_traced_memory()[0] - before < 200_000  # 50 bytes for each would be found
    finally:
        tracemalloc.stop()
    assert node.endpoint.transactions == 0
    assert node.endpoint.sessions == 0
    assert node.guard.sources <= 2000
    assert node.endpoint.registrar is not None
    assert len(node.endpoint.registrar) == 0
    # And phones still get on.
    now = (MANY + 8192) / 5000
    assert login(node, "REGISTER", "a0001", "secret", now=now)[-1].status == 200


def test_questions_of_strangers_cannot_fill_the_table_of_transactions() -> None:
    node = Protected(GuardSettings(trusted=(ip_network("0.0.0.0/0"),)), layer=TransactionLayer(limit=400))
    for _ in range(2000):
        assert ask(node, request("OPTIONS")).status == 200
        assert ask(node, request("MESSAGE")).status == 405
        assert ask(node, request("BYE")).status == 481
    assert (node.endpoint.transactions, node.endpoint.deadline()) == (0, None)
    (trying,) = replies(node, request("INVITE"), TRUNK)
    assert trying.status == 100


def test_a_challenge_has_the_same_tag_when_repeated_and_its_ack_is_absorbed() -> None:
    node = Protected()
    data = request("INVITE")
    first, second = ask(node, data), ask(node, data)
    assert first.to.tag == second.to.tag
    assert first.to.tag != ask(node, request("INVITE")).to.tag
    ack = data.replace(b"INVITE sip", b"ACK sip").replace(b"1 INVITE", b"1 ACK")
    ack = ack.replace(b"\r\nCall-ID", f";tag={first.to.tag}\r\nCall-ID".encode())
    assert node.endpoint.on_message(ack, Flow("udp", 0, STRANGER, 5060), 0.0) == []
    assert node.endpoint.transactions == 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("INVITE", "Require: magic"), 420),
        (request("INVITE").replace(b"Max-Forwards: 70", b"Max-Forwards: 0"), 483),
        (request("INVITE").replace(f"To: <sip:500@{HERE}>".encode(), f"To: <sip:500@{HERE}>;tag=guess".encode()), 481),
    ],
)
def test_a_refused_call_costs_one_answer_and_nothing_later(data: bytes, status: int) -> None:
    node = Protected()
    first = ask(node, data)
    assert first.status == status
    assert (node.endpoint.transactions, node.endpoint.deadline()) == (0, None)  # nobody is shot at for want of an ACK
    assert ask(node, data).to.tag == first.to.tag
    ack = data.replace(b"INVITE sip", b"ACK sip").replace(b"1 INVITE", b"1 ACK")
    if b"tag=guess" not in ack:
        ack = ack.replace(b"\r\nCall-ID", f";tag={first.to.tag}\r\nCall-ID".encode())
    assert node.endpoint.on_message(ack, Flow("udp", 0, STRANGER, 5060), 0.0) == []


def test_guessers_are_dropped_silently_and_let_in_after_expiry() -> None:
    node = Protected()
    for guess in range(5):
        (answer,) = login(node, "REGISTER", "a0001", f"guess{guess}")
        assert answer.status == 401
    for data in (request("REGISTER"), request("INVITE"), request("OPTIONS"), b"junk", request("BYE")):
        assert replies(node, data, now=50.0) == []
        assert node.endpoint.on_message(data, Flow("tcp", 1, STRANGER, 4000, 7), 50.0) == []
    assert not node.endpoint.accepts(STRANGER, 50.0)
    assert node.endpoint.accepts("192.0.2.98", 50.0)
    assert login(node, "REGISTER", "a0002", "secret", host="192.0.2.98", now=50.0)[-1].status == 200
    assert node.endpoint.accepts(STRANGER, 105.0)
    assert login(node, "REGISTER", "a0001", "secret", now=105.0)[-1].status == 200
    assert node.guard.counters['sip_guard_bans_total{reason="passwords"}'] == 1


def test_slow_guessing_is_stopped_too() -> None:
    node = Protected()
    guesses = 0
    while not node.guard.closed:
        login(node, "INVITE", "a0001", f"guess{guesses}", now=guesses * 30.0)
        guesses += 1
        assert guesses < 200
    assert guesses == 50


def test_failures_can_not_be_laid_at_the_door_of_others() -> None:
    node = Protected()
    # The attacker has a challenge of its own, and forges packets from another network.
    challenge = ask(node, request("REGISTER"))
    for number in range(100):
        value = answer_challenge(
            [Challenge.parse(text) for text in challenge.get_all("www-authenticate")],
            method="REGISTER",
            uri=f"sip:{HERE}",
            username="a0001",
            password=f"guess{number}",
            cnonce="c",
        )
        data = request("REGISTER", f"Authorization: {value}", host="203.0.113.5")
        answer = ask(node, data, "203.0.113.5", now=number * 1.0)
        assert answer.status == 401
        assert "stale=true" in (answer.get("www-authenticate") or "")  # as it would be with the right password
    assert not node.guard.closed


def test_scanners_get_no_answer_at_all() -> None:
    node = Protected()
    for method in ("OPTIONS", "REGISTER", "INVITE"):
        assert replies(node, request(method, "User-Agent: friendly-scanner")) == []
    assert ask(node, request("OPTIONS", "User-Agent: friendly-scanner"), TRUNK).status == 200
    assert node.endpoint.transactions == 0
    assert node.guard.counters['sip_guard_dropped_total{reason="scanner"}'] >= 1


def test_a_scanner_flood_is_banned_and_costs_nothing_more() -> None:
    node = Protected()
    answered = sum(bool(replies(node, request("OPTIONS", user=str(number)))) for number in range(2000))
    assert answered == SETTINGS.burst
    assert node.guard.counters['sip_guard_bans_total{reason="flood"}'] == 1
    assert node.endpoint.handled == 2000


def shape(answer: Response) -> tuple[int, list[str], list[str]]:
    """What of an answer could tell something: status, headers, and the parameters of challenges."""
    challenges = [text.replace(Challenge.parse(text).nonce, "") for text in answer.get_all("www-authenticate")]
    return answer.status, sorted(answer.headers), challenges


@pytest.mark.parametrize("method", ["INVITE", "REGISTER"])
def test_strangers_learn_neither_users_nor_numbers(method: str) -> None:
    shapes = set()
    for user in ("a0001", "nobody", "admin"):
        for password in ("guess", "other"):
            node = Protected()
            (answer,) = login(node, method, user, password)
            shapes.add(str(shape(answer)))
            for number in ("500", "99999", "a0001", "112"):
                shapes.add(str(shape(ask(node, request(method, user=user, number=number)))))
    assert len(shapes) == 1
    node = Protected()
    assert len({str(shape(ask(node, request("OPTIONS", number=number)))) for number in ("500", "999", "a0001")}) == 1


def test_phones_behind_one_address_are_never_limited() -> None:
    node = Protected()
    for number in range(500):
        assert login(node, "REGISTER", f"a000{1 + number % 2}", "secret", now=0.001 * number)[-1].status == 200
    assert node.guard.figures()["sip_guard_banned"] == 0
    assert 'sip_guard_dropped_total{reason="limited"}' not in node.guard.counters


# --- load -----------------------------------------------------------------------------------


def overloaded(node: Node, settings: OverloadSettings | None = None) -> Admission:
    draws = count()
    admission = Admission(settings, random=lambda: next(draws) * 0.31 % 1.0)
    node.endpoint.admission = admission
    admission.on_admitted(call=True, now=0.0)
    for step in range(4):
        admission.observe(Load(late_s=1.0), float(step))
    assert admission.shedding
    return admission


def test_calls_beyond_the_limit_get_503_without_state_and_calls_in_progress_go_on() -> None:
    node = Protected()
    Link(node)
    (trying,) = replies(node, request("INVITE"), TRUNK, 0.0)
    assert trying.status == 100
    overloaded(node)
    statuses = []
    refused = b""
    for _ in range(50):
        data = request("INVITE")
        answer = ask(node, data, TRUNK, 4.0)
        statuses.append(answer.status)
        if answer.status == 503:
            refused = data
            assert 2 <= int(answer.get("retry-after") or 0) <= 6
    assert 1 <= statuses.count(100) <= 10
    assert statuses.count(503) >= 40
    sessions, transactions = node.endpoint.sessions, node.endpoint.transactions
    assert sessions == statuses.count(100) + 1
    first, second = ask(node, refused, TRUNK, 4.0), ask(node, refused, TRUNK, 4.0)  # repeated: refused again
    assert (first.status, first.to.tag) == (second.status, second.to.tag)
    assert ask(node, request("OPTIONS"), TRUNK, 4.0).status == 200
    assert node.endpoint.sessions == sessions
    assert node.endpoint.transactions == transactions


def test_within_a_call_everything_is_served_under_load() -> None:
    caller = Node("192.0.2.1")
    node = Protected()
    called_policy = Trunk("caller", (ip_network("192.0.2.1"),))
    node.endpoint.policy = AccessPolicy([called_policy], {}, DigestVerifier(REALM, bytes(32), random_bytes=bytes))
    link = Link(caller, node)
    from adapters.sip.syntax.uri import SipUri

    session, effects = caller.endpoint.invite(SipUri.parse(f"sip:500@{HERE}"), SDP, from_="<sip:1@x>", now=0.0)
    caller.carry_out(effects)
    link.run()
    assert session is not None
    incoming = node.take()[0]
    assert isinstance(incoming, SessionIncoming)
    overloaded(node)
    node.carry_out(node.endpoint.answer(incoming.session, SDP, link.now))
    link.run()
    caller.carry_out(caller.endpoint.reinvite(session, SDP, link.now))
    link.run()
    assert "SessionOffered" in node.names()
    node.carry_out(node.endpoint.accept_offer(incoming.session, SDP, link.now))
    link.run()
    caller.carry_out(caller.endpoint.hang_up(session, link.now))
    link.run()
    assert "SessionEnded" in node.names()
    link.run(until=link.now + 100.0)
    assert node.endpoint.sessions == caller.endpoint.sessions == 0
    assert node.endpoint.transactions == caller.endpoint.transactions == 0


def test_emergency_calls_are_taken_when_others_are_refused() -> None:
    node = Protected()
    overloaded(node)
    while ask(node, request("INVITE"), TRUNK, 4.0).status != 503:
        pass
    assert ask(node, request("INVITE", number="112"), TRUNK, 4.0).status == 100
    assert ask(node, request("INVITE", "Priority: emergency"), TRUNK, 4.5).status == 100


def test_registrations_are_spread_and_strangers_are_not_answered_for_long() -> None:
    node = Protected()
    overloaded(node)
    told = set()
    answered = 0
    for _ in range(300):
        found = replies(node, request("REGISTER"), now=4.0)
        answered += bool(found)
        told |= {int(answer.get("retry-after") or 0) for answer in found if answer.status == 503}
    assert answered <= SETTINGS.burst + 5  # the guard takes its tokens for refusals, too
    assert len(told) > 10
    assert min(told) >= 10
    assert max(told) <= 40


def test_no_reply_is_made_to_what_is_malformed_for_ever() -> None:
    node = Protected()
    answered = 0
    for _ in range(500):
        answered += bool(replies(node, request("OPTIONS").replace(b"Content-Length: 0", b"Content-Length: x")))
    assert answered == SETTINGS.burst


HOSTILE = ["evil\r\nX-Evil: 1", 'a" <sip:evil@x>;x="', "a\x00b", "\\", '\\"', "%0d%0aX-Evil: 1", "é\ud800\n"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["display", "number", "both"])
def test_nothing_that_a_caller_says_of_itself_escapes_into_our_invite(name: str, place: str) -> None:
    from adapters.sip.syntax.headers import NameAddr, quoted
    from adapters.sip.syntax.uri import SipUri, escape

    display = name if place != "number" else "Ada"
    number = name if place != "display" else "100"
    node = Node("192.0.2.1")
    link = Link(node)
    _, effects = node.endpoint.invite(
        SipUri.parse("sip:a0001@192.0.2.7"),
        SDP,
        from_=f"{quoted(display)} <sip:{escape(number)}@pbx.test>",
        now=0.0,
        headers=[("x-murima-call-id", name)],
    )
    node.carry_out(effects)
    (_, sent) = link.sent[0]
    head = sent.data.partition(b"\r\n\r\n")[0]
    assert b"\x00" not in sent.data
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    message = parse_message(sent.data)
    assert isinstance(message, Request)
    assert not message.has("x-evil")
    assert isinstance(message.from_, NameAddr)
    assert isinstance(message.from_.uri, SipUri)
    assert message.from_.uri.host == "pbx.test"
    assert set(message.from_.params) == {"tag"}
    assert message.body == SDP


def test_a_refused_call_is_not_admitted_when_it_is_repeated() -> None:
    node = Protected()
    overloaded(node)
    data = request("INVITE")
    while ask(node, data, TRUNK, 4.0).status != 503:
        data = request("INVITE")
    for now in (4.5, 5.5, 7.5, 11.5, 30.0):
        assert ask(node, data, TRUNK, now).status == 503
    assert ask(node, request("INVITE"), TRUNK, 30.0).status == 100


def test_what_was_refused_is_remembered_within_bounds() -> None:
    refusals = Refusals(keep_s=32.0, limit=1000)
    for number in range(10_000):
        refusals.add(number, number / 1000)
        assert refusals.has(number, number / 1000)
    assert len(refusals) <= 1000
    assert refusals.has(9_999, 41.0)
    assert not refusals.has(9_999, 200.0)
    assert not refusals
