"""Compose the sample prompts: ours, and the same bytes each time.

Music is chords of decaying harmonics; speech is espeak-ng's (its output is
free of its licence), made once when the prompts are authored. Run from the
repository root, with espeak-ng installed:

    python config/shipped/compose_prompts.py config/shipped/prompts
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

RATE_HZ = 8_000
SPOKEN = {
    "welcome": "Welcome to Murima. Please hold the line, the next free agent will answer your call.",
    "goodbye": "Thank you for calling. Goodbye.",
    "closed": "Nobody can take your call right now. Please try again later.",
}
CHORDS = ((57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 60, 64), (55, 59, 62, 67))  # Am F C G, MIDI notes
BEAT_S = 0.625
LOOPS = 2


def note(midi: int, duration_s: float) -> npt.NDArray[np.float64]:
    """One plucked note: float64, (samples,), 8 kHz mono, peak about 1."""
    time_s = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    frequency_hz = 440.0 * 2 ** ((midi - 69) / 12)
    harmonics = sum(
        np.sin(2 * np.pi * frequency_hz * order * time_s) * np.exp(-time_s * (1.2 + 0.9 * order)) / order**1.5
        for order in range(1, 6)
        if frequency_hz * order < RATE_HZ / 2.2
    )
    attack = np.minimum(time_s / 0.008, 1.0)
    return np.asarray(harmonics) * attack


def music() -> npt.NDArray[np.float64]:
    """A loop of 20 s whose end runs into its beginning: float64, (samples,), 8 kHz mono."""
    bar = int(4 * BEAT_S * RATE_HZ)
    loop = np.zeros(bar * len(CHORDS) * LOOPS)
    for index in range(len(CHORDS) * LOOPS):
        chord = CHORDS[index % len(CHORDS)]
        pattern = (0, 1, 2, 3, 2, 1, 3, 2) if index < len(CHORDS) else (0, 2, 1, 3, 1, 2, 3, 1)
        for step, voice in enumerate(pattern):
            _mix(loop, index * bar + int(step * BEAT_S / 2 * RATE_HZ), 0.5 * note(chord[voice], 1.8))
        _mix(loop, index * bar, 0.7 * note(chord[0] - 12, 3.0))
    return np.asarray(0.35 * loop / np.abs(loop).max(), dtype=np.float64)


def _mix(loop: npt.NDArray[np.float64], start: int, sound: npt.NDArray[np.float64]) -> None:
    """Add a sound, going round at the end of the loop."""
    places = (start + np.arange(len(sound))) % len(loop)
    np.add.at(loop, places, sound)


def speech(text: str) -> npt.NDArray[np.float64]:
    """Speak a sentence: float64, (samples,), 8 kHz mono."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(path), text], check=True)  # noqa: S603, S607 - an authoring tool with fixed texts
        samples, rate_hz = soundfile.read(path, dtype="float64")
    samples = np.asarray(soxr.resample(samples, rate_hz, RATE_HZ))
    return np.asarray(0.6 * samples / np.abs(samples).max(), dtype=np.float64)


def main() -> None:
    """Write all prompts into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in SPOKEN.items():
        soundfile.write(folder / f"{name}.wav", speech(text), RATE_HZ, subtype="PCM_16")
    # mu-law halves the size, and is what a phone hears anyway
    soundfile.write(folder / "music.wav", music(), RATE_HZ, subtype="ULAW")


if __name__ == "__main__":
    main()
