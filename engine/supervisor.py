"""`murima serve`: the small process that starts, watches and restarts the others.

It checks the configuration, takes the data folder for itself, binds the SIP
and HTTP listeners, and keeps the database, the media workers and the engine
running. None of them takes another down: workers keep the audio flowing while
the engine restarts, and packets wait in the listeners' kernel buffers.

SIGTERM or SIGINT drains (engine, workers, database, in this order), a second
one hurries; SIGHUP goes to the engine, which reloads. When the supervisor
itself is killed, the others go on, and the next one adopts the workers and
the database and replaces the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine import listeners
from engine.child import Backoff, Child, Command, arguments_of, end, living
from engine.data_folder import DataFolder, DataFolderError, Lock
from engine.plan import Plan, PlanError, read_plan
from engine.python import child_environment, module

log = logging.getLogger("murima.supervisor")

_HURRY_S = 2.0  # what is left to the engine after a second signal
_DRAIN_SLACK_S = 5.0  # beyond the engine's own drain time, before it counts as hung
_WORKER_STOP_S = 10.0  # finishing recordings
_DATABASE_STOP_S = 30.0
_LEFTOVER_ENGINE_WAITS_S = (1.0, 3.0)
_LEFTOVER_WAITS_S = (5.0,)
_CONNECT_S = 1.0
_DESCRIPTORS = 1 << 20

Commands = Callable[[Plan, Path, DataFolder], Sequence[Command]]


def commands(plan: Plan, config: Path, folder: DataFolder) -> Sequence[Command]:
    """The processes of a node, in the order of their start; the engine is the last."""
    environ = child_environment()
    result: list[Command] = []
    if not environ.get("MURIMA_DATABASE_URL"):
        arguments: tuple[str, ...] = ("--data", str(folder.postgres), "--socket-dir", str(folder.run))
        result.append(Command("database", module("adapters.store.embedded", *arguments), environ, quiet=True))
        environ = {**environ, "MURIMA_DATABASE_URL": folder.database_url}
    for index, (low, high) in enumerate(plan.worker_ports):
        name = f"worker-{index}"
        arguments = (
            *("--socket", str(folder.worker_socket(index)), "--address", plan.media_address),
            *("--ports", f"{low}-{high}", "--name", name),
            *("--silence-timeout-s", f"{plan.silence_timeout_s:g}", "--orphan-grace-s", f"{plan.orphan_grace_s:g}"),
        )
        result.append(Command(name, module("media.worker", *arguments), environ))
    arguments = ("--config", str(config), "--data", str(folder.root))
    result.append(Command("engine", module("engine.start", *arguments), environ))
    return result


def serve(config: Path, data: Path, *, commands: Commands = commands, backoff: Backoff | None = None) -> int:
    """Run a node until it is told to stop; gives the exit status.

    What stands in the way of a start is written to stderr, with status 1.

    Args:
        config: the configuration file.
        data: the data folder, made if missing.
        commands: which processes to run; the engine, named `engine`, inherits the listeners.
        backoff: a pattern for the waits between restarts.
    """
    config = Path(os.path.abspath(config))  # noqa: PTH100 - a link may be switched to another version
    folder = DataFolder.at(data)
    try:
        plan = read_plan(config)
        folder.prepare()
        lock = Lock(folder)
    except (PlanError, DataFolderError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    _raise_descriptor_limit()
    try:
        wanted = commands(plan, config, folder)
        leftovers = _leftovers(folder, wanted)
        bound = listeners.bind_all(plan.listeners)
    except (listeners.ListenerError, DataFolderError) as exc:
        sys.stderr.write(f"{exc}\n")
        lock.release()
        return 1
    try:
        return asyncio.run(_Supervisor(config, plan, folder, backoff or Backoff()).run(wanted, leftovers, bound))
    finally:
        for sock in bound.values():
            sock.close()
        lock.release()


def _raise_descriptor_limit() -> None:
    """Allow as many file handles as we may: every audio port is one. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _leftovers(folder: DataFolder, wanted: Sequence[Command]) -> Mapping[str, int]:
    """Processes of an earlier supervisor: those to adopt, by name; the others are ended.

    The engine is always replaced, for it holds listeners that we must bind.
    """
    by_name = {command.name: command for command in wanted}
    kept: dict[str, int] = {}
    files = sorted(folder.run.glob("*.pid"), key=lambda file: (file.stem != "engine", file.stem))
    for file in files:
        name = file.stem
        pid = living(file)
        command = by_name.get(name)
        if pid is None:
            file.unlink(missing_ok=True)
        elif name != "engine" and command is not None and _fits(folder, command, pid):
            kept[name] = pid
        else:
            log.info("supervisor.leftover_ended", extra={"child": name, "pid": pid})
            end(pid, _LEFTOVER_ENGINE_WAITS_S if name == "engine" else _LEFTOVER_WAITS_S)
            file.unlink(missing_ok=True)
    return kept


