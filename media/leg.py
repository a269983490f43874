"""One leg's audio: what comes from its phone, where it goes, and what we send ourselves.

A leg receives into its `Reception` and forwards each packet to its target leg at
once. What a leg sends is one stream for its whole life: one SSRC, one sequence, one
clock, whoever the source is. A change of source continues the sequence, moves the
timestamp on by the time that passed, and sets the marker.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

from media import g711, rtcp, rtp
from media.clock import TICK_MS
from media.dtmf import Digit, DtmfDecoder, DtmfSender
from media.endpoint import Endpoint, EndpointError, is_numeric
from media.latch import Latch
from media.player import Player
from media.protocol import Codec, Direction, LegStatistics, SetRemote

Tap = list[tuple[float, bytes]]
"""Received packets for a recording: monotonic arrival, and the packet with a plain 12-byte header."""

TAP_LIMIT: Final = 2000  # packets between two collections; more is a flood, not speech

_SENDING: Final = (Direction.SENDRECV, Direction.SENDONLY)
_RECEIVING: Final = (Direction.SENDRECV, Direction.RECVONLY)
_READS: Final = 16  # datagrams taken from a slow-path socket at once
_CATCH_UP_S: Final = 0.25
_NEVER_HEARD: Final = 10  # times the silence timeout: a peer that never sent anything
_CAPACITY: Final = 2048
_BUFFER: Final = bytearray(_CAPACITY)  # the datagram being worked on; one loop, one thread
_VIEW: Final = memoryview(_BUFFER)
_VIEWS: Final = [_VIEW[:size] for size in range(_CAPACITY + 1)]
_OUT: Final = bytearray(_CAPACITY)
_OUT_VIEWS: Final = [memoryview(_OUT)[:size] for size in range(rtp.HEADER_BYTES + 481)]
_random: Final = random.SystemRandom()
_unpack = rtp.HEADER.unpack_from
_pack = rtp.HEADER.pack_into


def _no_receive(_buffer: bytearray) -> int:
    raise BlockingIOError


def _no_send(_data: memoryview) -> int:
    raise BlockingIOError


def _no_unusual(_size: int, _now: float) -> None:
    return


class PlayEnded(Protocol):
    """A play is over."""

    def __call__(self, leg: Leg, play_id: str, *, completed: bool) -> None: ...


class Events:
    """What a leg tells the worker. Set once, by the worker, for all legs."""

    __slots__ = ("digit", "play_ended", "resumed", "silent", "start_clock", "watch_peer")

    def __init__(
        self,
        *,
        digit: Callable[[Leg, Digit], None],
        play_ended: PlayEnded,
        silent: Callable[[Leg, int], None],
        resumed: Callable[[Leg], None],
        start_clock: Callable[[Leg], None],
        watch_peer: Callable[[Leg, socket.socket], None],
    ) -> None:
        self.digit = digit
        self.play_ended = play_ended
        self.silent = silent
        self.resumed = resumed
        self.start_clock = start_clock
        self.watch_peer = watch_peer


class Flow(rtp.Reception):
    """A leg's incoming stream and where it goes: all that the hot path touches, in one small object.

    With hundreds of legs each packet finds the caches cold, so what counts is how many
    objects it touches. The counts and positions of the target are therefore not kept per
    packet but settled when somebody asks (`Leg.settle`).
    """

    __slots__ = (
        "failed",
        "fast_ssrc",
        "out_ssrc",
        "out_type",
        "payload_type",
        "receive",
        "send",
        "seq_delta",
        "settled",
        "size",
        "table",
        "tap",
        "ts_delta",
        "unusual",
    )

    def __init__(self, unusual: Callable[[int, float], None]) -> None:
        super().__init__()
        self.receive: Callable[[bytearray], int] = _no_receive
        self.unusual = unusual
        self.fast_ssrc = -1  # equals the stream's SSRC while the deltas below hold
        self.payload_type = -1
        self.size = 0  # of the packets so far
        self.tap: Tap | None = None
        self.send: Callable[[memoryview], int] | None = None  # None: it goes nowhere
        self.table: bytes | None = None
        self.out_type = 0
        self.out_ssrc = 0
        self.seq_delta = 0
        self.ts_delta = 0
        self.failed = 0  # not sent since it was settled
        self.settled = 0  # `received` at that time

    def on_rtp(self, now: float) -> None:
        """Take one datagram from the peer and pass it on.

        The usual packet (plain header, the negotiated codec, no marker, next in the
        stream that we know) runs straight through; everything else is `unusual`.
        """
        try:
            size = self.receive(_BUFFER)
        except OSError:  # nothing there after all, or ICMP said that the peer's port is closed
            return
        first, second, sequence, timestamp, ssrc = _unpack(_BUFFER)
        if (
            ssrc != self.fast_ssrc
            or sequence - self._highest != 1
            or size != self.size
            or second != self.payload_type
            or first != 0x80
        ):
            self.unusual(size, now)
            return
        # As Reception.on_packet, without the call.
        self._highest = sequence
        self.received += 1
        self.last_arrival = now
        transit = now * 8000.0 - timestamp
        change = transit - self._transit
        self._transit = transit
        if change < 0.0:
            change = -change
        if change < 80000.0:
            self._jitter += (change - self._jitter) * 0.0625
        tap = self.tap
        if tap is not None and len(tap) < TAP_LIMIT:
            tap.append((now, bytes(_VIEWS[size])))
        send = self.send
        if send is None:
            return
        table = self.table
        if table is not None:
            _BUFFER[12:size] = _BUFFER[12:size].translate(table)
        _pack(
            _BUFFER,
            0,
            0x80,
            self.out_type,
            (sequence + self.seq_delta) & 0xFFFF,
            (timestamp + self.ts_delta) & 0xFFFFFFFF,
            self.out_ssrc,
        )
        try:
            send(_VIEWS[size])
        except OSError:  # full buffer, or the peer's port is closed: lost, as on any network
            self.failed += 1

    def last_position(self) -> tuple[int, int]:
        """Sequence and timestamp, as sent, of the newest packet passed on."""
        timestamp = round(self.last_arrival * 8000.0 - self._transit) + self.ts_delta
        return (self._highest + self.seq_delta) & 0xFFFF, timestamp & 0xFFFFFFFF


class Leg:
    """One leg. All methods run on the loop; `now` is monotonic seconds."""

    __slots__ = (
        "_clock_on",
        "_cname",
        "_continuing",
        "_decoder",
        "_direction",
        "_echo",
        "_events",
        "_flow_start",
        "_latch",
        "_packets_reported",
        "_player",
        "_rtcp_address",
        "_sender",
        "_source_ssrc",
        "_target",
        "bridged",
        "call_id",
        "closed",
        "codec",
        "discarded",
        "dtmf_payload_type",
        "endpoint",
        "last_rtcp",
        "leg_id",
        "octets_sent",
        "out_sequence",
        "out_time",
        "out_timestamp",
        "packets_sent",
        "payload_type",
        "ptime_ms",
        "reception",
        "remote_jitter",
        "remote_lost",
        "remote_report_at",
        "remote_report_ntp",
        "round_trip_s",
        "send",
        "silent",
        "ssrc",
    )

    def __init__(self, leg_id: str, call_id: str, endpoint: Endpoint, events: Events) -> None:
        self.leg_id = leg_id
        self.call_id = call_id
        self.endpoint = endpoint
        self.closed = False
        self._events = events
        # What the peer is.
        self._latch: Latch | None = None  # None: no SetRemote yet
        self._direction = Direction.SENDRECV
        self.codec = Codec.PCMU
        self.payload_type = -1
        self.dtmf_payload_type: int | None = None
        self.ptime_ms = 20
        self._rtcp_address: tuple[str, int] | None = None
        # What comes in.
        self.reception = Flow(self._on_unusual)
        self._source_ssrc = -1
        self.discarded = 0
        self._decoder: DtmfDecoder | None = None
        self._flow_start = 0.0  # silence counts from here at the earliest
        self.silent = False
        # Where it goes.
        self.bridged: Leg | None = None
        self._echo = False
        self._target: Leg | None = None
        # What we send.
        self.send: Callable[[memoryview], int] = _no_send
        self.ssrc = _random.getrandbits(32)
        self.out_sequence = _random.getrandbits(15)
        self.out_timestamp = _random.getrandbits(32)
        self.out_time = 0.0  # 0.0: nothing sent yet
        self.packets_sent = 0
        self.octets_sent = 0
        self._player: Player | None = None
        self._sender: DtmfSender | None = None
        self._clock_on = False
        self._continuing = False  # the play sent the last packet, so the next one follows it evenly
        # What RTCP says.
        self._packets_reported = 0
        self._cname = b"%016x" % _random.getrandbits(64)
        self.last_rtcp = 0.0
        self.remote_lost: int | None = None
        self.remote_jitter: int | None = None
        self.remote_report_ntp = 0
        self.remote_report_at = 0.0
        self.round_trip_s: float | None = None

    # --- receiving ------------------------------------------------------------------------

    def settle(self) -> None:
        """Book what the hot path passed on to the target since the last time."""
        flow = self.reception
        target = self._target
        passed = flow.received - flow.settled
        flow.settled = flow.received
        if target is None or passed == 0:
            return
        sent = passed - flow.failed
        flow.failed = 0
        target.packets_sent += sent
        target.octets_sent += sent * (flow.size - rtp.HEADER_BYTES)
        target.out_sequence, target.out_timestamp = flow.last_position()
        target.out_time = flow.last_arrival

    def _on_unusual(self, size: int, now: float) -> None:
        """A packet in `_BUFFER` that needs a look: marker, event, new stream, or rubbish."""
        try:
            packet = rtp.parse(_BUFFER, size if size < _CAPACITY else 0)
        except rtp.RtpError:
            self.discarded += 1
            return
        latch = self._latch
        kind = packet.payload_type
        if latch is None or kind not in (self.payload_type, self.dtmf_payload_type, rtp.COMFORT_NOISE):
            self.discarded += 1
            return
        latch.latched = True
        self.settle()
        if packet.ssrc != self._source_ssrc:
            self._on_new_stream(packet)
        place = self.reception.on_packet(packet.sequence, packet.timestamp, now)
        self.reception.settled = self.reception.received
        target = self._target
        if kind == self.payload_type:
            self._on_audio(packet, place, target, now)
        else:
            out_type: int | None = None
            if kind == self.dtmf_payload_type:
                out_type = target.dtmf_payload_type if target is not None else None
                self._on_event(packet, now)
            if target is None:
                return
            if out_type is None or packet.start == packet.end:
                self._skip(place)
            else:
                self._pass_on(packet, place, target, out_type, now)

    def _on_new_stream(self, packet: rtp.Packet) -> None:
        self._source_ssrc = packet.ssrc
        self.reception.fast_ssrc = -1
        self.reception.begin(packet.sequence)
        if self._decoder is not None:
            for digit in self._decoder.reset():
                self._events.digit(self, digit)

    def _on_audio(self, packet: rtp.Packet, place: int, target: Leg | None, now: float) -> None:
        if packet.start == packet.end:
            if target is not None:
                self._skip(place)
            return
        tap = self.reception.tap
        if tap is not None and len(tap) < TAP_LIMIT:
            header = rtp.HEADER.pack(rtp.PLAIN, packet.payload_type, packet.sequence, packet.timestamp, packet.ssrc)
            tap.append((now, header + bytes(_VIEW[packet.start : packet.end])))
        self.reception.size = rtp.HEADER_BYTES + packet.end - packet.start
        if target is None:
            self.reception.fast_ssrc = packet.ssrc
            return
        table = self.reception.table
        if table is not None:
            _BUFFER[packet.start : packet.end] = _BUFFER[packet.start : packet.end].translate(table)
        self._pass_on(packet, place, target, target.payload_type, now)

    def _pass_on(self, packet: rtp.Packet, place: int, target: Leg, payload_type: int, now: float) -> None:
        marker = packet.marker
        if self.reception.fast_ssrc != packet.ssrc or place == rtp.RESTARTED:
            self._align(target, packet.sequence, packet.timestamp, now)
            self.reception.fast_ssrc = packet.ssrc
            place = rtp.ADVANCED
            marker = True
        sequence = (packet.sequence + self.reception.seq_delta) & 0xFFFF
        timestamp = (packet.timestamp + self.reception.ts_delta) & 0xFFFFFFFF
        start = packet.start - rtp.HEADER_BYTES  # the new header goes right before the payload
        _pack(_BUFFER, start, rtp.PLAIN, payload_type | (rtp.MARKER if marker else 0), sequence, timestamp, target.ssrc)
        if place != rtp.LATE:
            target.out_sequence = sequence
            if (
                timestamp != target.out_timestamp or target.out_time == 0.0
            ):  # packets of one event share the time of its beginning
                target.out_timestamp = timestamp
                target.out_time = now
        try:
            target.send(_VIEW[start : packet.end])
        except OSError:
            return
        target.packets_sent += 1
        target.octets_sent += packet.end - packet.start

    def _align(self, target: Leg, sequence: int, timestamp: int, now: float) -> None:
        """Make the source's next packet continue the target's stream."""
        next_sequence, next_timestamp = target.next_position(now)
        self.reception.seq_delta = next_sequence - sequence
        self.reception.ts_delta = next_timestamp - timestamp

    def _skip(self, place: int) -> None:
        """A packet is not passed on: close the gap, it is no loss."""
        if place == rtp.ADVANCED:
            self.reception.seq_delta -= 1

    def _on_event(self, packet: rtp.Packet, now: float) -> None:
        if self._decoder is None:
            self._decoder = DtmfDecoder()
        for digit in self._decoder.on_packet(packet.timestamp, bytes(_VIEW[packet.start : packet.end]), now):
            self._events.digit(self, digit)

    def on_strangers(self, now: float) -> None:
        """RTP from other addresses than the peer's: count it, or follow a phone that moved."""
        for _ in range(_READS):
            try:
                size, source = self.endpoint.strangers.recvfrom_into(_BUFFER)
            except OSError:
                return
            self._on_stranger(size, (source[0], source[1]), now)

    def _on_stranger(self, size: int, source: tuple[str, int], now: float) -> None:
        latch = self._latch
        try:
            packet = rtp.parse(_BUFFER, size if size < _CAPACITY else 0)
        except rtp.RtpError:
            self.discarded += 1
            return
        known = (self.payload_type, self.dtmf_payload_type, rtp.COMFORT_NOISE)
        if (
            latch is None
            or packet.payload_type not in known
            or not latch.on_stranger(source, packet.ssrc, packet.sequence, now - self.reception.last_arrival)
        ):
            self.discarded += 1
            return
        if self._connect(source):
            self._on_unusual(size, now)

    def on_rtcp(self, now: float) -> None:
        """RTCP: from the peer's host, whatever the port; other hosts are ignored."""
        for _ in range(_READS):
            try:
                data, source = self.endpoint.rtcp.recvfrom(_CAPACITY)
            except OSError:
                return
            expected = self._rtcp_address
            try:
                if expected is None or source[0] != expected[0]:
                    raise rtcp.RtcpError("not from the peer")
                report = rtcp.parse(data)
            except rtcp.RtcpError:
                self.discarded += 1
                continue
            self._rtcp_address = (source[0], source[1])
            self.last_rtcp = now
            self._on_report(report, now)

    def _on_report(self, report: rtcp.Report, now: float) -> None:
        if report.sender is not None:
            self.remote_report_ntp = report.sender.ntp
            self.remote_report_at = now
        for block in report.blocks:
            if block.ssrc == self.ssrc:
                self.remote_lost = block.lost
                self.remote_jitter = block.jitter
                trip = rtcp.round_trip_s(block, rtcp.ntp_time(time.time()))
                if trip is not None:
                    self.round_trip_s = trip

    # --- commands -------------------------------------------------------------------------

    def set_remote(self, remote: SetRemote, now: float) -> bool:
        """Where to send and what to expect; False: the address or a value makes no sense.

        A phone found behind NAT stays latched while its signalled address stays the same.
        """
        signalled = (remote.address, remote.port)
        if (
            not is_numeric(remote.address)
            or not 0 <= remote.port <= 65535
            or not 0 <= (remote.rtcp_port or 0) <= 65535
            or not 0 <= remote.payload_type <= 127
            or not 0 <= (remote.dtmf_payload_type or 0) <= 127
        ):
            return False
        self.codec = remote.codec
        self.payload_type = self.reception.payload_type = remote.payload_type
        self.dtmf_payload_type = remote.dtmf_payload_type
        self.ptime_ms = max(10, min(60, remote.ptime_ms // TICK_MS * TICK_MS))
        if remote.direction is not self._direction or self._latch is None:
            self._flow_start = now
        self._direction = remote.direction
        done = True
        if self._latch is None or self._latch.signalled != signalled:
            self._latch = Latch(signalled)
            self._rtcp_address = (remote.address, min(65535, remote.rtcp_port or remote.port + 1))
            if remote.port == 0 or remote.address in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
                self.send = _no_send  # an old way of hold (RFC 2543), or no media: nowhere to send
            else:
                done = self._connect(signalled, signalled_rtcp=True)
        self.reception.fast_ssrc = -1
        self.reroute()
        if self._may_send() and self._occupied():
            self._start_clock()
        return done

    def _connect(self, address: tuple[str, int], *, signalled_rtcp: bool = False) -> bool:
        try:
            is_new = self.endpoint.connect(address)
        except EndpointError:
            self.send = _no_send
            return False
        peer = self.endpoint.peer
        assert peer is not None
        self.reception.receive = peer.recv_into
        self.send = peer.send
        if is_new:
            self._events.watch_peer(self, peer)
        if not signalled_rtcp:
            self._rtcp_address = (address[0], min(65535, address[1] + 1))
            self.reroute()  # a leg without an address so far may be sent to now
        return True

    def bridge(self, other: Leg) -> None:
        """Hear each other; ends an earlier bridge of either."""
        if self.bridged is other and other.bridged is self:
            return
        self.unbridge()
        other.unbridge()
        self.bridged = other
        other.bridged = self
        self.reroute()

    def unbridge(self) -> None:
        """Leave the bridge."""
        other = self.bridged
        self.bridged = None
        if other is not None:
            other.bridged = None
            other.reroute()
        self.reroute()

    def echo(self, *, on: bool) -> None:
        """Send the phone its own audio back, instead of anybody else's."""
        self._echo = on
        self.reroute()

    def play(self, player: Player) -> None:
        """Play instead of what else would be sent; replaces a running play."""
        self.stop_play()
        self._player = player
        self._continuing = False
        self.reroute()
        self._start_clock()

    def stop_play(self) -> None:
        """End a running play; PlayEnded follows if there was one."""
        player = self._player
        if player is not None:
            self._player = None
            self.reroute()
            self._events.play_ended(self, player.play_id, completed=False)

    def press(self, digits: str, duration_ms: int) -> bool:
        """Send digits as events; False: the peer did not negotiate them, or none is known."""
        if self.dtmf_payload_type is None:
            return False
        if self._sender is None:
            self._sender = DtmfSender()
        taken = self._sender.press(digits, duration_ms)
        if taken == 0:
            return False
        self.reroute()
        self._start_clock()
        return True

    def close(self) -> None:
        """Say BYE and free the ports."""
        if self.closed:
            return
        self.stop_play()
        self.unbridge()
        self.send_report(time.monotonic(), bye=True)
        self.closed = True
        self.send = _no_send
        self.reception.receive = _no_receive
        self.reception.send = None
        self.reception.unusual = _no_unusual  # breaks the cycle: nothing collects cycles here
        self._target = None
        self.endpoint.close()

    # --- routing --------------------------------------------------------------------------

    def _may_send(self) -> bool:
        return self.send is not _no_send and self._direction in _SENDING

    def _occupied(self) -> bool:
        """We send something of our own: relayed audio has to wait."""
        return self._player is not None or (self._sender is not None and self._sender.active)

    def reroute(self) -> None:
        """Work out anew where this leg's audio goes, and that of the leg it hears."""
        self._retarget()
        other = self.bridged
        if other is not None:
            other._retarget()

    def _retarget(self) -> None:
        target = self if self._echo else self.bridged
        if target is not None and target is not self and target._echo:
            target = None
        if target is not None and (not target._may_send() or target._occupied() or self._direction not in _RECEIVING):
            target = None
        self.settle()
        flow = self.reception
        if target is None:
            flow.send = flow.table = None
        else:
            flow.send = target.send
            flow.table = g711.translation(self.codec, target.codec)
            flow.out_type = target.payload_type
            flow.out_ssrc = target.ssrc
        if target is not self._target:
            self._target = target
            self.reception.fast_ssrc = -1

    def next_position(self, now: float) -> tuple[int, int]:
        """Sequence and timestamp with which a new source continues what was sent before."""
        sequence = (self.out_sequence + 1) & 0xFFFF
        if self.out_time == 0.0:
            return sequence, self.out_timestamp
        passed = max(self.ptime_ms * 8, round((now - self.out_time) * rtp.CLOCK_RATE_HZ))
        return sequence, (self.out_timestamp + passed) & 0xFFFFFFFF

    # --- sending --------------------------------------------------------------------------

    def _start_clock(self) -> None:
        if not self._clock_on and not self.closed:
            self._clock_on = True
            self._events.start_clock(self)

    def on_tick(self, now: float) -> int:
        """Send our own next packet: a digit, or else one ptime of the play."""
        ticks = self.ptime_ms // TICK_MS
        sender = self._sender
        player = self._player
        if self.closed or not self._occupied():
            pass
        elif sender is not None and sender.active and self._may_send():
            self._send_event(sender, now)
            if not sender.active:
                self.reroute()
            return ticks
        elif player is not None:
            frame = player.take(self.ptime_ms * 8, self.codec)
            if frame is not None:
                if self._may_send():
                    self._send_frame(frame, now)
                else:  # on hold: it goes on unheard, and ends when it would have ended
                    self._continuing = False
                return ticks
            self._player = None
            self.reroute()
            self._events.play_ended(self, player.play_id, completed=True)
        self._clock_on = False
        return 0

    def _send_frame(self, frame: bytes, now: float) -> None:
        second = self.payload_type
        # Late ticks are caught up one frame each; after a longer pause the timestamp moves on.
        if self._continuing and now - self.out_time < _CATCH_UP_S:
            sequence = (self.out_sequence + 1) & 0xFFFF
            timestamp = (self.out_timestamp + len(frame)) & 0xFFFFFFFF
        else:
            sequence, timestamp = self.next_position(now)
            second |= rtp.MARKER
        self._continuing = True
        self.out_timestamp = timestamp
        self.out_time = now
        self._send(second, sequence, timestamp, frame)

    def _send_event(self, sender: DtmfSender, now: float) -> None:
        packet = sender.next_packet(self.ptime_ms)
        kind = self.dtmf_payload_type
        if packet is None or kind is None:
            return
        self._continuing = False
        sequence, timestamp = self.next_position(now)
        if packet.begins:
            self.out_timestamp = timestamp
            self.out_time = now
        # All packets of one event carry the time of its beginning (RFC 4733 2.2.1).
        self._send(kind | (rtp.MARKER if packet.marker else 0), sequence, self.out_timestamp, packet.payload)

    def _send(self, second: int, sequence: int, timestamp: int, payload: bytes) -> None:
        end = 12 + len(payload)
        _pack(_OUT, 0, rtp.PLAIN, second, sequence, timestamp, self.ssrc)
        _OUT[12:end] = payload
        self.out_sequence = sequence
        try:
            self.send(_OUT_VIEWS[end])
        except OSError:
            return
        self.packets_sent += 1
        self.octets_sent += len(payload)

    def send_report(self, now: float, *, bye: bool = False) -> None:
        """Send an RTCP report of both directions; nothing while there is no peer."""
        address = self._rtcp_address
        if address is None or self.closed or address[1] == 0:
            return
        self._settle_sources()
        sender: rtcp.SenderInfo | None = None
        ntp = rtcp.ntp_time(time.time())
        if self.packets_sent > self._packets_reported:
            self._packets_reported = self.packets_sent
            timestamp = self.out_timestamp + round((now - self.out_time) * rtp.CLOCK_RATE_HZ)
            sender = rtcp.SenderInfo(ntp, timestamp, self.packets_sent, self.octets_sent)
        block: rtcp.ReportBlock | None = None
        reception = self.reception
        if self._source_ssrc >= 0:
            seen = self.remote_report_ntp
            block = rtcp.ReportBlock(
                self._source_ssrc,
                reception.take_fraction_lost(),
                reception.lost,
                reception.extended_highest,
                int(reception.jitter),
                rtcp.middle(seen),
                int((now - self.remote_report_at) * 65536) if seen else 0,
            )
        # A phone that is gone or has no route: the next report may get through.
        with contextlib.suppress(OSError):
            self.endpoint.rtcp.sendto(rtcp.build(self.ssrc, self._cname, sender, block, bye=bye), address)

    def _settle_sources(self) -> None:
        self.settle()
        if self.bridged is not None:
            self.bridged.settle()

    # --- watching -------------------------------------------------------------------------

    @property
    def last_heard(self) -> float:
        """When RTP or RTCP last came, monotonic seconds; 0.0: RTP never came."""
        last = self.reception.last_arrival
        return max(last, self.last_rtcp) if last else 0.0

    @property
    def sends(self) -> bool:
        """Whether the peer is supposed to send audio (it is not on hold)."""
        return self._direction in _RECEIVING

    def watch(self, now: float, silence_timeout_s: float) -> None:
        """Notice what did not happen: the end of a digit, or any packet for too long."""
        decoder = self._decoder
        if decoder is not None and decoder.pending:
            for digit in decoder.on_time(now):
                self._events.digit(self, digit)
        heard = self.last_heard
        if heard == 0.0:  # muted, or a test without audio: not worth asking soon, but not to be kept for ever either
            silence_timeout_s *= _NEVER_HEARD
        quiet = now - max(heard, self._flow_start)
        if self.silent:
            if quiet < silence_timeout_s:
                self.silent = False
                self._events.resumed(self)
        elif quiet >= silence_timeout_s and self._latch is not None and self._direction in _RECEIVING:
            self.silent = True
            self._events.silent(self, round(quiet * 1000))

    def statistics(self) -> LegStatistics:
        """The figures so far."""
        self._settle_sources()
        return LegStatistics(
            codec=self.codec.name if self._latch is not None else "",
            packets_received=self.reception.received,
            packets_sent=self.packets_sent,
            packets_lost=max(0, self.reception.lost),
            packets_discarded=self.discarded,
            jitter_ms=self.reception.jitter_ms,
            remote_packets_lost=self.remote_lost,
            remote_jitter_ms=None if self.remote_jitter is None else self.remote_jitter / 8,
            round_trip_ms=None if self.round_trip_s is None else self.round_trip_s * 1000,
        )
