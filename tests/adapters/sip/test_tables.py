"""Each pair of a state and what can happen in it is either in its table, or dropped on purpose and named here."""

from __future__ import annotations

import pytest

from adapters.sip.transaction import (
    InviteClientTransaction,
    InviteServerTransaction,
    Kind,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    ServerTransaction,
    State,
    Transaction,
)

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
