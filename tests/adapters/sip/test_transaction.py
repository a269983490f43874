from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.transactions.transaction import (
    TIMEOUT,
    ClientTransaction,
    Effect,
    Flow,
    InviteClientTransaction,
    InviteServerTransaction,
    Kind,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    PassUp,
    Send,
    ServerTransaction,
    State,
    TimedOut,
    Transaction,
    Unreachable,
    kind_of,
)

UDP = Flow("udp", 0, "192.0.2.2", 5060)
TCP = Flow("tcp", 0, "192.0.2.2", 5060, 7)


def request(method: str) -> Request:
    return Request.build(
        method,
        "sip:bob@192.0.2.2",
        via="SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx1;rport",
        from_="<sip:alice@192.0.2.1>;tag=a",
        to="<sip:bob@192.0.2.2>",
        call_id="c1",
        cseq=3,
    )


INVITE = request("INVITE")
OPTIONS = request("OPTIONS")


def response(status: int, of: Request = INVITE) -> Response:
    return build_response(of, status, to_tag="b")


def sends(effects: list[Effect]) -> list[bytes]:
    return [effect.data for effect in effects if isinstance(effect, Send)]


def test_invite_is_resent_at_t1_then_at_doubling_intervals() -> None:
    tx = InviteClientTransaction(INVITE, UDP, 0.0)
    assert tx.start() == [Send(UDP, INVITE.serialise())]
    times = []
    while tx.state is State.CALLING:
        now = tx.deadline()
        assert now is not None
        effects = tx.on_time(now)
        if sends(effects):
            times.append(now)
        else:
            assert effects == [TimedOut()]
            assert now == TIMEOUT
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert tx.deadline() is None


def test_provisional_response_stops_repetition_for_good() -> None:
    tx = InviteClientTransaction(INVITE, UDP, 0.0)
    ringing = response(180)
    assert tx.on_response(ringing, 0.1) == [PassUp(ringing)]
    assert tx.deadline() is None
    tx.give_up_at(40.0)
    assert tx.on_time(40.0) == [TimedOut()]
    assert tx.state is State.TERMINATED


def test_refusal_is_acked_each_time_it_comes() -> None:
    tx = InviteClientTransaction(INVITE, UDP, 0.0)
    busy = response(486)
    first = tx.on_response(busy, 0.1)
    (ack,) = sends(first)
    assert ack.startswith(
        b"ACK sip:bob@192.0.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx1;rport\r\n"
    )
    assert b"\r\nTo: <sip:bob@192.0.2.2>;tag=b\r\n" in ack
    assert b"\r\nCSeq: 3 ACK\r\n" in ack
    assert PassUp(busy) in first
    assert sends(tx.on_response(busy, 0.6)) == [ack]
    assert tx.deadline() == 0.1 + 32.0
    assert tx.on_time(33.0) == []
    assert tx.state is State.TERMINATED


def test_repeated_2xx_is_passed_up_until_timer_m() -> None:
    tx = InviteClientTransaction(INVITE, TCP, 0.0)
    ok = response(200)
    assert tx.on_response(ok, 1.0) == [PassUp(ok)]
    assert tx.on_response(ok, 5.0) == [PassUp(ok)]
    assert tx.deadline() == 1.0 + TIMEOUT


def test_request_is_resent_up_to_t2_then_times_out() -> None:
    tx = NonInviteClientTransaction(OPTIONS, UDP, 0.0)
    times = []
    while (now := tx.deadline()) is not None:
        if sends(tx.on_time(now)):
            times.append(now)
    assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]


def test_reliable_transport_never_repeats() -> None:
    for tx in (InviteClientTransaction(INVITE, TCP, 0.0), NonInviteClientTransaction(OPTIONS, TCP, 0.0)):
        assert tx.deadline() == TIMEOUT
    done = NonInviteClientTransaction(OPTIONS, TCP, 0.0)
    done.on_response(response(200, OPTIONS), 0.1)
    assert done.state is State.TERMINATED


def test_refusal_is_repeated_until_the_ack() -> None:
    tx = InviteServerTransaction(INVITE, UDP)
    assert tx.on_request(INVITE, 0.0) == []
    (trying,) = sends(tx.respond(response(100), 0.0))
    assert sends(tx.on_request(INVITE, 0.2)) == [trying]
    (busy,) = sends(tx.respond(response(486), 1.0))
    times = []
    for _ in range(5):
        now = tx.deadline()
        assert now is not None
        assert sends(tx.on_time(now)) == [busy]
        times.append(now)
    assert times == [1.5, 2.5, 4.5, 8.5, 12.5]
    assert tx.on_request(request("ACK"), 13.0) == []
    assert tx.state is State.CONFIRMED
    assert tx.deadline() == 18.0
    tx.on_time(18.0)
    assert tx.deadline() is None


