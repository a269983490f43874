"""The pure parts: headers, reports, digits, ports, latching, clock, recording, tables."""

from __future__ import annotations

import gc
import struct
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media import g711, rtcp, rtp
from media.clock import Clock
from media.dtmf import DIGITS, DtmfDecoder, DtmfSender
from media.endpoint import Endpoint
from media.framing import FrameError, Frames, frame
from media.latch import Latch
from media.leg import Events, Leg, Tap
from media.loop import Pacing
from media.player import Player, make_prompt
from media.ports import PortPool
from media.protocol import Codec, PutSnapshot, SetRemote
from media.recorder import Channel, Timeline
from tests import g711 as formulas
from tests.ports import free_port

# --- G.711 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(Codec))
def test_tables_agree_with_the_recommendation(codec: Codec) -> None:
    octets = bytes(range(256))
    assert (g711.decode(octets, codec) == formulas.decode(octets, int(codec))).all()
    again = g711.encode(g711.decode(octets, codec), codec)
    # µ-law has two zeros; every other octet comes back as itself.
    assert [o for o, back in zip(octets, again, strict=True) if o != back] in ([], [0x7F])


@pytest.mark.parametrize("codec", list(Codec))
def test_encoding_takes_the_nearest_step_within_a_segment(codec: Codec) -> None:
    samples = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
    ours = g711.decode(g711.encode(samples, codec), codec).astype(np.int32) - samples
    best = formulas.decode(formulas.encode(samples, int(codec)), int(codec)).astype(np.int32) - samples
    # Between segments G.711's decision values are not midway; there the best step may be the other one.
    assert (np.abs(ours) <= np.abs(best) + np.abs(samples.astype(np.int32)) / 64 + 8).all()
    assert np.mean(ours == best) > 0.98


# --- RTP ------------------------------------------------------------------------------------


@given(st.binary(max_size=80))
def test_any_bytes_parse_as_rtp_or_are_refused(data: bytes) -> None:
    try:
        packet = rtp.parse(data, len(data))
    except rtp.RtpError:
        return
    assert rtp.HEADER_BYTES <= packet.start <= packet.end <= len(data)


@given(
    st.integers(0, 127), st.booleans(), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 15),
    st.integers(0, 3), st.integers(0, 3), st.binary(max_size=50),
)  # fmt: skip
def test_header_fields_and_payload_are_found(
    kind: int, marker: bool, sequence: int, timestamp: int, sources: int, words: int, padding: int, payload: bytes
) -> None:
    first = 0x80 | sources | (0x10 if words else 0) | (0x20 if padding else 0)
    data = struct.pack("!BBHII", first, kind | (0x80 if marker else 0), sequence, timestamp, 9) + bytes(4 * sources)
    if words:
        data += struct.pack("!HH", 0xBEDE, words) + bytes(4 * words)
    start = len(data)
    data += payload + (bytes(padding - 1) + bytes([padding]) if padding else b"")
    packet = rtp.parse(data, len(data))
    assert (packet.payload_type, packet.marker, packet.sequence, packet.timestamp) == (
        kind,
        marker,
        sequence,
        timestamp,
    )
    assert data[packet.start : packet.end] == payload
    assert packet.start == start


@given(st.integers(0, 65535), st.lists(st.integers(1, 20), min_size=1, max_size=200))
def test_loss_is_counted_over_the_wrap(first: int, steps: list[int]) -> None:
    reception = rtp.Reception()
    reception.begin(first)
    reception.on_packet(first, 0, 0.0)
    at = first
    for step in steps:
        at += step
        assert reception.on_packet(at & 0xFFFF, 0, 0.0) == rtp.ADVANCED
    assert reception.expected == sum(steps) + 1
    assert reception.lost == sum(steps) - len(steps)
    assert reception.extended_highest == at


def test_late_and_restarted_streams() -> None:
    reception = rtp.Reception()
    reception.begin(100)
    assert [reception.on_packet(s, 0, 0.0) for s in (100, 103, 102)] == [rtp.ADVANCED, rtp.ADVANCED, rtp.LATE]
    assert reception.lost == 1
    assert reception.on_packet(30000, 0, 0.0) == rtp.LATE
    assert reception.on_packet(30001, 0, 0.0) == rtp.RESTARTED
    assert reception.on_packet(30002, 0, 0.0) == rtp.ADVANCED
    assert (reception.received, reception.lost) == (6, 1)
    reception.begin(0)
    assert reception.on_packet(0, 0, 0.0) == rtp.ADVANCED
    assert reception.lost == 1


