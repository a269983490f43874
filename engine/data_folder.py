"""The data folder: what lies where, who may use it, and only one murima at a time.

DIR/recordings/CALLID.wav    recordings
DIR/postgres/                the embedded database
DIR/run/                     sockets and process ids (a short folder elsewhere when DIR is long)
DIR/run/supervisor.lock      held while a supervisor runs
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_LONGEST_RUN = 80
"""A Unix socket's path must stay under 108 bytes; the names within `run` need up to 24."""


class DataFolderError(Exception):
    """The data folder cannot be used; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Paths below the data folder `root` (absolute)."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> DataFolder:
        """The folder at a path as given on the command line."""
        return cls(Path(os.path.abspath(path.expanduser())))  # noqa: PTH100 - resolve() would lengthen links

    @property
    def recordings(self) -> Path:
        return self.root / "recordings"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def run(self) -> Path:
        """Sockets and process ids; the same folder for the same root, each time."""
        inside = self.root / "run"
        if len(os.fsencode(inside)) <= _LONGEST_RUN:
            return inside
        digest = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"murima-{os.geteuid()}-{digest}"

    def worker_socket(self, index: int) -> Path:
        """The Unix socket of media worker `index`."""
        return self.run / f"worker-{index}.sock"

    @property
    def control_socket(self) -> Path:
        """The Unix socket on which the engine answers the command line."""
        return self.run / "engine.sock"

    def pid_file(self, name: str) -> Path:
        """Where the supervisor notes a child's process id."""
        return self.run / f"{name}.pid"

    @property
    def database_url(self) -> str:
        """The embedded database, on its Unix socket."""
        host = quote(str(self.run / "postgres"), safe="")
        return f"postgresql://murima@/murima?host={host}&port=5432"

    def prepare(self) -> None:
        """Create what is missing and see that it can be written.

        Raises:
            DataFolderError: naming the folder and the reason.
        """
        for folder, mode in ((self.root, 0o755), (self.recordings, 0o750), (self.run, 0o700)):
            try:
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"x")
            except FileExistsError:
                raise DataFolderError(f"{folder} is a file; remove it, or give another folder with --data") from None
            except OSError as exc:
                reason = exc.strerror or str(exc)
                remedy = "let the user that runs murima write there, or give another folder with --data"
                raise DataFolderError(f"cannot write to {folder}: {reason}; {remedy}") from None
        if self.run.is_symlink() or self.run.stat().st_uid != os.geteuid():
            raise DataFolderError(f"{self.run} belongs to somebody else; remove it")
        self.run.chmod(0o700)


class Lock:
    """Held by the one supervisor of a data folder; the kernel lets go when its process dies.

    Raises:
        DataFolderError: another process holds it, named by its id.
    """

    def __init__(self, folder: DataFolder) -> None:
        self._fd = os.open(folder.run / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            by = f" (process {holder})" if holder else ""
            raise DataFolderError(
                f"another murima{by} already serves {folder.root}; stop it, or give another folder with --data"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another supervisor in."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)
