"""A real PostgreSQL for tests: the embedded server, started in a folder of the test's own.

For one server for all tests of a module or a worker, make a fixture of wide scope:

    @pytest.fixture(scope="session")
    def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
        with TestServer.started(tmp_path_factory.mktemp("postgres")) as server:
            yield server

and call `server.new_database()` in each test: an empty database, gone with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import asyncpg

from adapters.store.embedded import database_url

ROOT = Path(__file__).parent.parent
START_S = 60.0


@dataclass
class TestServer:
    """The embedded server in `folder`, run by a keeper process of ours."""

    __test__ = False

    folder: Path
    keeper: subprocess.Popen[bytes] | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def data(self) -> Path:
        return self.folder / "postgres"

    @property
    def url(self) -> str:
        return database_url(self.data, self.folder / "run")

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        """Start a server, and stop it at the end."""
        server = cls(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self.keeper = subprocess.Popen(self.command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.keeper.stdout is not None
        assert select.select([self.keeper.stdout], [], [], START_S)[0], "the database does not start"
        ready = self.keeper.stdout.readline()
        assert ready.startswith(b"database.ready "), ready

    def command(self) -> list[str]:
        """What the supervisor would run."""
        module = [sys.executable, "-m", "adapters.store.embedded"]
        return [*module, "--data", str(self.data), "--socket-dir", str(self.folder / "run"), "--no-fsync"]

    def stop(self) -> None:
        """SIGTERM, as the supervisor would."""
        if self.keeper is None:
            return
        self.keeper.terminate()
        try:
            self.keeper.wait(30)
        finally:
            self.keeper.kill()
            self.keeper.wait()
            if self.keeper.stdout is not None:
                self.keeper.stdout.close()
            self.keeper = None

    def processes(self) -> list[int]:
        """The ids of the server's processes, postmaster first, without the keeper."""
        assert self.keeper is not None
        return _descendants(self.keeper.pid)

    def kill(self) -> None:
        """kill -9 for the server and its keeper, all at once, and wait until they are gone."""
        assert self.keeper is not None
        handles: list[int] = []
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        self.keeper.kill()
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], 10)[0]
            os.close(handle)
        self.stop()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server as SIGSTOP does, and let them go on at the end."""
        frozen = self.processes()
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def new_database(self) -> str:
        """Make an empty database; its URL. Blocks; from a coroutine use `asyncio.to_thread`."""
        name = f"test_{next(self._numbers)}"
        asyncio.run(self._create(name))
        return self.url.replace("/murima?", f"/{name}?")

    async def _create(self, name: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
        finally:
            await connection.close()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *_descendants(child)]
    return found
