"""Limits, tokens and accounts as arithmetic: no server, a stepped clock."""

from __future__ import annotations

import jwt
import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from config.schema import Role
from engine.api.accounts import Account, HashedAccounts, Identity
from engine.api.limits import RateLimiter
from engine.api.permissions import PERMISSIONS, Permission, Scope, scope
from engine.api.sessions import SessionError, Sessions
from engine.api.settings import ApiSettings, Rate
from tests.engine.api.fakes import SECRET, USERS, FakeAccounts, settings

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def sessions(**changes: object) -> tuple[Sessions, FakeAccounts]:
    accounts = FakeAccounts()
    return Sessions(settings(**changes), accounts, capacity=5, per_user=3), accounts


def test_access_token_speaks_for_its_user_until_it_expires() -> None:
    made, _ = sessions()
    tokens = made.start(USERS["boss"], 1000.0)
    assert made.check(tokens.access, 1599.0).identity == USERS["boss"]
    with pytest.raises(SessionError):
        made.check(tokens.access, 1600.0)


def test_access_token_carries_the_agreed_claims() -> None:
    made, _ = sessions()
    tokens = made.start(USERS["boss"], 1000.0)
    claims = jwt.decode(tokens.access, SECRET, algorithms=["HS256"], options={"verify_exp": False}, issuer="murima")
    assert claims["sub"] == "boss"
    assert claims["role"] == "manager"
    assert (claims["iat"], claims["exp"]) == (1000, 1600)
    assert claims["jti"]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x.y.z",
        "\udcff",
        jwt.encode({"sub": "admin"}, SECRET, algorithm="HS256"),
        jwt.encode({"sub": "admin", "exp": 2**40}, b"x" * 32, algorithm="HS256"),
        jwt.encode(
            {"iss": "murima", "sub": "admin", "exp": "soon", "iat": 0, "jti": "1", "sid": "1", "role": "viewer"}, SECRET
        ),
        jwt.encode(
            {"iss": "other", "sub": "admin", "exp": 2**40, "iat": 0, "jti": "1", "sid": "1", "role": "viewer"}, SECRET
        ),
        jwt.encode({"iss": "murima", "sub": "admin", "exp": 2**40}, "", algorithm="none"),
    ],
)
def test_forged_tokens_are_refused(token: str) -> None:
    made, _ = sessions()
    with pytest.raises(SessionError):
        made.check(token, 1000.0)


def test_access_tokens_outlive_a_restart_but_sessions_do_not() -> None:
    made, _ = sessions()
    tokens = made.start(USERS["boss"], 1000.0)
    restarted, _ = sessions()
    assert restarted.check(tokens.access, 1001.0).identity == USERS["boss"]
    with pytest.raises(SessionError):
        restarted.refresh(tokens.refresh, 1001.0)


def test_role_change_and_removal_count_at_once() -> None:
    made, accounts = sessions()
    tokens = made.start(USERS["boss"], 1000.0)
    accounts.users["boss"] = Identity("boss", Role.VIEWER)
    assert made.check(tokens.access, 1001.0).identity.role is Role.VIEWER
    del accounts.users["boss"]
    with pytest.raises(SessionError):
        made.check(tokens.access, 1001.0)
    with pytest.raises(SessionError):
        made.refresh(tokens.refresh, 1001.0)


def test_a_refresh_token_used_twice_ends_the_session_for_both() -> None:
    made, _ = sessions()
    first = made.start(USERS["boss"], 1000.0)
    ended: list[str] = []
    made.on_revoked(ended.append)
    _, second = made.refresh(first.refresh, 1001.0)
    with pytest.raises(SessionError):
        made.refresh(first.refresh, 1002.0)
    with pytest.raises(SessionError):
        made.refresh(second.refresh, 1003.0)
    with pytest.raises(SessionError):
        made.check(second.access, 1003.0)
    assert ended == [first.refresh.partition(".")[0]]


def test_sessions_end_idle_and_at_their_longest() -> None:
    made, _ = sessions(refresh_idle_s=100, session_max_s=250)
    tokens = made.start(USERS["boss"], 1000.0)
    _, tokens = made.refresh(tokens.refresh, 1099.0)
    _, tokens = made.refresh(tokens.refresh, 1198.0)
    assert tokens.refresh_lifetime_s == 52
    with pytest.raises(SessionError):
        made.refresh(tokens.refresh, 1250.0)
    idle = made.start(USERS["boss"], 2000.0)
    with pytest.raises(SessionError):
        made.refresh(idle.refresh, 2100.0)


def test_sessions_are_bounded_per_user_and_altogether() -> None:
    made, _ = sessions()
    mine = [made.start(USERS["boss"], 1000.0) for _ in range(4)]
    with pytest.raises(SessionError):
        made.refresh(mine[0].refresh, 1001.0)
    made.refresh(mine[3].refresh, 1001.0)
    for name in ("admin", "watcher", "a0001"):
        made.start(USERS[name], 1002.0)
    with pytest.raises(SessionError):
        made.refresh(mine[1].refresh, 1003.0)


