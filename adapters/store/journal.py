"""The local journal: events on disk before, and while, the database has them.

One line an event: CRC-32 of the rest in eight hex digits, the event's name,
its JSON. A line that was torn by a crash, or damaged, is skipped and counted;
a line after it is read as usual.

What survives: each append is one write to the kernel, so a killed process
loses nothing that was appended. `sync` asks for the disk; the recorder calls
it once a second while the database is away, so a power failure costs at most
that second. While the database is there, its own commit is the safe one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

_CHUNK = 256 * 1024


class JournalError(Exception):
    """The journal cannot be used; `str()` is a sentence for the operator."""


class Entry(NamedTuple):
    """One event as it lies in the journal."""

    name: str
    body: str


def line(name: str, body: bytes) -> bytes:
    """The journal's line for one event."""
    rest = name.encode() + b" " + body
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def parse(raw: bytes) -> Entry | None:
    """The event of one line (without its end); None for a torn or damaged one."""
    checksum, _, rest = raw.partition(b" ")
    try:
        if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(rest):
            return None
        name, _, body = rest.partition(b" ")
        return Entry(name.decode(), body.decode())
    except ValueError:
        return None


class Journal:
    """An append-only file with a limit, locked by the process that writes it."""

    def __init__(self, path: Path, fd: int, limit: int) -> None:
        self.path = path
        self.damaged = 0
        self._fd = fd
        self._limit = limit
        self._size = os.fstat(fd).st_size

    @classmethod
    def open(cls, path: Path, limit: int) -> Self:
        """Open or make the journal, and end a line that a crash left torn.

        Args:
            limit: the most bytes it may hold; appends beyond are refused.

        Raises:
            JournalError: the folder is not writable, or another process holds the journal.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise JournalError(f"the journal {path} cannot be written: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
        except BlockingIOError:
            os.close(fd)
            raise JournalError(f"another process writes the journal {path}") from None
        except OSError as exc:
            os.close(fd)
            raise JournalError(f"the journal {path} cannot be written: {exc.strerror}") from exc
        return cls(path, fd, limit)

    @property
    def size(self) -> int:
        """Bytes in the journal."""
        return self._size

    def append(self, data: bytes) -> bool:
        """Write whole lines; False when they did not go in (limit, full disk), leaving no part of them."""
        if self._size + len(data) > self._limit:
            return False
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written == len(data):
            self._size += written
            return True
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
        return False

    def read(self, offset: int) -> tuple[list[Entry], int]:
        """The entries of the next piece from `offset`, and where the one after begins (the size, at the end)."""
        raw = os.pread(self._fd, _CHUNK, offset)
        while raw and b"\n" not in raw and offset + len(raw) < self._size:
            raw += os.pread(self._fd, _CHUNK, offset + len(raw))
        end = raw.rfind(b"\n") + 1
        if end == 0:
            return [], self._size
        return list(self._entries(raw[:end])), offset + end

    def _entries(self, raw: bytes) -> Iterator[Entry]:
        for piece in raw.split(b"\n"):
            if not piece:
                continue
            entry = parse(piece)
            if entry is None:
                self.damaged += 1
            else:
                yield entry

    def clear(self) -> None:
        """Forget all entries: they are in the database."""
        os.ftruncate(self._fd, 0)
        self._size = 0

    def sync(self) -> None:
        """Wait until the disk has it all. Blocks: for a thread."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file and let go of the lock."""
        os.close(self._fd)
