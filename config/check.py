"""`murima check FILE`: is this configuration right?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from config.loader import load
from config.problems import ConfigurationError, describe
from config.schema import Document


def check(path: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Check a file; gives the exit code (0 right, 1 wrong) and the text for people.

    The text of a wrong file is for standard error: one line a problem,
    `FILE:LINE:COLUMN: KEY: MESSAGE; REMEDY`, then a summary.
    """
    try:
        loaded = load(path, environ)
    except ConfigurationError as exc:
        count = len(exc.problems)
        return 1, f"{exc}\n{count} problem{'' if count == 1 else 's'}"
    lines = describe(loaded.path, loaded.warnings, kind="warning")
    return 0, "\n".join([*lines, f"{path}: all right: {_summary(loaded.document)}"])


def _summary(document: Document) -> str:
    counts = (
        (len(document.numbers), "number"),
        (len(document.queues), "queue"),
        (len(document.agents), "agent"),
        (len(document.sip.trunks), "trunk"),
        (len(document.prompts), "prompt"),
    )
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
