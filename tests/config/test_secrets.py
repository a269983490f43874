from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from config.schema import Agent, Document, Password, Role
from config.secrets import ALGORITHMS, Account, ha1, hash_web_password, sip_ha1, verify_web_password
from tests.config.documents import good

HASHED = hash_web_password("hunter2")


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return good(tmp_path, ('password: "secret", role', f"password: {{argon2id: {HASHED!r}}}, role")).document


@pytest.mark.parametrize(
    ("username", "password", "expected"),
    [
        ("admin", "hunter2", Account("admin", Role.ADMINISTRATOR)),
        ("a0001", "secret", Account("a0001", Role.AGENT, "a0001")),
        ("admin", "secret", None),
        ("a0001", "hunter2", None),
        ("a0001", "", None),
        ("nobody", "", None),
        ("nobody", "secret", None),
        ("admin", "x" * 2000, None),
        ("a0001", "\ud800", None),
    ],
)
def test_web_login(document: Document, username: str, password: str, expected: Account | None) -> None:
    assert verify_web_password(document, username, password) == expected


def test_unknown_names_cost_as_much_as_known_ones(document: Document) -> None:
    def cost_s(username: str) -> float:
        spent = []
        for _ in range(3):
            start = time.process_time()
            verify_web_password(document, username, "wrong")
            spent.append(time.process_time() - start)
        return min(spent)

    costs = [cost_s(name) for name in ("admin", "a0001", "nobody")]
    assert max(costs) < 4 * min(costs)  # without a decoy it would be a thousand times


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
    field = {"MD5": "md5", "SHA-256": "sha256"}[algorithm]
    stored = Agent(id="a0001", password=Password.model_validate({"ha1": {field: computed.upper()}}))
    assert sip_ha1(stored, "pbx.local", algorithm) == computed
    other = next(name for name in ALGORITHMS if name != algorithm)
    assert sip_ha1(stored, "pbx.local", other) is None
    with pytest.raises(ValueError, match="SHA-512"):
        sip_ha1(stored, "pbx.local", "SHA-512")
