"""The table of docs/agent-states.md, for the tests that hold murima to it."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "agent-states.md"


def documented_rows() -> dict[str, tuple[str, str, str]]:
    """Return the agent's state, its reason and the contact's fate by case, in the order of the page."""
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert len({row[0] for row in rows}) == len(rows), "a case appears twice"
    return {row[0]: (row[1], row[2], row[3]) for row in rows}
