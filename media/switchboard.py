"""The calls and legs of a worker, and what the engine's commands do to them."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from media import protocol, rtcp
from media.clock import Clock
from media.disk import Disk, PromptRead, Recording
from media.dtmf import Digit
from media.endpoint import Endpoint, EndpointError
from media.leg import Events, Leg, Tap
from media.loop import Loop
from media.player import Player, Prompt
from media.ports import PortPool
from media.protocol import Codec, Event, KeptCall

log = logging.getLogger("murima.media.worker")

MAX_SNAPSHOT: Final = protocol.MAX_FRAME - 65536
_random: Final = random.SystemRandom()
_WATCH_S: Final = 0.25
_COLLECT_S: Final = 1.0  # from tap to disk
_BIND_TRIES: Final = 64
_NEVER_FLOWED: Final = 10  # times the grace: an orphan without any audio


@dataclass(slots=True)
class _Taken:
    """A running recording and the legs that it taps, by side (0 left, 1 right)."""

    recording: Recording
    wanted: list[str]
    taps: list[tuple[Leg, Tap] | None]
    collect_at: float


@dataclass(slots=True)
class _Call:
    call_id: str
    owner: int  # number of the engine's connection
    legs: dict[str, Leg] = field(default_factory=dict)
    snapshot: bytes = b""
    orphan_since: float = 0.0


class Switchboard:
    """Carries out commands. Runs on the loop; `now` is monotonic seconds."""

    def __init__(
        self,
        loop: Loop,
        disk: Disk,
        pool: PortPool,
        emit: Callable[[Event], None],
        *,
        address: str,
        silence_timeout_s: float,
        orphan_grace_s: float,
    ) -> None:
        self._loop = loop
        self._disk = disk
        self._pool = pool
        self._emit = emit
        self._address = address
        self._silence_timeout_s = silence_timeout_s
        self._orphan_grace_s = orphan_grace_s
        self._clock = Clock()
        self._calls: dict[str, _Call] = {}
        self._legs: dict[str, Leg] = {}
        self._prompts: dict[str, Prompt] = {}
        self._recordings: dict[str, _Taken] = {}
        self._owner = 0
        self._reports: list[tuple[float, int, Leg]] = []
        self._report_number = itertools.count()
        self._watch_at = 0.0
        self._packets_received = 0  # of closed legs
        self._packets_sent = 0
        self._packets_discarded = 0
        self.ignored = 0
        self.events_dropped: Callable[[], int] = lambda: 0
        self._leg_events = Events(
            digit=self._on_digit,
            play_ended=self._on_play_ended,
            silent=lambda leg, silent_ms: emit(protocol.MediaSilent(leg.leg_id, silent_ms)),
            resumed=lambda leg: emit(protocol.MediaResumed(leg.leg_id)),
            start_clock=lambda leg: self._clock.add(leg, time.monotonic()),
            watch_peer=self._watch_peer,
        )
        self._commands: dict[type, Callable[[Any, float], None]] = {
            protocol.LoadPrompt: self._load_prompt,
            protocol.OpenLeg: self._open_leg,
            protocol.SetRemote: self._set_remote,
            protocol.CloseLeg: self._close_leg,
            protocol.MoveLeg: self._move_leg,
            protocol.Bridge: self._bridge,
            protocol.Unbridge: self._unbridge,
            protocol.Play: self._play,
            protocol.StopPlay: self._stop_play,
            protocol.Echo: self._echo,
            protocol.SendDtmf: self._send_dtmf,
            protocol.StartRecording: self._start_recording,
            protocol.StopRecording: self._stop_recording,
            protocol.PutSnapshot: self._put_snapshot,
            protocol.ReleaseCall: self._release_call,
            protocol.AskStatistics: self._ask_statistics,
        }

    @property
    def calls(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    # --- engine ---------------------------------------------------------------------------

    def on_engine(self, now: float) -> list[KeptCall]:
        """An engine connected: all calls so far are kept ones, until it mentions them."""
        self.on_engine_gone(now)
        return [KeptCall(call.call_id, list(call.legs), call.snapshot) for call in self._calls.values()]

    def on_engine_gone(self, now: float) -> None:
        """The engine's connection ended: its calls carry on as orphans."""
        for call in self._calls.values():
            if call.owner == self._owner:
                call.orphan_since = now
        self._owner += 1

    def on_command(self, command: protocol.Command, now: float) -> None:
        """Carry out one command. What makes no sense is ignored and counted."""
        handler = self._commands.get(type(command))
        if handler is None:
            self.ignored += 1
            return
        handler(command, now)

    def _leg(self, leg_id: str) -> Leg | None:
        """The leg, whose call is adopted by being mentioned."""
        leg = self._legs.get(leg_id)
        if leg is None:
            self.ignored += 1
            return None
        self._calls[leg.call_id].owner = self._owner
        return leg

    # --- legs -----------------------------------------------------------------------------

    def _open_leg(self, command: protocol.OpenLeg, now: float) -> None:
        if command.leg in self._legs:
            self._emit(protocol.LegFailed(command.leg, "a leg of this name is open already"))
            return
        try:
            endpoint = self._open_endpoint()
        except EndpointError as exc:
            log.warning("media.leg_failed", extra={"call_id": command.call, "reason": str(exc)})
            self._emit(protocol.LegFailed(command.leg, str(exc)))
            return
        leg = Leg(command.leg, command.call, endpoint, self._leg_events)
        call = self._calls.get(command.call)
        if call is None:
            call = self._calls[command.call] = _Call(command.call, self._owner)
        call.owner = self._owner
        call.legs[leg.leg_id] = leg
        self._legs[leg.leg_id] = leg
        self._loop.watch(endpoint.strangers.fileno(), leg.on_strangers)
        self._loop.watch(endpoint.rtcp.fileno(), leg.on_rtcp)
        # The first report comes sooner than the next ones (RFC 3550 6.2).
        self._plan_report(leg, now + rtcp.interval_s(_random.random()) / 2)
        for taken in self._recordings.values():
            self._tap(taken, now)
        self._emit(protocol.LegOpened(leg.leg_id, endpoint.port))

    def _open_endpoint(self) -> Endpoint:
        reason = "no RTP port is free"
        for _ in range(min(_BIND_TRIES, len(self._pool))):
            port = self._pool.take()
            if port is None:
                break
            try:
                return Endpoint(self._address, port)
            except EndpointError as exc:  # somebody else has it: try the next one
                reason = str(exc)
                self._pool.give_back(port)
        raise EndpointError(reason)

    def _watch_peer(self, leg: Leg, peer: socket.socket) -> None:
        self._loop.watch(peer.fileno(), leg.reception.on_rtp)

    def _set_remote(self, command: protocol.SetRemote, now: float) -> None:
        leg = self._leg(command.leg)
        if leg is not None and not leg.set_remote(command, now):
            self.ignored += 1

    def _close_leg(self, command: protocol.CloseLeg, now: float) -> None:
        leg = self._leg(command.leg)
        if leg is None:
            return
        call = self._calls[leg.call_id]
        self._close(leg, now)
        self._look_after(call, now)

    def _look_after(self, call: _Call, now: float) -> None:
        """A leg has left a call: one that is empty is kept only for its snapshot."""
        if not call.legs:
            self._end_recording(call.call_id, now)
            if not call.snapshot:
                del self._calls[call.call_id]

    def _move_leg(self, command: protocol.MoveLeg, now: float) -> None:
        leg = self._leg(command.leg)
        if leg is None or leg.call_id == command.call:
            return
        former = self._calls[leg.call_id]
        call = self._calls.get(command.call)
        if call is None:
            call = self._calls[command.call] = _Call(command.call, self._owner)
        call.owner = self._owner
        del former.legs[leg.leg_id]
        call.legs[leg.leg_id] = leg
        leg.call_id = call.call_id
        self._look_after(former, now)

    def _close(self, leg: Leg, now: float) -> None:
        for taken in self._recordings.values():
            if any(tap is not None and tap[0] is leg for tap in taken.taps):
                self._collect(taken, now)
                taken.taps = [None if tap is not None and tap[0] is leg else tap for tap in taken.taps]
        endpoint = leg.endpoint
        for sock in (endpoint.peer, endpoint.strangers, endpoint.rtcp):
            if sock is not None:
                self._loop.forget(sock.fileno())
        leg.close()
        self._pool.give_back(endpoint.port)
        del self._legs[leg.leg_id]
        del self._calls[leg.call_id].legs[leg.leg_id]
        statistics = leg.statistics()
        self._packets_received += statistics.packets_received
        self._packets_sent += statistics.packets_sent
        self._packets_discarded += statistics.packets_discarded
        self._emit(protocol.LegClosed(leg.leg_id, leg.call_id, statistics))

    def _bridge(self, command: protocol.Bridge, _now: float) -> None:
        a, b = self._leg(command.a), self._leg(command.b)
        if a is None or b is None or a is b:
            self.ignored += a is b and a is not None
            return
        a.bridge(b)

    def _unbridge(self, command: protocol.Unbridge, _now: float) -> None:
        a, b = self._leg(command.a), self._leg(command.b)
        if a is not None and b is not None and a.bridged is b:
            a.unbridge()

    def _play(self, command: protocol.Play, _now: float) -> None:
        leg = self._leg(command.leg)
        prompt = self._prompts.get(command.prompt)
        if leg is None or prompt is None:
            self.ignored += leg is not None
            self._emit(protocol.PlayEnded(command.leg, command.play, completed=False))
            return
        leg.play(Player(command.play, prompt, loop=command.loop))

    def _stop_play(self, command: protocol.StopPlay, _now: float) -> None:
        leg = self._leg(command.leg)
        if leg is not None:
            leg.stop_play()

    def _echo(self, command: protocol.Echo, _now: float) -> None:
        leg = self._leg(command.leg)
        if leg is not None:
            leg.echo(on=command.on)

    def _send_dtmf(self, command: protocol.SendDtmf, _now: float) -> None:
        leg = self._leg(command.leg)
        if leg is not None and not leg.press(command.digits, command.duration_ms):
            self.ignored += 1

    def _on_play_ended(self, leg: Leg, play_id: str, *, completed: bool) -> None:
        self._emit(protocol.PlayEnded(leg.leg_id, play_id, completed))

    def _on_digit(self, leg: Leg, digit: Digit) -> None:
        self._emit(protocol.Dtmf(leg.leg_id, digit.digit, digit.duration_ms))

    # --- prompts --------------------------------------------------------------------------

    def _load_prompt(self, command: protocol.LoadPrompt, _now: float) -> None:
        self._disk.read_prompt(command.prompt, command.path)

    def on_disk(self) -> None:
        """The disk thread has results."""
        results = self._disk.results
        while results:
            result = results.popleft()
            if not isinstance(result, PromptRead):
                self._emit(result)
            elif result.prompt is None:
                log.warning("media.prompt_failed", extra={"prompt": result.name, "reason": result.reason})
                self._emit(protocol.PromptFailed(result.name, result.reason))
            else:
                self._prompts[result.name] = result.prompt
                self._emit(protocol.PromptLoaded(result.name, result.prompt.duration_ms))

    # --- recording ------------------------------------------------------------------------

    def _start_recording(self, command: protocol.StartRecording, now: float) -> None:
        call = self._calls.get(command.call)
        if call is not None:
            call.owner = self._owner
        taken = self._recordings.get(command.call)
        if taken is None:
            if call is None:
                self.ignored += 1
                self._emit(protocol.RecordingEnded(command.call, command.path, 0, 0, "", "the worker has no such call"))
                return
            recording = Recording(command.call, command.path, now)
            self._disk.start(recording)
            taken = _Taken(recording, [command.left, command.right], [None, None], now + _COLLECT_S)
            self._recordings[command.call] = taken
        else:
            self._collect(taken, now)
            taken.wanted = [command.left, command.right]
        self._tap(taken, now)

    def _tap(self, taken: _Taken, _now: float) -> None:
        """Listen to the wanted legs that are there, and no longer to others."""
        for side, leg_id in enumerate(taken.wanted):
            leg = self._legs.get(leg_id)
            tap = taken.taps[side]
            if tap is not None and tap[0] is leg:
                continue
            if tap is not None:
                tap[0].reception.tap = None
            taken.taps[side] = None
            if leg is not None:
                taken.taps[side] = (leg, [])
        for tap in taken.taps:  # after both: a leg may have changed sides
            if tap is not None:
                tap[0].reception.tap = tap[1]

    def _batches(self, taken: _Taken) -> list[tuple[int, Codec, Tap]]:
        batches: list[tuple[int, Codec, Tap]] = []
        for side, tap in enumerate(taken.taps):
            if tap is None:
                continue
            leg, packets = tap
            if packets:
                batches.append((side, leg.codec, packets))
                fresh: Tap = []
                taken.taps[side] = (leg, fresh)
                leg.reception.tap = fresh
        return batches

    def _collect(self, taken: _Taken, now: float) -> None:
        self._disk.write(taken.recording, self._batches(taken), now)

    def _stop_recording(self, command: protocol.StopRecording, now: float) -> None:
        if not self._end_recording(command.call, now):
            self.ignored += 1

    def _end_recording(self, call_id: str, now: float) -> bool:
        taken = self._recordings.pop(call_id, None)
        if taken is None:
            return False
        self._disk.finish(taken.recording, self._batches(taken), now)
        for tap in taken.taps:
            if tap is not None:
                tap[0].reception.tap = None
        return True

    # --- calls ----------------------------------------------------------------------------

    def _put_snapshot(self, command: protocol.PutSnapshot, _now: float) -> None:
        if len(command.data) > MAX_SNAPSHOT:
            self.ignored += 1
            return
        call = self._calls.get(command.call)
        if call is None:
            call = self._calls[command.call] = _Call(command.call, self._owner)
        call.owner = self._owner
        call.snapshot = command.data

    def _release_call(self, command: protocol.ReleaseCall, now: float) -> None:
        call = self._calls.get(command.call)
        if call is None:
            self.ignored += 1
            return
        self._release(call, now)

    def _release(self, call: _Call, now: float) -> None:
        for leg in list(call.legs.values()):
            self._close(leg, now)
        self._end_recording(call.call_id, now)
        del self._calls[call.call_id]

    def _is_over(self, call: _Call, now: float) -> bool:
        """Whether an orphan's audio has stopped.

        One leg that had been flowing and is silent is enough: its phone hung up. A leg
        that we had put on hold, or that never sent anything, says nothing.
        """
        grace = self._orphan_grace_s
        heard = [leg.last_heard for leg in call.legs.values() if leg.sends]
        flowing = [at for at in heard if at > call.orphan_since - grace]
        if flowing:
            return now - min(flowing) > grace
        return now - call.orphan_since > grace * _NEVER_FLOWED or not call.legs

    def _ask_statistics(self, _command: protocol.AskStatistics, _now: float) -> None:
        figures = [leg.statistics() for leg in self._legs.values()]
        self._emit(
            protocol.WorkerStatistics(
                legs=len(self._legs),
                calls=len(self._calls),
                ports_free=len(self._pool),
                packets_received=self._packets_received + sum(f.packets_received for f in figures),
                packets_sent=self._packets_sent + sum(f.packets_sent for f in figures),
                packets_discarded=self._packets_discarded + sum(f.packets_discarded for f in figures),
                events_dropped=self.events_dropped(),
                commands_ignored=self.ignored,
                faults=self._loop.faults,
            )
        )

    # --- time -----------------------------------------------------------------------------

    def on_time(self, now: float) -> float:
        """Do what is due; returns the next deadline."""
        clock = self._clock
        due = clock.deadline()
        if due is not None and due <= now:
            clock.run(now)
            due = clock.deadline()
        if now >= self._watch_at:
            self._watch_at = now + _WATCH_S
            self._watch(now)
        reports = self._reports
        while reports and reports[0][0] <= now:
            leg = heapq.heappop(reports)[2]
            if not leg.closed:
                leg.send_report(now)
                self._plan_report(leg, now + rtcp.interval_s(_random.random()))
        deadline = self._watch_at
        if reports and reports[0][0] < deadline:
            deadline = reports[0][0]
        return due if due is not None and due < deadline else deadline

    def _plan_report(self, leg: Leg, at: float) -> None:
        heapq.heappush(self._reports, (at, next(self._report_number), leg))

    def _watch(self, now: float) -> None:
        timeout_s = self._silence_timeout_s
        for leg in self._legs.values():
            leg.watch(now, timeout_s)
        for taken in self._recordings.values():
            if now >= taken.collect_at:
                taken.collect_at += _COLLECT_S
                self._collect(taken, now)
        owner = self._owner
        for call in [call for call in self._calls.values() if call.owner != owner]:
            if self._is_over(call, now):
                log.info("media.orphan_ended", extra={"call_id": call.call_id})
                self._release(call, now)
                self._emit(protocol.OrphanEnded(call.call_id))

    def close(self) -> None:
        """End every call and finish every recording; results may still come from the disk."""
        now = time.monotonic()
        for call in list(self._calls.values()):
            self._release(call, now)
