from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.events import LegDtmf, LegId, Party
from engine.log import EVENTS_PER_SECOND, Flood, HumanFormatter, JsonFormatter, call_context, configure
from engine.privacy import mask, mask_field, mask_number

log = logging.getLogger("murima.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logs of the test go here; what was configured before comes back."""
    root = logging.getLogger()
    before, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers = []
    output = io.StringIO()
    configure("debug", output)
    yield output
    root.handlers[0].close()
    root.handlers = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.raiseExceptions = raising


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_record_is_one_json_object_a_line(stream: io.StringIO) -> None:
    log.info("queue.answered", extra={"call_id": "c1", "queue": "support", "wait_s": 12.4})
    (entry,) = entries(stream)
    assert str(entry.pop("time")).endswith("Z")
    assert entry == {
        "level": "info", "logger": "murima.test", "msg": "queue.answered",
        "call_id": "c1", "queue": "support", "wait_s": 12.4,
    }  # fmt: skip


def test_call_id_comes_from_the_context(stream: io.StringIO) -> None:
    with call_context("c1"):
        log.info("one")
        log.info("two", extra={"call_id": "c2"})
    log.info("three")
    assert [entry.get("call_id") for entry in entries(stream)] == ["c1", "c2", None]


def test_exception_text_is_masked(stream: io.StringIO) -> None:
    words = f"{LegDtmf(LegId('l1'), '5', 100)} {Party('+491701234567', 'Jo')} password='hunter2'"
    try:
        raise ValueError(words)
    except ValueError:
        log.exception("call.failed")
    (entry,) = entries(stream)
    text = str(entry["error"])
    assert "Traceback" in text
    assert "duration_ms=100" in text
    for secret in ("'5'", "1701234567", "hunter2"):
        assert secret in words
        assert secret not in text.split("ValueError: ")[1]


def test_facts_named_like_our_own_keys_do_not_replace_them(stream: io.StringIO) -> None:
    log.info("event", extra={"time": 1, "level": 2, "error": "none"})
    (entry,) = entries(stream)
    assert (entry["time_"], entry["level_"], entry["level"], entry["error"]) == (1, 2, "info", "none")


def test_line_for_people_cannot_be_broken_or_painted_by_a_value() -> None:
    record = log.makeRecord("x", logging.INFO, "f", 1, "call.x", (), None, extra={"name_": "a\nb\x1b[31m", "n": 1})
    plain = HumanFormatter(colour=False).format(record)
    assert plain.endswith(' info     call.x  name_="a\\nb\\x1b[31m" n=1')
    assert "\n" not in plain
    coloured = HumanFormatter(colour=True).format(record)
    assert "\x1b[32minfo" in coloured
    assert "\x1b[31m" not in coloured


def test_terminal_gets_lines_and_a_file_gets_json(stream: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for output, as_json, expected in ((Terminal(), None, False), (io.StringIO(), None, True), (Terminal(), True, True)):
        configure("info", output, force_json=as_json)
        log.info("x.y")
        assert output.getvalue().startswith("{") is expected
    with pytest.raises(ValueError, match="'loud' is not a log level"):
        configure("loud", stream)


def test_flood_collapses_to_a_count(stream: io.StringIO) -> None:
    for _ in range(EVENTS_PER_SECOND * 3):
        log.warning("sip.rejected")
    log.warning("other")
    logging.getLogger().handlers[0].close()
    seen = [entry["msg"] for entry in entries(stream)]
    assert seen.count("sip.rejected") <= EVENTS_PER_SECOND * 2  # a second may turn in between
    assert "other" in seen
    repeated = sum(int(str(entry["count"])) for entry in entries(stream) if entry["msg"] == "log.repeated")
    assert repeated + seen.count("sip.rejected") == EVENTS_PER_SECOND * 3


def test_flood_windows() -> None:
    flood = Flood(2)
    key, other = ("a", 20), ("b", 20)
    assert [flood.admit(key, 0.1 * step) for step in range(4)] == [True, True, False, False]
    assert flood.admit(other, 0.5)
    assert flood.due(0.9) == []
    assert flood.due(1.0) == [(key, 2)]
    assert flood.due(1.0) == []
    assert flood.admit(key, 1.0)


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 0.3)), max_size=200))
def test_flood_counts_every_occurrence_once(steps: list[tuple[int, float]]) -> None:
    flood = Flood(1)
    now, written, reported = 0.0, 0, 0
    for number, pause in steps:
        now += pause
        reported += sum(count for _, count in flood.due(now))
        written += flood.admit((str(number), 20), now)
    reported += sum(count for _, count in flood.due(now, everything=True))
    assert written + reported == len(steps)


