"""Sound in tests: WAV files, and measures of how well a captured sound matches what was sent.

Samples are int16 arrays of shape (samples,), mono, unless said otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

Samples = NDArray[np.int16]
Kind = TypeVar("Kind", bound=np.generic)

# Quieter than this (rms of a frame, full scale 32768) counts as silence: far above the idle
# noise of G.711 (8), far below speech (1000 and more).
SILENCE_RMS = 60.0
_SEGMENT_S = 0.25
_SLIP_S = 0.1


class Match(NamedTuple):
    """How well a captured sound matches the reference."""

    correlation: float  # -1 to 1, over all that the reference holds
    lag_ms: float  # where in the captured sound the reference begins


def load_wav(path: Path) -> tuple[Samples, int]:
    """Read a WAV file: int16 of shape (samples,), or (samples, channels) when it has several; and its rate in Hz."""
    samples, rate = soundfile.read(path, dtype="int16")
    return samples, int(rate)


def save_wav(path: Path, samples: Samples, rate: int) -> Path:
    """Write a 16-bit WAV file; returns `path`."""
    soundfile.write(path, samples, rate, subtype="PCM_16", format="WAV")
    return path


def align_and_correlate(reference: Samples, captured: Samples, rate: int) -> Match:
    """Find the reference in the captured sound and say how alike they are.

    The whole is aligned first, then each quarter second of the reference by
    itself within ±100 ms, because each phone has a clock and a jitter buffer
    of its own. What was lost lowers the correlation; a change of loudness
    alone does not.

    Args:
        reference: what was sent.
        captured: what was heard, same rate, any length.
        rate: samples per second of both.

    Raises:
        ValueError: one of them is empty or silent throughout.
    """
    sent = _centred(reference)
    heard = _centred(captured)
    if not sent.any() or not heard.any():
        raise ValueError("nothing to compare: the reference or the captured sound is empty or silent")
    lag = _best_lag(sent, heard)
    segment = int(_SEGMENT_S * rate)
    slip = int(_SLIP_S * rate)
    dots = sent_energy = heard_energy = 0.0
    for start in range(0, sent.size, segment):
        piece = sent[start : start + segment]
        energy = float(piece @ piece)
        if energy == 0.0:
            continue
        window = _cut(heard, start + lag - slip, piece.size + 2 * slip)
        # Normalised: a louder neighbour must not win over the piece itself.
        squares = np.concatenate(([0.0], np.cumsum(window**2)))
        energies = squares[piece.size :] - squares[: -piece.size]
        likeness = np.correlate(window, piece, mode="valid") / np.sqrt(np.maximum(energies, 1.0))
        at = int(np.argmax(likeness))
        found = window[at : at + piece.size]
        dots += float(found @ piece)
        sent_energy += energy
        heard_energy += float(found @ found)
    scale = float(np.sqrt(sent_energy * heard_energy))
    return Match(dots / scale if scale else 0.0, lag * 1000.0 / rate)


def correlate_unslipped(reference: Samples, captured: Samples, rate: int) -> Match:
    """Like `align_and_correlate`, but aligned once and as a whole: for sound that went through no phone's clock.

    A missing or a repeated packet shows.

    Raises:
        ValueError: one of them is empty or silent throughout.
    """
    sent = _centred(reference)
    heard = _centred(captured)
    if not sent.any() or not heard.any():
        raise ValueError("nothing to compare: the reference or the captured sound is empty or silent")
    lag = _best_lag(sent, heard)
    found = _cut(heard, lag, sent.size)
    scale = float(np.sqrt((sent @ sent) * (found @ found)))
    return Match(float(found @ sent) / scale if scale else 0.0, lag * 1000.0 / rate)


def dominant_frequency(samples: Samples, rate: int) -> float:
    """Return the strongest frequency in Hz; 0.0 when there is no sound."""
    sound = _centred(samples)
    if not sound.any():
        return 0.0
    # Padded so that a bin is at most 1 Hz wide.
    length = max(sound.size, rate)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(sound.size), n=length))
    return float(np.argmax(spectrum) * rate / length)


def longest_silence_ms(samples: Samples, rate: int, frame_ms: int = 10) -> float:
    """Return the longest silence between the first and the last sound: the gap in a tone or in music."""
    loud = _loud(samples, rate, frame_ms)
    sounding = np.flatnonzero(loud)
    if sounding.size < 2:
        return 0.0
    return float((np.diff(sounding).max() - 1) * frame_ms)


def longest_dropout_ms(reference: Samples, captured: Samples, rate: int, frame_ms: int = 10) -> float:
    """Return the longest time for which the reference sounds but the captured sound is silent.

    For speech, whose own pauses are no gaps. Both are aligned first.

    Raises:
        ValueError: one of them is empty or silent throughout.
    """
    lag = round(align_and_correlate(reference, captured, rate).lag_ms * rate / 1000)
    aligned = _cut(captured, lag, reference.size)
    missing = _loud(reference, rate, frame_ms) & ~_loud(aligned, rate, frame_ms)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], missing.astype(np.int8), [0]))))
    lengths = edges[1::2] - edges[::2]
    return float(lengths.max() * frame_ms) if lengths.size else 0.0


def tone(frequency_hz: float, duration_s: float, rate: int = 8000, amplitude: float = 8000.0) -> Samples:
    """Return a sine tone."""
    times = np.arange(round(duration_s * rate)) / rate
    return np.round(amplitude * np.sin(2 * np.pi * frequency_hz * times)).astype(np.int16)


def _centred(samples: Samples) -> NDArray[np.float64]:
    if samples.ndim != 1:
        raise ValueError(f"expected mono, got shape {samples.shape}")
    sound = samples.astype(np.float64)
    return sound - sound.mean() if sound.size else sound


def _cut(samples: NDArray[Kind], start: int, length: int) -> NDArray[Kind]:
    """Cut `length` samples from `start` on; what lies outside is silence."""
    result = np.zeros(length, dtype=samples.dtype)
    first, last = max(start, 0), min(start + length, samples.size)
    if first < last:
        result[first - start : last - start] = samples[first:last]
    return result


def _best_lag(sent: NDArray[np.float64], heard: NDArray[np.float64]) -> int:
    """Return the lag with the highest cross-correlation; negative when the beginning is missing."""
    length = sent.size + heard.size - 1
    size = 1 << (length - 1).bit_length()
    product: NDArray[Any] = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size))
    correlation = np.fft.irfft(product, size)
    best = int(np.argmax(correlation))
    return best if best < heard.size else best - size


def _loud(samples: Samples, rate: int, frame_ms: int) -> NDArray[np.bool_]:
    frame = rate * frame_ms // 1000
    whole = samples[: samples.size // frame * frame].astype(np.float64).reshape(-1, frame)
    loud: NDArray[np.bool_] = np.sqrt(np.mean(whole**2, axis=1)) > SILENCE_RMS
    return loud
