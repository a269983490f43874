from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.outbound import (
    Attempt,
    GatewayChoice,
    Outbound,
    OutboundSettings,
    Route,
    Search,
    TimeWindow,
    TrunkChoice,
    TrunkSettings,
    in_order,
)

MONDAY = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
NUMBERS = frozenset({"+254700111222"})
FORMS = ("+254700111222", "0700111222")


def outbound(*routes: Route, trunks: tuple[TrunkSettings, ...] = (), draw: float = 0.0) -> Outbound:
    return Outbound(OutboundSettings(trunks, routes), lambda: draw)


def route(*trunks: str, **more: object) -> Route:
    choices = tuple(TrunkChoice(trunk, priority) for priority, trunk in enumerate(trunks, 1))
    return Route("kenya", NUMBERS, choices, **more)  # type: ignore[arg-type]  # test data


def attempts(search: Search, now: float = 0.0) -> list[Attempt]:
    return list(iter(lambda: search.next(now), None))


A, B = TrunkSettings("a"), TrunkSettings("b")


def test_trunks_are_tried_in_order_with_the_number_rewritten() -> None:
    book = outbound(route("a", "b", strip=4, prepend="0"), trunks=(A, B))
    search = book.search(FORMS, "a0001", MONDAY)
    assert attempts(search) == [Attempt("a", 0, "0700111222"), Attempt("b", 0, "0700111222")]
    assert (book.calls("a"), book.calls("b")) == (1, 1)


def test_route_matches_the_number_as_dialled_when_the_international_form_does_not() -> None:
    book = outbound(Route("short", frozenset({"0700111222"}), (TrunkChoice("a"),)), trunks=(A,))
    assert attempts(book.search(FORMS, None, MONDAY)) == [Attempt("a", 0, "0700111222")]


def test_emergency_route_goes_first_and_knows_no_limit() -> None:
    full = TrunkSettings("a", max_calls=1, max_calls_per_s=1.0)
    book = outbound(
        Route("all", NUMBERS, (TrunkChoice("b"),)),
        Route("emergency", NUMBERS, (TrunkChoice("a"),), emergency=True),
        trunks=(full, B),
    )
    for _ in range(5):
        assert attempts(book.search(FORMS, None, MONDAY)) == [Attempt("a", 0, FORMS[0])]
    assert book.calls("a") == 5


def test_emergency_call_tries_dead_trunks_after_the_others() -> None:
    book = outbound(route("a", "b", emergency=True), trunks=(A, B))
    book.set_reachable("a", None, reachable=False)
    assert [attempt.trunk for attempt in attempts(book.search(FORMS, None, MONDAY))] == ["b", "a"]


def test_explanation_names_what_was_passed_over_and_why() -> None:
    book = outbound(
        route("b", when=TimeWindow(frozenset({6}), 0, 1440, UTC)),
        Route("others", frozenset({"112"}), (TrunkChoice("a"),)),
        Route("mine", NUMBERS, (TrunkChoice("a"),), callers=frozenset({"a0002"})),
        Route("main", NUMBERS, (TrunkChoice("a", 1), TrunkChoice("b", 2))),
        trunks=(A, B),
    )
    book.set_reachable("a", 0, reachable=False)
    search = book.search(FORMS, "a0001", MONDAY)
    assert search.next(0.0) == Attempt("b", 0, FORMS[0])
    search.failed("overloaded", 503)
    assert search.explanation == {
        "number": FORMS[0],
        "route": "main",
        "routes": [
            {"route": "kenya", "refused": "time"},
            {"route": "others", "refused": "number"},
            {"route": "mine", "refused": "caller"},
            {"route": "main", "refused": None},
        ],
        "trunks": [
            {"trunk": "a", "gateway": 0, "refused": "unreachable"},
            {"trunk": "b", "gateway": 0, "refused": None, "failed": "overloaded", "status": 503},
        ],
    }


def test_no_route_leads_nowhere() -> None:
    book = outbound(route("a"), trunks=(A,))
    search = book.search(("999",), None, MONDAY)
    assert search.route is None
    assert attempts(search) == []


def test_trunk_that_asked_for_silence_gets_it_until_then() -> None:
    book = outbound(route("a", "b"), trunks=(A, B))
    book.leave_alone("a", 0, until=30.0)
    assert attempts(book.search(FORMS, None, MONDAY), 29.9) == [Attempt("b", 0, FORMS[0])]
    assert attempts(book.search(FORMS, None, MONDAY), 30.0)[0] == Attempt("a", 0, FORMS[0])


def test_rate_limit_is_a_bucket_that_fills_again() -> None:
    book = outbound(route("a"), trunks=(TrunkSettings("a", max_calls_per_s=2.0),))

    def taken(now: float) -> int:
        return sum(len(attempts(book.search(FORMS, None, MONDAY), now)) for _ in range(5))

    assert taken(0.0) == 2
    assert taken(0.4) == 0
    assert taken(0.5) == 1
    assert taken(10.0) == 2


def test_gateways_of_a_trunk_are_tried_before_the_next_trunk() -> None:
    two = TrunkSettings("a", (GatewayChoice(0, 2), GatewayChoice(1, 1)))
    book = outbound(route("a", "b"), trunks=(two, B))
    found = [(attempt.trunk, attempt.gateway) for attempt in attempts(book.search(FORMS, None, MONDAY))]
    assert found == [("a", 1), ("a", 0), ("b", 0)]


