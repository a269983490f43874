from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engine.doctor import Finding, Verdict, doctor, render
from tests.ports import free_port


def document(folder: Path, *, udp: int = 0, http: int = 0, media: str = "[21000, 21099]", more: str = "") -> Path:
    udp, http = udp or free_port(), http or free_port()
    path = folder / "murima.yaml"
    path.write_text(
        f'domain: pbx.local\nsip: {{listen: ["udp:127.0.0.1:{udp}"]}}\nmedia: {{address: 127.0.0.1, ports: {media}}}\n'
        f'http: {{listen: "127.0.0.1:{http}"}}\nnumbers: {{"602": {{echo: true}}}}\n{more}'
    )
    return path


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict is Verdict.FAIL]


def test_healthy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MURIMA_DATABASE_URL", raising=False)
    config = document(tmp_path)
    findings = doctor(config, tmp_path / "data")
    assert failures(findings) == []
    assert not (tmp_path / "data").exists()
    text = "\n".join(finding.what for finding in findings)
    for part in (
        *("Python 3.", "clock", f"{config} is right", "data can be made", "GiB are free", "PostgreSQL"),
        *("udp:127.0.0.1:", "http:127.0.0.1:", "UDP ports 21000–21099", "file handles", "UDP receive buffers"),
        *("sipp", "baresip", "tshark"),
    ):
        assert part in text


def test_broken_configuration_shows_its_lines(tmp_path: Path) -> None:
    config = document(tmp_path, more="domain: twice\n")
    (failure,) = failures(doctor(config, tmp_path))
    assert failure.what.startswith(f"{config}:6:1: domain: the key stands twice")


def test_missing_prompt_is_found(tmp_path: Path) -> None:
    config = document(tmp_path, more="prompts: {welcome: absent.wav}\n")
    (failure,) = failures(doctor(config, tmp_path))
    assert f"{tmp_path}/absent.wav does not exist" in failure.what


def test_taken_ports_are_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as http:
        udp.bind(("127.0.0.1", 0))
        http.bind(("127.0.0.1", 0))
        http.listen()
        config = document(tmp_path, udp=udp.getsockname()[1], http=http.getsockname()[1])
        first, second = failures(doctor(config, tmp_path))
    assert f"(process {os.getpid()})" in first.what
    assert f"(process {os.getpid()})" in second.what
    assert first.remedy == "stop that program or choose another port"


def test_taken_media_ports_are_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        low = udp.getsockname()[1] // 2 * 2
        findings = doctor(document(tmp_path, media=f"[{low}, {low + 3}]"), tmp_path)
    assert any(finding.verdict is Verdict.WARN and "of those tried are taken" in finding.what for finding in findings)


def test_foreign_media_address_is_found(tmp_path: Path) -> None:
    config = document(tmp_path)
    config.write_text(config.read_text().replace("address: 127.0.0.1", "address: 192.0.2.1"))
    (failure,) = failures(doctor(config, tmp_path))
    assert failure.what == "media.address 192.0.2.1 is not an address of this machine"


def test_data_folder_that_is_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    (failure,) = failures(doctor(None, tmp_path / "data"))
    assert failure.what == f"cannot write to {tmp_path / 'data'}: it is not a folder"


def test_database_out_of_reach_is_found_and_its_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MURIMA_DATABASE_URL", f"postgresql://murima:hunter2@127.0.0.1:{port}/murima")
    findings = doctor(None, tmp_path)
    (failure,) = failures(findings)
    assert failure.what.startswith("the database on 127.0.0.1 cannot be reached: ")
    assert "hunter2" not in render(findings)


def test_table_is_readable() -> None:
    findings = [
        Finding(Verdict.OK, "a is fine"),
        Finding(Verdict.WARN, "b is small", "make it large"),
        Finding(Verdict.FAIL, "c is broken", "mend it"),
    ]
    assert render(findings) == (
        "ok    a is fine\nwarn  b is small\n      → make it large\nfail  c is broken\n      → mend it\n\n"
        "murima will not run: 1 to put right"
    )
    assert render(findings[:2]).endswith("murima will run; 1 could be better")
    assert render(findings[:1]).endswith("all is well")
    assert render(findings, colour=True).startswith("\x1b[32mok  \x1b[0m  a is fine")
