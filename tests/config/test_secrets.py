from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from config.schema import Agent, Document, Password
from config.secrets import ALGORITHMS, HA1_KEYS, ha1, hash_web_password, sip_ha1
from tests.config.documents import good


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return good(tmp_path).document


def test_a_web_hash_fits_its_password_alone() -> None:
    hashed = hash_web_password("hunter2")
    assert Password.model_validate({"argon2id": hashed}).argon2id is not None
    assert PasswordHasher().verify(hashed, "hunter2")
    with pytest.raises(VerifyMismatchError):
        PasswordHasher().verify(hashed, "hunter3")


def test_ha1_is_that_of_the_rfc() -> None:
    # RFC 7616 3.9.1
    realm, password = "http-auth@example.org", "Circle of Life"
    assert (
        ha1("Mufasa", realm, password, "MD5") == hashlib.md5(b"Mufasa:http-auth@example.org:Circle of Life").hexdigest()
    )
    assert ha1("Mufasa", realm, password, "SHA-256").startswith(
        "7987c64c30e25f1b74be53f966b49b90f2808aa92faf9a00262392d7b4794232"
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stored_ha1_equals_the_computed_one(document: Document, algorithm: str) -> None:
    plain = document.agents[0]
    computed = sip_ha1(plain, "pbx.local", algorithm)
    assert computed is not None
    field = HA1_KEYS[algorithm]
    stored = Agent(id="a0001", password=Password.model_validate({"ha1": {field: computed.upper()}}))
    assert sip_ha1(stored, "pbx.local", algorithm) == computed
    other = next(name for name in ALGORITHMS if name != algorithm)
    assert sip_ha1(stored, "pbx.local", other) is None
    with pytest.raises(ValueError, match="SHA-512"):
        sip_ha1(stored, "pbx.local", "SHA-512")
