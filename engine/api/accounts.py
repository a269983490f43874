"""Who may log in: the protocol the API asks, and the implementation on Argon2id hashes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from engine.api.permissions import Role
from engine.events import AgentId


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `agent_id` is set for people who take calls."""

    username: str
    role: Role
    agent_id: AgentId | None = None


class Accounts(Protocol):
    """Both methods answer for now: an account removed or changed meanwhile counts at once."""

    def verify(self, username: str, password: str) -> Identity | None:
        """Check a password, taking the same time for unknown users. Called on a worker thread."""

    def identity(self, username: str) -> Identity | None:
        """Who `username` is now, or None when there is no such account (any more). Quick."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account: its identity and its Argon2id hash in the PHC string format."""

    identity: Identity
    password_hash: str = field(repr=False)


class HashedAccounts:
    """`Accounts` on Argon2id hashes held in memory; `replace` follows a new configuration.

    An unknown user is checked against a hash of its own making with the same
    parameters, so the time of the answer tells nothing.
    """

    def __init__(self, accounts: Iterable[Account], hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._decoy = self._hasher.hash("no account has this password")
        self._accounts: dict[str, Account] = {}
        self.replace(accounts)

    def replace(self, accounts: Iterable[Account]) -> None:
        """Put another set of accounts in force, atomically.

        Raises:
            ValueError: two accounts have the same user name.
        """
        fresh: dict[str, Account] = {}
        for account in accounts:
            if account.identity.username in fresh:
                raise ValueError(f"two accounts are named {account.identity.username!r}")
            fresh[account.identity.username] = account
        self._accounts = fresh

    def verify(self, username: str, password: str) -> Identity | None:
        account = self._accounts.get(username)
        try:
            self._hasher.verify(account.password_hash if account else self._decoy, password)
        except (VerificationError, InvalidHashError):
            return None
        return account.identity if account else None

    def identity(self, username: str) -> Identity | None:
        account = self._accounts.get(username)
        return account.identity if account else None
