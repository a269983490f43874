"""A prompt on its way to a leg."""

from __future__ import annotations

from dataclasses import dataclass

from media.g711 import SILENCE
from media.protocol import Codec

MAX_FRAME_BYTES = 480  # 60 ms


@dataclass(frozen=True, slots=True)
class Prompt:
    """Encoded audio, one byte a sample at 8 kHz, per codec; all of the same length."""

    name: str
    audio: dict[Codec, bytes]  # followed by its own beginning, so a loop never needs two slices
    samples: int

    @property
    def duration_ms(self) -> int:
        """Length without repetition."""
        return self.samples // 8


def make_prompt(name: str, encoded: dict[Codec, bytes]) -> Prompt:
    """Build a prompt from audio encoded per codec, all of one length, not empty."""
    samples = len(next(iter(encoded.values())))
    repeats = MAX_FRAME_BYTES // samples + 1
    return Prompt(name, {codec: data + (data * repeats)[:MAX_FRAME_BYTES] for codec, data in encoded.items()}, samples)


class Player:
    """Position of one leg in one prompt."""

    __slots__ = ("_loop", "_position", "_prompt", "play_id")

    def __init__(self, play_id: str, prompt: Prompt, *, loop: bool) -> None:
        self.play_id = play_id
        self._prompt = prompt
        self._loop = loop
        self._position = 0

    def take(self, size: int, codec: Codec) -> bytes | None:
        """The next `size` samples (at most 480), the last ones filled up with silence; None: ended."""
        position = self._position
        samples = self._prompt.samples
        end = position + size
        if end <= samples:
            self._position = end
            return self._prompt.audio[codec][position:end]
        if self._loop:
            position %= samples
            self._position = (position + size) % samples
            return self._prompt.audio[codec][position : position + size]
        if position >= samples:
            return None
        self._position = end
        rest = self._prompt.audio[codec][position:samples]
        return rest + SILENCE[codec] * (size - len(rest))