def test_jitter_follows_the_rfc() -> None:
    reception = rtp.Reception()
    reception.begin(0)
    expected = 0.0
    before: float | None = None
    for i, late in enumerate([0.0, 0.004, 0.001, 0.02, 0.0, 0.003]):
        now = 1000.0 + i * 0.02 + late
        reception.on_packet(i, i * 160, now)
        transit = now * 8000 - i * 160
        if before is not None:
            expected += (abs(transit - before) - expected) / 16
        before = transit
    assert reception.jitter == pytest.approx(expected, abs=1e-3)


def test_fraction_lost_is_of_the_interval() -> None:
    reception = rtp.Reception()
    reception.begin(0)
    for sequence in (0, 1, 2, 7):
        reception.on_packet(sequence, 0, 0.0)
    assert reception.take_fraction_lost() == 128
    reception.on_packet(8, 0, 0.0)
    assert reception.take_fraction_lost() == 0


# --- RTCP -----------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_parse_as_rtcp_or_are_refused(data: bytes) -> None:
    try:
        rtcp.parse(data)
    except rtcp.RtcpError:
        return


_u32 = st.integers(0, 2**32 - 1)


@given(
    _u32,
    st.none() | st.builds(rtcp.SenderInfo, st.integers(0, 2**64 - 1), _u32, _u32, _u32),
    st.none()
    | st.builds(rtcp.ReportBlock, _u32, st.integers(0, 255), st.integers(-(2**23), 2**23 - 1), _u32, _u32, _u32, _u32),
    st.booleans(),
    st.binary(min_size=1, max_size=32),
)
def test_reports_survive_the_wire(
    ssrc: int, sender: rtcp.SenderInfo | None, block: rtcp.ReportBlock | None, bye: bool, cname: bytes
) -> None:
    data = rtcp.build(ssrc, cname, sender, block, bye=bye)
    assert len(data) % 4 == 0
    assert rtcp.parse(data) == rtcp.Report(ssrc, sender, () if block is None else (block,), bye)


def test_round_trip_takes_off_the_peers_delay() -> None:
    sent = rtcp.ntp_time(1_700_000_000.0)
    block = rtcp.ReportBlock(1, 0, 0, 0, 0, rtcp.middle(sent), 65536)
    assert rtcp.round_trip_s(block, rtcp.ntp_time(1_700_000_001.25)) == pytest.approx(0.25, abs=1e-3)
    assert rtcp.round_trip_s(rtcp.ReportBlock(1, 0, 0, 0, 0, 0, 0), sent) is None


# --- DTMF -----------------------------------------------------------------------------------


def _packets(digits: str, duration_ms: int) -> list[tuple[int, bytes]]:
    """What a phone sends for these keys: event timestamp, payload."""
    sender = DtmfSender()
    assert sender.press(digits, duration_ms) == len(digits)
    packets: list[tuple[int, bytes]] = []
    clock = began = 0
    while sender.active:
        packet = sender.next_packet(20)
        if packet is not None:
            began = clock if packet.begins else began
            packets.append((began, packet.payload))
        clock += 160
    return packets


@given(st.text(alphabet=DIGITS, min_size=1, max_size=12), st.integers(40, 300), st.data())
def test_each_digit_is_heard_once_whatever_the_network_does(digits: str, duration_ms: int, data: st.DataObject) -> None:
    groups: dict[int, list[bytes]] = {}
    for began, payload in _packets(digits, duration_ms):
        groups.setdefault(began, []).append(payload)
    decoder = DtmfDecoder()
    heard = []
    now = 0.0
    for began, payloads in groups.items():
        kept = data.draw(st.lists(st.sampled_from(payloads), min_size=1, max_size=20))  # lost, repeated, reordered
        for payload in kept:
            now += 0.01
            heard += decoder.on_packet(began + 5000, payload, now)
    heard += decoder.on_time(now + 1.0)
    assert "".join(d.digit for d in heard) == digits
    assert all(0 < d.duration_ms <= duration_ms for d in heard)


@given(st.lists(st.tuples(_u32, st.binary(max_size=6))))
def test_any_event_payload_is_survived(packets: list[tuple[int, bytes]]) -> None:
    decoder = DtmfDecoder()
    for i, (timestamp, payload) in enumerate(packets):
        for digit in decoder.on_packet(timestamp, payload, i * 0.02):
            assert digit.digit in DIGITS


def test_events_that_never_last_are_no_digits() -> None:
    decoder = DtmfDecoder()
    heard = []
    for i in range(20):  # as SIPp's play_dtmf sends them before the first key
        heard += decoder.on_packet(24_000 + 20 * i, bytes(4), i * 0.02)
    heard += decoder.on_packet(24_400, bytes.fromhex("040a00a0"), 0.5)
    heard += decoder.on_packet(24_400, bytes.fromhex("048a0640"), 0.6)
    heard += decoder.on_time(5.0)
    assert [(d.digit, d.duration_ms) for d in heard] == [("4", 200)]


