"""Passwords: checked on the web with Argon2id, on the phone with SIP digest's HA1.

SIP digest needs `H(username:realm:password)` per algorithm, so a SIP password
is either known or stored as these hashes; they are as secret as the password.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import SecretStr

from config.schema import Agent, Document, Password, Role

MAX_PASSWORD = 1024
"""Longest password looked at, in characters; longer ones are refused unread."""

ALGORITHMS = ("MD5", "SHA-256")
"""Digest algorithms that SIP phones may use (RFC 3261, RFC 8760)."""

_hasher = PasswordHasher()  # RFC 9106, low-memory profile: 64 MiB, 3 passes, 4 lanes
# What unknown names and plain passwords are checked against, so that every answer costs the same.
_DECOY = _hasher.hash(secrets.token_urlsafe(16))


@dataclass(frozen=True, slots=True)
class Account:
    """Who logged in: a user, or an agent by id."""

    username: str
    role: Role
    agent_id: str | None = None


def hash_web_password(password: str) -> str:
    """Make the text for `argon2id:` in the document. Takes some 50 ms."""
    return _hasher.hash(password)


def ha1(username: str, realm: str, password: str, algorithm: str) -> str:
    """Compute `H(username:realm:password)` in lower-case hex (RFC 7616 3.4.2).

    Raises:
        ValueError: the algorithm is not one of ALGORITHMS.
    """
    data = f"{username}:{realm}:{password}".encode()
    if algorithm == "MD5":
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    if algorithm == "SHA-256":
        return hashlib.sha256(data).hexdigest()
    raise ValueError(f"unknown digest algorithm {algorithm!r}")


def sip_ha1(agent: Agent, domain: str, algorithm: str) -> str | None:
    """An agent's HA1 for the realm `domain`; None if the document holds no such hash.

    Raises:
        ValueError: the algorithm is not one of ALGORITHMS.
    """
    password = agent.password
    if password.plain is not None:
        return ha1(agent.id, domain, password.plain.get_secret_value(), algorithm)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown digest algorithm {algorithm!r}")
    if password.ha1 is None:
        return None
    stored: SecretStr | None = password.ha1.md5 if algorithm == "MD5" else password.ha1.sha256
    return None if stored is None else stored.get_secret_value()


def verify_web_password(document: Document, username: str, password: str) -> Account | None:
    """Check a web login; None when the name or the password is wrong.

    Costs the same for unknown names, plain and hashed passwords: one Argon2id
    verification (some 50 ms of CPU: run it in a thread).
    """
    found = _find(document, username)
    stored = found[1] if found is not None else None
    hashed = _DECOY if stored is None or stored.argon2id is None else stored.argon2id.get_secret_value()
    candidate = password.encode("utf-8", "surrogatepass") if len(password) <= MAX_PASSWORD else b""
    hash_matches: bool
    try:
        hash_matches = _hasher.verify(hashed, candidate)
    except (VerificationError, InvalidHashError):
        hash_matches = False
    plain = b"" if stored is None or stored.plain is None else stored.plain.get_secret_value().encode()
    # Over hashes of one length, so that the time tells nothing of the password's.
    plain_matches = hmac.compare_digest(hashlib.sha256(plain).digest(), hashlib.sha256(candidate).digest())
    if found is None or stored is None or not candidate:
        return None
    return found[0] if (plain_matches if stored.argon2id is None else hash_matches) else None


def _find(document: Document, username: str) -> tuple[Account, Password] | None:
    for user in document.users:
        if user.username == username:
            return Account(user.username, user.role), user.password
    for agent in document.agents:
        if agent.id == username:
            return Account(agent.id, Role.AGENT, agent.id), agent.password
    return None
