from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError
from adapters.sip.registration.registrar import Reachability, Registrar, RegistrarLimits
from adapters.sip.syntax.message import Request
from adapters.sip.transactions.transaction import Flow

FLOW = Flow("udp", 0, "198.51.100.7", 33333)
UP, DOWN = Reachability("a1", reachable=True), Reachability("a1", reachable=False)


def register(*contacts: str, cseq: int = 1, call_id: str = "r1", expires: int | None = None) -> Request:
    request = Request.build(
        "REGISTER",
        "sip:pbx.test",
        via="SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKr",
        from_="<sip:a1@pbx.test>;tag=1",
        to="<sip:a1@pbx.test>",
        call_id=call_id,
        cseq=cseq,
    )
    for contact in contacts:
        request.add("contact", contact)
    if expires is not None:
        request.set("expires", expires)
    return request


def test_binding_remembers_where_it_came_from_and_expires() -> None:
    registrar = Registrar()
    assert registrar.register(register("<sip:a1@10.0.0.1:5062>"), "a1", FLOW, 0.0) == [UP]
    (binding,) = registrar.bindings("a1")
    assert (str(binding.uri), binding.flow) == ("sip:a1@10.0.0.1:5062", FLOW)
    assert registrar.contact_values("a1", 600.0) == ["<sip:a1@10.0.0.1:5062>;expires=3000"]
    assert registrar.deadline() == 3600.0
    assert registrar.on_time(3599.0) == []
    assert registrar.on_time(3600.0) == [DOWN]
    assert (len(registrar), registrar.bindings("a1"), registrar.deadline()) == (0, [], None)


def test_refresh_keeps_it_alive_in_place() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>", expires=100), "a1", FLOW, 0.0)
    moved = FLOW._replace(port=4444)
    assert registrar.register(register("<sip:a1@10.0.0.1>", cseq=2, expires=100), "a1", moved, 90.0) == [
        UP
    ]  # news, too
    assert registrar.on_time(100.0) == []
    assert len(registrar) == 1
    assert registrar.bindings("a1")[0].flow == moved
    assert registrar.on_time(190.0) == [DOWN]


def test_several_phones_the_latest_first() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>", "<sip:a1@10.0.0.2>"), "a1", FLOW, 0.0)
    registrar.register(register("<sip:a1@10.0.0.1>", cseq=2), "a1", FLOW, 1.0)
    assert [b.uri.host for b in registrar.bindings("a1")] == ["10.0.0.1", "10.0.0.2"]


def test_removal_one_by_one_and_all_at_once() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>", "<sip:a1@10.0.0.2>"), "a1", FLOW, 0.0)
    assert registrar.register(register("<sip:a1@10.0.0.1>;expires=0", cseq=2), "a1", FLOW, 1.0) == []
    assert len(registrar) == 1
    assert registrar.register(register("*", cseq=3, expires=0), "a1", FLOW, 2.0) == [DOWN]
    assert len(registrar) == 0


@pytest.mark.parametrize(
    "request_",
    [
        register("*", cseq=9),
        register("*", "<sip:a1@10.0.0.9>", cseq=9, expires=0),
        register("<tel:+49123>", cseq=9),
        register("<sip:a1@10.0.0.9>", "<sip:a1@10.0.0.9>", cseq=9),
    ],
)
def test_nonsense_is_400_and_changes_nothing(request_: Request) -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>"), "a1", FLOW, 0.0)
    with pytest.raises(PeerError) as raised:
        registrar.register(request_, "a1", FLOW, 1.0)
    assert raised.value.status == 400
    assert len(registrar) == 1


