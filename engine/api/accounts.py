"""Who may log in: the protocol the API asks, and the implementation on Argon2id hashes."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError

from config.schema import Role
from engine.events import AgentId


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `agent_id` is set for people who take calls."""

    username: str
    role: Role
    agent_id: AgentId | None = None


class Accounts(Protocol):
    """Both methods answer for the present moment: a removed or changed account counts at once."""

    def verify(self, username: str, password: str) -> Identity | None:
        """Check a password, taking the same time for unknown users. Called on a worker thread."""

    def identity(self, username: str) -> Identity | None:
        """Who `username` is now, or None when there is no such account (any more). Quick."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account, with its password as an Argon2id hash (PHC string format) or as text.

    With neither, nobody can log in to it (an agent whose phone alone has a password).
    """

    identity: Identity
    password_hash: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


class HashedAccounts:
    """`Accounts` held in memory; `replace` follows a new configuration.

    Every check costs exactly one Argon2id verification: an unknown user and an
    account whose password is text are checked against a decoy hash with the
    parameters of the real ones, so the time of the answer tells nothing.

    Args:
        accounts: those in force at first.
        decoy: makes the decoy while no account has a hash. One lane by default,
            so that a check takes one core and leaves the others to calls.
    """

    def __init__(self, accounts: Iterable[Account], decoy: PasswordHasher | None = None) -> None:
        self._hasher = decoy or PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._decoy = ""
        self._accounts: dict[str, Account] = {}
        self.replace(accounts)

    def replace(self, accounts: Iterable[Account]) -> None:
        """Put another set of accounts in force, atomically.

        Raises:
            ValueError: two accounts have the same user name, or a hash is not Argon2's.
        """
        fresh: dict[str, Account] = {}
        hasher = self._hasher
        for account in accounts:
            name = account.identity.username
            if name in fresh:
                raise ValueError(f"two accounts are named {name!r}")
            if account.password_hash:
                try:
                    hasher = PasswordHasher.from_parameters(extract_parameters(account.password_hash))
                except InvalidHashError as exc:
                    raise ValueError(f"the password hash of {name!r} is not Argon2's") from exc
            fresh[name] = account
        # Made afresh each time: a decoy costs one hash, and its parameters follow the accounts.
        self._decoy = hasher.hash(secrets.token_urlsafe(16))
        self._accounts = fresh

    def verify(self, username: str, password: str) -> Identity | None:
        account = self._accounts.get(username)
        hashed = account.password_hash if account else ""
        matches = self._matches(hashed or self._decoy, password)
        if account is None:
            return None
        if not hashed:
            matches = bool(account.password) and hmac.compare_digest(account.password.encode(), password.encode())
        return account.identity if matches else None

    def _matches(self, hashed: str, password: str) -> bool:
        try:
            return bool(self._hasher.verify(hashed, password))
        except (VerificationError, InvalidHashError):
            return False

    def identity(self, username: str) -> Identity | None:
        account = self._accounts.get(username)
        return account.identity if account else None
