"""murima itself as a process, started as an operator starts it, for tests that call it with real phones."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from ruamel.yaml import YAML

from tests.peers.process import PeerError, PeerProcess
from tests.ports import free_port, loopback_address

PROGRAM = Path(sys.executable).with_name("murima")
_READY_S = 60.0
_STOP_S = 30.0


class MurimaProcess:
    """A running `murima serve`; `async with MurimaProcess(config, tmp_path) as murima`.

    Args:
        config: the configuration, as a document or as YAML. A document may leave out `domain`,
            `sip.listen`, `media` and `http`: free ports of `address` are filled in. In YAML,
            @ADDRESS@, @SIP_PORT@, @HTTP_PORT@, @RTP_FIRST@ and @RTP_LAST@ are replaced by them.
        folder: an empty folder for the configuration file and the log.
        address: loopback address to serve on; one of its own by default.
        rtp_ports: how many ports the media workers get.
        environment: variables to set in addition.
        data: the data folder; by default one that is removed at the end.
        tls: what its HTTPS certificate is verified by; None: plain HTTP.

    Attributes:
        address, sip_port, http_port: where it listens.
        data: its data folder (recordings, database, sockets).
        http: a client session; `get`, `post` and `put` use it with the token of `login`.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        folder: Path,
        *,
        address: str | None = None,
        rtp_ports: int = 200,
        environment: Mapping[str, str] | None = None,
        data: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.folder = folder
        self.address = address or loopback_address()
        # In one row, so that none lies within the others, and beside what the document listens on.
        taken = _listening(config)
        first = free_port(self.address, span=rtp_ports + 2, align=2)
        while not taken.isdisjoint(range(first, first + rtp_ports + 2)):
            first = free_port(self.address, span=rtp_ports + 2, align=2)
        self._rtp_first, self._rtp_last = first, first + rtp_ports - 1
        self.sip_port, self.http_port = first + rtp_ports, first + rtp_ports + 1
        self._config = config
        self._environment = dict(environment or {})
        # Short, because Unix socket paths are; and not below pytest's folder, which is closed to other users.
        self._own_data = data is None
        self.data = data if data is not None else Path(tempfile.mkdtemp(prefix="murima-"))
        self._tls = tls
        self._process = PeerProcess("murima", folder / "murima.log")
        self._token: str | None = None
        self.http: aiohttp.ClientSession | None = None

    @property
    def config_file(self) -> Path:
        return self.folder / "murima.yaml"

    @property
    def sip(self) -> tuple[str, int]:
        """Where phones of `tests.peers.sip_phone` dial."""
        return self.address, self.sip_port

    @property
    def remote(self) -> str:
        """`host:port`, as SIPp calls and as a phone's proxy."""
        return f"{self.address}:{self.sip_port}"

    def uri(self, number: str) -> str:
        return f"sip:{number}@{self.remote}"

    @property
    def base_url(self) -> str:
        return f"http{'' if self._tls is None else 's'}://{self.address}:{self.http_port}"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            self._tidy()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if error is not None:
            error.add_note(self.log_tail())
        self._tidy()

    async def start(self, *, ready: bool = True) -> None:
        """Start it and, unless told otherwise, wait until `/readyz` answers 200; also after `stop`.

        Raises:
            PeerError: it ended, or was not ready within a minute; with the end of the log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config(self._config)
        command: list[str | Path] = [PROGRAM, "serve", "--config", self.config_file, "--data", self.data]
        await self._process.start(command, folder=self.folder, environment={**os.environ, **self._environment})
        connector = aiohttp.TCPConnector(ssl=True if self._tls is None else self._tls)
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), connector=connector)
        if ready:
            await self.ready()

    def write_config(self, config: Mapping[str, Any] | str) -> None:
        """Write the configuration, places filled in; `reload` makes a running murima read it."""
        self._config = config
        self.config_file.write_text(self._filled_in(config))

    def _filled_in(self, config: Mapping[str, Any] | str) -> str:
        if isinstance(config, str):
            places = {
                "@ADDRESS@": self.address,
                "@SIP_PORT@": str(self.sip_port),
                "@HTTP_PORT@": str(self.http_port),
                "@RTP_FIRST@": str(self._rtp_first),
                "@RTP_LAST@": str(self._rtp_last),
            }
            for place, value in places.items():
                config = config.replace(place, value)
            return config
        document = copy.deepcopy(dict(config))
        document.setdefault("domain", "pbx.local")
        document.setdefault("sip", {}).setdefault("listen", [f"udp:{self.remote}", f"tcp:{self.remote}"])
        media = {"address": self.address, "ports": [self._rtp_first, self._rtp_last], "workers": 1}
        document["media"] = {**media, **document.get("media", {})}
        document.setdefault("http", {}).setdefault("listen", f"{self.address}:{self.http_port}")
        text = StringIO()
        YAML(typ="safe").dump(document, text)
        return text.getvalue()

    async def ready(self, timeout_s: float = _READY_S) -> None:
        """Wait until `/readyz` answers 200.

        Raises:
            PeerError: it ended first, or the time is over; with the end of the log.
        """
        assert self.http is not None
        status = "no answer"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._process.returncode is not None:
                        raise PeerError(f"murima ended with {self._process.returncode}\n{self.log_tail()}")
                    with contextlib.suppress(aiohttp.ClientError):
                        async with self.http.get(f"{self.base_url}/readyz") as response:
                            if response.status == 200:
                                return
                            status = f"{response.status} {await response.text()}"
                    await asyncio.sleep(0.05)  # readiness can only be asked for
        except TimeoutError:
            raise PeerError(f"murima is not ready: {status}\n{self.log_tail()}") from None

    async def login(self, username: str = "admin", password: str = "secret") -> None:
        """Log in; later requests carry the token.

        Raises:
            PeerError: refused.
        """
        answer = await self.post("/api/v1/auth/login", {"username": username, "password": password})
        self._token = answer["data"]["access_token"]

    async def get(self, path: str) -> Any:
        """GET and return the JSON document. Raises PeerError unless the status is 2xx."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: object = None) -> Any:
        """POST JSON and return the JSON document (None when empty). Raises PeerError unless the status is 2xx."""
        return await self._ask("POST", path, body)

    async def put(self, path: str, body: object = None) -> Any:
        """PUT JSON and return the JSON document (None when empty). Raises PeerError unless the status is 2xx."""
        return await self._ask("PUT", path, body)

    async def delete(self, path: str) -> Any:
        """Like `get`, for DELETE."""
        return await self._ask("DELETE", path, None)

    async def metrics(self) -> str:
        assert self.http is not None
        async with self.http.get(f"{self.base_url}/metrics", headers=self._headers()) as response:
            return await response.text()

    async def database_connected(self, timeout_s: float = 20.0) -> None:
        """Wait until interactions can be asked for: a first start takes calls seconds before that.

        Raises:
            TimeoutError: they cannot in this time.
        """
        async with asyncio.timeout(timeout_s):
            while "murima_database_connected 1" not in await self.metrics():  # noqa: ASYNC110 - it can only be asked for
                await asyncio.sleep(0.1)

    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    async def _ask(self, method: str, path: str, body: object) -> Any:
        assert self.http is not None, "not started"
        url = f"{self.base_url}{path}"
        async with self.http.request(method, url, json=body, headers=self._headers()) as response:
            text = await response.text()
            if not 200 <= response.status < 300:
                raise PeerError(f"{method} {path}: {response.status} {text}\n{self.log_tail()}")
            return await response.json() if text else None

    async def until(self, path: str, condition: Any, timeout_s: float = 10.0) -> Any:
        """GET until `condition(document)` is true; returns the document.

        Raises:
            PeerError: it did not become true; with the last document.
        """
        document: Any = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    document = await self.get(path)
                    if condition(document):
                        return document
                    await asyncio.sleep(0.05)  # the resource can only be asked for
        except TimeoutError:
            raise PeerError(f"{path} stayed at {document}\n{self.log_tail()}") from None

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def engine_pid(self) -> int:
        """Return the engine's process id. Raises PeerError when none runs."""
        return self._child("engine.start")[0]

    def worker_pids(self) -> list[int]:
        """Return the media workers' process ids. Raises PeerError when none runs."""
        return self._child("media.worker")

    def open_files(self, pid: int) -> int:
        """Count the open file handles of one of its processes."""
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    def open_udp_ports(self) -> set[int]:
        """Return the UDP ports of the media range that are bound at its address."""
        prefix = f"{int.from_bytes(bytes(map(int, self.address.split('.'))), 'little'):08X}:"
        lines = Path("/proc/net/udp").read_text().splitlines()[1:]
        local = (line.split()[1] for line in lines)
        ports = {int(entry.split(":")[1], 16) for entry in local if entry.startswith(prefix)}
        return {port for port in ports if self._rtp_first <= port <= self._rtp_last}

    def _child(self, module: str) -> list[int]:
        """Find processes below the supervisor that run this module."""
        found = [pid for pid in _descendants(self.pid) if module in _arguments(pid)]
        if not found:
            raise PeerError(f"murima runs no {module}\n{self.log_tail()}")
        return sorted(found)

    def reload(self) -> None:
        """Send SIGHUP."""
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def wait(self, timeout_s: float) -> int:
        """Wait until it ends; returns the exit status."""
        return await self._process.wait(timeout_s)

    async def stop(self) -> None:
        """Send SIGTERM and wait until it has ended; safe to repeat."""
        if self.http is not None:
            await self.http.close()
            self.http = None
        below = _descendants(self._process.pid) if self._process.running else []
        await self._process.stop(_STOP_S)
        for pid in below:  # none, unless the supervisor had to be killed: workers outlive it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _tidy(self) -> None:
        if self._own_data:
            shutil.rmtree(self.data, ignore_errors=True)

    def log(self) -> str:
        """Return everything it logged."""
        return self._process.log.read_text(errors="replace") if self._process.log.exists() else ""

    def log_tail(self, lines: int = 60) -> str:
        """Return the last lines, without the requests that tests make over and over."""
        return "\n".join([line for line in self.log().splitlines() if "http.request" not in line][-lines:])


def _listening(config: Mapping[str, Any] | str) -> set[int]:
    """Return the ports of a document's SIP listeners."""
    listeners = config.get("sip", {}).get("listen", []) if isinstance(config, Mapping) else []
    return {int(listener.rpartition(":")[2]) for listener in listeners}


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    return [*children, *(below for child in children for below in _descendants(child))]


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