def test_times_are_bounded() -> None:
    registrar = Registrar()
    with pytest.raises(PeerError) as raised:
        registrar.register(register("<sip:a1@10.0.0.1>;expires=59"), "a1", FLOW, 0.0)
    assert raised.value.status == 423
    registrar.register(register("<sip:a1@10.0.0.1>;expires=999999"), "a1", FLOW, 0.0)
    assert registrar.contact_values("a1", 0.0) == ["<sip:a1@10.0.0.1>;expires=7200"]
    registrar.register(register("<sip:a1@10.0.0.1>;expires=soon", cseq=2, expires=90), "a1", FLOW, 0.0)
    assert registrar.contact_values("a1", 0.0) == ["<sip:a1@10.0.0.1>;expires=3600"]
    low = Registrar(RegistrarLimits(min_expires_s=5))
    assert low.register(register("<sip:a1@10.0.0.1>", expires=5), "a1", FLOW, 0.0) == [UP]


def test_late_requests_of_the_same_phone_are_refused() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>", cseq=5), "a1", FLOW, 0.0)
    for late in (register("<sip:a1@10.0.0.1>;expires=0", cseq=5), register("*", cseq=4, expires=0)):
        with pytest.raises(PeerError) as raised:
            registrar.register(late, "a1", FLOW, 1.0)
        assert raised.value.status == 500
    assert registrar.register(register("<sip:a1@10.0.0.1>;expires=0", cseq=1, call_id="r2"), "a1", FLOW, 1.0) == [DOWN]


def test_numbers_are_bounded_in_total() -> None:
    registrar = Registrar(RegistrarLimits(per_user=2, total=3))
    registrar.register(register("<sip:a1@10.0.0.1>", "<sip:a1@10.0.0.2>"), "a1", FLOW, 0.0)
    two = ["<sip:a2@10.0.0.4>", "<sip:a2@10.0.0.5>"]
    for contacts in (two, [*two, "<sip:a2@10.0.0.6>"]):
        with pytest.raises(PeerError) as raised:
            registrar.register(register(*contacts, call_id="other"), "a2", FLOW, 0.0)
        assert raised.value.status == 503
    assert len(registrar) == 2
    registrar.register(register("<sip:a2@10.0.0.4>"), "a2", FLOW, 0.0)
    registrar.register(register("<sip:a1@10.0.0.2>", cseq=2), "a1", FLOW, 0.0)  # a refresh needs no room


def test_newest_phone_is_never_shut_out_by_forgotten_ones() -> None:
    # A phone on TCP that restarts often registers another port each time.
    registrar = Registrar(RegistrarLimits(per_user=2))
    for number in range(1, 6):
        events = registrar.register(register(f"<sip:a1@10.0.0.1:{number}>", call_id=f"r{number}"), "a1", FLOW, 0.0)
        assert events == [UP]
    assert [str(b.uri) for b in registrar.bindings("a1")] == ["sip:a1@10.0.0.1:5", "sip:a1@10.0.0.1:4"]
    assert len(registrar) == 2


def test_removed_agents_lose_their_bindings() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>"), "a1", FLOW, 0.0)
    assert registrar.keep_only({"a2"}) == [DOWN]
    assert registrar.on_time(9999.0) == []


def test_query_without_contact_changes_nothing() -> None:
    registrar = Registrar()
    registrar.register(register("<sip:a1@10.0.0.1>"), "a1", FLOW, 0.0)
    assert registrar.register(register(cseq=2), "a1", FLOW, 1.0) == []
    assert len(registrar) == 1


STEPS = st.tuples(
    st.sampled_from(["a1", "a2"]),
    st.lists(st.sampled_from([1, 2, 3]), unique=True, max_size=3),
    st.sampled_from([None, 0, 60, 300]),
    st.floats(0, 400),
)


