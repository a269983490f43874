"""An endpoint in the hands of a hostile peer and a clumsy owner: any bytes are a course of events.

The bytes choose what happens next: a message of the peer, well-formed or
spoiled; an answer to what we sent; a command of the owner; time. Whatever the
course, each session ends with one event, and once the timers have run out
nothing is left.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from adapters.sip.dialogs.notifier import Notifier
from adapters.sip.dialogs.referral import Referral, Referrals
from adapters.sip.dialogs.session import Session
from adapters.sip.dialogs.session_events import SessionEnded, SessionOffered, SessionOfferWanted
from adapters.sip.endpoint import Effect, Endpoint, SessionIncoming
from adapters.sip.errors import UsageError
from adapters.sip.protection.access import AccessPolicy, Admitted, Trunk
from adapters.sip.protection.digest import DigestVerifier, ha1
from adapters.sip.protection.login import Login
from adapters.sip.registration.registrar import Registrar
from adapters.sip.syntax.message import KNOWN_METHODS, Request, Response, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.failover import Locate
from adapters.sip.targets.location import Target
from adapters.sip.transactions.transaction import Flow, Send

HERE = "192.0.2.2"
PEER = "192.0.2.4"
SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.4\r\ns=-\r\nc=IN IP4 192.0.2.4\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
STEPS = 30  # at most; a longer course shows nothing new
REST_S = 4000.0  # until every timer has run out, registrations and ringing included

METHODS = (*sorted(KNOWN_METHODS), "NEW")
STATUSES = (100, 180, 181, 183, 200, 202, 301, 401, 407, 408, 422, 423, 481, 486, 487, 491, 500, 503, 603)
HEADERS = (
    ("supported", "100rel, timer, replaces"),
    ("require", "100rel"),
    ("require", "unknown"),
    ("session-expires", "90;refresher=uac"),
    ("session-expires", "1"),
    ("min-se", "900"),
    ("rseq", "1"),
    ("rack", "1 1 INVITE"),
    ("replaces", "c1;to-tag=x;from-tag=y"),
    ("refer-to", "<sip:600@192.0.2.2>"),
    ("refer-to", "<sip:600@192.0.2.2?Replaces=c1%3Bto-tag%3Dx%3Bfrom-tag%3Dy>"),
    ("refer-sub", "false"),
    ("event", "dialog"),
    ("event", "refer"),
    ("event", "message-summary"),
    ("subscription-state", "terminated;reason=noresource"),
    ("expires", "0"),
    ("expires", "3600"),
    ("contact", "*"),
    ("contact", "<sip:600@192.0.2.4;transport=tcp>"),
    ("record-route", "<sip:192.0.2.4;lr>"),
    ("record-route", "<sip:proxy.invalid>"),
    ("content-type", "application/dtmf-relay"),
    ("content-type", "message/sipfrag"),
    ("www-authenticate", 'Digest realm="x", nonce="y", algorithm=MD5, qop="auth"'),
    ("www-authenticate", "Digest"),
    ("max-forwards", "0"),
    ("proxy-require", "foo"),
    ("accept", "text/plain"),
)
_VERIFIER_KEY = bytes(range(32))
_HA1 = {name: ha1("600", "pbx.test", "secret", name) for name in ("MD5", "SHA-256")}


class Course:
    """Reads decisions from bytes; when they are used up, everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._data)

    def number(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def choose(self, count: int) -> int:
        return self.number() % count


class Open(AccessPolicy):
    """Takes everybody's REGISTER at its word, so that the registrar is reached without a password."""

    def admit_registration(self, request: Request, *_: object, **__: object) -> Admitted:
        return Admitted(user="600")


class Words:
    """An event package whose state is a word."""

    content_type = "text/plain"

    def admit(self, subscriber: Admitted, resource: str) -> None: ...

    def document(self, resource: str, version: int) -> bytes:
        return b"word %d" % version


class Rig:
    """The endpoint, what it sent, and what its owner knows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tokens = 0
        self.endpoint = Endpoint(
            network=self,
            policy=Open(
                [Trunk("carrier", (ipaddress.ip_network(PEER),))],
                {"600": _HA1},
                DigestVerifier("pbx.test", _VERIFIER_KEY, algorithms=("MD5",), random_bytes=bytes),
            ),
            registrar=Registrar(),
            new_token=self.new_token,
        )
        self.notifier = self.endpoint.notifier = Notifier(
            self.endpoint, {"dialog": Words(), "message-summary": Words()}
        )
        self.referrals = Referrals(self.endpoint, self.on_refer, lambda _session, _status: None)
        self.referred: list[Referral] = []
        self.asked: list[Locate] = []  # names to be looked up
        self.sessions: list[Session] = []
        self.wanted: list[Session] = []
        self.offered: list[Session] = []
        self.ended: Counter[int] = Counter()
        self.requests: list[Request] = []  # ours, to be answered
        self.responses: list[Response] = []  # ours, whose tags the peer now knows
        self.number = 0  # of the peer's last request
        self.said: list[bytes] = []  # what the peer sent

    def new_token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:016x}"

    def on_refer(self, referral: Referral) -> None:
        self.referred.append(referral)

    def vouch(self, flow: Flow, silence_s: float | None) -> None: ...
    def alias(self, flow: Flow, host: str, port: int, *, trusted: bool) -> None: ...

    def local(self, flow: Flow) -> tuple[str, int]:
        return HERE, 5060

    def route(self, transport: str, host: str, port: int) -> Flow | None:
        return Flow(transport, 0, host, port)

    def take(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                sent = parse_message(effect.data)  # nothing unreadable leaves us
                if isinstance(sent, Request):
                    self.requests.append(sent)
                else:
                    self.responses.append(sent)
            elif isinstance(effect, SessionIncoming):
                self.sessions.append(effect.session)
            elif isinstance(effect, SessionOffered):
                self.offered.append(effect.session)
            elif isinstance(effect, SessionEnded):
                self.ended[id(effect.session)] += 1
                self.referrals.forget(effect.session)
            elif isinstance(effect, SessionOfferWanted):
                self.wanted.append(effect.session)
            elif isinstance(effect, Locate):
                self.asked.append(effect)
        del self.requests[:-8], self.responses[:-8]

    def hear(self, data: bytes, transport: str) -> None:
        self.said.append(data)
        flow = Flow(transport, 0, PEER, 5060, 1 if transport == "tcp" else 0)
        self.take(self.endpoint.on_message(data, flow, self.now))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        rounds = 0
        while (at := self.endpoint.deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            self.take(self.endpoint.on_time(self.now))
            rounds += 1
            assert rounds < 20_000, "a timer that never ends"
        self.now = until


def dialogs(data: bytes) -> None:
    """Play a course of events and see that nothing remains of it."""
    course = Course(data)
    rig = Rig()
    for _ in range(STEPS):
        if course.over:
            break
        _STEPS[course.choose(len(_STEPS))](rig, course)
    rig.pass_time(40.0)
    for session in rig.sessions:
        rig.take(rig.endpoint.hang_up(session, rig.now))
    for referral in rig.referred:  # whoever serves REFER must answer each
        referral.refuse(603, rig.now)
    rig.notifier.end_all("deactivated", rig.now)
    rig.take(rig.endpoint.effects())
    rig.pass_time(REST_S)
    assert rig.endpoint.transactions == 0, "a stuck transaction"
    assert rig.endpoint.sessions == 0, "a stuck session"
    assert len(rig.notifier) == 0, "a stuck subscription"
    assert all(rig.ended[id(session)] == 1 for session in rig.sessions), "a session that ended twice or never"
    assert len(rig.endpoint.counters) < 64


# --- steps -----------------------------------------------------------------------------------


def _peer_asks(rig: Rig, course: Course) -> None:
    """A request: in or out of a dialog, with more headers, spoiled or not."""
    method = METHODS[course.choose(len(METHODS))]
    rig.number += 1
    number = rig.number if course.choose(4) else 1
    branch = course.choose(8) or rig.number
    to = "<sip:500@192.0.2.2>"
    from_ = "<sip:600@pbx.test>;tag=f"
    call_id = f"c{course.choose(3)}"
    known = course.choose(4)
    if known == 1 and rig.responses:
        latest = rig.responses[course.choose(len(rig.responses))]
        to, from_ = latest.headers.get("to", [to])[0], latest.headers.get("from", [from_])[0]
        call_id = latest.headers.get("call-id", [call_id])[0]
    elif known == 2 and rig.requests:
        latest_request = rig.requests[course.choose(len(rig.requests))]
        to, from_ = latest_request.headers["from"][0], latest_request.headers["to"][0]
        call_id = latest_request.headers["call-id"][0]
        if ";tag=" not in from_:
            from_ += f";tag=p{course.choose(3)}"
    request = Request.build(
        method,
        "sip:500@192.0.2.2",
        via=f"SIP/2.0/UDP {PEER};branch=z9hG4bK{branch}",
        from_=from_,
        to=to,
        call_id=call_id,
        cseq=number,
    )
    request.set("contact", f"<sip:600@{PEER}>")
    if course.choose(2):
        request.set("supported", "100rel, timer, replaces, norefersub, outbound, path")
    if method == "REFER":
        request.set("refer-to", "<sip:700@192.0.2.2>")
    elif method == "SUBSCRIBE":
        request.set("event", "dialog")
    elif method == "NOTIFY":
        request.set("event", "refer")
        request.set("content-type", "message/sipfrag")
        request.body = b"SIP/2.0 200 OK\r\n"
    _dress(request, course)
    rig.hear(_spoiled(request.serialise(), course), "tcp" if course.choose(5) == 4 else "udp")


def _peer_answers(rig: Rig, course: Course) -> None:
    """A response to a request of ours."""
    if not rig.requests:
        return
    request = rig.requests[course.choose(len(rig.requests))]
    status = STATUSES[course.choose(len(STATUSES))]
    response = build_response(request, status, to_tag=f"p{course.choose(3)}")
    response.set("contact", f"<sip:600@{PEER}>")
    _dress(response, course)
    rig.hear(_spoiled(response.serialise(), course), "udp")


def _peer_repeats(rig: Rig, course: Course) -> None:
    if rig.said:
        rig.hear(rig.said[-1 - course.choose(min(8, len(rig.said)))], "udp")


def _peer_acks(rig: Rig, course: Course) -> None:
    """The ACK to a final response of ours."""
    finals = [response for response in rig.responses if response.status >= 200 and response.has("cseq")]
    if not finals:
        return
    final = finals[course.choose(len(finals))]
    with suppress(Exception):  # a spoiled request was answered with what it held
        ack = Request.build(
            "ACK",
            "sip:murima@192.0.2.2",
            via=final.headers["via"][0],
            from_=final.headers["from"][0],
            to=final.headers["to"][0],
            call_id=final.headers["call-id"][0],
            cseq=final.cseq.number,
        )
        if course.choose(3) == 1:
            ack.set("content-type", "application/sdp")
            ack.body = SDP
        rig.said.append(ack.serialise())
    rig.hear(rig.said[-1], "udp") if rig.said else None


def _owner_commands(rig: Rig, course: Course) -> None:
    if not rig.sessions:
        return
    session = rig.sessions[course.choose(len(rig.sessions))]
    command = _COMMANDS[course.choose(len(_COMMANDS))]
    with suppress(UsageError):
        rig.take(command(rig, session))


def _owner_calls(rig: Rig, course: Course) -> None:
    if len(rig.sessions) >= 6:
        return
    session, effects = rig.endpoint.invite(
        SipUri("sip", "600", host=(PEER, PEER, "phone.invalid")[course.choose(3)]),
        SDP,
        from_="<sip:500@pbx.test>",
        now=rig.now,
        ring_timeout_s=(None, 5.0, 30.0)[course.choose(3)],
        login=Login("500", "secret") if course.choose(2) else None,
    )
    if session is not None:
        rig.sessions.append(session)
    rig.take(effects)


def _owner_settles_offer(rig: Rig, course: Course) -> None:
    if not rig.offered:
        return
    session = rig.offered.pop()
    if course.choose(2):
        rig.take(rig.endpoint.accept_offer(session, SDP, rig.now))
    else:
        rig.take(rig.endpoint.refuse_offer(session, 488, rig.now))


def _owner_offers_anew(rig: Rig, _course: Course) -> None:
    """As the session wanted: a refresh, or once more after glare."""
    if rig.wanted:
        with suppress(UsageError):
            rig.take(rig.endpoint.reinvite(rig.wanted.pop(), SDP, rig.now))


def _owner_settles_refer(rig: Rig, course: Course) -> None:
    if not rig.referred:
        return
    referral = rig.referred[-1 - course.choose(min(4, len(rig.referred)))]
    what = course.choose(5)
    if what < 2:
        referral.accept(rig.now, first=bool(what))
    elif what == 2:
        referral.refuse(603, rig.now)
    else:
        referral.tell((180, 200, 486)[course.choose(3)], rig.now)
    rig.take(rig.endpoint.effects())


def _owner_changes_state(rig: Rig, course: Course) -> None:
    rig.notifier.change("dialog", ("500", "600")[course.choose(2)], rig.now)
    rig.take(rig.endpoint.effects())


def _owner_refers(rig: Rig, course: Course) -> None:
    if rig.sessions:
        session = rig.sessions[course.choose(len(rig.sessions))]
        with suppress(UsageError):
            rig.referrals.ask(session, "sip:700@192.0.2.5", "<sip:500@192.0.2.2>", rig.now)
        rig.take(rig.endpoint.effects())


def _name_is_found(rig: Rig, course: Course) -> None:
    """The look-up of a host name ends: with one target, with two, or with none."""
    if not rig.asked:
        return
    question = rig.asked.pop(course.choose(len(rig.asked)))
    hosts = ((PEER,), (PEER, "192.0.2.5"), ())[course.choose(3)]
    targets = [Target("udp", host, 5060, question.uri.host) for host in hosts]
    rig.take(rig.endpoint.on_located(question.ticket, targets, rig.now))


def _peer_pracks(rig: Rig, course: Course) -> None:
    """The PRACK to a reliable response of ours (RFC 3262)."""
    reliable = [response for response in rig.responses if response.has("rseq") and response.has("cseq")]
    if not reliable:
        return
    latest = reliable[course.choose(len(reliable))]
    request = Request.build(
        "PRACK",
        "sip:murima@192.0.2.2",
        via=f"SIP/2.0/UDP {PEER};branch=z9hG4bKprack{course.choose(4)}",
        from_=latest.headers["from"][0],
        to=latest.headers["to"][0],
        call_id=latest.headers["call-id"][0],
        cseq=course.choose(8) + 1,
    )
    request.set("rack", f"{latest.get('rseq')} {latest.headers['cseq'][0]}")
    _dress(request, course)
    rig.hear(_spoiled(request.serialise(), course), "udp")


def _time(rig: Rig, course: Course) -> None:
    rig.pass_time((0.01, 0.5, 1.0, 4.0, 33.0, 61.0, 130.0)[course.choose(7)])


def _network_fails(rig: Rig, _course: Course) -> None:
    rig.take(rig.endpoint.on_unreachable(Flow("udp", 0, PEER, 5060), rig.now))


def _noise(rig: Rig, course: Course) -> None:
    rig.hear(bytes(course.number() for _ in range(course.choose(24))), "udp")


_STEPS: tuple[Callable[[Rig, Course], None], ...] = (
    _peer_asks,
    _peer_asks,
    _peer_asks,
    _peer_answers,
    _peer_answers,
    _peer_acks,
    _peer_repeats,
    _owner_commands,
    _owner_commands,
    _owner_calls,
    _owner_settles_offer,
    _time,
    _network_fails,
    _noise,
    _owner_offers_anew,
    _owner_settles_refer,
    _owner_refers,
    _name_is_found,
    _peer_pracks,
    _owner_changes_state,
)

_COMMANDS: tuple[Callable[[Rig, Session], Iterable[Effect]], ...] = (
    lambda rig, session: rig.endpoint.ring(session, rig.now),
    lambda rig, session: rig.endpoint.answer(session, SDP, rig.now),
    lambda rig, session: rig.endpoint.answer(session, SDP, rig.now),
    lambda rig, session: rig.endpoint.reject(session, 486, rig.now),
    lambda rig, session: rig.endpoint.hang_up(session, rig.now),
    lambda rig, session: rig.endpoint.reinvite(session, SDP, rig.now),
    lambda rig, session: rig.endpoint.probe(session, rig.now, 4.0),
    lambda rig, session: rig.endpoint.progress(session, SDP, rig.now),
    lambda rig, session: rig.endpoint.update(session, SDP, rig.now),
)


def _dress(message: Request | Response, course: Course) -> None:
    """Some more headers, and a body or none."""
    for _ in range(course.choose(3)):
        name, value = HEADERS[course.choose(len(HEADERS))]
        message.set(name, value)
    kind = course.choose(5)
    if kind == 1:
        message.set("content-type", "application/sdp")
        message.body = SDP
    elif kind == 2:
        message.set("content-type", "application/dtmf-relay")
        message.body = b"Signal=5\r\nDuration=160\r\n"
    elif kind == 3:
        message.set("content-type", 'multipart/mixed;boundary="b"')
        message.body = b"--b\r\nContent-Type: application/sdp\r\n\r\n" + SDP + b"\r\n--b--\r\n"


def _spoiled(data: bytes, course: Course) -> bytes:
    """Sometimes a few bytes are not what they were."""
    if course.choose(3):
        return data
    raw = bytearray(data)
    for _ in range(course.choose(4)):
        position = (course.number() << 8 | course.number()) % len(raw)
        raw[position : position + course.choose(5)] = bytes(course.number() for _ in range(course.choose(4)))
    return bytes(raw)
