from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.errors import PeerError
from adapters.sip.message import Request
from adapters.sip.registrar import Reachability, Registrar, RegistrarLimits
from adapters.sip.transaction import Flow

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