@given(st.lists(STEPS, max_size=30))
def test_reachability_always_agrees_with_the_bindings(steps: list[tuple[str, list[int], int | None, float]]) -> None:
    registrar = Registrar(RegistrarLimits(per_user=3, total=4))
    reachable: dict[str, bool] = {}
    now = 0.0
    for cseq, (user, hosts, expires, delay) in enumerate(steps):
        now += delay
        events = registrar.on_time(now)
        contacts = [f"<sip:{user}@10.0.0.{host}>" for host in hosts]
        try:
            events += registrar.register(register(*contacts, cseq=cseq, expires=expires), user, FLOW, now)
        except PeerError:
            assert len(registrar.bindings(user)) + len(hosts) > 3 or len(registrar) + len(hosts) > 4
        for event in events:
            assert event.reachable or reachable[event.user]  # nobody goes who was not there
            reachable[event.user] = event.reachable
        for name in ("a1", "a2"):
            bindings = registrar.bindings(name)
            assert bool(bindings) == reachable.get(name, False)
            assert len(bindings) <= 3
            assert all(binding.expires_at > now for binding in bindings)
        assert len(registrar) <= 4
        assert len(registrar) == sum(len(registrar.bindings(name)) for name in ("a1", "a2"))


# --- RFC 5626, RFC 3327, q ------------------------------------------------------------------------

INSTANCE = '+sip.instance="<urn:uuid:1>"'
STREAM = Flow("tcp", 1, "198.51.100.7", 40000, 7)


def outbound(*contacts: str, cseq: int = 1, call_id: str = "r1", expires: int | None = None) -> Request:
    request = register(*contacts, cseq=cseq, call_id=call_id, expires=expires)
    request.set("supported", "path, outbound")
    return request


def test_order_is_by_q_and_then_the_latest() -> None:
    registrar = Registrar()
    registrar.register(
        register("<sip:a1@10.0.0.1>;q=0.5", "<sip:a1@10.0.0.2>", "<sip:a1@10.0.0.3>;q=0.9", "<sip:a1@10.0.0.4>;q=7"),
        "a1",
        FLOW,
        0.0,
    )
    assert [b.uri.host for b in registrar.bindings("a1")] == ["10.0.0.4", "10.0.0.2", "10.0.0.3", "10.0.0.1"]
    assert registrar.contact_values("a1", 0.0)[:2] == [
        "<sip:a1@10.0.0.1>;expires=3600;q=0.5",
        "<sip:a1@10.0.0.2>;expires=3600",
    ]


def test_flow_of_a_phone_replaces_the_one_before() -> None:
    registrar = Registrar()
    registrar.register(outbound(f"<sip:a1@x.invalid>;reg-id=1;{INSTANCE}"), "a1", STREAM, 0.0)
    # After a reload of the page: another contact and Call-ID, the same instance and flow.
    moved = STREAM._replace(port=40001, connection=8)
    registrar.register(outbound(f"<sip:a1@y.invalid>;reg-id=1;{INSTANCE}", call_id="r2"), "a1", moved, 1.0)
    (binding,) = registrar.bindings("a1")
    assert (binding.uri.host, binding.flow, binding.reg_id) == ("y.invalid", moved, 1)
    assert registrar.contact_values("a1", 1.0) == [
        '<sip:a1@y.invalid>;expires=3600;+sip.instance="<urn:uuid:1>";reg-id=1'
    ]
    assert registrar.on_connection_lost(7) == []  # what is no longer needed
    assert registrar.on_connection_lost(8) == [DOWN]


def test_two_flows_of_one_phone_are_two_bindings_but_one_phone() -> None:
    registrar = Registrar()
    for reg_id, connection in ((1, 7), (2, 8)):
        flow = STREAM._replace(connection=connection)
        contact = f"<sip:a1@x.invalid:{reg_id}>;reg-id={reg_id};{INSTANCE}"
        registrar.register(outbound(contact, call_id=f"r{reg_id}"), "a1", flow, 0.0)
    assert len(registrar) == 2
    assert [b.reg_id for b in registrar.bindings("a1")] == [2]
    assert registrar.on_connection_lost(8) == []
    assert [b.reg_id for b in registrar.bindings("a1")] == [1]


def test_reg_id_counts_only_with_instance_and_support() -> None:
    registrar = Registrar()
    registrar.register(register(f"<sip:a1@10.0.0.1>;reg-id=1;{INSTANCE}"), "a1", STREAM, 0.0)
    registrar.register(outbound("<sip:a1@10.0.0.2>;reg-id=1", cseq=2), "a1", STREAM, 0.0)
    registrar.register(outbound(f"<sip:a1@10.0.0.3>;reg-id=0;{INSTANCE}", cseq=3), "a1", STREAM, 0.0)
    registrar.register(outbound(f"<sip:a1@10.0.0.4>;reg-id=x;{INSTANCE}", cseq=4), "a1", STREAM, 0.0)
    assert [b.reg_id for b in registrar.bindings("a1")] == [None] * 4


