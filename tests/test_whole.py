"""`pytest --whole` fails when a test is left out, with and without pytest-xdist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

ONE_PASSES = "def test_one():\n    pass\n"
ONE_SKIPPED = ONE_PASSES + "import pytest\ndef test_two():\n    pytest.skip('not today')\n"
ONE_EXPECTED_TO_FAIL = ONE_PASSES + "import pytest\n@pytest.mark.xfail\ndef test_two():\n    assert 0\n"


@pytest.mark.parametrize("processes", ["0", "1"])
@pytest.mark.parametrize(
    ("source", "arguments", "status", "line"),
    [
        (ONE_PASSES, [], 0, "1 tests ran; none was skipped"),
        (ONE_SKIPPED, [], 1, "1 skipped; that is a failure"),
        (ONE_EXPECTED_TO_FAIL, [], 1, "1 expected to fail; that is a failure"),
        (ONE_PASSES + "def test_two():\n    pass\n", ["-k", "one"], 1, "1 deselected; that is a failure"),
    ],
    ids=["all", "skipped", "expected-to-fail", "deselected"],
)
def test_a_run_that_leaves_tests_out_fails(
    tmp_path: Path, processes: str, source: str, arguments: list[str], status: int, line: str
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_sample.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--whole", "-n", processes, *arguments, "."]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert line in run.stdout
    assert run.returncode == status
