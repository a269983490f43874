"""From the document to guard, admission control and the algorithms of each listener."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

from adapters.sip.endpoint import Endpoint
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.protection.overload import Urgency
from config.loader import parse
from config.schema import Document
from engine.start.protection import Protection, listener_algorithms
from engine.start.settings import native_settings
from tests.sip_link import Node, new_token

LISTEN = '["tcp:127.0.0.1:5060", "udp:127.0.0.1:5060"]'


def document(sip: str = "", listen: str = LISTEN) -> Document:
    text = f"""
domain: pbx.local
sip: {{listen: {listen}{", " if sip else ""}{sip}}}
media: {{address: 127.0.0.1, ports: [20000, 20099]}}
http: {{listen: "127.0.0.1:8080"}}
numbers: {{"602": {{echo: true}}}}
"""
    return parse(text, base=Path()).document


def endpoint(trunk: str = "192.0.2.4/32") -> Endpoint:
    verifier = DigestVerifier("pbx.local", bytes(32), random_bytes=os.urandom)
    policy = AccessPolicy([Trunk("carrier", (ip_network(trunk),))], {}, verifier)
    return Endpoint(network=Node("127.0.0.1"), policy=policy, registrar=None, new_token=new_token)


def test_settings_reach_guard_and_admission_and_change_at_a_reload() -> None:
    sip = endpoint()
    protection = Protection(sip, document("guard: {failures: 6, scanners: [BadPhone]}"), lambda: 0.0)
    assert sip.guard is not None
    assert sip.admission is not None
    assert not sip.guard.admits("192.0.2.8", "badphone 1.0", 0.0)
    assert sip.guard.admits("192.0.2.4", "badphone 1.0", 0.0)  # the trunk
    for _ in range(6):
        sip.guard.on_failure("192.0.2.9", 0.0)
        sip.guard.on_failure("192.0.2.4", 0.0)
    assert [view.address for view in protection.bans.bans()] == ["192.0.2.9"]
    assert protection.figures()["sip_guard_banned"] == 1
    assert not sip.admission.limiting
    protection.configure(
        document('guard: {trusted: ["192.0.2.9"]}, overload: {max_calls_per_s: 1, emergency: ["999"]}')
    )
    assert protection.bans.bans() == []
    assert sip.admission.limiting
    assert [sip.admission.refuses(Urgency.CALL, 0.0) is None for _ in range(3)] == [True, False, False]
    protection.configure(document("guard: {enabled: false}, overload: {enabled: false}"))
    assert sip.guard is None
    assert sip.admission is None
    protection.close()


def test_algorithms_follow_the_listener_in_the_order_of_the_transport() -> None:
    listen = '[{listen: "tcp:127.0.0.1:5062", digest: [SHA-256]}, "udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]'
    first = document(listen=listen)
    assert listener_algorithms(first.sip.listen, first) == {1: ("SHA-256",)}  # UDP comes first
    settings = native_settings(first, Path("r"), bytes(32))
    assert settings.algorithms == ("MD5",)
    assert settings.listener_algorithms == {1: ("SHA-256",)}
    # A reload changes what is offered; another order of the listeners waits for a restart.
    moved = '["tcp:127.0.0.1:5060", {listen: "udp:127.0.0.1:5060", digest: [MD5, SHA-512-256]}, "tcp:127.0.0.1:5062"]'
    assert listener_algorithms(first.sip.listen, document(listen=moved)) == {0: ("MD5", "SHA-512-256")}
