"""The disk thread: prompts are decoded and recordings written here, never on the loop.

The loop hands jobs over through a queue and is woken through `wake` when results wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from media.leg import Tap
from media.player import Prompt
from media.prompts import PromptError, read_prompt
from media.protocol import Codec, RecordingEnded
from media.recorder import LAG_S, Channel, Timeline
from media.rtp import CLOCK_RATE_HZ
from media.wav import WavFile

log = logging.getLogger("murima.media.disk")

MAX_WAITING: Final = 5000  # batches; beyond, the disk is too slow and audio is dropped


@dataclass(frozen=True, slots=True)
class PromptRead:
    """A prompt file was read, or not."""

    name: str
    prompt: Prompt | None
    reason: str


Result = PromptRead | RecordingEnded


class _Writer:
    """One recording in the disk thread."""

    def __init__(self, path: str, start: float) -> None:
        self._path = path
        self._start = start
        self._channels = (Channel(), Channel())
        self._timeline = Timeline()
        self._file: WavFile | None = None
        self._error = ""
        try:
            self._file = WavFile(path)
        except OSError as exc:
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = f"{type(exc).__name__}: {exc}"
        log.error("recording.failed", extra={"path": self._path, "reason": self._error})
        if self._file is not None:
            self._file.abandon()

    def write(self, batches: list[tuple[int, Codec, Tap]], until: float, *, last: bool = False) -> None:
        """Place what came, then write all that is older than `until` (monotonic seconds), or simply all."""
        if self._error or self._file is None:
            return
        for side, codec, packets in batches:
            self._timeline.put(side, self._channels[side].place(packets, codec, self._start))
        position = int((until - self._start) * CLOCK_RATE_HZ)
        ready = self._timeline.take_all(position) if last else self._timeline.take(position)
        if len(ready):
            try:
                self._file.append(ready)
            except OSError as exc:
                self._fail(exc)

    def finish(self, call_id: str, lost: int) -> RecordingEnded:
        sha256 = ""
        file = self._file
        if file is not None and not self._error:
            try:
                sha256 = file.finish()
            except OSError as exc:
                self._fail(exc)
        if lost and not self._error:
            self._error = f"the disk was too slow: {lost} packets are missing"
        size = 0 if file is None else 44 + file.data_bytes
        return RecordingEnded(call_id, self._path, file.duration_ms if file else 0, size, sha256, self._error)


class Recording:
    """The loop's handle on one recording."""

    def __init__(self, call_id: str, path: str, start: float) -> None:
        self.call_id = call_id
        self.path = path
        self.start = start
        self.lost = 0  # packets dropped because the disk was too slow
        self.writer: _Writer | None = None  # belongs to the disk thread


class Disk:
    """Queue and thread. `results` is read on the loop after `wake` was called."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.results: deque[Result] = deque()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def read_prompt(self, name: str, path: str) -> None:
        """Decode a file; a PromptRead follows."""

        def job() -> None:
            try:
                result = PromptRead(name, read_prompt(name, path), "")
            except PromptError as exc:
                result = PromptRead(name, None, str(exc))
            except Exception as exc:  # noqa: BLE001 - a decoder's surprise is the file's fault
                result = PromptRead(name, None, f"{path}: {type(exc).__name__}: {exc}")
            self._answer(result)

        self._jobs.put(job)

    def start(self, recording: Recording) -> None:
        """Create the file."""

        def job() -> None:
            recording.writer = _Writer(recording.path, recording.start)

        self._jobs.put(job)

    def write(self, recording: Recording, batches: list[tuple[int, Codec, Tap]], now: float) -> None:
        """Write a batch, unless the disk is hopelessly behind: then the packets count as lost."""
        if self._jobs.qsize() > MAX_WAITING:
            recording.lost += sum(len(packets) for _, _, packets in batches)
            return

        def job() -> None:
            if recording.writer is not None:
                recording.writer.write(batches, now - LAG_S)

        self._jobs.put(job)

    def finish(self, recording: Recording, batches: list[tuple[int, Codec, Tap]], now: float) -> None:
        """Write the rest and give the file its name; a RecordingEnded follows."""

        def job() -> None:
            writer = recording.writer
            if writer is None:
                result = RecordingEnded(recording.call_id, recording.path, 0, 0, "", "the recorder failed")
            else:
                try:
                    writer.write(batches, now, last=True)
                finally:
                    result = writer.finish(recording.call_id, recording.lost)
            self._answer(result)

        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Let the thread finish its jobs; False: it did not within the time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _answer(self, result: Result) -> None:
        self.results.append(result)
        self._wake()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("media.disk_fault")
