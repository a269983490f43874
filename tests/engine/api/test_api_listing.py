"""Reading collection queries and cutting pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import ApiError
from engine.api.listing import Listing, ListQuery, cut, pagination, parse_filter, parse_query
from engine.api.metrics import families, split_name

LISTING = Listing(("id", "size"), ("colour", "size"))
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


@given(st.dictionaries(PRINTABLE.filter(lambda key: ":" not in key), PRINTABLE, max_size=5))
def test_any_filter_can_be_written_and_read_back(wanted: dict[str, str]) -> None:
    text = ",".join(f"{escaped(key)}:{escaped(value)}" for key, value in wanted.items())
    assert parse_filter(text) == wanted


@given(st.text(max_size=60))
def test_any_filter_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_filter(text)
    except ValueError:
        return
    assert all(found.keys())
    assert all(found.values())


@given(st.dictionaries(st.sampled_from(["page", "limit", "sort", "order", "filter", "other"]), st.text(max_size=20)))
def test_any_query_is_read_within_bounds_or_refused_with_400(query: dict[str, str]) -> None:
    found: ListQuery | ApiError
    try:
        found = parse_query(query, LISTING)
    except ApiError as exc:
        found = exc
    if isinstance(found, ApiError):
        assert found.status == 400
        assert found.details
        return
    assert found.page >= 1
    assert 1 <= found.limit <= 100
    assert found.sort in LISTING.sorts


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"page": "0"}, "page"),
        ({"page": "-1"}, "page"),
        ({"page": "٣"}, "page"),
        ({"page": "1e3"}, "page"),
        ({"limit": "101"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"sort": "shape"}, "sort"),
        ({"order": "up"}, "order"),
        ({"filter": "colour"}, "filter"),
        ({"filter": "colour:"}, "filter"),
        ({"filter": "colour:red,colour:blue"}, "filter"),
        ({"filter": "shape:round"}, "filter"),
        ({"filter": "colour:a\x00b"}, "filter"),
        ({"filter": "colour:" + "x" * 1000}, "filter"),
        ({"filter": "colour:red\\"}, "filter"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(query: dict[str, str], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_query(query, LISTING)
    assert [detail.field for detail in caught.value.details] == [field]


def test_values_may_hold_colons_and_commas() -> None:
    assert parse_filter(r"to:sip:a@b,name:Doe\, Jane") == {"to": "sip:a@b", "name": "Doe, Jane"}


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=40), st.integers(1, 9), st.booleans())
def test_pages_cover_every_row_exactly_once(sizes: list[int | None], limit: int, descending: bool) -> None:
    rows = list(enumerate(sizes))
    seen: list[tuple[int, int | None]] = []
    for page in range(1, len(rows) // limit + 2):
        query = ListQuery(page, limit, "size", descending, {})
        got, total = cut(
            rows, query, sorts={"size": lambda row: row[1]}, filters={}, identity=lambda row: f"{row[0]:03}"
        )
        assert total == len(rows)
        seen += got
    assert sorted(seen, key=lambda row: row[0]) == rows
    values = [row[1] for row in seen]
    present = [value for value in values if value is not None]
    assert present == sorted(present, reverse=descending)
    assert values[: len(present)] == present


def test_an_empty_collection_has_no_pages() -> None:
    query = ListQuery(1, 50, "id", False, {})
    assert pagination(query, 0) == {"total": 0, "page": 1, "limit": 50, "pages": 0}
    assert pagination(query, 51)["pages"] == 2


@given(st.text(max_size=40))
def test_metric_names_are_read_or_refused(text: str) -> None:
    try:
        split_name(text)
    except ValueError:
        return


def test_metric_labels_are_read_with_their_escapes() -> None:
    assert split_name(r'x_total{a="1",b="say \"hi\"\n"}') == ("x_total", {"a": "1", "b": 'say "hi"\n'})


def test_samples_that_do_not_fit_their_metric_are_left_out() -> None:
    found = list(families({'x_total{a="1"}': 1, "x_total": 5, 'x_total{b="1"}': 5, "y": 2}))
    assert [(family.name, family.type, len(family.samples)) for family in found] == [
        ("murima_x", "counter", 1),
        ("murima_y", "gauge", 1),
    ]
