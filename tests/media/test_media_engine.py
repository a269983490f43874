"""A worker without its engine: orphans, backlog, the next engine, and what strangers write."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from media import protocol
from media.client import (
    Bridge,
    CloseLeg,
    Echo,
    LegClosed,
    MediaClient,
    MoveLeg,
    OrphanEnded,
    PutSnapshot,
    Quit,
    RecordingEnded,
    ReleaseCall,
    StartRecording,
    WorkerRefused,
    WorkerUnavailable,
)
from media.framing import frame
from tests.media.rig import PATIENCE_S, Phone, Rig, worker


async def _call(rig: Rig) -> tuple[Phone, Phone]:
    a, b = rig.phone(), rig.phone()
    await rig.leg("a", a)
    await rig.leg("b", b)
    rig.send(Bridge("a", "b"), PutSnapshot("call", b"state"))
    await rig.settle()
    for sender, receiver in ((a, b), (b, a)):
        sender.send(b"1" * 160)
        await receiver.receive()
    return a, b


async def _keep_talking(*phones: Phone) -> None:
    while True:
        for phone in phones:
            phone.send(b"t" * 160)
        await asyncio.sleep(0.02)


async def test_audio_goes_on_without_an_engine_and_the_next_one_finds_the_call() -> None:
    async with worker("--orphan-grace-s", "0.4") as rig:
        a, b = await _call(rig)
        rig.client.close()
        talking = asyncio.create_task(_keep_talking(a, b))
        until = time.monotonic() + 1.0  # longer than the grace
        while time.monotonic() < until:
            await asyncio.gather(a.receive(), b.receive())
        welcome = await rig.connect()
        assert [(k.call, sorted(k.legs), k.snapshot) for k in welcome.calls] == [("call", ["a", "b"], b"state")]
        rig.send(PutSnapshot("call", b"mine now"))  # adopts it
        await rig.settle()
        talking.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while (await rig.settle()).packets_received < 100:
                a.send(b"x" * 160)
        rig.send(CloseLeg("a"), CloseLeg("b"), ReleaseCall("call"))
        await rig.wait_for(LegClosed)
        await rig.wait_for(LegClosed)
        assert (await rig.settle()).calls == 0


async def test_leg_that_moved_survives_its_former_call_and_stays_bridged() -> None:
    async with worker() as rig:
        a, b = await _call(rig)
        rig.send(MoveLeg("b", "other"), MoveLeg("b", "other"), MoveLeg("nobody", "other"))
        assert (await rig.settle()).calls == 2
        for sender, receiver in ((a, b), (b, a)):
            sender.send(b"2" * 160)
            await receiver.receive()
        rig.send(ReleaseCall("call"))
        assert (await rig.wait_for(LegClosed)).leg == "a"
        assert (await rig.settle()).legs == 1
        rig.send(CloseLeg("b"))
        closed = await rig.wait_for(LegClosed)
        assert (closed.leg, closed.call) == ("b", "other")
        assert (await rig.settle()).calls == 0


async def test_an_orphan_ends_when_one_phone_stops_and_the_next_engine_learns_it(tmp_path: Path) -> None:
    async with worker("--orphan-grace-s", "0.4") as rig:
        a, _ = await _call(rig)
        rig.send(StartRecording("call", "a", "b", str(tmp_path / "r.wav")))
        await rig.settle()
        rig.client.close()
        talking = asyncio.create_task(_keep_talking(a))  # b has hung up
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(_appears, tmp_path / "r.wav")
        talking.cancel()
        assert (await rig.connect()).calls == []
        closed = [await rig.event(LegClosed), await rig.event(LegClosed)]
        assert {c.leg for c in closed} == {"a", "b"}
        assert await rig.event(OrphanEnded) == OrphanEnded("call")
        assert (await rig.event(RecordingEnded)).error == ""
        assert (await rig.settle()).legs == 0


async def test_an_orphan_that_was_never_adopted_ends_under_a_new_engine_too() -> None:
    async with worker("--orphan-grace-s", "0.3") as rig:
        await _call(rig)
        rig.client.close()
        assert len((await rig.connect()).calls) == 1
        assert await rig.wait_for(OrphanEnded) == OrphanEnded("call")


async def test_an_orphan_without_audio_ends_after_ten_times_the_grace() -> None:
    async with worker("--orphan-grace-s", "0.1") as rig:
        await rig.leg("a", rig.phone())
        rig.client.close()
        start = time.monotonic()
        await rig.connect()
        await rig.wait_for(OrphanEnded)
        assert time.monotonic() - start > 0.8


async def test_a_newer_engine_replaces_the_older() -> None:
    async with worker() as rig:
        lost = asyncio.Event()
        first = MediaClient(rig.path, lambda _event: None, "first", lost.set)
        await first.connect()  # replaces the rig's own
        await rig.connect()
        async with asyncio.timeout(PATIENCE_S):
            await lost.wait()
        assert not first.connected
        with pytest.raises(WorkerUnavailable):
            first.send(Quit())
        assert rig.client.connected


async def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with worker() as rig:
        monkeypatch.setattr("media.client.VERSION", 99)
        with pytest.raises(WorkerRefused, match=f"version {protocol.VERSION}"):
            await MediaClient(rig.path, lambda _event: None, "newer").connect()
        assert rig.client.connected


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x03abc",
        frame(Echo("a", on=True)),  # before Hello
        b"\0\0\0\x01",
        frame(protocol.Hello(protocol.VERSION, "evil")) + b"\0\0\0\x02\x91\xa1",
    ],
)
async def test_rubbish_on_the_socket_costs_its_sender_the_connection(data: bytes) -> None:
    async with worker() as rig:
        reader, writer = await asyncio.open_unix_connection(rig.path)
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(65536):
                pass
        writer.close()
        await writer.wait_closed()
        await rig.connect()
        rig.send(Echo("nobody", on=True))
        assert (await rig.settle()).commands_ignored >= 1


async def test_many_kept_calls_fit_into_several_frames() -> None:
    async with worker() as rig:
        for i in range(30):
            rig.send(PutSnapshot(f"call-{i}", bytes(100_000)))
        await rig.settle()
        welcome = await rig.connect()
        assert len(welcome.calls) == 30
        rig.send(PutSnapshot("too-big", bytes(protocol.MAX_FRAME - 60000)))
        assert (await rig.settle()).commands_ignored == 1


async def test_sigint_is_ignored_and_sigterm_finishes_recordings(tmp_path: Path) -> None:
    async with worker() as rig:
        await _call(rig)
        rig.send(StartRecording("call", "a", "b", str(tmp_path / "r.wav")))
        await rig.settle()
        rig.process.send_signal(signal.SIGINT)
        await rig.settle()
        rig.process.send_signal(signal.SIGTERM)
        ended = await rig.wait_for(RecordingEnded)
        assert ended.error == ""
        assert (tmp_path / "r.wav").exists()
        async with asyncio.timeout(PATIENCE_S):
            assert await rig.process.wait() == 0
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(FileNotFoundError):
            probe.connect(rig.path)


async def test_the_socket_is_ours_alone_and_not_shared() -> None:
    async with worker() as rig:
        assert _mode(rig.path) == 0o600
        status, errors = await _start(rig.path)
        assert status == 2
        assert b"running worker" in errors


async def test_a_socket_left_by_a_dead_worker_is_replaced_and_a_long_path_refused(tmp_path: Path) -> None:
    async with worker() as rig:
        rig.process.kill()
        await rig.process.wait()
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(rig.path)
        process = await _spawn(rig.path)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            assert b"worker_started" in await process.stderr.readline()
        process.terminate()
        await process.communicate()
        assert process.returncode == 0
    status, errors = await _start("/tmp/" + "x" * 120)
    assert status == 2
    assert b"107 bytes" in errors
    (tmp_path / "file").write_text("precious")
    status, errors = await _start(str(tmp_path / "file"))
    assert status == 2
    assert (tmp_path / "file").read_text() == "precious"


def _mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def _appears(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


async def test_a_worker_that_nobody_needs_any_more_leaves() -> None:
    async with worker("--forsaken-s", "0.3", "--orphan-grace-s", "60") as rig:
        a, _ = await _call(rig)
        rig.client.close()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:  # a call is reason enough to stay
            a.send(b"t" * 160)
            await asyncio.sleep(0.02)
        await rig.connect()
        rig.send(ReleaseCall("call"))
        await rig.settle()
        rig.client.close()
        async with asyncio.timeout(PATIENCE_S):
            assert await rig.process.wait() == 0


async def _spawn(path: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "media.worker", "--socket", path, "--address", "127.0.0.1", "--ports", "20000-20009",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _start(path: str) -> tuple[int | None, bytes]:
    process = await _spawn(path)
    async with asyncio.timeout(PATIENCE_S):
        _, errors = await process.communicate()
    return process.returncode, errors
