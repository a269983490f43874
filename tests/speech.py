"""Recorded human speech for tests, from Debian's packages: 8 kHz, mono, int16, the same on each run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import soxr

from tests.audio import Samples, load_wav, save_wav

RATE = 8000

_PROMPTS = Path("/usr/share/asterisk/sounds")
_SENTENCES = Path("/usr/share/pocketsphinx/test/data/librivox")


class SpeechMissingError(Exception):
    """The Debian packages with recorded speech are not installed."""

    def __init__(self, folder: Path, package: str) -> None:
        super().__init__(f"no recorded speech in {folder}: `make setup-test` installs {package}")


def speech(duration_s: float, variant: int = 0) -> Samples:
    """Return prompts spoken by one voice, one after the other, until `duration_s` is full.

    Args:
        duration_s: length of the result in seconds.
        variant: another number gives another order of prompts, so that two callers say different things.

    Raises:
        SpeechMissingError: the package with the prompts is not installed.
    """
    wanted = round(duration_s * RATE)
    prompts = _prompts()
    pieces: list[Samples] = []
    have = 0
    index = variant * 37 % len(prompts)
    while have < wanted:
        piece, _ = load_wav(prompts[index])
        pieces.append(piece)
        have += piece.size
        index = (index + 1) % len(prompts)
    return np.concatenate(pieces)[:wanted] if pieces else np.zeros(0, dtype=np.int16)


def write_speech(path: Path, duration_s: float, variant: int = 0) -> Path:
    """Write `speech(duration_s, variant)` to a WAV file; returns `path`."""
    return save_wav(path, speech(duration_s, variant), RATE)


def sentence(number: int = 0) -> Samples:
    """Return a sentence read by a person from a novel, 3 to 10 s long.

    Raises:
        SpeechMissingError: the package with the sentences is not installed.
    """
    files = sorted(_SENTENCES.glob("*.wav"))
    if not files:
        raise SpeechMissingError(_SENTENCES, "pocketsphinx-testdata")
    samples, rate = load_wav(files[number % len(files)])
    resampled: Samples = soxr.resample(samples, rate, RATE)
    return resampled


@cache
def _prompts() -> tuple[Path, ...]:
    """Find prompts long enough to be sentences; in order of their names."""
    candidates = sorted(_PROMPTS.glob("en*/*.wav"))
    found = [path for path in candidates if 24_000 <= path.stat().st_size <= 160_000]  # 1.5 to 10 s
    if not found:
        raise SpeechMissingError(_PROMPTS, "asterisk-core-sounds-en-wav")
    return tuple(found)
