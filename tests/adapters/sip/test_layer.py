from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.dialogs.dialog import Dialog, destination, next_flow
from adapters.sip.errors import PeerError, UsageError
from adapters.sip.protection.access import AccessPolicy, Admitted, Trunk
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.syntax.message import Request, build_response
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.layer import TransactionLayer
from adapters.sip.transactions.schedule import Schedule
from adapters.sip.transactions.transaction import Flow, Send

UDP = Flow("udp", 0, "192.0.2.1", 5060)
TLS = Flow("tls", 1, "192.0.2.1", 5061, 0, "carrier.test")
WS = Flow("ws", 2, "192.0.2.1", 40000, 7)
TCP = Flow("tcp", 1, "192.0.2.1", 40000, 9)


def request(method: str = "OPTIONS", *, branch: str = "z9hG4bKq", cseq: int = 1, to: str = "<sip:b@x>") -> Request:
    made = Request.build(
        method,
        "sip:b@192.0.2.2",
        via=f"SIP/2.0/UDP 192.0.2.1:5060;branch={branch}",
        from_="<sip:a@x>;tag=1",
        to=to,
        call_id="c",
        cseq=cseq,
    )
    made.set("contact", "<sip:a@192.0.2.1:5061>")
    return made


# --- matching -------------------------------------------------------------------------------------


def test_same_branch_of_another_host_or_method_is_another_transaction() -> None:
    layer = TransactionLayer()
    tx = layer.open_server(request(), UDP)
    assert layer.find_server(request()) is tx
    assert layer.find_server(request("INFO")) is None
    other = request()
    other.replace_first("via", "SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bKq")
    assert layer.find_server(other) is None


def test_bare_cookie_is_matched_like_rfc_2543() -> None:
    layer = TransactionLayer()
    tx = layer.open_server(request("INVITE", branch="z9hG4bK"), UDP)
    assert layer.find_server(request("INVITE", branch="z9hG4bK", cseq=2)) is None
    assert layer.find_server(request("ACK", branch="z9hG4bK", to="<sip:b@x>;tag=2")) is tx
    assert layer.find_cancelled(request("CANCEL", branch="z9hG4bK")) is tx


def test_client_transactions_are_found_by_branch_and_method() -> None:
    layer = TransactionLayer()
    tx, effects = layer.open_client(request(), UDP, 0.0)
    assert effects == [Send(UDP, request().serialise())]
    assert layer.find_client(build_response(request(), 200)) is tx
    assert layer.find_client(build_response(request("INFO"), 200)) is None
    with pytest.raises(UsageError):
        layer.open_client(request(), UDP, 0.0)


def test_tables_empty_themselves() -> None:
    layer = TransactionLayer()
    for number in range(10):
        layer.open_client(request(branch=f"z9hG4bK{number}"), UDP, 0.0)
        tx = layer.open_server(request(branch=f"z9hG4bK{number}", cseq=number), UDP)
        layer.respond(tx, build_response(tx.request, 200), 0.0)
    assert layer.is_merged(request(branch="z9hG4bKother", cseq=3))
    assert len(layer) == 20
    while (deadline := layer.deadline()) is not None:
        layer.on_time(deadline)
    assert len(layer) == 0
    assert not layer.is_merged(request(branch="z9hG4bKother", cseq=3))


def test_failed_flow_ends_what_waits_for_it() -> None:
    layer = TransactionLayer()
    layer.open_client(request(branch="z9hG4bK1"), TCP, 0.0)
    kept, _ = layer.open_client(request(branch="z9hG4bK2"), UDP, 0.0)
    ((_, effects),) = layer.on_flow_failed(TCP, 1.0)
    assert len(effects) == 1
    assert len(layer) == 1
    assert layer.find_client(build_response(request(branch="z9hG4bK2"), 200)) is kept


# --- schedule -------------------------------------------------------------------------------------


