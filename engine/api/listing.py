"""Reading `page`, `limit`, `sort`, `order` and `filter`, and cutting a page out of a list.

Filter syntax: `key:value` terms joined by commas, all of which must hold:
`filter=queue:support,agent:a0001`. A backslash takes the next character
literally, so a value may hold a comma (`\\,`) or a backslash (`\\\\`). Colons
after the first one of a term belong to the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.api.errors import ApiError, Detail

MAX_LIMIT = 100
DEFAULT_LIMIT = 50
MAX_PAGE = 1_000_000
MAX_FILTER = 1000

T = TypeVar("T")
SortKey = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a collection offers: sort fields (the first is the default) and filter keys.

    None for `filters` leaves the judgement of both to the store that answers.
    """

    sorts: tuple[str, ...]
    filters: tuple[str, ...] | None
    descending: bool = False  # default order


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What the request asked of a collection, checked."""

    page: int
    limit: int
    sort: str
    descending: bool
    filters: Mapping[str, str]


def parse_filter(text: str) -> dict[str, str]:
    """Split a filter into its terms.

    Raises:
        ValueError: it is too long or has control characters; a term lacks its colon, key
            or value, repeats a key, or ends in a backslash.
    """
    if not text:
        return {}
    if len(text) > MAX_FILTER:
        raise ValueError(f"a filter has at most {MAX_FILTER} characters")
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    terms: list[str] = [""]
    characters = iter(text)
    for character in characters:
        if character == ",":
            terms.append("")
        elif character == "\\":
            following = next(characters, None)
            if following is None:
                raise ValueError("a backslash must be followed by the character it protects")
            terms[-1] += following
        else:
            terms[-1] += character
    found: dict[str, str] = {}
    for term in terms:
        key, colon, value = term.partition(":")
        if not colon or not key or not value:
            raise ValueError("write key:value terms joined by commas, such as queue:support,agent:a0001")
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def parse_query(query: Mapping[str, str], listing: Listing) -> ListQuery:
    """Read a collection request's query.

    Raises:
        ApiError: 400 with one detail for every parameter that is wrong.
    """
    wrong: list[Detail] = []

    def whole(name: str, default: int, most: int) -> int:
        text = query.get(name)
        if text is None:
            return default
        if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most:
            return int(text)
        wrong.append(Detail(name, f"must be a whole number from 1 to {most}"))
        return default

    def one_of(name: str, default: str, allowed: Sequence[str]) -> str:
        text = query.get(name, default)
        if text in allowed:
            return text
        wrong.append(Detail(name, f"must be one of {', '.join(allowed)}"))
        return default

    page = whole("page", 1, MAX_PAGE)
    limit = whole("limit", DEFAULT_LIMIT, MAX_LIMIT)
    if listing.filters is None:
        sort = query.get("sort", listing.sorts[0])
    else:
        sort = one_of("sort", listing.sorts[0], listing.sorts)
    order = one_of("order", "desc" if listing.descending else "asc", ("asc", "desc"))
    filters: dict[str, str] = {}
    try:
        filters = parse_filter(query.get("filter", ""))
    except ValueError as exc:
        wrong.append(Detail("filter", str(exc)))
    if listing.filters is not None:
        known_keys = ", ".join(listing.filters)
        wrong.extend(
            Detail("filter", f"unknown key {key!r}; known are {known_keys}")
            for key in filters
            if key not in listing.filters
        )
    known = {"page", "limit", "sort", "order", "filter"}
    wrong.extend(Detail(name, "unknown parameter") for name in query if name not in known)
    if wrong:
        raise ApiError(400, "The query is not valid.", details=wrong)
    return ListQuery(page, limit, sort, order == "desc", filters)


def pagination(query: ListQuery, total: int) -> dict[str, int]:
    """The `pagination` member of an answer; `pages` is 0 for an empty collection."""
    return {"total": total, "page": query.page, "limit": query.limit, "pages": math.ceil(total / query.limit)}


def cut(
    rows: Sequence[T],
    query: ListQuery,
    *,
    sorts: Mapping[str, Callable[[T], SortKey]],
    filters: Mapping[str, Callable[[T, str], bool]],
    identity: Callable[[T], str],
) -> tuple[list[T], int]:
    """Filter, sort and page a list in memory.

    Rows without a value for the sort field come last either way; ties go by
    `identity`, so that pages neither overlap nor leave gaps.

    Returns:
        The page's rows, and how many rows there are on all pages.
    """
    kept = [row for row in rows if all(filters[key](row, value) for key, value in query.filters.items())]
    key = sorts[query.sort]
    kept.sort(key=identity)
    valued = [(key(row), row) for row in kept]
    # Values of one sort field are all of one type, or None.
    present = sorted(
        ((value, row) for value, row in valued if value is not None),
        key=lambda pair: pair[0],
        reverse=query.descending,
    )
    ordered = [row for _, row in present] + [row for value, row in valued if value is None]
    start = (query.page - 1) * query.limit
    return ordered[start : start + query.limit], len(kept)
