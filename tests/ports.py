"""Free ports and loopback addresses for tests that run side by side."""

from __future__ import annotations

import random
import socket

# Below the kernel's ephemeral range (32768 up), so that no outgoing connection takes one meanwhile.
_RANGE = range(10_000, 32_000)
_random = random.SystemRandom()


def free_port(address: str = "127.0.0.1", *, span: int = 1, align: int = 1) -> int:
    """Find `span` consecutive ports that are free on `address` for both UDP and TCP.

    Args:
        address: the IPv4 address that they must be free on.
        span: how many ports in a row.
        align: the first one is a multiple of this (2 for RTP with RTCP).

    Raises:
        OSError: no such range was found.
    """
    for _ in range(200):
        first = _random.randrange(_RANGE.start, _RANGE.stop - span)
        first -= first % align
        if all(_is_free(address, port) for port in range(first, first + span)):
            return first
    raise OSError(f"no {span} free ports in a row on {address}")


def loopback_address() -> str:
    """Return a random address of 127.0.0.0/8 other than 127.0.0.*, so that peers of parallel tests don't meet."""
    return f"127.{_random.randrange(1, 255)}.{_random.randrange(256)}.{_random.randrange(1, 255)}"


def _is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
