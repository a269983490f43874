"""Password hashes: Argon2id for the web, HA1 for the phone's SIP digest.

SIP digest needs `H(username:realm:password)` per algorithm, so a SIP password
is either known or stored as these hashes; they are as secret as the password.
"""

from __future__ import annotations

import hashlib

from argon2 import PasswordHasher
from pydantic import SecretStr

from config.schema import Agent

HA1_KEYS = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}
"""Digest algorithms that SIP phones may use (RFC 3261, RFC 8760), and the keys of their hashes under `ha1`."""

# Not every build of OpenSSL has the last; `config.references` refuses it there.
ALGORITHMS = tuple(name for name, key in HA1_KEYS.items() if key in hashlib.algorithms_available)
"""Those that this machine can compute."""

_hasher = PasswordHasher()  # RFC 9106, low-memory profile: 64 MiB, 3 passes, 4 lanes


def hash_web_password(password: str) -> str:
    """Make the text for `argon2id:` in the document. Takes some 50 ms."""
    return _hasher.hash(password)


def ha1(username: str, realm: str, password: str, algorithm: str) -> str:
    """Compute `H(username:realm:password)` in lower-case hex (RFC 7616 3.4.2).

    Raises:
        ValueError: the algorithm is not one of ALGORITHMS.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown digest algorithm {algorithm!r}")
    data = f"{username}:{realm}:{password}".encode()
    return hashlib.new(HA1_KEYS[algorithm], data, usedforsecurity=False).hexdigest()


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
    stored: SecretStr | None = getattr(password.ha1, HA1_KEYS[algorithm])
    return None if stored is None else stored.get_secret_value()
