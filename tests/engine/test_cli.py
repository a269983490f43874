from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from ruamel.yaml import YAML

from config.loader import load
from config.schema import Agent, Password
from config.secrets import ALGORITHMS, ha1, sip_ha1
from engine.cli import main
from engine.demo import demo_document, queue_numbers
from tests.config.documents import GOOD

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "shipped"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in ("serve", "check", "doctor", "call", "password", "demo"):
        assert command in text
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0


def test_check_accepts_the_shipped_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SHIPPED / "sample.yaml")]) == 0
    assert capsys.readouterr().err == ""


def test_check_says_what_is_wrong_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(GOOD.replace("strategy: longest_idle", "strategy: longest_idol"))
    assert main(["check", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "broken.yaml:" in captured.err
    assert "longest_idle" in captured.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sip:500@127.0.0.1", "--play", "/nowhere/speech.wav"], "no file /nowhere/speech.wav"),
        (["sip:500@127.0.0.1", "--record", "/nowhere/heard.wav"], "no folder /nowhere"),
        (["sip:500@127.0.0.1", "--dtmf", "12x"], "'12x'"),
        (["not an address"], "not a SIP address"),
        (["sip:500@127.0.0.1", "--address", "192.0.2.1"], "cannot call from 192.0.2.1"),
    ],
)
def test_call_refuses_what_cannot_work(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_password_prints_hashes_that_a_document_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("hunter2\n"))
    assert main(["password", "--agent", "a0001", "--domain", "pbx.local"]) == 0
    printed = YAML(typ="safe").load(capsys.readouterr().out)
    password = Password.model_validate(printed["password"])
    assert password.argon2id is not None
    assert PasswordHasher().verify(password.argon2id.get_secret_value(), "hunter2")
    for algorithm in ALGORITHMS:
        stored = sip_ha1(Agent(id="a0001", password=password), "pbx.local", algorithm)
        assert stored == ha1("a0001", "pbx.local", "hunter2", algorithm)


def test_the_demo_serves_the_sample_with_phones_for_every_agent(tmp_path: Path) -> None:
    sample = SHIPPED / "sample.yaml"
    document = load(sample).document
    derived = tmp_path / "demo.yaml"
    derived.write_text(demo_document(sample, document, "127.0.0.6", 7777, "for-this-run"))
    made = load(derived).document
    assert {agent.contact for agent in made.agents} == {f"sip:{agent.id}@127.0.0.6:7777" for agent in document.agents}
    assert all(agent.auto_ready for agent in made.agents)
    assert made.numbers == document.numbers
    assert made.queues == document.queues
    assert made.prompts == document.prompts
    assert made.sip.trunks[-1].name == "demo"
    assert queue_numbers(document) == ["500", "501", "502", "503"]
