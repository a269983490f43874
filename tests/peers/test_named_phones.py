"""A real murima calls phones whose contact is a host name: NAPTR, SRV and addresses from a DNS server of the test."""

from __future__ import annotations

import time
from pathlib import Path

from adapters.sip.targets.failover import FAILOVER_AFTER_S
from tests.dns_server import dns_server
from tests.peers.murima import MurimaProcess
from tests.peers.remains import count
from tests.peers.sipp import Sipp, run_sipp
from tests.ports import free_port, loopback_address

NAME = "phones.example.com"


async def test_the_second_server_of_a_name_takes_the_calls_when_the_first_is_dead(tmp_path: Path) -> None:
    carrier, dead = loopback_address(), loopback_address()
    async with (
        dns_server() as server,
        Sipp(tmp_path / "phone", "uas", address=loopback_address(), calls=3, timeout_s=60) as phone,
    ):
        server.add(NAME, 60, "NAPTR", f'10 10 "S" "SIP+D2U" "" _sip._udp.{NAME}.')
        server.add(
            f"_sip._udp.{NAME}",
            60,
            "SRV",
            f"10 0 {free_port(dead)} dead.example.com.",
            f"20 0 {phone.port} live.example.com.",
        )
        server.add("dead.example.com", 60, "A", dead)
        server.add("live.example.com", 60, "A", phone.address)
        config = {
            "sip": {
                "trunks": [{"name": "carrier", "match": [carrier]}],
                "dns": {"servers": ["{}:{}".format(*server.address)], "timeout_s": 2.0},
            },
            "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
            "agents": [{"id": "a0001", "name": "Ada", "password": "secret", "contact": f"sip:a0001@{NAME}"}],
            "numbers": {r"~7(\d{4})": {"agent": r"a\1"}},
        }
        async with MurimaProcess(config, tmp_path / "murima") as murima:
            await murima.login()
            waits = []
            for index in range(3):
                began = time.monotonic()
                result = await run_sipp(
                    tmp_path / f"caller{index}",
                    "uac_silent",
                    murima.remote,
                    service="70001",
                    address=carrier,
                    talk_ms=100,
                )
                waits.append(time.monotonic() - began)
                assert (result.succeeded, result.failed) == (1, 0), result.errors
            assert FAILOVER_AFTER_S <= waits[0] < FAILOVER_AFTER_S + 5
            assert max(waits[1:]) < FAILOVER_AFTER_S - 1  # the dead one is avoided
            assert server.asked[f"{NAME} NAPTR"] == 1
            await murima.until("/api/v1/calls", lambda document: document["data"] == [])
            assert (await count(murima)).ports == 0
        assert phone.messages().count(f"INVITE sip:a0001@{NAME}") == 3
