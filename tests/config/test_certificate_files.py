"""Certificates and keys that cannot be used are errors; those that clients refuse are warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.loader import Loaded, parse
from config.problems import ConfigurationError
from tests.certificates import Authority, Files
from tests.config.documents import changed
from tests.config.documents import folder as prompts


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Authority(tmp_path).issue("pbx.example.org", file="cert")


def loaded(folder: Path, tls: str, *, http: str = "") -> Loaded:
    text = changed(("trunks:", f"tls: {tls}\n  trunks:"), ("tcp:127.0.0.1:5060", "tls:127.0.0.1:5061"))
    if http:
        text = text.replace('http: {listen: "127.0.0.1:8080"}', f'http: {{listen: "127.0.0.1:8080", tls: {http}}}')
    return parse(text, base=prompts(folder), environ={})


def problem(folder: Path, tls: str) -> tuple[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(folder, tls)
    (found,) = caught.value.problems
    return found.key, f"{found.message}; {found.remedy}".replace(f"{folder}/", "")


GOOD = "{certificate: cert.pem, key: cert.key}"


@pytest.mark.usefixtures("files")
def test_paths_become_absolute(tmp_path: Path) -> None:
    found = loaded(tmp_path, "{certificate: cert.pem, key: cert.key, ca: test-root.pem}", http=GOOD)
    sip, http = found.document.sip.tls, found.document.http.tls
    assert sip is not None
    assert http is not None
    assert (sip.certificate, sip.ca) == (tmp_path / "cert.pem", tmp_path / "test-root.pem")
    assert http.key == tmp_path / "cert.key"
    assert [item for item in found.warnings if "tls" in item.key] == []


def test_missing_mismatched_and_foreign_files(tmp_path: Path, files: Files) -> None:
    assert problem(tmp_path, "{certificate: none.pem, key: cert.key}") == (
        "sip.tls.certificate",
        "none.pem does not exist; check the path; relative paths start from the folder of this file",
    )
    assert problem(tmp_path, "{certificate: cert.key, key: cert.key}")[1].startswith(
        "cert.key is not a PEM file with a certificate"
    )
    assert problem(tmp_path, "{certificate: cert.pem, key: cert.pem}")[0] == "sip.tls.key"
    Authority(tmp_path, "Other").issue("pbx.example.org", file="other")
    assert problem(tmp_path, "{certificate: cert.pem, key: other.key}") == (
        "sip.tls.key",
        "other.key is not the key of cert.pem; give the key that the certificate was requested with",
    )
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    assert problem(tmp_path, "{certificate: broken.pem, key: cert.key}")[0] == "sip.tls.certificate"
    assert problem(tmp_path, "{certificate: cert.pem, key: cert.key, ca: broken.pem}")[0] == "sip.tls.ca"
    assert problem(tmp_path, "{certificate: cert.pem, key: cert.key, ca: nowhere.pem}")[0] == "sip.tls.ca"
    files.key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert "is protected by a password" in problem(tmp_path, GOOD)[1]


@pytest.mark.usefixtures("files")
def test_names_stand_once_and_are_host_names(tmp_path: Path) -> None:
    twice = "{certificate: cert.pem, key: cert.key, names: [a.example, b.example, A.example]}"
    tls = f"{{certificate: cert.pem, key: cert.key, certificates: [{twice}]}}"
    assert problem(tmp_path, tls) == (
        "sip.tls.certificates[0].names[2]",
        "a.example stands twice; remove one of the two",
    )
    address = "{certificate: cert.pem, key: cert.key, names: [192.0.2.1]}"
    tls = f"{{certificate: cert.pem, key: cert.key, certificates: [{address}]}}"
    assert "is an IP address" in problem(tmp_path, tls)[1]


@pytest.mark.parametrize(
    ("days", "message"),
    [((-30, -1), "has expired"), ((1, 30), "is not valid yet"), ((-30, 3.5), "expires in 3 days")],
)
def test_dates_are_warnings(tmp_path: Path, days: tuple[float, float], message: str) -> None:
    Authority(tmp_path).issue("pbx.example.org", file="cert", days=days)
    found = loaded(tmp_path, GOOD)
    assert [item.message.replace(f"{tmp_path}/", "") for item in found.warnings if "tls" in item.key] == [
        f"cert.pem {message}"
    ]


def test_name_that_the_certificate_does_not_hold_is_a_warning(tmp_path: Path) -> None:
    Authority(tmp_path).issue("pbx.example.org", "*.example.net", file="cert")
    named = "{certificate: cert.pem, key: cert.key, names: [pbx.example.org, sip.example.net, sip.example.com]}"
    found = loaded(tmp_path, f"{{certificate: cert.pem, key: cert.key, certificates: [{named}]}}")
    (warning,) = [item for item in found.warnings if "tls" in item.key]
    assert warning.key == "sip.tls.certificates[0].names[2]"
    assert "is not for sip.example.com, but for *.example.net, pbx.example.org" in warning.message


def test_key_that_others_can_read_is_a_warning(tmp_path: Path, files: Files) -> None:
    files.key.chmod(0o640)
    (found,) = [item for item in loaded(tmp_path, GOOD).warnings if item.key == "sip.tls.key"]
    assert "can be read by others (mode 640)" in found.message
    assert found.remedy.startswith("chmod 600")
