"""The supervisor with real, tiny children: scripts that note what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters.store.embedded import database_url
from engine.child import Backoff, living
from engine.data_folder import DataFolder
from engine.listeners import Listener
from engine.plan import Plan
from engine.supervisor import commands
from tests.ports import free_port

WAIT_S = 20.0

# Each child sends "name event pid" to the journal, a datagram socket of the test.
CHILD = """
import os, signal, socket, sys
name, journal, path, behaviour = sys.argv[1:5]
pen = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def note(event):
    try: pen.sendto(f"{name} {event} {os.getpid()}".encode(), journal)
    except OSError: os._exit(9)
if path:
    if os.path.exists(path): os.unlink(path)
    server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen(8)
def term(*_):
    global asked
    asked += 1
    note(f"term{asked}")
    if behaviour != "slow" or asked == 2:
        note("end"); os._exit(0)
asked = 0
signal.signal(signal.SIGTERM, term)
signal.signal(signal.SIGHUP, lambda *_: note("hup"))
signal.signal(signal.SIGINT, lambda *_: note("int"))
note("start " + os.environ.get("MURIMA_LISTENERS", "-"))
if behaviour == "crash": os._exit(3)
while True: signal.pause()
"""

# Runs the supervisor in a process of its own, with the children above.
RUNNER = """
import logging, sys
from pathlib import Path
from engine.child import Backoff, Command
from engine.log import configure
from engine.python import child_environment
from engine.supervisor import serve
config, data, child, journal, engine = sys.argv[1:6]
configure("info", sys.stderr, True)
def commands(plan, config, folder):
    def command(name, path="", behaviour="steady"):
        return Command(name, (sys.executable, child, name, journal, str(path), behaviour), child_environment())
    return [command("database"), command("worker-0", folder.worker_socket(0)), command("engine", "", engine)]
sys.exit(serve(Path(config), Path(data), commands=commands, backoff=Backoff(0.02, 0.1, 60.0)))
"""


class Node:
    """A data folder, a configuration, and supervisors run on them one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = DataFolder.at(folder / "data")
        self.journal = folder / "journal"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.journal))
        self.socket.setblocking(False)
        self.seen: list[list[str]] = []
        self.news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.socket, self.on_entry)
        self.child = folder / "child.py"
        self.child.write_text(CHILD)
        self.runner = folder / "runner.py"
        self.runner.write_text(RUNNER)
        self.udp, self.http = free_port(), free_port()
        self.config = folder / "murima.yaml"
        self.configure()
        self.running: list[asyncio.subprocess.Process] = []

    def configure(self, more: str = "") -> None:
        self.config.write_text(
            f'domain: pbx.local\nsip: {{listen: ["udp:127.0.0.1:{self.udp}"]}}\n'
            f'media: {{address: 127.0.0.1, ports: [20000, 20099]}}\nhttp: {{listen: "127.0.0.1:{self.http}"}}\n{more}'
        )

    async def serve(self, engine: str = "steady") -> asyncio.subprocess.Process:
        root = str(Path(__file__).parents[2])
        with (self.folder / f"log-{len(self.running)}").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(self.runner), str(self.config), str(self.data.root), str(self.child),
                str(self.journal), engine,
                stderr=log, env={**os.environ, "PYTHONPATH": root},
            )  # fmt: skip
        self.running.append(process)
        return process

    def on_entry(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.seen.append(self.socket.recv(4096).decode().split())
                self.news.set()

    def entries(self) -> list[list[str]]:
        self.on_entry()
        return self.seen

    def starts(self, name: str) -> list[int]:
        return [int(entry[-1]) for entry in self.entries() if entry[:2] == [name, "start"]]

    async def started(self, name: str, times: int = 1) -> int:
        """Wait until a child has started so often; its process id."""
        await self.until(lambda: len(self.starts(name)) >= times)
        return self.starts(name)[times - 1]

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            logs = "\n".join(self.log(process) for process in self.running)
            pytest.fail(f"not within {WAIT_S} s; entries: {self.seen}; supervisors wrote:\n{logs}")

    async def end(self, process: asyncio.subprocess.Process) -> tuple[int, str]:
        """Wait for the end of a supervisor: its status and what it wrote."""
        status = await asyncio.wait_for(process.wait(), WAIT_S)
        return status, self.log(process)

    def log(self, process: asyncio.subprocess.Process) -> str:
        return (self.folder / f"log-{self.running.index(process)}").read_text()

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        process.kill()
        await asyncio.wait_for(process.wait(), WAIT_S)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="mu"))  # short: Unix sockets live below it
    node = Node(folder)
    try:
        yield node
    finally:
        for process in node.running:
            if process.returncode is None:
                await node.kill(process)
        for name in ("engine", "worker-0", "database"):
            pid = living(node.data.pid_file(name))
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        node.close()
        shutil.rmtree(folder)


