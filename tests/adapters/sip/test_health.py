from __future__ import annotations

import pytest

from adapters.sip.registration.health import HealthCheck


def asked(check: HealthCheck, now: float) -> None:
    assert check.deadline() is not None
    assert check.on_time(now)
    assert check.deadline() is None


def test_two_failures_take_it_down_and_one_answer_brings_it_back() -> None:
    check = HealthCheck(30.0, lambda: 0.5, 0.0)
    asked(check, 1.0)
    assert not check.on_outcome(None, 5.0)
    assert check.alive
    assert check.deadline() == 6.0  # the second question follows soon
    asked(check, 6.0)
    assert check.on_outcome(503, 6.1)
    assert not check.alive
    assert check.error == "OPTIONS answered with 503"
    assert check.deadline() == pytest.approx(36.1)
    asked(check, 36.1)
    assert check.on_outcome(200, 36.2)
    assert check.alive
    assert check.error == ""


@pytest.mark.parametrize("status", [200, 401, 403, 404, 405, 481, 500, 501, 603])
def test_any_final_response_is_a_sign_of_life(status: int) -> None:
    check = HealthCheck(30.0, lambda: 0.0, 0.0)
    for now in (0.0, 30.0, 60.0):
        asked(check, now)
        assert not check.on_outcome(status, now)
    assert check.alive


def test_single_failures_change_nothing() -> None:
    check = HealthCheck(30.0, lambda: 0.0, 0.0)
    for status in (None, 200, 408, 200, 503, 200):
        now = check.deadline() or 0.0
        asked(check, now)
        assert not check.on_outcome(status, now)


def test_gateways_are_not_all_asked_at_once() -> None:
    starts = {HealthCheck(30.0, lambda n=n: n / 10, 0.0).deadline() for n in range(10)}  # type: ignore[misc]  # mypy misses the default
    assert len(starts) == 10
    assert not HealthCheck(30.0, lambda: 0.5, 0.0).on_time(0.5)