# --- masking ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("call from +491701234567 failed", "call from +**********67 failed"),
        ("+49 170 1234567", "+** *** *****67"),
        ("0170/1234567", "****/*****67"),
        ("From: <sip:0301234567@10.0.0.1:5060>;tag=1", "From: <sip:********67@10.0.0.1:5060>;tag=1"),
        ("sip:a0001@127.0.0.2:7000", "sip:a0001@127.0.0.2:7000"),
        ("sip:500@pbx.local", "sip:500@pbx.local"),
        ("tel:+4930123456", "tel:+********56"),
        ('Authorization: Digest username="a", response="ff"', "Authorization: ***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': ***"),
        ("got Bearer eyJ0.x.y", "got Bearer ***"),
        ("password=hunter2, x=1", "password=***, x=1"),
        ('{"refresh_token": "abc", "x": 1}', '{"refresh_token": ***, "x": 1}'),
        ("postgresql://u:pw@db/murima", "postgresql://u:***@db/murima"),
        ("GET /api/v1/events?ticket=abcdef", "GET /api/v1/events?ticket=***"),
        ("digit='5'", "digit=***"),
        (
            "bound 127.0.0.1:20000 at 2026-11-23 after 0.1234567 s",
            "bound 127.0.0.1:20000 at 2026-11-23 after 0.1234567 s",
        ),
        ("Digest authentication failed", "Digest authentication failed"),
    ],
)
def test_mask(text: str, masked: str) -> None:
    assert mask(text) == masked


DIGITS = st.text(alphabet="0123456789", min_size=7, max_size=15)


@given(
    DIGITS, st.sampled_from(["{}", "+{}", "call to {}", "sip:{}@h", "number='{}'", "tel:+{};ext=1", "x {} y", "({})"])
)
def test_no_phone_number_survives_in_text(number: str, form: str) -> None:
    masked = mask(form.format(number))
    assert number[:-2] not in masked
    assert number[-2:] in masked


@given(DIGITS, st.sampled_from(["caller", "dialled", "from_number", "contact", "to", "phone"]))
def test_no_phone_number_survives_in_its_field(number: str, name: str) -> None:
    for value in (number, int(number), f"sip:{number}@10.0.0.1", Party(number), [number], {"number": number}):
        shown = str(mask_field(name, value))
        assert number not in shown
        assert str(int(number)) not in shown or len(str(int(number))) <= 4


@given(
    st.sampled_from(
        ["password", "access_token", "authorization", "digits", "digit", "dtmf", "transcript", "ha1", "api_key"]
    ),
    st.text(min_size=3) | st.integers() | st.lists(st.text(min_size=3), min_size=1),
)
def test_no_secret_survives_in_its_field(name: str, value: object) -> None:
    assert mask_field(name, value) == "***"
    assert mask_field("facts", {name: value}) == {name: "***"}


@given(st.text(max_size=300))
def test_any_text_is_masked_in_bounds(text: str) -> None:
    assert isinstance(mask(text), str)
    assert isinstance(mask_number(text), str)


@pytest.mark.parametrize(
    "text", ["password=" * 5000, "+1 " * 5000, "sip:1" * 5000, "a://" * 5000, "x:" * 20_000, "'\\" * 9000]
)
@pytest.mark.timeout(5)
def test_masking_takes_no_long_time(text: str) -> None:
    mask(text)


def test_values_of_any_kind_are_json_ready() -> None:
    @dataclass(frozen=True)
    class Deep:
        inner: object

    value: object = Deep(Deep(Deep(Deep(Deep(Deep({1, 2}))))))
    record = log.makeRecord(
        "x", logging.INFO, "f", 1, "m", (), None,
        extra={"deep": value, "many": list(range(500)), "long": "x" * 9999, "raw": b"\xff", "odd": "\ud800"},
    )  # fmt: skip
    entry = json.loads(JsonFormatter().format(record))
    assert len(entry["many"]) == 50
    assert len(entry["long"]) == 2001
