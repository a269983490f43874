"""Each pair of a state and what can happen in it is either in its table, or dropped on purpose and named here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

from adapters.sip.dialogs.session import Session
from adapters.sip.dialogs.session_events import SessionEnded, SessionOffered, SessionState
from adapters.sip.endpoint import Effect, Endpoint, SessionIncoming
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.registration.registrar import Registrar, RegistrarLimits
from adapters.sip.syntax.message import KNOWN_METHODS, Request, Response, build_response, parse_message
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import (
    Flow,
    InviteClientTransaction,
    InviteServerTransaction,
    Kind,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    ServerTransaction,
    State,
    Transaction,
)
from tests.sip_link import SDP, Link, Node, new_token

TRANSACTIONS = (
    InviteClientTransaction,
    NonInviteClientTransaction,
    InviteServerTransaction,
    NonInviteServerTransaction,
)
RESPONSES = {Kind.PROVISIONAL, Kind.SUCCESS, Kind.FAILURE}
OF_ALL = {*RESPONSES, Kind.RESEND, Kind.TIMEOUT, Kind.TRANSPORT_ERROR}
OF_SERVERS = {*OF_ALL, Kind.REPEAT, Kind.ACK}

# What is dropped, by state, and why. TERMINATED drops everything: the layer has forgotten it.
DROPPED: dict[type[Transaction], dict[State, tuple[set[Kind], str]]] = {
    InviteClientTransaction: {
        State.CALLING: (set(), ""),
        State.PROCEEDING: ({Kind.RESEND}, "timer A ends with the first response"),
        State.ACCEPTED: (
            {Kind.PROVISIONAL, Kind.FAILURE, Kind.RESEND, Kind.TRANSPORT_ERROR},
            "late responses after a 2xx; the ACK is the user's to send (RFC 6026 7.2)",
        ),
        State.COMPLETED: (
            {Kind.PROVISIONAL, Kind.SUCCESS, Kind.RESEND},
            "late responses after a refusal; it is acknowledged already",
        ),
    },
    NonInviteClientTransaction: {
        State.TRYING: (set(), ""),
        State.PROCEEDING: (set(), ""),
        State.COMPLETED: ({*RESPONSES, Kind.RESEND, Kind.TRANSPORT_ERROR}, "repetitions of the answer"),
    },
    InviteServerTransaction: {
        State.PROCEEDING: (
            {Kind.RESEND, Kind.TIMEOUT, Kind.ACK},
            "no timer runs while the user decides; nothing is there to be acknowledged",
        ),
        State.ACCEPTED: ({*RESPONSES, Kind.RESEND}, "one final response; the user repeats its 2xx (RFC 6026 7.1)"),
        State.COMPLETED: (RESPONSES, "one final response"),
        State.CONFIRMED: (
            {*RESPONSES, Kind.RESEND, Kind.TRANSPORT_ERROR, Kind.REPEAT, Kind.ACK},
            "absorbs what is late until timer I",
        ),
    },
    NonInviteServerTransaction: {
        State.TRYING: (
            {Kind.RESEND, Kind.TIMEOUT, Kind.TRANSPORT_ERROR, Kind.ACK},
            "no timer runs, nothing was sent; ACK belongs to INVITE",
        ),
        State.PROCEEDING: ({Kind.RESEND, Kind.TIMEOUT, Kind.ACK}, "no timer runs; ACK belongs to INVITE"),
        State.COMPLETED: ({*RESPONSES, Kind.RESEND, Kind.ACK}, "one final response, repeated when asked"),
    },
}


def states_of(kind: type[Transaction]) -> set[State]:
    return {state for (before, _), (after, _) in kind.TABLE.items() for state in (before, after)}


@pytest.mark.parametrize("kind", TRANSACTIONS)
def test_every_pair_of_a_transaction_is_listed_or_dropped_on_purpose(kind: type[Transaction]) -> None:
    inputs = OF_SERVERS if issubclass(kind, ServerTransaction) else OF_ALL
    dropped = DROPPED[kind]
    assert states_of(kind) == {*dropped, State.TERMINATED}
    for state, (drops, why) in dropped.items():
        listed = {what for (before, what) in kind.TABLE if before is state}
        assert listed | drops == inputs, state
        assert not listed & drops, state
        assert bool(why) == bool(drops)
    assert not [pair for pair in kind.TABLE if pair[0] is State.TERMINATED]


@pytest.mark.parametrize("kind", TRANSACTIONS)
def test_every_state_of_a_transaction_leads_to_its_end(kind: type[Transaction]) -> None:
    leads = {State.TERMINATED}
    for _ in State:
        leads |= {before for (before, _), (after, _) in kind.TABLE.items() if after in leads}
    assert leads == states_of(kind)


# --- sessions ------------------------------------------------------------------------------------

HERE, PEER = "192.0.2.2", "192.0.2.4"
OFFERED = -1  # handed to the owner, who answers


class Call:
    """A call between an endpoint and a peer whose messages are written by hand."""

    def __init__(self) -> None:
        self.node = Node(HERE, trunks={"carrier": PEER}, registrar=Registrar())
        self.link = Link(self.node)
        self.session: Session
        self.names: dict[str, str] = {}
        self.number = 1

    def hear(self, data: bytes) -> list[Response]:
        found = [parse_message(reply) for reply in self.link.raw(self.node, data, PEER)]
        return [reply for reply in found if isinstance(reply, Response)]

    def do(self, effects: Iterable[Effect]) -> None:
        self.node.carry_out(list(effects))

    def ask(self, method: str, number: int | None = None) -> list[int]:
        """Send a request within the dialog; the final answers to it."""
        if number is None:
            self.number += 1
            number = self.number
        request = Request.build(
            method,
            f"sip:murima@{HERE}",
            via=f"SIP/2.0/UDP {PEER};branch=z9hG4bK{new_token()}",
            from_=self.names["theirs"],
            to=self.names["ours"],
            call_id=self.session.sip_call_id,
            cseq=number,
        )
        request.set("contact", f"<sip:600@{PEER}>")
        if method in ("INVITE", "UPDATE"):
            request.set("content-type", "application/sdp")
            request.body = SDP
        return [reply.status for reply in self.hear(request.serialise()) if reply.cseq.method == method]

    def sent(self, method: str) -> Request:
        """Our last request of this method."""
        for _, send in reversed(self.link.sent):
            message = parse_message(send.data)
            if isinstance(message, Request) and message.method == method:
                return message
        raise AssertionError(f"no {method} was sent")

    def reply(self, method: str, status: int, tag: str = "p") -> None:
        response = build_response(self.sent(method), status, to_tag=tag)
        response.set("contact", f"<sip:600@{PEER}>")
        if 200 <= status < 300 and method == "INVITE":
            response.set("content-type", "application/sdp")
            response.body = SDP
        self.hear(response.serialise())


def incoming() -> Call:
    call = Call()
    call.names = {"theirs": "<sip:600@x>;tag=p", "ours": "<sip:500@y>"}
    invite = Request.build(
        "INVITE",
        f"sip:500@{HERE}",
        via=f"SIP/2.0/UDP {PEER};branch=z9hG4bK{new_token()}",
        from_=call.names["theirs"],
        to=call.names["ours"],
        call_id=new_token(),
        cseq=1,
    )
    invite.set("contact", f"<sip:600@{PEER}>")
    invite.set("content-type", "application/sdp")
    invite.body = SDP
    call.hear(invite.serialise())
    event = call.node.events[0]
    assert isinstance(event, SessionIncoming)
    call.session = event.session
    call.names["ours"] += f";tag={event.session.local_tag}"
    return call


def answered() -> Call:
    call = incoming()
    call.do(call.node.endpoint.answer(call.session, SDP, 0.0))
    return call


def confirmed() -> Call:
    call = answered()
    call.ask("ACK", 1)
    return call


def closing() -> Call:
    call = confirmed()
    call.do(call.node.endpoint.hang_up(call.session, 0.0))
    return call


def closing_without_ack() -> Call:
    call = answered()
    call.do(call.node.endpoint.hang_up(call.session, 0.0))
    return call


def calling() -> Call:
    call = Call()
    session, effects = call.node.endpoint.invite(
        SipUri("sip", "600", host=PEER), SDP, from_="<sip:500@y>", now=0.0, ring_timeout_s=60.0
    )
    assert session is not None
    call.session = session
    call.do(effects)
    invite = call.sent("INVITE")
    call.names = {"theirs": f"{invite.headers['to'][0]};tag=p", "ours": invite.headers["from"][0]}
    return call


def ringing() -> Call:
    call = calling()
    call.reply("INVITE", 180)
    return call


def called() -> Call:
    call = ringing()
    call.reply("INVITE", 200)
    return call


def giving_up() -> Call:
    call = ringing()
    call.do(call.node.endpoint.hang_up(call.session, 0.0))
    return call


STATES: dict[str, tuple[Callable[[], Call], SessionState]] = {
    "incoming": (incoming, SessionState.INCOMING),
    "answered": (answered, SessionState.ANSWERED),
    "confirmed": (confirmed, SessionState.CONFIRMED),
    "called": (called, SessionState.CONFIRMED),
    "calling": (calling, SessionState.CALLING),
    "ringing": (ringing, SessionState.CALLING),
    "giving up": (giving_up, SessionState.CLOSING),
    "closing": (closing, SessionState.CLOSING),
    "closing without ACK": (closing_without_ack, SessionState.CLOSING),
}
METHODS = sorted(KNOWN_METHODS | {"NEW"})
# What no session serves by itself: REFER and NOTIFY have handlers of their own, the rest is for outside of dialogs.
_FOREIGN = dict.fromkeys(("MESSAGE", "NOTIFY", "PUBLISH", "REFER", "REGISTER", "SUBSCRIBE"), 405) | {"NEW": 501}
_TALKING = _FOREIGN | {"BYE": 200, "INFO": 200, "OPTIONS": 200, "INVITE": OFFERED, "UPDATE": OFFERED, "PRACK": 481}
_GONE = dict.fromkeys(METHODS, 481) | {"BYE": 200}
# Answer to each method in each state; CANCEL never means a dialog (481), ACK is never answered.
EXPECTED: dict[str, dict[str, int]] = {
    "incoming": _TALKING | {"INVITE": 500, "UPDATE": 500},  # their offer waits (RFC 3261 14.2, RFC 3311 5.2)
    "answered": _TALKING,
    "confirmed": _TALKING,
    "called": _TALKING,
    "calling": dict.fromkeys(METHODS, 481) | {"INVITE": 491, "UPDATE": 491},  # no dialog yet, and our offer waits
    "ringing": dict.fromkeys(METHODS, 481) | {"INVITE": 491, "UPDATE": 491, "INFO": 200, "OPTIONS": 200},
    "giving up": dict.fromkeys(METHODS, 481),
    "closing": _GONE,
    "closing without ACK": _GONE,
}


def finish(call: Call) -> None:
    """Time runs out: nothing is stuck, and the owner was told of the end once."""
    call.do(call.node.endpoint.hang_up(call.session, call.link.now))
    call.link.run(call.link.now + 200.0)
    assert (call.node.endpoint.sessions, call.node.endpoint.transactions) == (0, 0)
    assert call.session.state is SessionState.ENDED
    assert sum(isinstance(event, SessionEnded) for event in call.node.events) == 1


def test_every_state_of_a_session_is_reached_here() -> None:
    assert {state for _, state in STATES.values()} == set(SessionState) - {SessionState.ENDED}
    for make, state in STATES.values():
        assert make().session.state is state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", STATES)
def test_every_method_has_its_answer_in_every_state(state: str, method: str) -> None:
    call = STATES[state][0]()
    found = call.ask(method)
    expected = EXPECTED[state].get(method)
    if method == "ACK" or expected == OFFERED:
        assert found == []
        assert any(isinstance(event, SessionOffered) for event in call.node.events) is (method != "ACK")
    else:
        assert found == [481 if method == "CANCEL" else expected]
    finish(call)


@pytest.mark.parametrize("state", STATES)
def test_requests_of_other_dialogs_and_old_ones_are_refused_in_every_state(state: str) -> None:
    call = STATES[state][0]()
    theirs = call.names["theirs"]
    call.names["theirs"] = "<sip:600@x>;tag=other"
    assert call.ask("INFO") == [481]
    call.names["theirs"] = theirs
    assert call.ask("OPTIONS", 50) in ([200], [481])
    assert call.ask("OPTIONS", 49) in ([500], [481])
    finish(call)


ANSWERS = (100, 180, 183, 199, 200, 202, 301, 400, 401, 407, 408, 415, 422, 481, 486, 487, 491, 500, 503, 600, 603)


def reinviting() -> Call:
    call = confirmed()
    call.do(call.node.endpoint.reinvite(call.session, SDP, 0.0))
    return call


def updating() -> Call:
    call = confirmed()
    call.do(call.node.endpoint.update(call.session, SDP, 0.0))
    return call


def probing() -> Call:
    call = confirmed()
    call.do(call.node.endpoint.probe(call.session, 0.0))
    return call


WAITING: dict[str, tuple[Callable[[], Call], str]] = {
    "calling": (calling, "INVITE"),
    "ringing": (ringing, "INVITE"),
    "giving up": (giving_up, "INVITE"),
    "cancelling": (giving_up, "CANCEL"),
    "reinviting": (reinviting, "INVITE"),
    "updating": (updating, "UPDATE"),
    "probing": (probing, "OPTIONS"),
    "closing": (closing, "BYE"),
}


@pytest.mark.parametrize("status", ANSWERS)
@pytest.mark.parametrize("waiting", WAITING)
def test_every_response_to_every_request_of_ours_leads_on(waiting: str, status: int) -> None:
    """Once, again, and again from another branch; in the end nothing is left."""
    make, method = WAITING[waiting]
    call = make()
    if method == "UPDATE" and not has_sent(call, method):
        method = "INVITE"  # the peer did not say that it knows UPDATE
    for tag in ("p", "p", "fork"):
        call.reply(method, status, tag)
    finish(call)


def has_sent(call: Call, method: str) -> bool:
    return any(send.data.startswith(method.encode()) for _, send in call.link.sent)


COMMANDS: dict[str, Callable[[Endpoint, Session], list[Effect]]] = {
    "ring": lambda endpoint, session: endpoint.ring(session, 0.0),
    "progress": lambda endpoint, session: endpoint.progress(session, SDP, 0.0),
    "answer": lambda endpoint, session: endpoint.answer(session, SDP, 0.0),
    "reject": lambda endpoint, session: endpoint.reject(session, 486, 0.0),
    "hang up": lambda endpoint, session: endpoint.hang_up(session, 0.0),
    "accept offer": lambda endpoint, session: endpoint.accept_offer(session, SDP, 0.0),
    "refuse offer": lambda endpoint, session: endpoint.refuse_offer(session, 488, 0.0),
    "reinvite": lambda endpoint, session: endpoint.reinvite(session, SDP, 0.0),
    "update": lambda endpoint, session: endpoint.update(session, SDP, 0.0),
    "probe": lambda endpoint, session: endpoint.probe(session, 0.0),
}


@pytest.mark.parametrize("state", [*STATES, "ended"])
@pytest.mark.parametrize("first", COMMANDS)
def test_every_command_in_every_state_is_carried_out_or_means_nothing(state: str, first: str) -> None:
    """Each pair of commands: an owner's command may come late, never break anything."""
    for second in COMMANDS:
        call = (STATES[state] if state in STATES else STATES["confirmed"])[0]()
        if state == "ended":
            call.ask("BYE")
        for command in (first, second):
            with suppress(UsageError):  # an offer without a dialog to make it in
                call.do(COMMANDS[command](call.node.endpoint, call.session))
        finish(call)


