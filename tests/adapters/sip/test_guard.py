"""Guessers, scanners and floods are banned for a while; phones behind one address, trunks and the trusted are not."""

from __future__ import annotations

import tracemalloc
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.protection.guard import KNOWN_S, PATIENCE, Ban, Guard, GuardSettings, Reason, source_of

HOST = "192.0.2.9"
TRUNK = "192.0.2.4"
SETTINGS = GuardSettings(failures=5, window_s=60.0, ban_s=100.0, max_ban_s=500.0, rate=2.0, burst=10)


def make(settings: GuardSettings = SETTINGS, **limits: int) -> tuple[Guard, list[Ban]]:
    heard: list[Ban] = []
    return Guard(settings, exempt=lambda host: host == TRUNK, report=heard.append, **limits), heard


def guess(guard: Guard, host: str, times: int, now: float) -> None:
    for _ in range(times):
        guard.on_failure(host, now)


def test_a_guesser_is_banned_and_let_in_after_expiry() -> None:
    guard, heard = make()
    guess(guard, HOST, 4, 0.0)
    assert not guard.closed
    assert not guard.blocks(HOST, 0.0)
    guess(guard, HOST, 1, 0.0)
    assert guard.closed
    assert guard.blocks(HOST, 0.0)
    assert guard.blocks(HOST, 99.9)
    assert not guard.blocks("192.0.2.10", 0.0)
    assert not guard.blocks(HOST, 100.0)
    assert not guard.closed
    assert [(ban.source, ban.reason, ban.until, ban.dropped) for ban in heard] == [(HOST, Reason.PASSWORDS, 100.0, 2)]
    assert guard.counters['sip_guard_bans_total{reason="passwords"}'] == 1
    assert guard.counters['sip_guard_dropped_total{reason="banned"}'] == 2


def test_each_further_ban_is_twice_as_long_up_to_the_limit() -> None:
    guard, heard = make()
    now = 0.0
    for _ in range(5):
        guess(guard, HOST, 5, now)
        now = heard[-1].until
    assert [ban.until - ban.since for ban in heard] == [100.0, 200.0, 400.0, 500.0, 500.0]


def test_failures_leak_away_but_slow_guessing_is_noticed() -> None:
    guard, heard = make()
    minutes = 0
    while not heard:
        guess(guard, HOST, 4, minutes * 60.0)  # a fifth within the window would be one too many
        minutes += 1
        assert minutes < 100
    assert minutes == 13  # the fiftieth failure without a success
    guard, heard = make()
    for minute in range(100):
        guess(guard, HOST, 4, minute * 60.0)
        guard.on_success(HOST, minute * 60.0 + 1)  # an office: somebody mistypes, others get it right
    assert heard == []


def test_a_source_with_working_phones_gets_patience() -> None:
    guard, heard = make()
    guard.on_success(HOST, 0.0)
    guess(guard, HOST, 5 * PATIENCE - 1, 1.0)
    assert heard == []
    guess(guard, HOST, 2, 1.0)
    assert len(heard) == 1
    guard, heard = make()
    guard.on_success(HOST, 0.0)
    guess(guard, HOST, 5, KNOWN_S)  # nobody there has proved anything for long
    assert len(heard) == 1


def test_scanners_are_dropped_at_once_and_banned_soon() -> None:
    guard, heard = make(GuardSettings())
    for name in ("friendly-scanner", "sipcli/v1.8", "VaxSIPUserAgent/3.1", "sipvicious", "sundayddr"):
        assert not guard.admits(HOST, name, 0.0)
    assert [ban.reason for ban in heard] == [Reason.SCANNER]
    assert guard.admits("192.0.2.10", "baresip v1.0.0", 0.0)
    assert guard.admits("192.0.2.10", None, 0.0)
    assert guard.counters['sip_guard_dropped_total{reason="scanner"}'] == 5


def test_forged_packets_do_not_ban_who_has_proved_itself() -> None:
    guard, heard = make()
    guard.on_success(HOST, 0.0)
    for _ in range(10_000):
        guard.admits(HOST, "friendly-scanner", 1.0)
        guard.admits(HOST, None, 1.0)
    assert heard == []
    assert not guard.admits(HOST, None, 1.0)  # limited
    assert guard.admits(HOST, None, 1.0, proof=True)  # but who brings a password is heard
    assert guard.admits(HOST, None, 2.0)


