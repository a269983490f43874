"""Bans and load at real sockets: who is banned is cut off, and what waits in the kernel is seen."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime

import pytest

from adapters.sip.protection.bans import LINES_A_MINUTE, BanBook
from adapters.sip.protection.congestion import RECEIVE_BUFFER, Watch, memory, widen
from adapters.sip.protection.guard import Guard, GuardSettings
from adapters.sip.protection.overload import Admission, Load
from engine.operations import NotFoundError
from tests.adapters.sip.test_transport import HOST, ask_udp, options, read_message, servers


async def test_a_banned_address_is_cut_off_and_comes_back() -> None:
    async with servers(1) as (server,):
        guard = Guard(GuardSettings(trusted=(), failures=1))
        server.endpoint.guard = guard
        reader, writer = await asyncio.open_connection(HOST, server.tcp)
        writer.write(options(transport="TCP"))
        assert (await read_message(reader)).startswith(b"SIP/2.0 200")
        guard.on_failure(HOST, server.transport.clock())
        writer.write(options(2, transport="TCP"))
        async with asyncio.timeout(5):
            assert await reader.read() == b""  # closed without a word
        writer.close()
        late_reader, late_writer = await asyncio.open_connection(HOST, server.tcp)
        async with asyncio.timeout(5):
            assert await late_reader.read() == b""
        late_writer.close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ask_udp(server.udp, options())
        assert guard.lift(HOST)
        assert (await ask_udp(server.udp, options())).startswith(b"SIP/2.0 200")
        assert guard.counters['sip_guard_dropped_total{reason="banned"}'] == 3


def test_the_kernel_tells_what_waits_and_what_it_dropped() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.bind((HOST, 0))
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        assert memory(here) == (0, 0)
        for _ in range(100):
            there.sendto(b"x" * 700, here.getsockname())
        state = memory(here)
        assert state is not None
        waiting, dropped = state
        assert waiting >= 8192
        assert 50 < dropped < 100
        before = here.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        widen(here)
        assert before < here.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * RECEIVE_BUFFER


class Looks(Admission):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(random=lambda: 0.0)
        self.loads: list[Load] = []
        self.enough = asyncio.Event()

    def observe(self, load: Load, now: float) -> bool:
        self.loads.append(load)
        if len(self.loads) >= 3:
            self.enough.set()
        return super().observe(load, now)


async def test_load_is_looked_at_while_calls_arrive() -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.bind((HOST, 0))
        admission = Looks()
        handled = 0
        watch = Watch(admission, [here], lambda: handled)
        for _ in range(40):
            there.sendto(b"x" * 700, here.getsockname())
        admission.on_admitted(call=True, now=loop.time())
        async with asyncio.timeout(10):
            await admission.enough.wait()
        watch.close()
        assert all(load.wait_s > 0.1 and load.dropped == 0 for load in admission.loads)  # nobody takes them


def test_bans_are_logged_a_few_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    book = BanBook(clock=lambda: 100.0, utc=lambda: datetime(2026, 1, 31, 9, tzinfo=UTC))
    guard = Guard(GuardSettings(trusted=(), failures=1, ban_s=600.0), report=book.report)
    book.guard = guard
    with caplog.at_level("INFO", logger="murima.sip"):
        for number in range(100):
            guard.on_failure(f"192.0.2.{number}", 50.0 + number / 10)
        assert len(caplog.records) == LINES_A_MINUTE
        guard.on_failure("192.0.2.200", 200.0)
    assert [record.getMessage() for record in caplog.records[-2:]] == ["sip.banned_more", "sip.banned"]
    assert caplog.records[-2].__dict__["bans"] == 90
    shown = {view.address: view for view in book.bans()}
    assert len(shown) == 101
    assert shown["192.0.2.0"].since == datetime(2026, 1, 31, 8, 59, 10, tzinfo=UTC)
    assert shown["192.0.2.0"].until == datetime(2026, 1, 31, 9, 9, 10, tzinfo=UTC)
    book.lift_ban("192.0.2.0")
    with pytest.raises(NotFoundError):
        book.lift_ban("192.0.2.0")