def test_tickets_work_once_and_not_for_long() -> None:
    made, _ = sessions()
    grant = made.check(made.start(USERS["boss"], 1000.0).access, 1000.0)
    ticket = made.ticket(grant, 1000.0)
    assert made.redeem(ticket, 1029.0) == grant
    for used in (ticket, "unknown"):
        with pytest.raises(SessionError):
            made.redeem(used, 1029.0)
    late = made.ticket(grant, 1000.0)
    with pytest.raises(SessionError):
        made.redeem(late, 1030.0)


def test_a_ticket_ends_with_its_session() -> None:
    made, _ = sessions()
    tokens = made.start(USERS["boss"], 1000.0)
    ticket = made.ticket(made.check(tokens.access, 1000.0), 1000.0)
    made.end(tokens.refresh, 1001.0)
    with pytest.raises(SessionError):
        made.redeem(ticket, 1002.0)


def test_limiter_says_how_long_to_wait_and_keeps_its_word() -> None:
    limiter = RateLimiter(Rate(3, 30.0))
    for _ in range(3):
        assert limiter.wait_s("x", 0.0) == 0
        limiter.take("x", 0.0)
    assert limiter.wait_s("x", 0.0) == 10
    assert limiter.wait_s("x", 9.5) == 1
    assert limiter.wait_s("x", 10.0) == 0
    assert limiter.wait_s("other", 0.0) == 0


def test_limiter_forgets_what_is_given_back() -> None:
    limiter = RateLimiter(Rate(3, 30.0))
    limiter.take("x", 0.0)
    limiter.give_back("x", 0.0)
    assert len(limiter) == 0


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 50)), max_size=200))
def test_limiter_stays_within_its_memory_and_its_rate(arrivals: list[tuple[int, float]]) -> None:
    limiter = RateLimiter(Rate(2, 10.0), capacity=20)
    now = 0.0
    for key, gap in arrivals:
        now += gap
        wait_s = limiter.wait_s(str(key), now)
        assert 0 <= wait_s <= 5
        assert limiter.wait_s(str(key), now + wait_s) == 0
        if wait_s == 0:
            limiter.take(str(key), now)
        assert len(limiter) <= 20


def test_hashed_accounts_check_passwords_and_follow_changes() -> None:
    accounts = HashedAccounts([Account(USERS["boss"], QUICK.hash("right"))], QUICK)
    assert accounts.verify("boss", "right") == USERS["boss"]
    assert accounts.verify("boss", "wrong") is None
    assert accounts.verify("nobody", "right") is None
    accounts.replace([Account(USERS["admin"], password="plain"), Account(USERS["a0001"])])
    assert accounts.verify("boss", "right") is None
    assert accounts.verify("admin", "plain") == USERS["admin"]
    assert accounts.verify("admin", "pläin") is None
    assert accounts.verify("a0001", "") is None
    assert accounts.identity("admin") == USERS["admin"]


def test_a_bad_set_of_accounts_leaves_the_old_one_in_force() -> None:
    accounts = HashedAccounts([Account(USERS["boss"], password="right")], QUICK)
    with pytest.raises(ValueError, match="boss"):
        accounts.replace([Account(USERS["boss"]), Account(USERS["boss"])])
    with pytest.raises(ValueError, match="admin"):
        accounts.replace([Account(USERS["admin"], "not a hash")])
    assert accounts.verify("boss", "right") == USERS["boss"]


class CountingHasher(PasswordHasher):
    """Counts the checks: time itself is no measure on a shared machine."""

    checks = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # noqa: A002 - its name
        self.checks += 1
        return bool(super().verify(hash, password))


def test_every_check_costs_one_verification() -> None:
    hasher = CountingHasher(time_cost=1, memory_cost=8, parallelism=1)
    known = Account(USERS["boss"], hasher.hash("right"))
    accounts = HashedAccounts([known, Account(USERS["admin"], password="plain"), Account(USERS["a0001"])], hasher)
    for place, username in enumerate(("boss", "nobody", "admin", "a0001"), start=1):
        accounts.verify(username, "wrong")
        assert hasher.checks == place


def test_permission_table_is_as_documented() -> None:
    reads = {p for p in Permission if p.value.endswith(".read")}
    assert all(scope(Role.ADMINISTRATOR, p) is Scope.ALL for p in Permission)
    assert {p for p in Permission if scope(Role.VIEWER, p)} == reads
    wire = {p for p in Permission if p.value.startswith("sip.")}
    assert all(scope(Role.AGENT, p) is (Scope.NONE if p in wire else Scope.OWN) for p in Permission)
    assert all(scope(Role.MANAGER, p) is (Scope.NONE if p in wire else Scope.ALL) for p in Permission)
    assert set(PERMISSIONS) == set(Role)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ApiSettings(jwt_secret=b"short")
    assert "secret" not in repr(ApiSettings(jwt_secret=SECRET)).replace("jwt_secret", "")