def test_a_very_long_press_is_one_digit() -> None:
    decoder = DtmfDecoder()
    assert decoder.on_packet(0, struct.pack("!BBH", 5, 10, 0xFFFF), 0.0) == []
    assert decoder.on_packet(0xFFFF, struct.pack("!BBH", 5, 10, 160), 0.02) == []
    assert [d.duration_ms for d in decoder.on_packet(0xFFFF, struct.pack("!BBH", 5, 0x8A, 8000), 1.0)] == [9191]


# --- ports, latch, clock, pacing --------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 100), st.lists(st.booleans(), max_size=200))
def test_no_port_is_given_twice_and_the_oldest_comes_first(span: int, start: int, takes: list[bool]) -> None:
    try:
        pool = PortPool(1000, 1000 + span, start)
    except ValueError:
        assert span < 1
        return
    free = deque(pool.take() for _ in range(len(pool)))
    for port in free:
        assert port is not None
        pool.give_back(port)
    taken: list[int] = []
    for take in takes:
        if take:
            port = pool.take()
            assert port == (free.popleft() if free else None)
            if port is not None:
                assert port % 2 == 0
                assert 1000 <= port < 1000 + span
                assert port not in taken
                taken.append(port)
        elif taken:
            port = taken.pop(0)
            pool.give_back(port)
            free.append(port)
    with pytest.raises(ValueError, match="not taken"):
        pool.give_back(999)


def test_a_stranger_needs_three_packets_in_sequence_and_a_silent_peer() -> None:
    latch = Latch(("192.0.2.1", 1000))
    stranger = ("198.51.100.1", 5)
    assert [latch.on_stranger(stranger, 1, s, 0.0) for s in (5, 7, 8)] == [False, False, False]
    assert latch.on_stranger(stranger, 1, 9, 0.0)
    other = ("203.0.113.9", 5)
    assert not any(latch.on_stranger(other, 1, s, 0.02) for s in range(100))
    assert [latch.on_stranger(other, 1, s, 3.0) for s in range(3)] == [False, False, True]
    assert [latch.on_stranger(("192.0.2.1", 1000), 1, s, 0.02) for s in range(3)] == [False, False, True]


class _Ticking:
    def __init__(self, ticks: int, times: int) -> None:
        self.ticks = ticks
        self.left = times
        self.at: list[float] = []

    def on_tick(self, now: float) -> int:
        self.at.append(now)
        self.left -= 1
        return self.ticks if self.left else 0


def test_the_clock_keeps_absolute_time_and_catches_up_within_bounds() -> None:
    clock = Clock()
    assert clock.deadline() is None
    sender = _Ticking(2, 100)
    clock.add(sender, 5.0)
    clock.run(5.003)
    clock.run(5.0201)
    assert len(sender.at) == 2
    clock.run(5.0999)
    assert len(sender.at) == 5  # caught up
    clock.run(65.0)
    assert len(sender.at) == 6  # a minute asleep: not 3000 packets at once
    due = clock.deadline()
    assert due is not None
    assert 65.0 < due <= 65.011
    one = _Ticking(1, 1)
    clock.add(one, 65.0)
    clock.run(65.02)
    assert len(one.at) == 1


def test_pacing_starts_and_stops_with_the_rate() -> None:
    pacing = Pacing()
    now = 1000.0
    seen = []
    for ready in (1, 1, 400, 200, 200, 100, 100):
        pacing.on_round(ready, now)
        seen.append(pacing.on)
        now += 0.1
    assert seen == [False, False, True, True, True, False, False]


# --- playing, recording, frames ---------------------------------------------------------------


