"""What the whole suite shares: a run that leaves a test out is not a success.

`pytest --whole` (which `make test` uses) fails when a test was skipped, was
expected to fail, or was deselected, and says how many tests ran.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

DESELECTED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole",
        action="store_true",
        help="fail when a test is skipped, expected to fail or deselected, and say how many ran",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DESELECTED] = 0


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Calls with real phones take longest, so they start first; one process makes them one after the other."""
    for item in items:
        if "peers" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("peers"))
    items.sort(key=lambda item: "peers" not in item.path.parts)


@pytest.hookimpl(trylast=True)
def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if items:
        items[0].config.stash[DESELECTED] += len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    workeroutput = getattr(config, "workeroutput", None)
    if workeroutput is not None:  # a process of pytest-xdist: the controller decides
        workeroutput["deselected"] = config.stash[DESELECTED]
    elif config.getoption("--whole") and _left_out(config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Collect what a process of pytest-xdist deselected; each deselects the same tests."""
    del error
    config: pytest.Config = node.config  # type: ignore[attr-defined]  # xdist ships no types for its nodes
    deselected: int = getattr(node, "workeroutput", {}).get("deselected", 0)
    config.stash[DESELECTED] = max(config.stash[DESELECTED], deselected)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--whole"):
        return
    ran = sum(len(terminalreporter.stats.get(key, ())) for key in ("passed", "failed", "xpassed"))
    left_out = _left_out(config)
    if left_out:
        facts = ", ".join(f"{count} {what}" for what, count in left_out.items())
        terminalreporter.write_line(f"{ran} tests ran, but not all: {facts}; that is a failure", red=True)
    else:
        terminalreporter.write_line(f"{ran} tests ran; none was skipped, expected to fail or deselected")


def _left_out(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if isinstance(reporter, pytest.TerminalReporter) else {}
    counts = {
        "skipped": len(stats.get("skipped", ())),
        "expected to fail": len(stats.get("xfailed", ())),
        "deselected": config.stash[DESELECTED],
    }
    return {what: count for what, count in counts.items() if count}
