"""What a right document becomes, and that any text either loads or is refused in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import text
from config.check import check
from config.loader import load, parse
from config.problems import ConfigurationError
from config.schema import Document, NoAnswer, PlayPrompt, RingAgent, Role, Strategy, ToQueue
from tests.config.documents import GOOD, changed, folder, good, problems

SAMPLE = Path(__file__).parents[2] / "config" / "shipped" / "sample.yaml"


def test_contract_document_loads_as_its_comments_say(tmp_path: Path) -> None:
    loaded = good(tmp_path)
    document = loaded.document
    assert loaded.text == GOOD
    assert loaded.warnings == ()
    assert [str(listener) for listener in document.sip.listen] == ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]
    assert str(document.http.listen) == "127.0.0.1:8080"
    assert [str(network) for network in document.sip.trunks[0].match] == ["127.0.0.4/32"]
    assert document.media.ports == (20000, 29999)
    assert document.users[0].role is Role.ADMINISTRATOR
    assert dict(document.agents[0].skills) == {"billing": 80}
    bench, expert = document.queues
    assert (bench.strategy, bench.members, bench.music, bench.no_answer) == (
        Strategy.LONGEST_IDLE,
        ("a0001",),
        None,
        NoAnswer.BREAK,
    )
    assert expert.members is None
    assert document.prompts["welcome"] == tmp_path / "prompts" / "welcome.wav"
    assert expert.music is not None
    assert document.prompts[expert.music] == tmp_path / "prompts" / "music.wav"
    assert document.numbers["500"] == ToQueue(queue="bench")
    assert document.numbers["601"] == PlayPrompt(play="welcome", then="silence")
    assert document.numbers[r"~6(\d{4})"] == RingAgent(agent=r"a\1", record=True)
    assert list(document.numbers)[:2] == ["500", "501"]


def test_ipv6_is_written_in_brackets(tmp_path: Path) -> None:
    document = good(tmp_path, ("tcp:127.0.0.1:5060", "tcp:[::1]:5061"), ("127.0.0.1:8080", "[::]:8080")).document
    assert (document.sip.listen[1].host, document.sip.listen[1].port) == ("::1", 5061)
    assert str(document.sip.listen[1]) == "tcp:[::1]:5061"
    assert str(document.http.listen) == "[::]:8080"


def test_values_are_frozen_and_repr_shows_no_secret(tmp_path: Path) -> None:
    document = good(tmp_path, ('password: "secret"', 'password: "hunter2"')).document
    assert "hunter2" not in repr(document)
    assert "hunter2" not in str(document)
    with pytest.raises(ValueError, match="frozen"):
        document.domain = "x"


def test_password_comes_from_the_environment(tmp_path: Path) -> None:
    changes = changed(('password: "secret", role', "password: {env: ADMIN_PASSWORD}, role"))
    document = parse(changes, base=folder(tmp_path), environ={"ADMIN_PASSWORD": "hunter2"}).document
    plain = document.users[0].password.plain
    assert plain is not None
    assert plain.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(document)


def test_yaml_1_2_keeps_yes_and_dates_as_text(tmp_path: Path) -> None:
    document = good(tmp_path, ("Agent 1", "Agent 1"), ('name: "Agent 1"', "name: 2026-01-02")).document
    assert document.agents[0].name == "2026-01-02"
    document = good(tmp_path, ('name: "Agent 1"', "name: yes")).document
    assert document.agents[0].name == "yes"
    assert good(tmp_path, ("workers: 1", "workers: 0x2")).document.media.workers == 2


def test_json_loads_as_well(tmp_path: Path) -> None:
    source, found = text.parse(GOOD)
    assert not found
    document = parse(json.dumps(source.value, indent=1), base=folder(tmp_path), environ={}).document
    assert document == good(tmp_path).document


def test_aliases_share_what_they_name(tmp_path: Path) -> None:
    document = good(tmp_path, ("{billing: 80}", "&s {billing: 80}"), ("{billing: 1}", "*s")).document
    assert dict(document.queues[1].requires) == {"billing": 80}


def test_ports_are_shared_in_whole_pairs(tmp_path: Path) -> None:
    media = good(tmp_path, ("[20000, 29999], workers: 1", "[20000, 20020], workers: 3")).document.media
    assert [media.worker_ports(index) for index in range(3)] == [(20000, 20005), (20006, 20011), (20012, 20017)]


def test_warnings_name_what_is_hardly_meant(tmp_path: Path) -> None:
    loaded = good(
        tmp_path,
        ("requires: {billing: 1}", "requires: {billing: 90}"),
        ("{play: welcome, then: silence}", "{echo: true}"),
        ('"500": {queue: bench}', '"500": {echo: true}'),
    )
    assert [(warning.line, warning.key, warning.message) for warning in loaded.warnings] == [
        (8, "prompts.welcome", 'nothing plays the prompt "welcome"'),
        (14, "queues[0].id", 'no number leads to the queue "bench"'),
        (15, "queues[1]",
         'nobody can serve the queue "expert": no agent who serves it has the skills required (billing 90)'),
    ]  # fmt: skip


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "absent.yaml", "the file does not exist"), (tmp_path, "this is a folder")):
        with pytest.raises(ConfigurationError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"domain: x\nname: \xe4\n")
    with pytest.raises(ConfigurationError, match=f"{latin}:2:7: this is not UTF-8 text; save the file as UTF-8"):
        load(latin)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (text.MAX_BYTES + 1))
    with pytest.raises(ConfigurationError, match="larger than 4 MiB"):
        load(huge)


def test_check_gives_the_lines_of_a_compiler(tmp_path: Path) -> None:
    file = folder(tmp_path) / "murima.yaml"
    file.write_text(GOOD, encoding="utf-8")
    assert check(file, {}) == (0, f"{file}: all right: 8 numbers, 2 queues, 1 agent, 1 trunk, 2 prompts")
    file.write_text(changed(("domain: pbx.local\n", "")), encoding="utf-8")
    assert check(file, {}) == (1, f"{file}:1:1: domain: is missing; add domain: pbx.example.org\n1 problem")


def test_shipped_sample_is_right() -> None:
    loaded = load(SAMPLE, {})
    assert loaded.warnings == ()
    size = sum(path.stat().st_size for path in (SAMPLE.parent / "prompts").iterdir())
    assert size < 800_000


def outcome_of(content: str) -> Document | ConfigurationError:
    """Any other exception is a failure."""
    try:
        return parse(content, base=Path("/nonexistent"), environ={}).document
    except ConfigurationError as exc:
        return exc


WORDS = st.sampled_from(
    [*"{}[]:,-&*!|>#'\"%@`~?\t\n ", "\n  ", ": ", "- ", "&a", "*a", "<<: *a", "!!str", "!x", "null", "1e9", "0x1f",
     "domain", "sip", "listen", "media", "ports", "numbers", "agents", "queues", "queue", "play", "then", "password",
     "env", "true", "---", "...", "%YAML 1.1", "\x00", "\ud800", "é", "\u2028"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS | st.text(max_size=6), max_size=40).map("".join))
@example("%YAML 1.1\n---\n!!binary x: y")
@example("? [a]\n: b")
@example("a: 0o9\nb: .inf\nc: -.inf\nd: .nan\ne: +1")
@example("a: !!int x")
def test_any_text_loads_or_is_refused_in_order(content: str) -> None:
    outcome = outcome_of(content)
    assert isinstance(outcome, Document) or (outcome.problems and all(problem.message for problem in outcome.problems))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_document_loads_or_is_refused_in_order(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(start + 12, len(GOOD))))
    content = GOOD[:start] + data.draw(WORDS | st.text(max_size=3)) + GOOD[end:]
    outcome = outcome_of(content)
    assert isinstance(outcome, Document) or outcome.problems


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_refused_in_order(data: st.DataObject) -> None:
    tree: Any = text.parse(GOOD)[0].value
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for inner_key, inner in items:
            places.append((value, inner_key))
            walk(inner)

    walk(tree)
    parent, key = data.draw(st.sampled_from(places))
    parent[key] = data.draw(VALUES)
    outcome = outcome_of(json.dumps(tree))
    for problem in () if isinstance(outcome, Document) else outcome.problems:
        assert problem.key or problem.line
        assert problem.message


def test_problems_of_a_text_without_end_are_bounded(tmp_path: Path) -> None:
    assert problems(tmp_path, "a: 1" + "0" * 5000)
