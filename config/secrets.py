"""Password hashes: Argon2id for the web, HA1 for the phone's SIP digest.

SIP digest needs `H(username:realm:password)` per algorithm, so a SIP password
is either known or stored as these hashes; they are as secret as the password.
"""

from __future__ import annotations

import hashlib

from argon2 import PasswordHasher
from pydantic import SecretStr

from config.schema import Agent

ALGORITHMS = ("MD5", "SHA-256")
"""Digest algorithms that SIP phones may use (RFC 3261, RFC 8760)."""

_hasher = PasswordHasher()  # RFC 9106, low-memory profile: 64 MiB, 3 passes, 4 lanes


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