def test_missing_ack_to_a_refusal_times_out() -> None:
    tx = InviteServerTransaction(INVITE, UDP)
    tx.respond(response(486), 0.0)
    effects: list[Effect] = []
    while (now := tx.deadline()) is not None:
        effects = tx.on_time(now)
    assert effects == [TimedOut()]
    assert now is None


def test_accepted_invite_absorbs_repetitions_and_passes_the_ack_up() -> None:
    tx = InviteServerTransaction(INVITE, UDP)
    tx.respond(response(200), 0.0)
    assert tx.state is State.ACCEPTED
    assert tx.on_request(INVITE, 0.5) == []
    ack = request("ACK")
    assert tx.on_request(ack, 0.6) == [PassUp(ack)]
    assert tx.deadline() == TIMEOUT


def test_repeated_request_gets_the_same_answer() -> None:
    tx = NonInviteServerTransaction(OPTIONS, UDP)
    assert tx.on_request(OPTIONS, 0.0) == []
    (answer,) = sends(tx.respond(response(200, OPTIONS), 0.0))
    assert sends(tx.on_request(OPTIONS, 5.0)) == [answer]
    assert tx.respond(response(486, OPTIONS), 6.0) == []  # too late
    assert tx.deadline() == TIMEOUT


@pytest.mark.parametrize("kind", [InviteClientTransaction, NonInviteClientTransaction])
def test_transport_error_ends_a_client_transaction(kind: type[ClientTransaction]) -> None:
    tx = kind(INVITE if kind is InviteClientTransaction else OPTIONS, TCP, 0.0)
    assert tx.on_transport_error(0.1) == [Unreachable()]
    assert tx.state is State.TERMINATED


ALL = (InviteClientTransaction, NonInviteClientTransaction, InviteServerTransaction, NonInviteServerTransaction)


def test_tables_never_go_back() -> None:
    for kind in ALL:
        for (before, _), (after, actions) in kind.TABLE.items():
            assert after >= before
            assert all(callable(action) for action in actions)


def step(tx: Transaction, kind: Kind, now: float) -> list[Effect]:
    message: Any = tx.request
    if kind is Kind.ACK:
        message = request("ACK")
    elif kind in (Kind.PROVISIONAL, Kind.SUCCESS, Kind.FAILURE):
        message = response({Kind.PROVISIONAL: 180, Kind.SUCCESS: 200, Kind.FAILURE: 486}[kind], tx.request)
        assert kind_of(message.status) is kind
        if isinstance(tx, ServerTransaction):
            return tx.respond(message, now)
        assert isinstance(tx, ClientTransaction)
        return tx.on_response(message, now)
    if kind in (Kind.RESEND, Kind.TIMEOUT):
        return tx.on_time(now)
    if kind is Kind.TRANSPORT_ERROR:
        return tx.on_transport_error(now)
    return tx.on_request(message, now) if isinstance(tx, ServerTransaction) else []


@given(
    st.sampled_from(ALL),
    st.sampled_from([UDP, TCP]),
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.floats(0, 40))),
)
def test_every_pair_is_defined_and_every_transaction_ends(
    kind: type[Transaction], flow: Flow, inputs: list[tuple[Kind, float]]
) -> None:
    invite = INVITE if kind in (InviteClientTransaction, InviteServerTransaction) else OPTIONS
    tx: Transaction
    if kind in (InviteClientTransaction, NonInviteClientTransaction):
        tx = kind(invite, flow, 0.0)  # the two clients share a signature
    else:
        tx = kind(invite, flow)  # type: ignore[call-arg]  # and so do the two servers
    now = 0.0
    for what, delay in inputs:
        before = tx.state
        now += delay
        step(tx, what, now)
        assert tx.state >= before
    if isinstance(tx, ServerTransaction):
        tx.respond(response(486, invite), now)
    elif isinstance(tx, InviteClientTransaction):
        tx.give_up_at(now + TIMEOUT)
    last = -math.inf
    for _ in range(100):  # from here on time alone ends it
        deadline = tx.deadline()
        if deadline is None:
            break
        now = max(now, deadline)
        tx.on_time(now)
        after = tx.deadline()
        assert after is None or after > now or tx.state >= State.COMPLETED
        assert now >= last
        last = now
    assert tx.state is State.TERMINATED
    assert step(tx, Kind.SUCCESS, now) == []
