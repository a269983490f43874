from __future__ import annotations

import os
import socket

import pytest

from engine.listeners import (
    VARIABLE,
    Kind,
    Listener,
    ListenerError,
    bind,
    bind_all,
    environment,
    inherited,
    port_holders,
)


def free(kind: Kind, host: str = "127.0.0.1") -> Listener:
    type_ = socket.SOCK_DGRAM if kind is Kind.UDP else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, type_) as probe:
        probe.bind(("127.0.0.1", 0))
        return Listener(kind, host, probe.getsockname()[1])


@pytest.mark.parametrize("text", ["udp:127.0.0.1:5060", "tcp:[::1]:5060", "http:0.0.0.0:8080"])
def test_text_and_listener_are_inverse(text: str) -> None:
    assert str(Listener.parse(text)) == text


@pytest.mark.parametrize("text", ["", "udp", "udp:", "udp:host:1", "sctp:127.0.0.1:1", "udp:127.0.0.1:x"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ListenerError):
        Listener.parse(text)


def test_child_finds_the_sockets_of_its_parent() -> None:
    bound = bind_all([free(Kind.UDP), free(Kind.TCP), free(Kind.HTTP)])
    copies = {listener: os.dup(sock.fileno()) for listener, sock in bound.items()}
    text = ",".join(f"{listener}={fd}" for listener, fd in copies.items())
    assert environment(bound)[VARIABLE] == ",".join(f"{item}={sock.fileno()}" for item, sock in bound.items())
    rebuilt = inherited({VARIABLE: text})
    try:
        assert list(rebuilt) == list(bound)
        for listener, sock in rebuilt.items():
            assert sock.getsockname() == (listener.host, listener.port)
            assert not sock.getblocking()
            assert not sock.get_inheritable()
    finally:
        for sock in (*bound.values(), *rebuilt.values()):
            sock.close()


def test_packets_wait_while_no_engine_reads() -> None:
    listener = free(Kind.UDP)
    held = bind(listener)
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        for number in range(50):
            phone.sendto(str(number).encode(), (listener.host, listener.port))
        with next(iter(inherited({VARIABLE: f"{listener}={os.dup(held.fileno())}"}).values())) as engine:
            assert [engine.recv(99) for _ in range(50)] == [str(number).encode() for number in range(50)]


def test_no_variable_means_no_sockets() -> None:
    assert inherited({}) == {}


def test_broken_variable_is_refused_without_closing_what_is_not_ours() -> None:
    with bind(free(Kind.UDP)) as sock:
        number = sock.fileno()
        for text in (
            f"tcp:127.0.0.1:1={number}",
            f"udp:127.0.0.1:1={number}",
            "udp:127.0.0.1:1=x",
            "udp:127.0.0.1:1=999999",
        ):
            with pytest.raises(ListenerError, match=VARIABLE):
                inherited({VARIABLE: text})
        assert sock.getsockname()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_port_in_use_names_the_holder(kind: Kind, host: str) -> None:
    listener = free(kind, host)
    with bind(listener):
        with pytest.raises(ListenerError) as caught:
            bind(listener)
        protocol = "udp" if kind is Kind.UDP else "tcp"
        assert port_holders(protocol, "127.0.0.1", listener.port)
        assert port_holders(protocol, "127.0.0.1", listener.port + 1) == ()
    text = str(caught.value)
    assert text.startswith(f"cannot listen on {listener} ({'HTTP' if kind is Kind.HTTP else 'SIP'}): ")
    assert f"port {listener.port} is in use by " in text
    assert f"(process {os.getpid()})" in text


def test_foreign_address_is_named() -> None:
    with pytest.raises(ListenerError, match=r"192\.0\.2\.1 is not an address of this machine"):
        bind(Listener(Kind.UDP, "192.0.2.1", 5060))


def test_all_or_none_are_bound() -> None:
    first, taken, third = free(Kind.UDP), free(Kind.TCP), free(Kind.UDP)
    with bind(taken), pytest.raises(ListenerError, match=str(taken.port)):
        bind_all([first, taken, third])
    for listener in (first, third):
        bind(listener).close()
