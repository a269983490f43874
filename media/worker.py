"""The media worker process: `python -m media.worker --socket PATH --address IP --ports LOW-HIGH --name NAME`.

One process, one loop, one disk thread. It outlives the engine: without one it carries
on with its calls, and the next engine finds them again. With neither an engine nor calls
for five minutes it ends.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence

from media import protocol
from media.disk import Disk
from media.endpoint import is_numeric
from media.link import Link, LinkError, listen
from media.log import start_logging
from media.loop import Loop
from media.ports import PortPool
from media.switchboard import Switchboard

log = logging.getLogger("murima.media.worker")

_FINISH_S = 20.0  # for recordings, at the end
_SWITCH_INTERVAL_S = 0.0005  # how long the disk thread may keep the interpreter from the loop


def _ports(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        pair = int(low), int(high)
        PortPool(*pair)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"expected LOW-HIGH, as 20000-29999: {exc}") from exc
    return pair


def _address(text: str) -> str:
    if not is_numeric(text):
        raise argparse.ArgumentTypeError("expected an IP address")
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError("expected seconds, more than 0 and less than a day")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="media.worker", description="Carry the audio of calls.")
    parser.add_argument("--socket", required=True, help="Unix socket to listen on for the engine")
    parser.add_argument("--address", required=True, type=_address, help="IP address of the RTP ports")
    parser.add_argument("--ports", required=True, type=_ports, metavar="LOW-HIGH")
    parser.add_argument("--name", default="worker-0")
    parser.add_argument("--silence-timeout-s", type=_seconds, default=60.0)
    parser.add_argument("--orphan-grace-s", type=_seconds, default=10.0)
    parser.add_argument(
        "--forsaken-s", type=_seconds, default=300.0, help="end after this long with neither an engine nor calls"
    )
    return parser


def _raise_descriptor_limit() -> None:
    """A leg takes three descriptors; the usual soft limit of 1024 ends at 170 calls."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Worker:
    """The parts, joined.

    Raises:
        LinkError: the socket can't be offered.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._socket_path: str = options.socket
        self._name: str = options.name
        server = listen(options.socket)
        self._loop = Loop()
        reader, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._reader = reader
        self._disk = Disk(self._wake)
        low, high = options.ports
        self._board = Switchboard(
            self._loop,
            self._disk,
            PortPool(low, high, random.SystemRandom().randrange(high)),
            self._emit,
            address=options.address,
            silence_timeout_s=options.silence_timeout_s,
            orphan_grace_s=options.orphan_grace_s,
        )
        self._link = Link(
            self._loop,
            server,
            options.name,
            on_engine=self._board.on_engine,
            on_engine_gone=self._board.on_engine_gone,
            on_command=self._on_command,
        )
        self._board.events_dropped = lambda: self._link.events_dropped
        self._loop.watch(reader, self._on_wake)
        self._forsaken_s: float = options.forsaken_s
        self._look_at = 0.0
        self._needed_at = time.monotonic()

    def _emit(self, event: protocol.Event) -> None:
        self._link.emit(event)

    def _wake(self) -> None:
        try:
            os.write(self._waker, b"\0")
        except BlockingIOError:
            return  # the pipe is full: a wake-up is on its way already

    def _on_wake(self, _now: float) -> None:
        os.read(self._reader, 4096)
        self._board.on_disk()

    def _on_command(self, command: protocol.Command, now: float) -> None:
        if isinstance(command, protocol.Quit):
            self._loop.stop()
        else:
            self._board.on_command(command, now)

    def _on_time(self, now: float) -> float:
        deadline = self._board.on_time(now)
        self._link.flush(now)
        if now >= self._look_at:
            self._look_at = now + self._forsaken_s / 30
            self._look(now)
        return deadline

    def _look(self, now: float) -> None:
        """Leave when nobody needs us: the supervisor is gone for good, and so are the calls."""
        if self._link.connected or self._board.calls:
            self._needed_at = now
        elif now - self._needed_at > self._forsaken_s:
            log.warning("media.worker_forsaken", extra={"worker": self._name})
            self._loop.stop()

    def run(self) -> None:
        """Serve until SIGTERM or Quit, then finish recordings and leave."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self._loop.stop())
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.disable()  # the packet path makes no cycles
        log.info("media.worker_started", extra={"worker": self._name, "socket": self._socket_path, "pid": os.getpid()})
        self._loop.run(self._on_time)
        self._board.close()
        if not self._disk.close(_FINISH_S):
            log.error("media.recordings_unfinished")
        self._board.on_disk()
        self._link.flush(time.monotonic())
        self._link.close(self._socket_path)
        signal.set_wakeup_fd(-1)
        log.info("media.worker_ended", extra={"worker": self._name})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; returns the exit status."""
    options = _parser().parse_args(arguments)
    start_logging()
    _raise_descriptor_limit()
    try:
        worker = Worker(options)
    except LinkError as exc:
        log.error("media.worker_failed", extra={"reason": str(exc)})
        return 2
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
