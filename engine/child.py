"""A process that is kept running: started, watched through its pidfd, restarted with back-off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("murima.supervisor")

_KILL_S = 3.0


@dataclass(slots=True)
class Backoff:
    """Seconds to wait before the next start: doubling from `first_s` to `last_s`, anew after a good run."""

    first_s: float = 0.1
    last_s: float = 5.0
    good_run_s: float = 10.0
    _next_s: float = 0.0

    def delay_s(self, ran_s: float) -> float:
        """The wait after a run of `ran_s` seconds."""
        if ran_s >= self.good_run_s or not self._next_s:
            self._next_s = self.first_s
        delay_s = self._next_s
        self._next_s = min(self._next_s * 2, self.last_s)
        return delay_s


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        environ: the whole environment of the process.
        descriptors: passed on under the same numbers.
        quiet: its stdout is not ours (a protocol, not a log).
    """

    name: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    descriptors: Sequence[int] = field(default=())
    quiet: bool = False


class Child:
    """Keeps one command running until `stop`.

    The process has a session of its own, so the terminal's SIGINT does not
    reach it; and it does not end with the supervisor: `adopt` takes over a
    process that an earlier supervisor started.
    """

    def __init__(self, command: Command, pid_file: Path, backoff: Backoff | None = None) -> None:
        self.name = command.name
        self._command = command
        self._pid_file = pid_file
        self._backoff = backoff or Backoff()
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._handle: int | None = None
        self._started_at = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._wanted = False
        self._gone = asyncio.Event()
        self._gone.set()
        self.pid: int | None = None
        self.restarts = 0

    def start(self) -> None:
        """Start the process; what goes wrong is logged and tried again later."""
        self._wanted = True
        self._restart = None
        command = self._command
        try:
            process = subprocess.Popen(  # noqa: S603 - commands are ours
                command.arguments,
                env=dict(command.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if command.quiet else None,
                pass_fds=command.descriptors,
                start_new_session=True,
            )
        except OSError as exc:
            log.error("supervisor.start_failed", extra={"child": self.name, "reason": exc.strerror or str(exc)})
            self._again(0.0)
            return
        self._process = process
        self._watch(process.pid)
        log.info("supervisor.child_started", extra={"child": self.name, "pid": process.pid, "restarts": self.restarts})

    def adopt(self, pid: int) -> bool:
        """Take over a living process of this command; False if it is gone meanwhile."""
        try:
            self._watch(pid)
        except ProcessLookupError:
            return False
        self._wanted = True
        log.info("supervisor.child_adopted", extra={"child": self.name, "pid": pid})
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process lives."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def ask_to_stop(self) -> None:
        """Send SIGTERM and do not restart any more. Asking again says: hurry."""
        self._wanted = False
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self.signal(signal.SIGTERM)

    async def gone(self) -> None:
        """Wait until no process is left."""
        await self._gone.wait()

    async def stop(self, patience_s: float) -> None:
        """Ask, wait, and kill what has not ended after `patience_s`."""
        self.ask_to_stop()
        try:
            await asyncio.wait_for(self._gone.wait(), patience_s)
        except TimeoutError:
            log.warning("supervisor.child_killed", extra={"child": self.name, "pid": self.pid, "waited_s": patience_s})
            self.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _KILL_S)

    def _watch(self, pid: int) -> None:
        self._handle = os.pidfd_open(pid)
        self.pid = pid
        self._gone.clear()
        self._started_at = self._loop.time()
        try:
            write_pid(self._pid_file, pid)
        except OSError as exc:  # a full disk must not end the supervision; only adoption would miss the note
            log.warning("supervisor.pid_not_noted", extra={"child": self.name, "reason": exc.strerror or str(exc)})
        self._loop.add_reader(self._handle, self._on_exit)

    def _on_exit(self) -> None:
        if self._handle is not None:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = None
        status = None
        if self._process is not None:
            status = self._process.wait()  # at once: the pidfd says that it has ended
            self._process = None
        ran_s = self._loop.time() - self._started_at
        pid, self.pid = self.pid, None
        with contextlib.suppress(OSError):
            self._pid_file.unlink(missing_ok=True)
        self._gone.set()
        facts = {"child": self.name, "pid": pid, "status": _status(status), "ran_s": round(ran_s, 3)}
        if not self._wanted:
            log.info("supervisor.child_stopped", extra=facts)
            return
        log.warning("supervisor.child_died", extra=facts)
        self._again(ran_s)

    def _again(self, ran_s: float) -> None:
        self.restarts += 1
        self._restart = self._loop.call_later(self._backoff.delay_s(ran_s), self.start)


def _status(code: int | None) -> str:
    if code is None:
        return "unknown"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return str(code)


# --- processes of an earlier supervisor ----------------------------------------------------


def write_pid(file: Path, pid: int) -> None:
    """Note a process in a way that survives the reuse of its number."""
    fresh = file.with_suffix(".pid.new")
    fresh.write_text(f"{pid} {_start_time(pid)}\n")
    fresh.replace(file)


def living(file: Path) -> int | None:
    """The process noted in a file, if that very process still lives."""
    try:
        pid_text, started = file.read_text().split()
        pid = int(pid_text)
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and started != "0" and _start_time(pid) == started else None


def arguments_of(pid: int) -> Sequence[str]:
    """The command line of a process; empty if it is gone."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).rstrip("\0").split("\0")
    except OSError:
        return ()


def _start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a process (proc(5), field 22); "0" if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    fields = text.rpartition(")")[2].split()
    return "0" if fields[0] == "Z" else fields[19]


def end(pid: int, waits_s: Sequence[float]) -> None:
    """End a process that is not our child: SIGTERM once per wait, then SIGKILL. Blocks."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for wait_s in waits_s:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if select.select([handle], [], [], wait_s)[0]:
                return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], _KILL_S)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
