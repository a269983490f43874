"""A stereo WAV file that grows and is always readable.

It is written as `PATH.part`; the header is brought up to date after every batch, so a
file left by a killed process plays. The end renames it to `PATH`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Final

from media.g711 import Samples
from media.rtp import CLOCK_RATE_HZ

HEADER_BYTES: Final = 44
FRAME_BYTES: Final = 4  # two channels of 16 bits
_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")
MAX_DATA_BYTES: Final = 0xFFFFFFFF - HEADER_BYTES  # about 37 hours


def header(data_bytes: int) -> bytes:
    """RIFF header of 16-bit stereo PCM at 8 kHz."""
    return _HEADER.pack(
        b"RIFF",
        36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        2,
        CLOCK_RATE_HZ,
        CLOCK_RATE_HZ * FRAME_BYTES,
        FRAME_BYTES,
        16,
        b"data",
        data_bytes,
    )


class WavFile:
    """The growing file. Every method may raise OSError (disk full, no permission)."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._part = Path(path + ".part")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.data_bytes = 0
        self._write(header(0), 0)

    def append(self, stereo: Samples) -> None:
        """Append int16 samples, shape (n, 2)."""
        data = stereo.astype("<i2", copy=False).tobytes()
        if self.data_bytes + len(data) > MAX_DATA_BYTES:
            raise OSError("recording has reached the size limit of a WAV file")
        self._write(data, HEADER_BYTES + self.data_bytes)
        self.data_bytes += len(data)
        self._write(header(self.data_bytes)[:HEADER_BYTES], 0)

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    @property
    def duration_ms(self) -> int:
        """Length of what was written."""
        return self.data_bytes // FRAME_BYTES * 1000 // CLOCK_RATE_HZ

    def finish(self) -> str:
        """Give the file its name; returns its SHA-256 in hex."""
        digest = hashlib.sha256()
        offset = 0
        while block := os.pread(self._fd, 1 << 20, offset):
            digest.update(block)
            offset += len(block)
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._part.replace(self._path)
        return digest.hexdigest()

    def abandon(self) -> None:
        """Close after an error; what was written stays as `PATH.part`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