@given(st.integers(1, 1000), st.sampled_from([80, 160, 240, 480]), st.booleans())
def test_a_player_gives_every_sample_once_or_for_ever(samples: int, size: int, loop: bool) -> None:
    audio = bytes(i % 251 for i in range(samples))
    player = Player("p", make_prompt("x", dict.fromkeys(Codec, audio)), loop=loop)
    frames = [player.take(size, Codec.PCMU) for _ in range(2 * samples // size + 2)]
    if loop:
        joined = b"".join(f for f in frames if f is not None)
        assert joined == (audio * (len(joined) // samples + 1))[: len(joined)]
        assert None not in frames
    else:
        given_frames = [f for f in frames if f is not None]
        assert all(len(f) == size for f in given_frames)
        joined = b"".join(given_frames)
        assert joined[:samples] == audio
        assert set(joined[samples:]) <= set(g711.SILENCE[Codec.PCMU])
        assert frames[-1] is None


def _stream(count: int, first: int, ssrc: int = 1, begin: float = 100.0) -> Tap:
    rng = np.random.default_rng(first & 0xFFFF)
    return [
        (
            begin + i * 0.02,
            struct.pack("!BBHII", 0x80, 0, i & 0xFFFF, (first + 160 * i) & 0xFFFFFFFF, ssrc)
            + rng.integers(0, 256, 160, dtype=np.uint8).tobytes(),
        )
        for i in range(count)
    ]


def _record(packets: Tap, cut: int) -> g711.Samples:
    channel, timeline = Channel(), Timeline()
    timeline.put(0, channel.place(packets[:cut], Codec.PCMU, 100.0))
    timeline.put(0, channel.place(packets[cut:], Codec.PCMU, 100.0))
    return timeline.take_all(0)[:, 0]


@given(_u32, st.integers(0, 30), st.sets(st.integers(1, 29)), st.lists(st.floats(0, 0.05), min_size=30, max_size=30))
def test_jitter_does_not_move_audio_and_loss_is_silence(
    first: int, cut: int, lost: set[int], jitter: list[float]
) -> None:
    sent = _stream(30, first)
    kept = [(at + jitter[i], packet) for i, (at, packet) in enumerate(sent) if i not in lost]
    heard = _record(kept, min(cut, len(kept)))
    offset = round(jitter[0] * 8000)  # the first packet sets the place
    for i, (_, packet) in enumerate(sent):
        begin = offset + 160 * i
        expected = np.zeros(160, np.int16) if i in lost else g711.decode(packet[12:], Codec.PCMU)
        part = heard[begin : begin + 160]
        assert (part == expected[: len(part)]).all()


def test_a_new_stream_or_a_jump_of_its_clock_is_placed_by_arrival() -> None:
    packets = _stream(10, 1000) + _stream(10, 77, ssrc=2, begin=100.5) + _stream(10, 900_000, ssrc=2, begin=101.0)
    heard = _record(packets, 15)
    assert len(heard) == 8000 + 1600
    for begin, part in ((0, packets[:10]), (4000, packets[10:20]), (8000, packets[20:])):
        expected = g711.decode(b"".join(p[12:] for _, p in part), Codec.PCMU)
        assert (heard[begin : begin + 1600] == expected).all()


def test_what_comes_too_late_or_far_ahead_is_left_out() -> None:
    timeline = Timeline()
    one = np.ones(160, np.int16)
    timeline.put(0, [(0, one), (10**9, one)])
    assert timeline.take(80)[:, 0].sum() == 80
    timeline.put(1, [(0, one)])  # half of it is written already
    rest = timeline.take_all(0)
    assert rest.shape == (80, 2)
    assert rest.sum() == 160


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 20))
def test_frames_are_cut_anywhere(snapshots: list[bytes], chunk: int) -> None:
    data = b"".join(frame(PutSnapshot("c", s)) for s in snapshots)
    frames = Frames()
    bodies = [body for i in range(0, len(data), chunk) for body in frames.feed(data[i : i + chunk])]
    assert b"".join(len(b).to_bytes(4, "big") + b for b in bodies) == data
    assert len(bodies) == len(snapshots)


def test_an_oversized_frame_is_an_error() -> None:
    with pytest.raises(FrameError):
        list(Frames().feed(b"\x7f\xff\xff\xff"))
    with pytest.raises(FrameError):
        frame(PutSnapshot("c", bytes(2 << 20)))


def test_a_closed_leg_leaves_no_cycle_for_a_collector_that_never_runs() -> None:
    events = Events(
        digit=lambda _leg, _digit: None,
        play_ended=lambda leg, play_id, *, completed: None,
        silent=lambda _leg, _ms: None,
        resumed=lambda _leg: None,
        start_clock=lambda _leg: None,
        watch_peer=lambda _leg, _peer: None,
    )
    port = free_port(span=4, align=2)
    legs = [Leg(name, "call", Endpoint("127.0.0.1", port + 2 * i), events) for i, name in enumerate("ab")]
    gc.collect()
    gc.disable()
    try:
        for leg in legs:
            assert leg.set_remote(SetRemote(leg.leg_id, "127.0.0.1", 9, Codec.PCMU, 0, 101), 1.0)
        legs[0].bridge(legs[1])
        legs[1].echo(on=True)
        legs[0].play(Player("p", make_prompt("x", dict.fromkeys(Codec, b"x" * 100)), loop=False))
        assert legs[0].press("1", 100)
        legs[0].on_tick(2.0)
        legs[0].reception.on_rtp(2.0)
        for leg in legs:
            leg.close()
            leg.close()  # harmless
        del leg
        legs.clear()
        assert gc.collect() == 0
    finally:
        gc.enable()
