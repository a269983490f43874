"""What a worker sends by itself, hears as digits, and records."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from pathlib import Path

import numpy as np
import soundfile

from media import g711
from media.client import (
    Bridge,
    CloseLeg,
    Codec,
    Dtmf,
    LegClosed,
    LoadPrompt,
    Play,
    PlayEnded,
    PromptFailed,
    PromptLoaded,
    RecordingEnded,
    SendDtmf,
    StartRecording,
    StopPlay,
    StopRecording,
)
from tests.media.rig import Phone, Rig, worker


def _write_tone(path: Path, samples: int, rate: int = 8000) -> g711.Samples:
    tone: g711.Samples = (np.sin(np.arange(samples) * 0.3) * 12000).astype(np.int16)
    soundfile.write(path, tone, rate)
    return tone


async def _load(rig: Rig, name: str, path: Path) -> int:
    rig.send(LoadPrompt(name, str(path)))
    return (await rig.event(PromptLoaded)).duration_ms


async def test_a_prompt_plays_in_time_over_the_relay_which_then_resumes(tmp_path: Path) -> None:
    tone = _write_tone(tmp_path / "tone.wav", 1000)
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b, codec=Codec.PCMA)
        rig.send(Bridge("a", "b"))
        assert await _load(rig, "tone", tmp_path / "tone.wav") == 125
        start = time.monotonic()
        rig.send(Play("b", "p", "tone"))
        await rig.settle()
        a.send(b"a" * 160)  # not heard: the prompt is
        packets = [await b.receive() for _ in range(7)]
        ended = await rig.event(PlayEnded)
        assert 0.115 < time.monotonic() - start < 2
        assert (ended.leg, ended.play, ended.completed) == ("b", "p", True)
        audio = b"".join(p.payload for p in packets)
        assert audio[:1000] == g711.encode(tone, Codec.PCMA)
        assert audio[1000:] == g711.SILENCE[Codec.PCMA] * 120
        assert [p.marker for p in packets] == [True] + [False] * 6
        first = packets[0]
        assert [(p.timestamp - first.timestamp) & 0xFFFFFFFF for p in packets] == [160 * i for i in range(7)]
        a.send(b"a" * 160)
        resumed = await b.receive()
        assert resumed.marker
        assert resumed.sequence == (packets[-1].sequence + 1) & 0xFFFF
        assert resumed.ssrc == first.ssrc


async def test_music_loops_for_each_leg_from_its_start_until_stopped(tmp_path: Path) -> None:
    tone = g711.encode(_write_tone(tmp_path / "music.wav", 1000), Codec.PCMU)
    async with worker() as rig:
        await _load(rig, "music", tmp_path / "music.wav")
        phones = [rig.phone(), rig.phone()]
        await rig.leg("0", phones[0])
        await rig.leg("1", phones[1], ptime_ms=30)
        for i, phone in enumerate(phones):
            rig.send(Play(str(i), f"p{i}", "music", loop=True))
            audio = b"".join([(await phone.receive()).payload for _ in range(15)])
            assert audio == (tone * 5)[: len(audio)]
            assert len(audio) == 15 * (160, 240)[i]
        rig.send(StopPlay("0"), Play("1", "next", "music"))
        assert await rig.event(PlayEnded) == PlayEnded("0", "p0", completed=False)
        assert await rig.event(PlayEnded) == PlayEnded("1", "p1", completed=False)
        assert await rig.event(PlayEnded) == PlayEnded("1", "next", completed=True)


async def test_bad_prompts_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    async with worker() as rig:
        for name in ("missing.wav", "text.wav", "empty.wav"):
            rig.send(LoadPrompt(name, str(tmp_path / name)))
            failed = await rig.event(PromptFailed)
            assert failed.prompt == name
            assert name in failed.reason
        await rig.leg("a", rig.phone())
        rig.send(Play("a", "p", "missing.wav"))
        assert await rig.event(PlayEnded) == PlayEnded("a", "p", completed=False)
        rig.send(Play("nobody", "p", "missing.wav"))
        assert await rig.event(PlayEnded) == PlayEnded("nobody", "p", completed=False)


async def test_digits_arrive_once_and_are_passed_to_the_other_leg() -> None:
    async with worker() as rig:
        a, b, c = rig.phone(), rig.phone(), rig.phone()
        await rig.leg("a", a, dtmf=101)
        await rig.leg("b", b, dtmf=96)
        await rig.leg("c", c, dtmf=None)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        a.send(b"v" * 160)
        voice = await b.receive()
        for end, duration in ((0, 160), (0, 320), (0x80, 480), (0x80, 480), (0x80, 480)):
            a.send(struct.pack("!BBH", 7, 10 | end, duration), payload_type=101, marker=duration == 160, step=0)
        packets = [await b.receive() for _ in range(5)]
        assert {p.payload_type for p in packets} == {96}
        assert {(p.timestamp - voice.timestamp) & 0xFFFFFFFF for p in packets} == {160}
        assert [p.sequence for p in packets] == [(voice.sequence + 1 + i) & 0xFFFF for i in range(5)]
        assert await rig.event(Dtmf) == Dtmf("a", "7", 60)
        rig.send(Bridge("a", "c"))  # which knows no events: they leave no gap
        await rig.settle()
        a.send(b"v" * 160)
        voice = await c.receive()
        a.send(struct.pack("!BBH", 11, 10, 160), payload_type=101, marker=True, step=0)  # its end gets lost
        a.send(b"w" * 160)
        assert (await c.receive()).sequence == (voice.sequence + 1) & 0xFFFF
        assert await rig.event(Dtmf) == Dtmf("a", "#", 20)


async def test_digits_are_sent_as_events_with_three_ends() -> None:
    async with worker() as rig:
        a = rig.phone()
        await rig.leg("a", a)
        rig.send(SendDtmf("a", "1#", 60))
        packets = [await a.receive() for _ in range(10)]
        for digit, group in ((1, packets[:5]), (11, packets[5:])):
            events = [struct.unpack("!BBH", p.payload) for p in group]
            assert [e[0] for e in events] == [digit] * 5
            assert [e[1] >> 7 for e in events] == [0, 0, 1, 1, 1]
            assert [e[2] for e in events] == [160, 320, 480, 480, 480]
            assert [p.marker for p in group] == [True] + [False] * 4
            assert len({p.timestamp for p in group}) == 1
        assert (packets[5].timestamp - packets[0].timestamp) & 0xFFFFFFFF >= 480
        assert [p.sequence for p in packets] == [(packets[0].sequence + i) & 0xFFFF for i in range(10)]
        rig.send(SendDtmf("a", "x", 60))
        assert (await rig.settle()).commands_ignored == 1


async def _talk(phone: Phone, audio: bytes) -> None:
    """Send audio in real time."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for i in range(0, len(audio), 160):
        await asyncio.sleep(max(0.0, start + i / 8000 - loop.time()))
        phone.send(audio[i : i + 160])