def test_one_flow_registers_one_contact() -> None:
    request = outbound(f"<sip:a1@10.0.0.1>;reg-id=1;{INSTANCE}", "<sip:a1@10.0.0.2>")
    with pytest.raises(PeerError) as caught:
        Registrar().register(request, "a1", STREAM, 0.0)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        (None, False),
        ("<sip:edge.test;lr>", False),
        ("<sip:edge.test;lr;ob>", True),
        ("<sip:p1.test;lr>, <sip:edge.test;lr;ob>", True),
    ],
)
def test_first_hop_must_keep_flows(path: str | None, *, fits: bool) -> None:
    request = outbound(f"<sip:a1@10.0.0.1>;reg-id=1;{INSTANCE}")
    request.add("via", "SIP/2.0/TCP 10.0.0.1;branch=z9hG4bKphone")
    if path is not None:
        request.set("path", path)
    registrar = Registrar()
    if fits:
        registrar.register(request, "a1", FLOW, 0.0)
        (binding,) = registrar.bindings("a1")
        assert ", ".join(binding.path) == path
        assert not binding.needs_connection
        return
    with pytest.raises(PeerError) as caught:
        registrar.register(request, "a1", FLOW, 0.0)
    assert caught.value.status == 439


@pytest.mark.parametrize("path", ["<tel:+49123>", "nonsense", ", ".join(["<sip:p;lr>"] * 9)])
def test_path_must_be_usable(path: str) -> None:
    request = register("<sip:a1@10.0.0.1>")
    request.set("path", path)
    with pytest.raises(PeerError) as caught:
        Registrar().register(request, "a1", FLOW, 0.0)
    assert caught.value.status == 400


def test_contacts_and_paths_are_bounded_in_length() -> None:
    registrar = Registrar()
    long = register(f"<sip:a1@10.0.0.1;x={'y' * 2048}>")
    routed = register("<sip:a1@10.0.0.1>")
    routed.set("path", f"<sip:10.0.0.2;lr;x={'y' * 2048}>")
    for request in (long, routed):
        with pytest.raises(PeerError, match="overlong") as caught:
            registrar.register(request, "a1", FLOW, 0.0)
        assert caught.value.status == 400
    assert registrar.all_bindings() == []


@pytest.mark.parametrize(
    ("contact", "flow", "gone"),
    [
        ("<sip:a1@198.51.100.7:5062;transport=tcp>", STREAM, False),  # it listens there
        ("<sip:a1@phone.example;transport=tcp>", STREAM, False),
        ("<sips:a1@198.51.100.7:5063>", STREAM._replace(transport="tls"), False),
        ("<sip:a1@10.0.0.5:5062;transport=tcp>", STREAM, True),  # behind a NAT
        ("<sip:a1@x.invalid;transport=tcp>", STREAM, True),
        ("<sip:a1@x.invalid;transport=ws>", STREAM._replace(transport="wss"), True),
        ("<sip:a1@198.51.100.7;transport=ws>", STREAM._replace(transport="ws"), True),
        (f"<sip:a1@198.51.100.7:5062;transport=tcp>;reg-id=1;{INSTANCE}", STREAM, True),
    ],
)
def test_binding_ends_with_the_connection_that_it_needs(contact: str, flow: Flow, *, gone: bool) -> None:
    registrar = Registrar()
    registrar.register(outbound(contact), "a1", flow, 0.0)
    assert registrar.on_connection_lost(6) == []
    assert registrar.on_connection_lost(7) == ([DOWN] if gone else [])
    assert len(registrar) == (0 if gone else 1)
    assert registrar.on_connection_lost(7) == []
