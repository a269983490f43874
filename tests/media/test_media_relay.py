"""Relay, latching, codecs, echo and reports through a real worker process."""

from __future__ import annotations

import os
import struct

from media import g711, rtcp
from media.client import (
    Bridge,
    CloseLeg,
    Codec,
    Direction,
    Echo,
    LegClosed,
    LegFailed,
    MediaResumed,
    MediaSilent,
    OpenLeg,
    SetRemote,
    Unbridge,
)
from tests.media.rig import worker


async def test_relay_is_bit_exact_both_ways_and_one_stream_each() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        for sender, receiver in ((a, b), (b, a)):
            payloads = [os.urandom(160) for _ in range(20)]
            packets = []
            for payload in payloads:
                sender.send(payload)
                packets.append(await receiver.receive())
            assert [p.payload for p in packets] == payloads
            assert {p.ssrc for p in packets} != {sender.ssrc}
            assert len({p.ssrc for p in packets}) == 1
            assert [p.marker for p in packets] == [True] + [False] * 19
            first = packets[0]
            assert [p.sequence for p in packets] == [(first.sequence + i) & 0xFFFF for i in range(20)]
            assert [p.timestamp for p in packets] == [(first.timestamp + 160 * i) & 0xFFFFFFFF for i in range(20)]
        rig.send(CloseLeg("a"))
        figures = (await rig.event(LegClosed)).statistics
        assert (figures.codec, figures.packets_received, figures.packets_sent) == ("PCMU", 20, 20)
        assert (figures.packets_lost, figures.packets_discarded) == (0, 0)


async def test_loss_and_reordering_stay_visible() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        got = []
        for sequence in (10, 11, 14, 13, 15):
            a.sequence, a.timestamp = sequence, sequence * 160
            a.send(bytes([sequence]) * 160)
            got.append(await b.receive())
        base = got[0]
        assert [(p.sequence - base.sequence) & 0xFFFF for p in got] == [0, 1, 4, 3, 5]
        assert [(p.timestamp - base.timestamp) & 0xFFFFFFFF for p in got] == [0, 160, 640, 480, 800]
        rig.send(CloseLeg("a"))
        assert (await rig.event(LegClosed)).statistics.packets_lost == 1


async def test_law_is_translated_between_legs_that_differ() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a, codec=Codec.PCMU)
        await rig.leg("b", b, codec=Codec.PCMA)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        table = g711.translation(Codec.PCMU, Codec.PCMA)
        assert table is not None
        for _ in range(3):  # the first goes the long way, the others the hot path
            payload = os.urandom(160)
            a.send(payload)
            packet = await b.receive()
            assert packet.payload_type == 8
            assert packet.payload == payload.translate(table)


async def test_a_new_source_continues_the_stream_that_the_phone_hears() -> None:
    async with worker() as rig:
        a, b, c = rig.phone(), rig.phone(), rig.phone()
        for name, phone in (("a", a), ("b", b), ("c", c)):
            await rig.leg(name, phone)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        a.send(b"a" * 160)
        first = await b.receive()
        rig.send(Bridge("c", "b"))
        await rig.settle()
        a.send(b"x" * 160)  # no longer bridged
        c.sequence, c.timestamp, c.ssrc = 7, 12345, 99
        c.send(b"c" * 160)
        second = await b.receive()
        assert second.payload == b"c" * 160
        assert second.marker
        assert second.ssrc == first.ssrc
        assert second.sequence == (first.sequence + 1) & 0xFFFF
        assert 160 <= (second.timestamp - first.timestamp) & 0xFFFFFFFF < 80000
        c.ssrc, c.sequence, c.timestamp = 100, 40000, 5  # a new stream of the same phone
        c.send(b"d" * 160)
        third = await b.receive()
        assert third.marker
        assert third.sequence == (second.sequence + 1) & 0xFFFF
        rig.send(Unbridge("b", "c"), Echo("b", on=True))
        await rig.settle()
        b.send(b"e" * 160)
        assert (await b.receive()).payload == b"e" * 160


async def test_a_stranger_is_ignored_and_counted_after_latching() -> None:
    async with worker() as rig:
        a, b, stranger = rig.phone(), rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        a.send(b"a" * 160)
        assert (await b.receive()).payload == b"a" * 160
        stranger.to = a.to
        for _ in range(10):
            stranger.send(b"s" * 160)
        await rig.settle()
        a.send(b"b" * 160)
        assert (await b.receive()).payload == b"b" * 160
        b.send(b"c" * 160)
        assert (await a.receive()).payload == b"c" * 160  # not to the stranger
        rig.send(CloseLeg("a"))
        assert (await rig.event(LegClosed)).statistics.packets_discarded == 10


