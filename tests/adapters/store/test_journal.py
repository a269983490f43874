"""The journal file: what is torn, damaged, too much or locked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.store.journal import Entry, Journal, JournalError, line, parse

LIMIT = 1_000_000


def read_all(journal: Journal) -> list[Entry]:
    entries: list[Entry] = []
    offset = 0
    while offset < journal.size:
        found, offset = journal.read(offset)
        entries += found
    return entries


@given(st.from_regex(r"[a-z_.]{1,20}", fullmatch=True), st.text().map(lambda s: s.replace("\n", "")))
def test_a_line_comes_back(name: str, body: str) -> None:
    try:
        raw = body.encode()
    except UnicodeEncodeError:
        return
    assert parse(line(name, raw)[:-1]) == Entry(name, body)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_entry_or_none(raw: bytes) -> None:
    parse(raw)


@given(st.data())
def test_a_changed_line_is_noticed(data: st.DataObject) -> None:
    whole = line("call.started", b'{"event_id":"e1"}')[:-1]
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.sampled_from([0x01, 0x02, 0x80]))
    assert parse(bytes(changed)) is None


@pytest.mark.parametrize("torn", range(1, 12))
def test_a_torn_last_line_is_skipped_and_what_follows_is_kept(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "j" / "events.journal"
    journal = Journal.open(path, LIMIT)
    assert journal.append(line("a", b"{}") + line("b", b"{}"))
    journal.close()
    path.write_bytes(path.read_bytes()[:-torn])
    journal = Journal.open(path, LIMIT)
    assert journal.append(line("c", b"{}"))
    # One that lost its line end only is whole.
    assert [e.name for e in read_all(journal)] == (["a", "b", "c"] if torn == 1 else ["a", "c"])
    assert journal.damaged == (torn > 1)
    journal.close()


def test_long_journals_are_read_in_pieces(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", 10 * LIMIT)
    bodies = [b'"' + b"x" * length + b'"' for length in (10, 300_000, 5, 262_100, 700_000, 1)]
    for n, body in enumerate(bodies):
        assert journal.append(line(f"n{n}", body))
    assert [e.body.encode() for e in read_all(journal)] == bodies
    journal.clear()
    assert (journal.size, read_all(journal)) == (0, [])
    journal.close()


def test_the_limit_refuses_whole_appends(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", 40)
    assert journal.append(line("a", b"{}"))
    assert not journal.append(line("a", b"{}") * 10)
    assert [e.name for e in read_all(journal)] == ["a"]
    journal.close()


def test_a_full_disk_leaves_no_half_line() -> None:
    journal = Journal.open(Path("/dev/full"), LIMIT)
    assert not journal.append(line("a", b"{}"))
    assert journal.size == 0
    journal.close()


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", LIMIT)
    with pytest.raises(JournalError, match="another process"):
        Journal.open(tmp_path / "j", LIMIT)
    journal.close()


def test_an_impossible_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be written"):
        Journal.open(tmp_path / "file" / "j", LIMIT)