def _correlation(heard: g711.Samples, sent: g711.Samples) -> float:
    a, b = heard.astype(np.float64), sent.astype(np.float64)
    product = np.fft.irfft(np.fft.rfft(a, 1 << 16) * np.conj(np.fft.rfft(b, 1 << 16)))
    return float(product.max() / (np.linalg.norm(b) * np.linalg.norm(a)))


async def test_a_recording_holds_both_sides_in_their_channels(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    sides = [(noise.standard_normal(12000) * 4000).astype(np.int16) for _ in range(2)]
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        path = tmp_path / "deep" / "call.wav"
        rig.send(StartRecording("call", "a", "b", str(path)))  # before the agent's leg is there
        await rig.leg("b", b, codec=Codec.PCMA)
        rig.send(Bridge("a", "b"))
        await rig.settle()
        encoded = g711.encode(sides[0], Codec.PCMU), g711.encode(sides[1], Codec.PCMA)
        await asyncio.gather(_talk(a, encoded[0]), _talk(b, encoded[1]))
        part, rate = soundfile.read(path.with_suffix(".wav.part"), dtype="int16")  # readable while it grows
        assert rate == 8000
        assert part.ndim == 2
        await rig.settle()
        rig.send(StopRecording("call"))
        ended = await rig.event(RecordingEnded)
        assert (ended.call, ended.path, ended.error) == ("call", str(path), "")
        data = path.read_bytes()
        assert (ended.size_bytes, ended.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        heard, _ = soundfile.read(path, dtype="int16")
        assert ended.duration_ms == len(heard) // 8
        for side, codec in enumerate((Codec.PCMU, Codec.PCMA)):
            sent = g711.decode(encoded[side], codec)
            assert _correlation(heard[:, side], sent) > 0.999
            assert abs(_correlation(heard[:, 1 - side], sent)) < 0.1


async def test_a_recording_follows_the_call_to_another_agent_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    async with worker() as rig:
        a, b, c = rig.phone(), rig.phone(), rig.phone()
        for name, phone in (("a", a), ("b", b), ("c", c)):
            await rig.leg(name, phone)
        rig.send(StartRecording("call", "a", "b", str(path)))
        await rig.settle()
        b.send(g711.encode(np.full(160, 8000, np.int16), Codec.PCMU))
        await rig.settle()
        rig.send(StartRecording("call", "a", "c", str(path)), CloseLeg("b"))
        await rig.event(LegClosed)
        c.ssrc = 2
        c.send(g711.encode(np.full(160, -8000, np.int16), Codec.PCMU))
        await rig.settle()
        rig.send(CloseLeg("a"), CloseLeg("c"))
        ended = await rig.wait_for(RecordingEnded)
        assert ended.error == ""
        heard, _ = soundfile.read(path, dtype="int16")
        assert heard[:, 1].max() > 7000
        assert heard[:, 1].min() < -7000
        assert not heard[:, 0].any()


async def test_an_unwritable_recording_fails_alone() -> None:
    async with worker() as rig:
        a, b = rig.phone(), rig.phone()
        await rig.leg("a", a)
        await rig.leg("b", b)
        rig.send(Bridge("a", "b"), StartRecording("call", "a", "b", "/proc/nowhere/call.wav"))
        await rig.settle()
        a.send(b"a" * 160)
        assert (await b.receive()).payload == b"a" * 160
        rig.send(StopRecording("call"))
        ended = await rig.event(RecordingEnded)
        assert ended.error
        assert ended.sha256 == ""
        rig.send(StartRecording("nobody", "a", "b", "/proc/x.wav"))
        assert (await rig.event(RecordingEnded)).error