class Item:
    def __init__(self, at: float | None) -> None:
        self.at = at
        self.scheduled_at: float | None = None

    def deadline(self) -> float | None:
        return self.at


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 50))), st.integers(0, 60))
def test_schedule_fires_what_is_due_and_nothing_else(changes: list[tuple[int, int | None]], now: int) -> None:
    items = [Item(None) for _ in range(5)]
    schedule: Schedule[Item] = Schedule()
    for index, at in changes:
        items[index].at = at
        schedule.update(items[index])
        known = [item.at for item in items if item.at is not None]
        next_at = schedule.next_at()
        assert not known or (next_at is not None and next_at <= min(known))
    fired = []
    for item in schedule.due(now):
        fired.append(item)
        item.at = None
    assert {id(item) for item in fired} == {id(i) for i in items if i in fired}
    assert all(item.at is None or item.at > now for item in items)
    assert len(fired) == len(set(map(id, fired)))


# --- dialogs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:a@192.0.2.7", ("udp", "192.0.2.7", 5060)),
        ("sip:a@192.0.2.7:5070;transport=TCP", ("tcp", "192.0.2.7", 5070)),
        ("sip:a@h;maddr=192.0.2.8", ("udp", "192.0.2.8", 5060)),
        ("sip:a@[2001:db8::1]:5062", ("udp", "2001:db8::1", 5062)),
        ("sips:a@192.0.2.7", ("tls", "192.0.2.7", 5061)),
        ("sips:a@192.0.2.7;transport=tcp", ("tls", "192.0.2.7", 5061)),
        ("sips:a@192.0.2.7;transport=udp", None),
        ("sip:a@192.0.2.7;transport=tls", ("tls", "192.0.2.7", 5061)),
        ("sip:a@h.invalid;transport=ws", ("ws", "h.invalid", 80)),
        ("tel:+49301", None),
        ("sip:a@h;transport=sctp", None),
    ],
)
def test_destination_of_a_uri(uri: str, expected: tuple[str, str, int] | None) -> None:
    assert destination(SipUri.parse(uri)) == expected


@pytest.mark.parametrize(
    ("target", "source", "sent_by", "expected"),
    [
        # A phone on the same address: its Contact port counts.
        ("sip:a@192.0.2.1:5061", UDP, "192.0.2.1", Flow("udp", 0, "192.0.2.1", 5061)),
        # Behind a NAT: Via and Contact name an address that we cannot reach.
        ("sip:a@10.0.0.5:5062", UDP._replace(port=33333), "10.0.0.5", UDP._replace(port=33333)),
        ("sip:a@10.0.0.5:5062", Flow("udp", 0, "8.8.8.8", 33333), "10.9.9.9", Flow("udp", 0, "8.8.8.8", 33333)),
        # A gateway that wants the rest of the dialog elsewhere.
        ("sip:a@198.51.100.4", UDP, "192.0.2.1", Flow("udp", 0, "198.51.100.4", 5060)),
        # TCP: the connection as long as it lasts, else the Contact.
        ("sip:a@10.0.0.5:5062;transport=tcp", TCP, "10.0.0.5", Flow("tcp", 1, "10.0.0.5", 5062, 9)),
        ("sip:a@192.0.2.1:5070;transport=tcp", UDP, "192.0.2.1", Flow("tcp", 0, "192.0.2.1", 5070)),
        ("sips:a@192.0.2.1", UDP, "192.0.2.1", Flow("tls", 0, "192.0.2.1", 5061)),
        ("sips:a@192.0.2.1;transport=udp", UDP, "192.0.2.1", UDP),
        ("sip:a@192.0.2.1:5061;ob", UDP._replace(port=33333), "192.0.2.1", UDP._replace(port=33333)),
        ("sip:a@198.51.100.4;ob", UDP, "192.0.2.1", Flow("udp", 0, "198.51.100.4", 5060)),  # not whom we spoke to
        # A carrier found by name, whose Contact is an address: its certificate is for the name.
        ("sip:a@192.0.2.9;transport=tls", TLS, "192.0.2.1", Flow("tls", 1, "192.0.2.9", 5061, 0, "carrier.test")),
        ("sip:a@edge.test;transport=tls", TLS, "192.0.2.1", Flow("tls", 1, "edge.test", 5061)),
        # A browser: only its WebSocket leads there.
        ("sip:a@x.invalid;transport=ws", WS, "x.invalid", Flow("ws", 2, "x.invalid", 80, 7)),
    ],
)
def test_next_flow(target: str, source: Flow, sent_by: str, expected: Flow) -> None:
    assert next_flow(SipUri.parse(target), source, sent_by) == expected