def _fits(folder: DataFolder, command: Command, pid: int) -> bool:
    """Whether a living process is the one we would start, and answers."""
    if list(arguments_of(pid)) != list(command.arguments):
        return False
    worker = re.fullmatch(r"worker-([0-9]+)", command.name)
    return worker is None or socket_owner(folder.worker_socket(int(worker[1]))) == pid


def socket_owner(path: Path) -> int | None:
    """The process that listens on a Unix socket, or None when nobody answers (unix(7), SO_PEERCRED)."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


class _Supervisor:
    def __init__(self, config: Path, plan: Plan, folder: DataFolder, backoff: Backoff) -> None:
        self._config = config
        self._plan = plan
        self._drain_s = plan.drain_s
        self._folder = folder
        self._backoff = backoff
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._reload: asyncio.Task[None] | None = None
        self._engine: Child | None = None

    async def run(
        self,
        wanted: Sequence[Command],
        leftovers: Mapping[str, int],
        bound: Mapping[listeners.Listener, socket.socket],
    ) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        children = [self._start(_with_listeners(command, bound), leftovers.get(command.name)) for command in wanted]
        log.info("supervisor.started", extra={"pid": os.getpid(), "listeners": [str(item) for item in bound]})
        await self._asked.wait()
        log.info("supervisor.draining", extra={"drain_s": self._drain_s})
        await self._drain(children)
        if self._reload is not None:
            self._reload.cancel()
        log.info("supervisor.stopped")
        return 0

    def _start(self, command: Command, leftover: int | None) -> Child:
        pattern = Backoff(self._backoff.first_s, self._backoff.last_s, self._backoff.good_run_s)
        child = Child(command, self._folder.pid_file(command.name), pattern)
        if leftover is None or not child.adopt(leftover):
            child.start()
        if command.name == "engine":
            self._engine = child
        return child

    def _on_stop(self, number: signal.Signals) -> None:
        log.info("supervisor.signal", extra={"signal": number.name})
        if self._asked.is_set():
            self._hurried.set()
        self._asked.set()

    def _on_reload(self) -> None:
        log.info("supervisor.signal", extra={"signal": "SIGHUP"})
        if self._engine is not None:
            self._engine.signal(signal.SIGHUP)
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._read_again())

    async def _read_again(self) -> None:
        """Learn a new drain time, and say what only a restart can change. The engine judges the rest."""
        try:
            fresh = await asyncio.to_thread(read_plan, self._config)
        except (PlanError, OSError) as exc:
            log.warning("supervisor.reload_refused", extra={"reason": str(exc)})
            return
        changed = [
            name
            for name, old, new in (
                ("listeners", self._plan.listeners, fresh.listeners),
                ("media.address", self._plan.media_address, fresh.media_address),
                ("media.ports, media.workers", self._plan.worker_ports, fresh.worker_ports),
                ("media.silence_timeout_s", self._plan.silence_timeout_s, fresh.silence_timeout_s),
                ("media.orphan_grace_s", self._plan.orphan_grace_s, fresh.orphan_grace_s),
            )
            if old != new
        ]
        if changed:
            log.warning("supervisor.restart_needed", extra={"changed": changed})
        self._drain_s = fresh.drain_s

    async def _drain(self, children: Sequence[Child]) -> None:
        engine = [child for child in children if child.name == "engine"]
        workers = [child for child in children if child.name.startswith("worker-")]
        rest = [child for child in children if child not in engine and child not in workers]
        await asyncio.gather(*(self._drain_engine(child) for child in engine))
        await asyncio.gather(*(child.stop(_WORKER_STOP_S) for child in workers))
        await asyncio.gather(*(child.stop(_DATABASE_STOP_S) for child in rest))

    async def _drain_engine(self, engine: Child) -> None:
        engine.ask_to_stop()
        gone = asyncio.ensure_future(engine.gone())
        hurried = asyncio.ensure_future(self._hurried.wait())
        limit_s = self._drain_s + _DRAIN_SLACK_S
        await asyncio.wait((gone, hurried), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not gone.done():
            await engine.stop(_HURRY_S)  # asks a second time, which tells the engine to hurry
        gone.cancel()


def _with_listeners(command: Command, bound: Mapping[listeners.Listener, socket.socket]) -> Command:
    if command.name != "engine":
        return command
    return Command(
        command.name,
        command.arguments,
        {**command.environ, **listeners.environment(bound)},
        tuple(sock.fileno() for sock in bound.values()),
        command.quiet,
    )
