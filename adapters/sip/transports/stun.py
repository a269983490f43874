"""STUN as keep-alive on the SIP port (RFC 5626 3.5.2): binding requests in, their answers out (RFC 5389)."""

from __future__ import annotations

import struct
from ipaddress import ip_address

_MAGIC_COOKIE = 0x2112A442
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_XOR_MAPPED_ADDRESS = 0x0020
_HEADER = struct.Struct("!HHI12s")
_ADDRESS_HEADER = struct.Struct("!HHBBH")


def is_stun(data: bytes) -> bool:
    """Whether a datagram is STUN and not SIP, which begins with a letter (RFC 5389 6)."""
    return len(data) >= 20 and data[0] < 0x40 and data[4:8] == b"\x21\x12\xa4\x42"


def answer_binding(data: bytes, host: str, port: int) -> bytes | None:
    """The answer to a binding request: where it came from.

    Args:
        data: what `is_stun` takes for STUN.
        host: IP address of the sender.
        port: its port.

    Returns:
        None for anything else, such as an indication, and for what is malformed.
    """
    kind, length, cookie, transaction = _HEADER.unpack_from(data)
    if kind != _BINDING_REQUEST or length % 4 or length != len(data) - _HEADER.size:
        return None
    address = ip_address(host.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    key = cookie.to_bytes(4) + transaction
    packed = bytes(octet ^ mask for octet, mask in zip(address.packed, key, strict=False))
    family = 1 if address.version == 4 else 2
    value = _ADDRESS_HEADER.pack(_XOR_MAPPED_ADDRESS, 4 + len(packed), 0, family, port ^ (_MAGIC_COOKIE >> 16)) + packed
    return _HEADER.pack(_BINDING_SUCCESS, len(value), cookie, transaction) + value