def test_called_side_keeps_the_route_order_and_the_calling_side_turns_it() -> None:
    invite = request("INVITE")
    invite.add("record-route", "<sip:p1;lr>, <sip:192.0.2.50;lr>")
    dialog = Dialog.from_request(invite, "mine", UDP)
    bye = dialog.request("BYE", "SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKb")
    assert bye.uri == "sip:a@192.0.2.1:5061"
    assert bye.get_all("route") == ["<sip:p1;lr>", "<sip:192.0.2.50;lr>"]
    assert dialog.flow.host == "p1"
    assert (bye.from_.tag, bye.to.tag, bye.cseq.number) == ("mine", "1", 1)
    response = build_response(invite, 200, to_tag="theirs")
    response.add("record-route", "<sip:p1;lr>, <sip:192.0.2.50;lr>")
    response.set("contact", "<sip:b@192.0.2.2:5063>")
    calling = Dialog.from_response(invite, response, UDP)
    ack = calling.request("ACK", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKb", 1)
    assert ack.get_all("route") == ["<sip:192.0.2.50;lr>", "<sip:p1;lr>"]
    assert calling.flow.host == "192.0.2.50"
    assert ack.cseq.number == 1
    assert calling.request("BYE", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKc").cseq.number == 2


def test_strict_router_gets_its_own_uri() -> None:
    invite = request("INVITE")
    invite.add("record-route", "<sip:192.0.2.50>")
    bye = Dialog.from_request(invite, "mine", UDP).request("BYE", "SIP/2.0/UDP 192.0.2.2;branch=z9hG4bKb")
    assert bye.uri == "sip:192.0.2.50"
    assert bye.get_all("route") == ["<sip:a@192.0.2.1:5061>"]


def test_order_and_target_refresh() -> None:
    dialog = Dialog.from_request(request("INVITE", cseq=5), "mine", UDP)
    assert not dialog.accepts(request("INFO", cseq=4))
    assert dialog.accepts(request("INFO", cseq=6))
    moved = request("INVITE", cseq=7)
    moved.set("contact", "<sip:a@192.0.2.1:6000>")
    dialog.refresh_target(moved, UDP)
    assert (dialog.target, dialog.flow.port) == ("sip:a@192.0.2.1:6000", 6000)
    moved.set("contact", "<tel:+1>")
    with pytest.raises(PeerError):
        dialog.refresh_target(moved, UDP)


# --- access ---------------------------------------------------------------------------------------


def test_trunk_is_known_by_its_address_first_match_wins() -> None:
    verifier = DigestVerifier("r", bytes(32), random_bytes=bytes)
    trunks = [
        Trunk("one", (ip_network("192.0.2.0/28"), ip_network("2001:db8::/32"))),
        Trunk("two", (ip_network("192.0.2.0/24"),)),
    ]
    policy = AccessPolicy(trunks, {}, verifier)
    assert policy.trunk_at("192.0.2.1") == "one"
    assert policy.trunk_at("192.0.2.200") == "two"
    assert policy.trunk_at("2001:db8::5") == "one"
    assert policy.trunk_at("::ffff:192.0.2.200") == "two"
    assert policy.trunk_at("198.51.100.1") is None
    assert policy.admit(request("INVITE"), Flow("udp", 0, "192.0.2.1", 5060), 0.0) == Admitted(trunk="one")