async def all_started(node: Node) -> dict[str, int]:
    return {name: await node.started(name) for name in ("database", "worker-0", "engine")}


async def test_sigterm_ends_engine_then_workers_then_database(node: Node) -> None:
    process = await node.serve()
    await all_started(node)
    process.send_signal(signal.SIGTERM)
    status, _ = await node.end(process)
    assert status == 0
    assert [entry[0] for entry in node.entries() if entry[1] == "end"] == ["engine", "worker-0", "database"]
    assert not list(node.data.run.glob("*.pid"))


async def test_killed_engine_comes_back_with_its_listeners_and_disturbs_nobody(node: Node) -> None:
    process = await node.serve()
    pids = await all_started(node)
    os.kill(pids["engine"], signal.SIGKILL)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.sendto(b"OPTIONS", ("127.0.0.1", node.udp))  # would be refused if nobody held the port
        again = await node.started("engine", 2)
        phone.connect(("127.0.0.1", node.udp))
        phone.send(b"OPTIONS")
        phone.send(b"OPTIONS")
    assert again != pids["engine"]
    first, second = (entry for entry in node.entries() if entry[0] == "engine")
    assert first[2] == second[2]
    assert first[2].startswith(f"udp:127.0.0.1:{node.udp}=")
    assert f"http:127.0.0.1:{node.http}=" in first[2]
    assert len(node.starts("worker-0")) == 1
    assert living(node.data.pid_file("worker-0")) == pids["worker-0"]
    process.send_signal(signal.SIGTERM)
    status, log = await node.end(process)
    assert status == 0
    assert '"msg": "supervisor.child_died"' in log
    assert '"status": "SIGKILL"' in log


async def test_killed_worker_comes_back_and_the_engine_stays(node: Node) -> None:
    process = await node.serve()
    pids = await all_started(node)
    os.kill(pids["worker-0"], signal.SIGKILL)
    assert await node.started("worker-0", 2) != pids["worker-0"]
    assert len(node.starts("engine")) == 1
    process.send_signal(signal.SIGTERM)
    assert (await node.end(process))[0] == 0


async def test_engine_that_keeps_dying_is_started_again_and_does_not_hinder_the_stop(node: Node) -> None:
    process = await node.serve(engine="crash")
    await node.started("engine", 4)
    process.send_signal(signal.SIGTERM)
    status, log = await node.end(process)
    assert status == 0
    assert '"status": "3"' in log
    assert len(node.starts("worker-0")) == 1


async def test_sighup_reaches_the_engine_alone(node: Node) -> None:
    process = await node.serve()
    await all_started(node)
    node.configure("drain_s: 7\n")
    process.send_signal(signal.SIGHUP)
    await node.until(lambda: ["engine", "hup"] in [entry[:2] for entry in node.entries()])
    assert [entry[0] for entry in node.entries() if entry[1] == "hup"] == ["engine"]
    process.send_signal(signal.SIGTERM)
    assert (await node.end(process))[0] == 0


async def test_second_signal_hurries_a_draining_engine(node: Node) -> None:
    process = await node.serve(engine="slow")
    await all_started(node)
    process.send_signal(signal.SIGINT)
    await node.until(lambda: ["engine", "term1"] in [entry[:2] for entry in node.entries()])
    assert process.returncode is None
    process.send_signal(signal.SIGINT)
    assert (await node.end(process))[0] == 0
    assert ["engine", "term2"] in [entry[:2] for entry in node.entries()]
    assert "int" not in [entry[1] for entry in node.entries()]


async def test_next_supervisor_adopts_workers_and_database_and_replaces_the_engine(node: Node) -> None:
    first = await node.serve()
    pids = await all_started(node)
    await node.kill(first)
    assert living(node.data.pid_file("worker-0")) == pids["worker-0"]

    second = await node.serve()
    await node.started("engine", 2)
    assert ["engine", "end", str(pids["engine"])] in node.entries()
    assert node.starts("worker-0") == [pids["worker-0"]]
    assert node.starts("database") == [pids["database"]]
    # An adopted worker is watched like one's own.
    os.kill(pids["worker-0"], signal.SIGKILL)
    await node.started("worker-0", 2)
    second.send_signal(signal.SIGTERM)
    status, log = await node.end(second)
    assert status == 0
    assert log.count("supervisor.child_adopted") == 2
    assert [entry[0] for entry in node.entries() if entry[1] == "end"][-1] == "database"


