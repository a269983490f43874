"""The conformance table of docs/sip.md names tests that exist, and says something of every RFC."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "sip.md"
FOLDERS = {"sip": TESTS / "adapters" / "sip", "native": TESTS / "adapters" / "native"}
NAMED = re.compile(r"`([a-z_]+)/((?:[a-z_]+/)*test_\w+\.py)(?:::(test_\w+))?`")


def rows() -> list[list[str]]:
    """The cells of each row of the table."""
    _, _, section = PAGE.read_text().partition("\n## Conformance\n")
    lines = section.partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}


def test_every_row_is_proven_by_tests_that_exist() -> None:
    found = rows()
    assert len(found) > 40
    for cells in found:
        assert len(cells) == 4, cells
        rfc, works, lacks, proof = cells
        assert re.match(r"\d{4}", rfc), rfc
        assert works or lacks, rfc
        named = NAMED.findall(proof)
        assert named or not works, f"{rfc}: nothing proves it"
        assert NAMED.sub("", proof).replace(",", "").strip() == "", f"{rfc}: {proof}"
        for folder, name, function in named:
            path = FOLDERS.get(folder, TESTS / folder) / name
            assert path.is_file(), f"{rfc}: no {path.relative_to(TESTS)}"
            assert not function or function in names_in(path), f"{rfc}: no {function} in {path.relative_to(TESTS)}"


def test_no_rfc_has_two_rows() -> None:
    titles = [cells[0] for cells in rows()]
    assert len(titles) == len(set(titles))
