"""Where registered phones are called: at the address that their REGISTER came from, and nowhere else."""

from __future__ import annotations

import pytest

from adapters.native.calling import _phone_of
from adapters.sip.registration.registrar import Binding
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow

CARRIER = "198.51.100.7"
UDP = Flow("udp", 0, "192.0.2.1", 5062)
TCP = Flow("tcp", 1, "192.0.2.1", 40000, 7)
TLS = Flow("tls", 2, "192.0.2.1", 40000, 8)


def binding(contact: str, flow: Flow, *path: str) -> Binding:
    return Binding("a0001", SipUri.parse(contact), flow, 3600.0, "c", 1, path=path)


@pytest.mark.parametrize("flow", [UDP, TCP, TLS, UDP._replace(transport="ws", connection=9)])
@pytest.mark.parametrize(
    ("contact", "path"),
    [
        (f"sip:+900123@{CARRIER}", ()),
        ("sip:+900123@gateway.carrier.example", ()),
        (f"sip:+900123@{CARRIER};transport=tcp", ()),
        ("sips:+900123@gateway.carrier.example", ()),
        (f"sip:+900123@192.0.2.1;maddr={CARRIER}", ()),
        ("sip:+900123@192.0.2.1", (f"<sip:{CARRIER};lr>",)),
        ("sip:+900123@192.0.2.1", (f"<sip:{CARRIER};lr;transport=tcp>",)),
        ("sip:+900123@192.0.2.1", ("<sip:gateway.carrier.example;lr>",)),
        ("sip:+900123@192.0.2.1", ("<sips:gateway.carrier.example;lr>", f"<sip:{CARRIER};lr>")),
    ],
)
def test_calls_to_a_phone_never_go_to_a_host_that_its_registration_merely_names(
    contact: str, path: tuple[str, ...], flow: Flow
) -> None:
    way = _phone_of(binding(contact, flow, *path)).flow
    assert way is not None
    assert way.host == flow.host


def test_a_proxy_gets_calls_at_the_port_of_its_path() -> None:
    phone = _phone_of(binding("sip:a0001@10.0.0.9", UDP, "<sip:192.0.2.1:5080;lr>", "<sip:10.0.0.1;lr>"))
    assert phone.flow == Flow("udp", 0, "192.0.2.1", 5080)
    assert phone.routes == "<sip:192.0.2.1:5080;lr>, <sip:10.0.0.1;lr>"


def test_a_proxy_that_names_itself_is_met_where_it_is_and_must_show_the_certificate_of_its_name() -> None:
    phone = _phone_of(binding("sip:a0001@10.0.0.9", TLS, "<sip:proxy.example.com:5071;transport=tls;lr>"))
    assert phone.flow == Flow("tls", 2, "192.0.2.1", 5071, 8, "proxy.example.com")


def test_a_phone_that_names_another_address_is_called_back_by_its_flow() -> None:
    assert _phone_of(binding("sip:a0001@10.0.0.9:5060", UDP)).flow == UDP
    assert _phone_of(binding("sip:a0001@10.0.0.9:5060;transport=tcp", TCP)).flow == TCP
    assert _phone_of(binding("sip:a0001@10.0.0.9:5060", UDP, "<sip:203.0.113.5;lr>")).flow == UDP
