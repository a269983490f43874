"""SIPp (Debian's 3.6) as caller, agent and load: runs the scenarios of `tests/peers/scenarios/`."""

from __future__ import annotations

import csv
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import g711
from tests.audio import load_wav
from tests.peers.process import PeerError, PeerProcess
from tests.ports import free_port

_SCENARIOS = Path(__file__).with_name("scenarios")


@dataclass(frozen=True, slots=True)
class SippResult:
    """What a run of SIPp came to; `status` 0 means that every call went as the scenario says."""

    status: int
    succeeded: int
    failed: int
    retransmissions: int
    errors: str  # unexpected messages, as SIPp logs them
    refused: int = 0  # of those that succeeded: 503, in uac_load
    waits_ms: Sequence[float] = ()  # from the INVITE to its 2xx, each call, with `times`


class Sipp:
    """One SIPp process playing one scenario; `async with Sipp(...) as sipp`, then `await sipp.result()`.

    Over networks that lose: uac_lossy and uas_lossy, with `patient`.
    Callers: uac (play, then BYE after talk_ms), uac_digits (press keys; as root), uac_silent, uac_load (as
    uac_silent; 503 is no failure), uac_until_bye, uac_cancel (gives up after talk_ms of ringing), uac_refused (status).
    Agents: uas (echoes RTP), uas_plays, uas_hangs_up (BYE after talk_ms),
    uas_refuses (status and reason), uas_no_answer, uas_garbage.

    Args:
        folder: an empty folder of its own for scenario, logs and sound.
        scenario: the name of a scenario.
        remote: `host:port` that callers call; None for agents.
        service: the number that callers dial.
        services: instead: numbers to dial one after the other, again and again.
        caller: the user part of the caller's address.
        address: loopback address to bind.
        port: SIP port; a free one by default.
        calls: ends after this many calls.
        rate: new calls per second.
        at_once: calls up at the same time, at most.
        audio: WAV file (8 kHz, mono) to play as PCMU.
        digits, talk_ms, ring_ms, status, reason: see the scenarios.
        transport: "udp" or "tcp".
        timeout_s: SIPp gives up after this time, and its result is a failure.
        trace: keep all messages, for `messages`; costs SIPp as much as the calls.
        patient: pass over what comes again or late, and repeat for 32 s, as RFC 3261 asks.
        times: measure how long each call waits for its answer.
    """

    def __init__(
        self,
        folder: Path,
        scenario: str,
        *,
        remote: str | None = None,
        service: str = "500",
        services: Sequence[str] = (),
        caller: str = "1000",
        address: str = "127.0.0.1",
        port: int | None = None,
        calls: int = 1,
        rate: float = 10.0,
        at_once: int = 1000,
        audio: Path | None = None,
        digits: str = "",
        talk_ms: int = 1000,
        ring_ms: int = 0,
        status: int = 486,
        reason: str = "Busy Here",
        transport: str = "udp",
        timeout_s: float = 30.0,
        trace: bool = True,
        times: bool = False,
        patient: bool = False,
    ) -> None:
        self.folder = folder
        self.address = address
        self.port = port if port is not None else free_port(address)
        self._scenario = scenario
        self._remote = remote
        self._services = tuple(services)
        self._audio = audio
        self._timeout_s = timeout_s
        self._transport = transport
        self._values = {
            "@audio@": str(folder / "audio.ulaw"),
            "@digits@": digits,
            "@talk_ms@": str(talk_ms),
            "@ring_ms@": str(ring_ms),
            "@status@": str(status),
            "@reason@": reason,
        }
        # With -rtp_echo two ports; played streams take ports from there on, RTP and RTCP of each call.
        media_port = free_port(address, span=min(4 * calls, 400), align=2)
        self._arguments = [
            *("-i", address, "-p", str(self.port), "-mi", address, "-mp", str(media_port)),
            *("-t", "t1" if transport == "tcp" else "u1", "-m", str(calls), "-r", str(rate), "-l", str(at_once)),
            *("-s", service, "-key", "caller", caller),
            # By default it takes its control port on every address, and ends where any test has that port on any.
            *("-ci", address, "-cp", str(free_port(address))),
            *("-timeout", f"{timeout_s:g}s", "-timeout_error", "-recv_timeout", f"{timeout_s * 1000:.0f}"),
            *("-trace_err", "-error_file", "errors.log", "-trace_stat", "-stf", "statistics.csv", "-fd", "1"),
            *(("-trace_msg", "-message_file", "messages.log") if trace else ()),
            *(("-default_behaviors", "all,-abortunexp", "-max_invite_retrans", "7") if patient else ()),
            *(("-max_non_invite_retrans", "11") if patient else ()),
            *(("-rtp_echo",) if scenario == "uas" else ()),
            *(("-inf", "services.csv") if services else ()),
            *(("-trace_rtt", "-rtt_freq", "1") if times else ()),
            "-nostdin",
        ]
        self._process = PeerProcess(f"sipp {scenario}", folder / "sipp.log")

    @property
    def pid(self) -> int:
        return self._process.pid

    def contact(self, user: str) -> str:
        """Where a fixed contact reaches it."""
        return f"sip:{user}@{self.address}:{self.port}"

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        scenario = (_SCENARIOS / f"{self._scenario}.xml").read_text()
        if "@audio@" in scenario:
            self._write_audio()
        for name, value in self._values.items():
            scenario = scenario.replace(name, value)
        if self._services:
            scenario = scenario.replace("[service]", "[field0]")
            (self.folder / "services.csv").write_text("\n".join(["SEQUENTIAL", *self._services, ""]))
        (self.folder / "scenario.xml").write_text(scenario)
        remote = [] if self._remote is None else [self._remote]
        # A wide terminal description is asked for even without a terminal.
        environment: Mapping[str, str] = {"TERM": "xterm", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        command = ["sipp", *remote, "-sf", "scenario.xml", *self._arguments]
        await self._process.start(command, folder=self.folder, environment=environment)
        if self._remote is None:
            await self._process.bound(self.address, self.port, self._transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _write_audio(self) -> None:
        if self._audio is None:
            raise PeerError(f"scenario {self._scenario} needs audio")
        samples, rate = load_wav(self._audio)
        assert rate == 8000, f"{self._audio} has {rate} Hz"
        (self.folder / "audio.ulaw").write_bytes(g711.encode(samples))

    async def result(self) -> SippResult:
        """Wait until all calls are done.

        Raises:
            PeerError: it is still running after its time-out.
        """
        status = await self._process.wait(self._timeout_s + 10)
        statistics = self._statistics()
        errors = self.folder / "errors.log"
        return SippResult(
            status=status,
            succeeded=int(statistics.get("SuccessfulCall(C)", 0)),
            failed=int(statistics.get("FailedCall(C)", 0)),
            retransmissions=int(statistics.get("Retransmissions(C)", 0)),
            errors=errors.read_text(errors="replace") if errors.exists() else "",
            refused=int(statistics.get("GenericCounter1(C)", 0) or 0),
            waits_ms=[float(row[1]) for row in self._times()],
        )

    def messages(self) -> str:
        """Return every SIP message sent and received."""
        return (self.folder / "messages.log").read_text(errors="replace")

    def _statistics(self) -> dict[str, str]:
        path = self.folder / "statistics.csv"
        if not path.exists():
            raise PeerError(f"sipp wrote no statistics\n{self._process.tail()}")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        return rows[-1] if rows else {}

    def _times(self) -> list[list[str]]:
        """Rows of time, wait in milliseconds and its name."""
        rows: list[list[str]] = []
        for path in self.folder.glob("*_rtt.csv"):
            with path.open(newline="") as file:
                rows += list(csv.reader(file, delimiter=";"))[1:]
        return rows

    async def stop(self) -> None:
        """End it, dropping its calls; safe to repeat."""
        await self._process.stop()

    async def vanish(self) -> None:
        """Drop off the network: no BYE, nothing."""
        await self._process.stop(with_signal=signal.SIGKILL)


async def run_sipp(folder: Path, scenario: str, remote: str | None = None, **options: object) -> SippResult:
    """Run a scenario to its end; options are those of `Sipp`."""
    async with Sipp(folder, scenario, remote=remote, **options) as sipp:  # type: ignore[arg-type]  # passed on
        return await sipp.result()
