"""RTCP: reports about a leg, built and parsed (RFC 3550 section 6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

SENDER_REPORT: Final = 200
RECEIVER_REPORT: Final = 201
SOURCE_DESCRIPTION: Final = 202
BYE: Final = 203

_NTP_EPOCH_S: Final = 2_208_988_800  # from 1900 to 1970
_BLOCK: Final = struct.Struct("!IIIIII")
_SENDER: Final = struct.Struct("!IIIII")
_CNAME: Final = 1

INTERVAL_S: Final = 5.0


class RtcpError(ValueError):
    """The bytes are not a compound RTCP packet."""


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What one receiver says of one sender (RFC 3550 6.4.1)."""

    ssrc: int
    fraction_lost: int  # of 256
    lost: int  # signed, 24 bits
    highest_sequence: int
    jitter: int  # timestamp units
    last_report: int  # middle 32 bits of the NTP time of the last SR seen, 0: none
    delay: int  # since then, in 1/65536 s


@dataclass(frozen=True, slots=True)
class SenderInfo:
    """The sender's clock and counts (RFC 3550 6.4.1)."""

    ntp: int  # 64 bits
    timestamp: int
    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class Report:
    """All we read from one compound packet."""

    ssrc: int
    sender: SenderInfo | None
    blocks: tuple[ReportBlock, ...]
    bye: bool


def ntp_time(unix_s: float) -> int:
    """Seconds since 1970 (UTC) as a 64-bit NTP timestamp."""
    return int((unix_s + _NTP_EPOCH_S) * 4294967296.0) & 0xFFFFFFFFFFFFFFFF


def middle(ntp: int) -> int:
    """The middle 32 bits of an NTP timestamp, in 1/65536 s."""
    return (ntp >> 16) & 0xFFFFFFFF


def round_trip_s(block: ReportBlock, now_ntp: int) -> float | None:
    """Round trip from our last report and the receiver's delay (RFC 3550 6.4.1); None: unknown."""
    if block.last_report == 0:
        return None
    ticks = (middle(now_ntp) - block.last_report - block.delay) & 0xFFFFFFFF
    # Clock rounding can give a little less than zero; much more is nonsense from the peer.
    return 0.0 if ticks > 0xFFFF0000 else ticks / 65536.0 if ticks < 60 << 16 else None


def interval_s(fraction: float) -> float:
    """Time to the next report: 0.5 to 1.5 of the interval, `fraction` in [0, 1) (RFC 3550 6.2)."""
    return INTERVAL_S * (0.5 + fraction)


def build(
    ssrc: int,
    cname: bytes,
    sender: SenderInfo | None,
    block: ReportBlock | None,
    *,
    bye: bool = False,
) -> bytes:
    """One compound packet: SR or RR, SDES with the CNAME, BYE if asked."""
    parts = []
    blocks = b""
    if block is not None:
        lost = max(-0x800000, min(0x7FFFFF, block.lost)) & 0xFFFFFF
        blocks = _BLOCK.pack(
            block.ssrc,
            (block.fraction_lost << 24) | lost,
            block.highest_sequence,
            min(block.jitter, 0xFFFFFFFF),
            block.last_report,
            block.delay & 0xFFFFFFFF,
        )
    count = len(blocks) // _BLOCK.size
    body = struct.pack("!I", ssrc)
    if sender is not None:
        body += _SENDER.pack(
            sender.ntp >> 32,
            sender.ntp & 0xFFFFFFFF,
            sender.timestamp & 0xFFFFFFFF,
            sender.packets & 0xFFFFFFFF,
            sender.octets & 0xFFFFFFFF,
        )
    parts.append(_packet(RECEIVER_REPORT if sender is None else SENDER_REPORT, count, body + blocks))
    item = bytes([_CNAME, len(cname)]) + cname
    item += bytes(4 - len(item) % 4)  # ends with at least one null octet, on a 32-bit boundary
    parts.append(_packet(SOURCE_DESCRIPTION, 1, struct.pack("!I", ssrc) + item))
    if bye:
        parts.append(_packet(BYE, 1, struct.pack("!I", ssrc)))
    return b"".join(parts)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("!BBH", 0x80 | count, kind, len(body) // 4) + body


def parse(data: bytes) -> Report:
    """Parse a compound packet; packet types we do not use are skipped.

    Raises:
        RtcpError: broken lengths, wrong version, or it does not start with SR or RR
            (RFC 3550 A.2). Nothing else.
    """
    if len(data) < 8:
        raise RtcpError("shorter than a receiver report")
    ssrc = int.from_bytes(data[4:8], "big")
    sender: SenderInfo | None = None
    blocks: list[ReportBlock] = []
    bye = False
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise RtcpError("header cut off")
        first, kind, words = struct.unpack_from("!BBH", data, at)
        end = at + 4 + 4 * words
        if first >> 6 != 2 or end > len(data):
            raise RtcpError("wrong version or length")
        if at == 0 and kind not in (SENDER_REPORT, RECEIVER_REPORT):
            raise RtcpError("does not start with a report")
        if kind in (SENDER_REPORT, RECEIVER_REPORT):
            start = at + 8
            if kind == SENDER_REPORT:
                if start + _SENDER.size > end:
                    raise RtcpError("sender report cut off")
                high, low, timestamp, packets, octets = _SENDER.unpack_from(data, start)
                sender = SenderInfo((high << 32) | low, timestamp, packets, octets)
                start += _SENDER.size
            if start + (first & 0x1F) * _BLOCK.size > end:
                raise RtcpError("report blocks cut off")
            blocks.extend(_block(data, start + i * _BLOCK.size) for i in range(first & 0x1F))
        elif kind == BYE:
            bye = True
        at = end
    return Report(ssrc, sender, tuple(blocks), bye)


def _block(data: bytes, at: int) -> ReportBlock:
    ssrc, loss, highest, jitter, last_report, delay = _BLOCK.unpack_from(data, at)
    lost = loss & 0xFFFFFF
    return ReportBlock(
        ssrc, loss >> 24, lost - 0x1000000 if lost & 0x800000 else lost, highest, jitter, last_report, delay
    )