# --- the registrar -------------------------------------------------------------------------------


def register(registrar: Registrar, contact: str, *, number: int, call_id: str = "c", expires: str = "") -> int:
    """Status that a REGISTER gets."""
    request = Request.build(
        "REGISTER",
        "sip:pbx",
        via="SIP/2.0/UDP h",
        from_="<sip:u@x>;tag=1",
        to="<sip:u@x>",
        call_id=call_id,
        cseq=number,
    )
    if contact:
        request.set("contact", contact)
    if expires:
        request.set("expires", expires)
    try:
        registrar.register(request, "u", Flow("udp", 0, PEER, 5060), 0.0)
    except PeerError as exc:
        return exc.status
    return 200


ONE, TWO = "<sip:a@192.0.2.4>", "<sip:b@192.0.2.4>"
REGISTRATIONS: dict[str, list[str]] = {"none": [], "one": [ONE], "two": [ONE, TWO], "full": [ONE, TWO, "<sip:c@h>"]}
# What a REGISTER asks for: Contact, Expires, CSeq relative to the one before, Call-ID.
ASKED: dict[str, tuple[str, str, int, str]] = {
    "query": ("", "", 1, "c"),
    "refresh": (ONE, "", 1, "c"),
    "another phone": ("<sip:d@h>", "", 1, "d"),
    "remove": (f"{ONE};expires=0", "", 1, "c"),
    "remove all": ("*", "0", 1, "c"),
    "late": (ONE, "", 0, "c"),
    "late, remove all": ("*", "0", 0, "c"),
    "restarted phone": (ONE, "", 0, "new"),
    "too brief": (f"{ONE};expires=5", "", 1, "c"),
    "star without expires": ("*", "", 1, "c"),
    "star and more": (f"*, {ONE}", "0", 1, "c"),
    "twice the same": (f"{ONE}, {ONE}", "", 1, "c"),
    "tel": ("<tel:+123>", "", 1, "c"),
    "malformed": ("<sip:", "", 1, "c"),
    "too many": (", ".join(f"<sip:{n}@h>" for n in range(4)), "", 1, "c"),
}
_SAME = {"none": 0, "one": 1, "two": 2, "full": 3}
# Status, and how many bindings there are afterwards.
OUTCOMES: dict[str, dict[str, tuple[int, int]]] = {
    "query": {state: (200, count) for state, count in _SAME.items()},
    "refresh": {"none": (200, 1), "one": (200, 1), "two": (200, 2), "full": (200, 3)},
    "another phone": {"none": (200, 1), "one": (200, 2), "two": (200, 3), "full": (200, 3)},  # the oldest makes room
    "remove": {"none": (200, 0), "one": (200, 0), "two": (200, 1), "full": (200, 2)},
    "remove all": dict.fromkeys(_SAME, (200, 0)),
    "late": {"none": (200, 1), "one": (500, 1), "two": (500, 2), "full": (500, 3)},
    "late, remove all": {"none": (200, 0), "one": (500, 1), "two": (500, 2), "full": (500, 3)},
    "restarted phone": {"none": (200, 1), "one": (200, 1), "two": (200, 2), "full": (200, 3)},
    "too brief": {state: (423, count) for state, count in _SAME.items()},
    "star without expires": {state: (400, count) for state, count in _SAME.items()},
    "star and more": {state: (400, count) for state, count in _SAME.items()},
    "twice the same": {state: (400, count) for state, count in _SAME.items()},
    "tel": {state: (400, count) for state, count in _SAME.items()},
    "malformed": {state: (400, count) for state, count in _SAME.items()},
    "too many": {state: (503, count) for state, count in _SAME.items()},
}


@pytest.mark.parametrize("state", REGISTRATIONS)
@pytest.mark.parametrize("asked", ASKED)
def test_every_register_has_its_outcome_in_every_state(state: str, asked: str) -> None:
    registrar = Registrar(RegistrarLimits(per_user=3))
    for contact in REGISTRATIONS[state]:
        assert register(registrar, contact, number=10) == 200
    contact, expires, step, call_id = ASKED[asked]
    status = register(registrar, contact, number=10 + step, call_id=call_id, expires=expires)
    assert (status, len(registrar)) == OUTCOMES[asked][state]
    registrar.on_time(8000.0)
    assert (len(registrar), registrar.deadline()) == (0, None)
