"""The free ports that tests use are really free."""

from __future__ import annotations

import socket

from tests.ports import free_port, loopback_address


def test_free_ports_can_be_bound_in_a_row() -> None:
    address = loopback_address()
    first = free_port(address, span=4, align=2)
    assert first % 2 == 0
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    try:
        for offset, bound in enumerate(sockets):
            bound.bind((address, first + offset))
    finally:
        for bound in sockets:
            bound.close()
