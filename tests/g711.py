"""G.711 for tests, from the formulas of the Recommendation: independent of the product's tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _mu_law_values() -> NDArray[np.int16]:
    """Return the linear value of each µ-law octet (ITU-T G.711 table 2, scaled to 16 bits)."""
    octets = ~np.arange(256, dtype=np.uint8)
    exponent = (octets >> 4) & 7
    magnitude = ((((octets & 15).astype(np.int32) << 3) + 0x84) << exponent) - 0x84
    return np.where(octets & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law_values() -> NDArray[np.int16]:
    """Return the linear value of each A-law octet (ITU-T G.711 table 1, scaled to 16 bits)."""
    octets = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent = ((octets >> 4) & 7).astype(np.int32)
    mantissa = (octets & 15).astype(np.int32)
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(octets & 0x80, magnitude, -magnitude).astype(np.int16)


def _nearest(values: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return, for each 16-bit sample read as unsigned, the octet whose value is nearest."""
    order = np.argsort(values, kind="stable")
    ascending = values[order].astype(np.int32)
    borders = (ascending[1:] + ascending[:-1]) / 2
    samples = np.arange(65536, dtype=np.uint16).view(np.int16)
    return order[np.searchsorted(borders, samples)].astype(np.uint8)


# RTP payload type -> tables (RFC 3551: 0 is PCMU, 8 is PCMA).
_DECODE = {0: _mu_law_values(), 8: _a_law_values()}
_ENCODE = {payload_type: _nearest(values) for payload_type, values in _DECODE.items()}


def encode(samples: NDArray[np.int16], payload_type: int = 0) -> bytes:
    """Encode int16 samples of shape (samples,), 8 kHz, as PCMU (0) or PCMA (8)."""
    return _ENCODE[payload_type][samples.view(np.uint16)].tobytes()


def decode(payload: bytes, payload_type: int = 0) -> NDArray[np.int16]:
    """Decode PCMU (0) or PCMA (8) to int16 of shape (samples,), 8 kHz."""
    return _DECODE[payload_type][np.frombuffer(payload, dtype=np.uint8)]