async def test_a_phone_behind_nat_is_found_and_kept_over_a_reinvite() -> None:
    async with worker() as rig:
        behind_nat, b = rig.phone(), rig.phone()
        advertised = rig.phone()  # the address in the SDP, where nobody listens
        await rig.leg("a", advertised)
        behind_nat.to = advertised.to
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        for i in range(3):
            behind_nat.send(bytes([i]) * 160)
        assert (await b.receive()).payload == bytes([2]) * 160
        # The same SDP again (hold and resume) must not send the audio into the NAT's void.
        rig.send(SetRemote("a", "127.0.0.1", advertised.port, Codec.PCMU, 0, 101, 20, Direction.SENDRECV))
        await rig.settle()
        b.send(b"z" * 160)
        assert (await behind_nat.receive()).payload == b"z" * 160


async def test_garbage_is_counted_and_harms_nobody() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        junk = [b"", b"\x80", b"\x00" * 172, b"\x8f" + b"\0" * 20, b"\xb0\0" + b"\xff" * 20, b"\xa0\0" + b"\0" * 30]
        junk += [struct.pack("!BBHII", 0x80, 96, 1, 1, 1) + b"x" * 160, os.urandom(2048), b"\x80" * 9000]
        for data in junk:
            a.rtp.sendto(data, a.to)
            a.rtcp.sendto(data, (a.to[0], a.to[1] + 1))
        a.send(b"a" * 160)
        assert (await b.receive()).payload == b"a" * 160
        statistics = await rig.settle()
        assert statistics.faults == 0
        assert statistics.packets_discarded >= len(junk)


async def test_extensions_and_padding_are_taken_off() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        header = struct.pack("!BBHII", 0x80 | 0x20 | 0x10 | 1, 0, 1, 1, 1) + b"CSRC" + b"\xbe\xde\0\x01" + b"extn"
        a.rtp.sendto(header + b"p" * 160 + b"\0\0\0\x04", a.to)
        assert (await b.receive()).payload == b"p" * 160


async def test_nothing_is_sent_to_a_phone_that_holds() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b, direction=Direction.INACTIVE)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        a.send(b"1" * 160)
        await rig.settle()
        rig.send(SetRemote("b", "127.0.0.1", b.port, Codec.PCMU, 0))
        await rig.settle()
        a.send(b"2" * 160)
        assert (await b.receive()).payload == b"2" * 160


async def test_reports_tell_of_loss_and_round_trip_and_say_bye() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        for sequence in (1, 2, 4):
            a.sequence = sequence
            a.send(b"a" * 160)
        ours = [await b.receive() for _ in range(3)]
        report = rtcp.parse(await a.receive_rtcp())
        assert [(block.ssrc, block.lost) for block in report.blocks] == [(a.ssrc, 1)]
        sent = rtcp.parse(await b.receive_rtcp())
        assert sent.sender is not None
        assert sent.ssrc == ours[0].ssrc
        assert (sent.sender.packets, sent.sender.octets) == (3, 480)
        block = rtcp.ReportBlock(sent.ssrc, 25, 7, ours[-1].sequence, 80, rtcp.middle(sent.sender.ntp), 0)
        b.rtcp.sendto(rtcp.build(b.ssrc, b"b", None, block), (b.to[0], b.to[1] + 1))
        await rig.settle()
        rig.send(CloseLeg("b"))
        figures = (await rig.event(LegClosed)).statistics
        assert (figures.remote_packets_lost, figures.remote_jitter_ms) == (7, 10.0)
        assert figures.round_trip_ms is not None
        assert 0 <= figures.round_trip_ms < 10_000
        while not rtcp.parse(await b.receive_rtcp()).bye:
            pass


async def test_silence_is_reported_once_and_its_end() -> None:
    async with worker("--silence-timeout-s", "0.3") as rig:
        a = rig.phone()
        await rig.leg("a", a)
        await rig.settle()
        a.send(b"a" * 160)
        assert (await rig.event(MediaSilent)).silent_ms >= 300
        a.send(b"a" * 160)
        await rig.event(MediaResumed)
        await rig.event(MediaSilent)


async def test_a_leg_that_never_hears_anything_is_reported_later() -> None:
    async with worker("--silence-timeout-s", "0.2") as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        await rig.settle()
        b.send(b"b" * 160)
        assert (await rig.event(MediaSilent)).leg == "b"
        silent = await rig.event(MediaSilent)
        assert silent.leg == "a"
        assert silent.silent_ms >= 2000


async def test_ports_run_out_and_come_back() -> None:
    async with worker(ports=4) as rig:
        await rig.leg("a", rig.phone())
        await rig.leg("b", rig.phone())
        rig.send(OpenLeg("c", "call"))
        assert (await rig.event(LegFailed)).leg == "c"
        rig.send(CloseLeg("a"))
        await rig.event(LegClosed)
        await rig.leg("c", rig.phone())
        assert (await rig.settle()).ports_free == 0
