"""Coverage-guided fuzzing of the SIP stack with atheris (libFuzzer).

    .venv/bin/python -m tests.fuzz.sip                       every target, 200,000 inputs each
    .venv/bin/python -m tests.fuzz.sip --runs 1000000 dialogs
    .venv/bin/python -m tests.fuzz.sip --corpus .cache/fuzz  keep what found new code, and go on from there

An input that breaks a target is kept beside the corpus, its traceback is
printed, and the exit status is 1. Put such an input into `tests/fuzz/found/TARGET/`
once its fault is mended: `tests/fuzz/test_targets.py` replays what lies there.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.seeds import DICTIONARY, write_seeds

NAMES = ("message", "stream", "values", "sdp", "digest", "body", "dialogs")
LONGEST = {"values": 400, "digest": 600, "dialogs": 240}  # bytes; others 4,096
TIME_LIMIT_S = 2  # for one input, on a machine that does other things too
MEMORY_LIMIT_MB = 600

_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)


def run(target: str, runs: int, folder: Path, seed: int) -> int:
    """Fuzz one target in a process of its own; how many inputs it took.

    Raises:
        subprocess.CalledProcessError: an input broke it.
    """
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = folder / "seeds" / target
    write_seeds(target, seeds)
    words = folder / "dictionary"
    words.write_text("".join(f'"{word}"\n' for word in DICTIONARY))
    command = [sys.executable, "-m", "tests.fuzz.sip", "--inside", target, str(corpus), str(seeds)]
    command += [f"-runs={runs}", f"-seed={seed}", f"-dict={words}", f"-max_len={LONGEST.get(target, 4096)}"]
    command += [f"-timeout={TIME_LIMIT_S}", f"-rss_limit_mb={MEMORY_LIMIT_MB}", f"-artifact_prefix={folder}/{target}-"]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    done = _DONE.search(result.stderr)
    if result.returncode or done is None:
        print(result.stdout[-4000:], result.stderr[-8000:], sep="\n")
        raise subprocess.CalledProcessError(result.returncode, command)
    return int(done.group(1))


def inside(target: str, arguments: list[str]) -> None:
    """What the process of one target does; it ends in here."""
    import atheris

    with atheris.instrument_imports(include=["adapters.sip", "adapters.native.parties"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([target, *arguments], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("targets", nargs="*", default=NAMES, metavar="TARGET", help=", ".join(NAMES))
    options.add_argument("--runs", type=int, default=200_000, help="inputs for each target")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--corpus", type=Path, help="folder of what to start from, and to add to")
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="murima-fuzz-")) if given.corpus is None else given.corpus.absolute()
    total = 0
    failed = False
    for target in given.targets:
        started = time.monotonic()
        try:
            count = run(target, given.runs, folder, given.seed)
        except subprocess.CalledProcessError:
            print(f"{target}: BROKEN, see {folder}")
            failed = True
            continue
        took = time.monotonic() - started
        total += count
        print(f"{target:<10}{count:>12,} inputs {took:>8.1f} s {took / count * 1e6:>8.1f} µs each", flush=True)
    print(f"{'together':<10}{total:>12,} inputs, {'some broke a target' if failed else 'none broke a target'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
