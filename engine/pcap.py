"""SIP messages as a capture file (libpcap format) that Wireshark, sngrep and tshark read.

The IP headers are made anew: what was traced is the messages, after TLS and
WebSocket. Stream messages become TCP segments with running sequence numbers;
those of tls, ws and wss are shown as plain SIP over TCP.

Source: draft-ietf-opsawg-pcap (link type 101, raw IP), RFC 791, RFC 8200, RFC 768, RFC 9293.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import ip_address

from engine.tracing import Address, TracedMessage

LINKTYPE_RAW = 101
_MAX_SEGMENT = 60_000
_UDP, _TCP = 17, 6
_PSH_ACK = 0x18


def capture(messages: Iterable[TracedMessage]) -> bytes:
    """A whole capture file, messages in the order given."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, LINKTYPE_RAW)]
    sent: dict[tuple[Address, Address], int] = {}
    for message in messages:
        source, target = (message.local, message.remote)[:: -1 if message.incoming else 1]
        for start in range(0, max(len(message.data), 1), _MAX_SEGMENT):
            part = message.data[start : start + _MAX_SEGMENT]
            if message.transport == "udp":
                packet = _packet(source, target, _UDP, part, b"")
            else:
                sequence = sent.get((source, target), 1)
                sent[source, target] = (sequence + len(part)) % 2**32
                acknowledged = sent.get((target, source), 1)
                rest = struct.pack("!IIBBHHH", sequence, acknowledged, 5 << 4, _PSH_ACK, 65_535, 0, 0)
                packet = _packet(source, target, _TCP, part, rest)
            seconds, micros = divmod(round(message.at * 1e6), 1_000_000)
            out.append(struct.pack("<IIII", seconds, micros, len(packet), len(packet)) + packet)
    return b"".join(out)


def _packet(source: Address, target: Address, protocol: int, payload: bytes, rest: bytes) -> bytes:
    """An IP packet. `rest`: the TCP header after the ports, with an empty checksum; empty for UDP."""
    one, other = ip_address(source[0].partition("%")[0]), ip_address(target[0].partition("%")[0])
    ports = struct.pack("!HH", source[1], target[1])
    if protocol == _UDP:
        rest = struct.pack("!HH", 8 + len(payload), 0)
    length = len(ports) + len(rest) + len(payload)
    pseudo = one.packed + other.packed + struct.pack("!II" if one.version == 6 else "!HH", protocol, length)
    checksum = struct.pack("!H", _checksum(pseudo + ports + rest + payload) or 0xFFFF)
    rest = rest[:2] + checksum if protocol == _UDP else rest[:-4] + checksum + rest[-2:]
    if one.version == 6:
        head = struct.pack("!IHBB", 6 << 28, length, protocol, 64) + one.packed + other.packed
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, protocol, 0) + one.packed + other.packed
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return head + ports + rest + payload


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
