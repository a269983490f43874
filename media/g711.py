"""G.711 µ-law and A-law by table (ITU-T G.711).

Tables are built once with NumPy from the standard's segments; encoding and
decoding are then single look-ups, and turning one law into the other is a
`bytes.translate`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from media.protocol import Codec

Samples = npt.NDArray[np.int16]

_BIAS: Final = 132  # µ-law works on magnitudes shifted by 33 steps of 4
_CLIP: Final = 32635


def _ulaw_decoding() -> Samples:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent = (code >> 4) & 0x07
    magnitude = (((code & 0x0F) << 3) + _BIAS << exponent) - _BIAS
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_decoding() -> Samples:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent = (code >> 4) & 0x07
    mantissa = code & 0x0F
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _linear() -> npt.NDArray[np.int32]:
    """Every 16-bit sample, at the index of its unsigned reading."""
    return np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)


def _segment(magnitude: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Number of the highest set bit, 0 for zero."""
    return (np.frexp(magnitude.astype(np.float64))[1] - 1).clip(0).astype(np.int32)


def _ulaw_encoding() -> npt.NDArray[np.uint8]:
    linear = _linear()
    magnitude = np.minimum(np.abs(linear), _CLIP) + _BIAS
    exponent = (_segment(magnitude) - 7).clip(0, 7)
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(linear < 0, 0x80, 0)
    codes: npt.NDArray[np.uint8] = (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8)
    return codes


def _alaw_encoding() -> npt.NDArray[np.uint8]:
    linear = _linear()
    # A negative sample counts from -1, so that ±x fall into mirrored steps (G.711 table 1).
    magnitude = np.where(linear < 0, -linear - 1, linear)
    exponent = (_segment(magnitude) - 7).clip(0, 7)
    mantissa = (magnitude >> np.maximum(exponent + 3, 4)) & 0x0F
    sign = np.where(linear < 0, 0, 0x80)
    codes: npt.NDArray[np.uint8] = ((sign | (exponent << 4) | mantissa) ^ 0x55).astype(np.uint8)
    return codes


_DECODING: Final = {Codec.PCMU: _ulaw_decoding(), Codec.PCMA: _alaw_decoding()}
_ENCODING: Final = {Codec.PCMU: _ulaw_encoding(), Codec.PCMA: _alaw_encoding()}

SILENCE: Final = {codec: bytes([int(_ENCODING[codec][0])]) for codec in Codec}
"""One byte of digital silence per codec."""


def encode(samples: Samples, codec: Codec) -> bytes:
    """Encode int16 samples (8 kHz mono), one byte a sample."""
    return _ENCODING[codec][samples.view(np.uint16)].tobytes()


def decode(data: bytes | npt.NDArray[np.uint8], codec: Codec) -> Samples:
    """Decode G.711 bytes to int16 samples, same shape as an array given."""
    codes = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
    return _DECODING[codec][codes]


def translation(source: Codec, target: Codec) -> bytes | None:
    """A table for `bytes.translate` from one law to the other; None: they are the same."""
    if source is target:
        return None
    return encode(_DECODING[source], target)
