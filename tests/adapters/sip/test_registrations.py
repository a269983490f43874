"""Registrations survive a restart of the process that took them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sip.registration import registrations
from adapters.sip.registration.registrar import Binding, Reachability, Registrar, RegistrarLimits
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow

UTC = 1_800_000_000.0


def binding(user: str = "a0001", expires_at: float = 160.0, transport: str = "udp", port: int = 5070) -> Binding:
    uri = NameAddr.parse(f"<sip:{user}@192.0.2.7:{port};transport={transport};ob>").uri
    assert isinstance(uri, SipUri)
    return Binding(user, uri, Flow(transport, 1, "192.0.2.7", port), expires_at, "call@phone", 7)


def test_a_later_process_has_them_on_its_own_clock() -> None:
    data = registrations.encode([binding()], now=100.0, utc=UTC)
    (found,) = registrations.decode(data, now=5.0, utc=UTC + 20)
    assert (found.user, str(found.uri), found.flow) == ("a0001", str(binding().uri), binding().flow)
    assert (found.sip_call_id, found.cseq) == ("call@phone", 7)
    assert found.expires_at == pytest.approx(5.0 + 40.0, abs=0.001)


def test_flows_paths_and_preferences_survive() -> None:
    kept = binding()
    kept.q, kept.instance, kept.reg_id, kept.path = 0.5, "<urn:uuid:1>", 2, ("<sip:edge.test;lr;ob>",)
    (found,) = registrations.decode(registrations.encode([kept], now=100.0, utc=UTC), now=100.0, utc=UTC)
    assert (found.q, found.instance, found.reg_id, found.path) == (kept.q, kept.instance, kept.reg_id, kept.path)


def test_files_of_before_are_read() -> None:
    row = json.loads(registrations.encode([binding()], now=100.0, utc=UTC))["bindings"][0]
    assert row.keys() == {"user", "uri", "local", "host", "port", "expires", "call_id", "cseq"}


def test_what_has_run_out_or_came_by_tcp_is_left_out() -> None:
    data = registrations.encode([binding(), binding("a0002", transport="tcp")], now=100.0, utc=UTC)
    assert [item.user for item in registrations.decode(data, now=0.0, utc=UTC + 59)] == ["a0001"]
    assert registrations.decode(data, now=0.0, utc=UTC + 60) == []


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind is the contract
        registrations.decode(data, 0.0, UTC)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user", 1),
        ("uri", "tel:1"),
        ("uri", "sip:"),
        ("port", "x"),
        ("cseq", None),
        ("q", 2),
        ("q", "1"),
        ("instance", 1),
        ("reg_id", "1"),
        ("path", "x"),
        ("path", [1]),
        ("path", ["<tel:>"]),
    ],
)
def test_a_damaged_row_is_refused(key: str, value: object) -> None:
    document = json.loads(registrations.encode([binding()], 0.0, UTC))
    document["bindings"][0][key] = value
    with pytest.raises(ValueError):  # noqa: PT011 - the kind is the contract
        registrations.decode(json.dumps(document).encode(), 0.0, UTC)


def test_the_file_is_replaced_whole_and_is_ours_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "registrations.json"
    assert registrations.read(path, 0.0, UTC) == []
    for port in (5070, 5071):
        registrations.write(path, registrations.encode([binding(port=port)], 0.0, UTC))
    (found,) = registrations.read(path, 0.0, UTC)
    assert found.flow.port == 5071
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"{")
    assert registrations.read(path, 0.0, UTC) == []
    registrations.write(tmp_path / "missing" / "file", b"")
    assert [record.message for record in caplog.records] == [
        "sip.registrations_unreadable",
        "sip.registrations_not_kept",
    ]


def test_the_registrar_takes_them_back_and_lets_them_run_out() -> None:
    registrar = Registrar(RegistrarLimits(per_user=1))
    events = registrar.restore([binding(), binding(port=5072), binding("a0002", expires_at=200.0)])
    assert events == [Reachability("a0001", reachable=True), Reachability("a0002", reachable=True)]
    assert len(registrar) == 2
    assert registrar.restore([binding(port=5073)]) == []
    assert [item.flow.port for item in registrar.bindings("a0001")] == [5070]
    assert registrar.on_time(170.0) == [Reachability("a0001", reachable=False)]
    assert [item.user for item in registrar.all_bindings()] == ["a0002"]