async def test_leftover_worker_that_does_not_answer_is_replaced(node: Node) -> None:
    first = await node.serve()
    pids = await all_started(node)
    await node.kill(first)
    node.data.worker_socket(0).unlink()
    second = await node.serve()
    assert await node.started("worker-0", 2) != pids["worker-0"]
    second.send_signal(signal.SIGTERM)
    assert (await node.end(second))[0] == 0


async def test_second_supervisor_on_the_same_folder_is_refused(node: Node) -> None:
    first = await node.serve()
    await all_started(node)
    status, text = await node.end(await node.serve())
    assert status == 1
    assert text == (
        f"another murima (process {first.pid}) already serves {node.data.root}; "
        "stop it, or give another folder with --data\n"
    )
    assert len(node.starts("engine")) == 1
    first.send_signal(signal.SIGTERM)
    assert (await node.end(first))[0] == 0


async def test_ports_in_use_are_named_with_their_holder(node: Node) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
    ):
        udp.bind(("127.0.0.1", node.udp))
        tcp.bind(("127.0.0.1", node.http))
        tcp.listen()
        status, text = await node.end(await node.serve())
    assert status == 1
    sip, http = text.splitlines()
    assert sip.startswith(f"cannot listen on udp:127.0.0.1:{node.udp} (SIP): UDP port {node.udp} is in use by ")
    assert sip.endswith(f"(process {os.getpid()}); stop that program or choose another port")
    assert http.startswith(f"cannot listen on http:127.0.0.1:{node.http} (HTTP): TCP port {node.http} is in use by ")
    assert not node.entries()


async def test_broken_configuration_is_told_and_nothing_starts(node: Node) -> None:
    node.configure("domain: twice\n")
    status, text = await node.end(await node.serve())
    assert status == 1
    assert text == f"{node.config}:5:1: domain: the key stands twice, first in line 1; remove one of the two\n"
    assert not node.data.root.exists()


async def test_data_folder_that_cannot_be_used_is_told(node: Node) -> None:
    node.data.root.mkdir()
    (node.data.root / "recordings").write_text("a file where a folder should be")
    status, text = await node.end(await node.serve())
    assert status == 1
    assert text == f"{node.data.recordings} is a file; remove it, or give another folder with --data\n"


# --- without processes --------------------------------------------------------------------


def test_backoff_doubles_to_its_limit_and_starts_anew_after_a_good_run() -> None:
    backoff = Backoff()
    waits = [backoff.delay_s(0.0) for _ in range(8)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.delay_s(10.0) == 0.1
    assert backoff.delay_s(9.9) == 0.2


def plan() -> Plan:
    listeners = (Listener.parse("udp:127.0.0.1:5060"), Listener.parse("http:127.0.0.1:8080"))
    return Plan(listeners, "127.0.0.1", ((20000, 24999), (25000, 29999)), 30.0, 10.0, 30.0)


def test_commands_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MURIMA_DATABASE_URL", raising=False)
    folder = DataFolder(tmp_path)
    database, first, second, engine = commands(plan(), tmp_path / "c.yaml", folder)
    assert [database.name, first.name, second.name, engine.name] == ["database", "worker-0", "worker-1", "engine"]
    assert second.arguments[3:] == (
        "media.worker", "--socket", str(folder.worker_socket(1)), "--address", "127.0.0.1", "--ports", "25000-29999",
        "--name", "worker-1", "--silence-timeout-s", "30", "--orphan-grace-s", "10",
    )  # fmt: skip
    assert engine.arguments[3:] == ("engine.start", "--config", str(tmp_path / "c.yaml"), "--data", str(tmp_path))
    assert engine.environ["MURIMA_DATABASE_URL"] == database_url(folder.postgres, folder.run)


def test_database_elsewhere_needs_no_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MURIMA_DATABASE_URL", "postgresql://db/murima")
    names = [command.name for command in commands(plan(), tmp_path / "c.yaml", DataFolder(tmp_path))]
    assert names == ["worker-0", "worker-1", "engine"]


def test_sockets_of_a_deep_data_folder_stay_short(tmp_path: Path) -> None:
    deep = DataFolder(tmp_path / ("x" * 100))
    assert len(os.fsencode(deep.worker_socket(127))) < 108
    assert deep.run == DataFolder(tmp_path / ("x" * 100)).run
    assert deep.run != DataFolder(tmp_path / ("y" * 100)).run
    assert deep.database_url == database_url(deep.postgres, deep.run)


def test_pid_file_of_a_reused_number_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "x.pid"
    for text in (f"{os.getpid()} 1\n", "", "x y z", "0 0", "-1 5", f"{os.getpid()} 0"):
        file.write_text(text)
        assert living(file) is None