def test_calls_in_progress_stay_counted_over_a_new_configuration() -> None:
    book = outbound(route("a"), trunks=(TrunkSettings("a", max_calls=1),))
    assert len(attempts(book.search(FORMS, None, MONDAY))) == 1
    book.replace(OutboundSettings((TrunkSettings("a", max_calls=2),), (route("a"),)))
    assert len(attempts(book.search(FORMS, None, MONDAY))) == 1
    assert attempts(book.search(FORMS, None, MONDAY)) == []
    book.replace(OutboundSettings())
    book.release("a")
    book.release("a")
    assert book.calls("a") == 0


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        (datetime(2026, 1, 5, 5, 0, tzinfo=UTC), True),  # Monday 08:00 in Nairobi
        (datetime(2026, 1, 5, 4, 59, tzinfo=UTC), False),
        (datetime(2026, 1, 5, 15, 0, tzinfo=UTC), False),  # 18:00
        (datetime(2026, 1, 4, 9, 0, tzinfo=UTC), False),  # Sunday
    ],
)
def test_time_window_follows_its_own_clock(at: datetime, inside: bool) -> None:
    window = TimeWindow(frozenset(range(5)), 8 * 60, 18 * 60, ZoneInfo("Africa/Nairobi"))
    assert window.holds(at) is inside


def test_night_window_belongs_to_the_day_on_which_it_begins() -> None:
    friday = TimeWindow(frozenset({4}), 22 * 60, 6 * 60, UTC)
    assert friday.holds(datetime(2026, 1, 9, 23, 0, tzinfo=UTC))
    assert friday.holds(datetime(2026, 1, 10, 5, 59, tzinfo=UTC))  # Saturday morning
    assert not friday.holds(datetime(2026, 1, 9, 5, 0, tzinfo=UTC))  # Friday morning: Thursday's night
    assert not friday.holds(datetime(2026, 1, 10, 23, 0, tzinfo=UTC))


choices = st.lists(
    st.builds(TrunkChoice, st.sampled_from("abcdefgh"), st.integers(1, 3), st.integers(0, 5)),
    unique_by=lambda choice: choice.trunk,
    min_size=1,
)


@given(choices, st.lists(st.floats(0, 1, exclude_max=True), min_size=8, max_size=8))
def test_order_keeps_all_and_never_breaks_the_priority(given_choices: list[TrunkChoice], draws: list[float]) -> None:
    one, again = in_order(given_choices, iter(draws).__next__), in_order(given_choices, iter(draws).__next__)
    assert one == again
    assert sorted(one, key=str) == sorted(given_choices, key=str)
    assert [choice.priority for choice in one] == sorted(choice.priority for choice in one)


def test_weights_are_the_shares_of_the_calls() -> None:
    pair = (TrunkChoice("a", weight=80), TrunkChoice("b", weight=20))
    first = [in_order(pair, lambda n=n: n / 100)[0].trunk for n in range(100)]  # type: ignore[misc]  # mypy misses the default
    assert first.count("a") == 80


steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.floats(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 50)),
        st.tuples(st.just("health"), st.tuples(st.sampled_from("abc"), st.booleans())),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 3), st.sampled_from([0.5, 1.0, 3.0]), st.floats(0, 1, exclude_max=True))
def test_no_limit_is_ever_exceeded_and_no_dead_trunk_is_used(
    script: list[tuple[str, object]], most: int, rate: float, drawn: float
) -> None:
    trunks = tuple(TrunkSettings(name, max_calls=most, max_calls_per_s=rate) for name in "abc")
    choices_of_all = tuple(TrunkChoice(name, 1 + (name == "c")) for name in "abc")
    book = Outbound(OutboundSettings(trunks, (Route("r", NUMBERS, choices_of_all),)), lambda: drawn)
    live: list[str] = []
    dead: set[str] = set()
    sent: dict[str, list[float]] = {name: [] for name in "abc"}
    now = 0.0
    for kind, value in script:
        if kind == "health":
            assert isinstance(value, tuple)
            name, up = value
            book.set_reachable(name, None, reachable=up)
            (dead.discard if up else dead.add)(name)
        elif kind == "end" and live:
            assert isinstance(value, int)
            book.release(live.pop(value % len(live)))
        elif kind == "call":
            assert isinstance(value, float)
            now += value
            attempt = book.search(FORMS, None, MONDAY).next(now)
            if attempt is None:
                for name in set("abc") - dead:  # a healthy trunk below its limits is never passed over
                    recent = [at for at in sent[name] if at > now - max(1.0, 1 / rate)]
                    assert live.count(name) >= most or recent
                continue
            assert attempt.trunk not in dead
            live.append(attempt.trunk)
            sent[attempt.trunk].append(now)
            assert live.count(attempt.trunk) <= most
            for at in sent[attempt.trunk]:  # a bucket: never more than its size and what flowed in
                assert (
                    sum(1 for other in sent[attempt.trunk] if at <= other <= now)
                    <= max(1.0, rate) + ((now - at) * rate) + 1e-6
                )
    for name in "abc":
        assert book.calls(name) == live.count(name)