def test_a_flood_is_limited_then_banned() -> None:
    guard, heard = make()
    assert [guard.admits(HOST, None, 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert guard.admits(HOST, None, 0.5)  # one more token
    assert not guard.admits(HOST, None, 0.5)
    for _ in range(10):
        guard.on_junk(HOST, 0.5)
    assert [ban.reason for ban in heard] == [Reason.FLOOD]


def test_right_passwords_give_the_tokens_back() -> None:
    guard, heard = make()
    for _ in range(10_000):  # a load tool: as fast as it can
        assert guard.admits(HOST, None, 0.0)
        assert guard.admits(HOST, None, 0.0, proof=True)
        guard.on_success(HOST, 0.0)
    assert heard == []


def test_trunks_and_trusted_networks_are_never_limited() -> None:
    guard, heard = make(GuardSettings(trusted=(ip_network("10.0.0.0/8"), ip_network("::1/128")), burst=1, failures=1))
    for host in (TRUNK, "10.1.2.3", "::1"):
        for _ in range(100):
            assert guard.admits(host, "friendly-scanner", 0.0)
            assert guard.on_junk(host, 0.0)
            guard.on_failure(host, 0.0)
        guard.on_success(host, 0.0)
    assert heard == []
    assert guard.sources == 0


def test_loopback_is_trusted_unless_told_otherwise() -> None:
    guard, heard = make(GuardSettings(failures=1))
    guard.on_failure("127.0.0.9", 0.0)
    guard.on_failure("::1", 0.0)
    assert heard == []
    guard.configure(GuardSettings(trusted=(), failures=1))
    guard.on_failure("127.0.0.9", 0.0)
    assert len(heard) == 1
    guard.configure(GuardSettings())
    assert not guard.closed


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_what_counts_as_one_source(host: str, source: str) -> None:
    assert source_of(host) == source


def test_a_trunk_in_the_network_of_a_scanner_is_served() -> None:
    trunk = "2001:db8::4"
    guard = Guard(SETTINGS, exempt=lambda host: host == trunk)
    guess(guard, "2001:db8::bad", 5, 0.0)
    assert guard.blocks("2001:db8::5", 0.0)
    assert not guard.blocks(trunk, 0.0)
    assert not guard.blocks("2001:db8:0:1::5", 0.0)


def test_operators_see_bans_and_lift_them() -> None:
    guard, _ = make()
    guess(guard, HOST, 5, 0.0)
    guess(guard, "2001:db8::1", 5, 10.0)
    assert [ban.source for ban in guard.bans(20.0)] == ["2001:db8::/64", HOST]
    assert guard.lift("2001:db8::77")
    assert not guard.lift("2001:db8::77")
    assert not guard.lift("nonsense:here")
    assert guard.lift(HOST)
    assert guard.bans(20.0) == []
    guess(guard, HOST, 5, 30.0)
    assert [ban.until for ban in guard.bans(30.0)] == [130.0]  # what led to the first is forgotten
    assert guard.bans(130.0) == []
    assert guard.figures()["sip_guard_banned"] == 0


def test_a_million_sources_take_bounded_memory_and_cannot_drive_out_the_known() -> None:
    guard, heard = make(GuardSettings(failures=1, trusted=()), max_sources=1000, max_bans=100)
    guard.on_success(HOST, 0.0)

    def flood(first: int, count: int) -> None:
        for number in range(first, first + count):
            host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            guard.admits(host, None, number / 1000)
            guard.on_failure(host, number / 1000)

    flood(0, 5_000)
    tracemalloc.start()
    try:
        flood(5_000, 5_000)
        before = tracemalloc.get_traced_memory()[0]
        flood(10_000, 20_000)
        heard.clear()
        assert tracemalloc.get_traced_memory()[0] - before < 300_000  # the two tables, all of them new by now
    finally:
        tracemalloc.stop()
    assert guard.sources <= 1001
    assert len(guard.bans(30.0)) <= 100
    guard.on_failure(HOST, 31.0)
    assert not guard.blocks(HOST, 31.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["admit", "scan", "junk", "right", "wrong", "door", "lift"]),
            st.sampled_from([HOST, TRUNK, "192.0.2.10", "2001:db8::1", "127.0.0.1"]),
            st.floats(0, 50),
        ),
        max_size=150,
    )
)
def test_whatever_happens_bans_end_and_trunks_are_served(steps: list[tuple[str, str, float]]) -> None:
    guard, heard = make()
    now = 0.0
    for what, host, passed in steps:
        now += passed
        match what:
            case "admit" | "scan":
                guard.admits(host, "friendly-scanner" if what == "scan" else "phone", now)
            case "junk":
                guard.on_junk(host, now)
            case "right":
                guard.on_success(host, now)
            case "wrong":
                guard.on_failure(host, now)
            case "door":
                guard.blocks(host, now)
            case _:
                guard.lift(host)
        assert not guard.blocks(TRUNK, now)
        assert not guard.blocks("127.0.0.1", now)
    assert all(ban.source not in (TRUNK, "127.0.0.1") for ban in heard)
    assert guard.bans(now + 500.0) == []
