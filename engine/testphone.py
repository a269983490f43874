"""`murima call`: one test call from the terminal, on the same stack as the engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import soundfile

from engine import events as ev
from engine.events import AgentId, CallId, EndCause, LegId, Party, PlayId
from engine.telephony import Originate, Telephony

PROMPT = "speech"
CALLEE = AgentId("callee")
NOBODY = LegId("nobody")
"""In place of a leg in a recording: that channel stays silent."""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What the test phone does.

    Attributes:
        uri: whom to call.
        caller_number, caller_name: From user part and display name.
        play: audio file, loaded as the prompt PROMPT and played once answered.
        record: write what is heard here (mono, 8 kHz), or None.
        dtmf: digits to send once answered.
        duration_s: hang up this long after the answer; None: when the prompt
            has been played, or when the other side hangs up.
        ring_timeout_s: give up when nobody has answered by then.
    """

    uri: str
    caller_number: str
    caller_name: str = ""
    play: Path | None = None
    record: Path | None = None
    dtmf: str = ""
    duration_s: float | None = None
    ring_timeout_s: float = 60.0


class TestPhone:
    """Carries out one CallPlan and tells what happens, line by line."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, plan: CallPlan, out: TextIO = sys.stdout) -> None:
        self._plan = plan
        self._out = out
        self._call_id = CallId("test-call")
        self._leg_id = LegId("test-leg")
        self._phones: Telephony | None = None
        self._started = 0.0
        self._answered = False
        self._ended: ev.LegEnded | None = None
        self._report: ev.LegReport | None = None
        self._recording: ev.RecordingFinished | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def on_event(self, event: ev.LegEvent) -> None:
        """Take a leg event of our call."""
        match event:
            case ev.LegTrying():
                self._say("trying")
            case ev.LegRinging():
                self._say("ringing")
            case ev.LegAnswered():
                self._on_answered()
            case ev.LegHeld():
                self._say("put on hold")
            case ev.LegResumed():
                self._say("resumed")
            case ev.LegDtmf(digit=digit):
                self._say(f"heard key {digit}")
            case ev.PlayFinished(completed=completed):
                self._say("played the file" if completed else "the file was not played to its end")
                if self._plan.duration_s is None:
                    self._hang_up()
            case ev.LegEnded():
                self._say(f"ended: {event.cause}" + (f" ({event.status})" if event.status else ""))
                self._ended = event
                if self._phones is not None:
                    self._phones.release_call(self._call_id)
            case ev.LegReport():
                self._report = event
            case ev.RecordingFinished():
                self._recording = event
            case _:
                pass
        self._changed.set()

    async def run(self, phones: Telephony) -> int:
        """Call, talk, hang up. Returns 0 when the call was answered and ended normally, else 1."""
        loop = asyncio.get_running_loop()
        self._phones = phones
        self._started = loop.time()
        plan = self._plan
        self._say(f"calling {plan.uri} as {plan.caller_number}")
        caller = Party(plan.caller_number, plan.caller_name)
        phones.originate(
            self._leg_id, Originate(self._call_id, CALLEE, caller, peer=None, ring_timeout_s=plan.ring_timeout_s)
        )
        await self._until(lambda: self._ended is not None)
        if self._answered:
            try:
                async with asyncio.timeout(5):
                    await self._until(
                        lambda: self._report is not None and (plan.record is None or self._recording is not None)
                    )
            except TimeoutError:
                self._say("the media worker did not report in time")
        if self._timer is not None:
            self._timer.cancel()
        self._summarise()
        normal = self._ended is not None and self._ended.cause is EndCause.NORMAL
        return 0 if self._answered and normal else 1

    def interrupt(self) -> None:
        """Hang up: the person pressed Ctrl-C."""
        self._say("hanging up")
        self._hang_up()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._changed.clear()
            await self._changed.wait()

    def _on_answered(self) -> None:
        self._answered = True
        self._say("answered")
        assert self._phones is not None
        if self._plan.record is not None:
            self._phones.start_recording(self._call_id, NOBODY, self._leg_id)
        if self._plan.dtmf:
            self._phones.send_dtmf(self._leg_id, self._plan.dtmf)
        if self._plan.play is not None:
            self._phones.play(self._leg_id, PlayId("test-play"), PROMPT)
        if self._plan.duration_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._plan.duration_s, self._hang_up)

    def _hang_up(self) -> None:
        if self._phones is not None and self._ended is None:
            self._phones.hang_up(self._leg_id, EndCause.NORMAL if self._answered else EndCause.CANCELLED)

    def _summarise(self) -> None:
        if self._report is not None:
            s = self._report.statistics
            self._say(
                f"audio {s.codec or 'none'}: sent {s.packets_sent}, received {s.packets_received}, "
                f"lost {s.packets_lost}, jitter {s.jitter_ms:.1f} ms"
            )
        if self._plan.record is not None and self._recording is not None:
            if self._recording.error:
                self._say(f"recording failed: {self._recording.error}")
                return
            heard, rate = soundfile.read(self._recording.path, dtype="int16", always_2d=True)
            soundfile.write(self._plan.record, heard[:, 1], rate, subtype="PCM_16", format="WAV")
            self._say(f"recorded {self._recording.duration_ms / 1000:.1f} s into {self._plan.record}")

    def _say(self, text: str) -> None:
        elapsed = asyncio.get_running_loop().time() - self._started
        print(f"{elapsed:7.2f} s  {text}", file=self._out, flush=True)
