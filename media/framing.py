"""Frames on a stream: four bytes of length (big-endian), then one MessagePack message."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from media.protocol import MAX_FRAME, Command, Event

_encoder = msgspec.msgpack.Encoder()


class FrameError(ValueError):
    """A frame is longer than MAX_FRAME: the stream can't be trusted any more."""


def frame(message: Command | Event) -> bytes:
    """One message, ready to send.

    Raises:
        FrameError: the message is too long.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"{type(message).__name__} takes {len(body)} bytes, more than {MAX_FRAME}")
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Cuts a stream into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes, give the bodies that are complete.

        Raises:
            FrameError: a frame is too long.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= 4:
                size = int.from_bytes(buffer[at : at + 4], "big")
                if size > MAX_FRAME:
                    raise FrameError(f"a frame of {size} bytes")
                if len(buffer) - at - 4 < size:
                    break
                body = bytes(buffer[at + 4 : at + 4 + size])
                at += 4 + size
                yield body
        finally:
            del buffer[:at]
