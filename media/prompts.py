"""Reading prompt files. Slow: runs in the disk thread, never on the loop."""

from __future__ import annotations

from typing import Final

import numpy as np
import soundfile
import soxr

from media import g711
from media.player import Prompt, make_prompt
from media.protocol import Codec
from media.rtp import CLOCK_RATE_HZ

MAX_PROMPT_S: Final = 3600


class PromptError(Exception):
    """A prompt file is missing, unreadable, empty or too long."""


def read_prompt(name: str, path: str) -> Prompt:
    """Read any file that libsndfile knows, mix to mono, resample to 8 kHz, encode per codec.

    Raises:
        PromptError: with the reason.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz: int = file.samplerate
            if file.frames > MAX_PROMPT_S * rate_hz:
                raise PromptError(f"{path}: longer than {MAX_PROMPT_S} s")
            audio = file.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError, TypeError) as exc:  # libsndfile's errors are RuntimeErrors
        raise PromptError(f"{path}: {exc}") from exc
    mono = audio.mean(axis=1, dtype=np.float32)
    if rate_hz != CLOCK_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, CLOCK_RATE_HZ)
    if len(mono) == 0:
        raise PromptError(f"{path}: no audio in it")
    samples = np.nan_to_num(mono * 32767.0).clip(-32768, 32767).round().astype(np.int16)
    return make_prompt(name, {codec: g711.encode(samples, codec) for codec in Codec})
