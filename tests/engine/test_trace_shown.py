"""The trace as people see it: ladder diagrams, capture files, the command."""

from __future__ import annotations

import asyncio
import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api import served_locally
from engine.data_folder import DataFolder
from engine.ladder import Ladder
from engine.pcap import capture
from engine.trace_command import TraceError, Wanted, ask, show
from engine.tracing import Findings, TracedCall, TracedMessage

US, CALLER, AGENT = ("127.0.0.1", 5060), ("127.0.0.4", 5070), ("127.0.0.2", 7000)
SIX = ("::1", 5060)


def message(
    at: float, first: str, remote: tuple[str, int], *, incoming: bool, cseq: str = "1 INVITE", body: str = ""
) -> TracedMessage:
    kind = "Content-Type: application/sdp\r\n" if body else ""
    text = f"{first}\r\nCSeq: {cseq}\r\nCall-ID: x\r\n{kind}\r\n{body}"
    return TracedMessage(1_000 + at, incoming, "udp", US, remote, text.encode())


CALL = TracedCall(
    "CALL1",
    ("x",),
    "INVITE 1001 → 500",
    "200 OK",
    (
        message(0, "INVITE sip:500@h SIP/2.0", CALLER, incoming=True, body="v=0"),
        message(0.5, "INVITE sip:500@h SIP/2.0", CALLER, incoming=True, body="v=0"),
        message(0.501, "SIP/2.0 200 OK", CALLER, incoming=False, body="v=0"),
        message(0.6, "INVITE sip:a0001@h SIP/2.0", AGENT, incoming=False, body="v=0"),
        message(0.7, "SIP/2.0 486 Busy Here", AGENT, incoming=True),
        message(0.8, "BYE sip:x SIP/2.0", CALLER, incoming=True, cseq="2 BYE"),
    ),
)

DRAWN = """\
call CALL1   INVITE 1001 -> 500   200 OK   1970-01-01 00:16:40 UTC
          Call-ID: x

                  127.0.0.4:5070                     murima                     127.0.0.2:7000
                                                 127.0.0.1:5060
   0.000                 |------- INVITE 500, SDP ----->|                              |
   0.500                 |--- INVITE 500, SDP (again) ->|                              |
   0.501                 |<-------- 200 OK, SDP --------|                              |
   0.600                 |                              |------ INVITE a0001, SDP ---->|
   0.700                 |                              |<------- 486 Busy Here -------|
   0.800                 |------------- BYE ----------->|                              |
"""


def test_a_call_is_drawn_as_a_ladder() -> None:
    assert Ladder(ascii_only=True).draw(CALL) == DRAWN


def test_whole_messages_follow_their_arrows_without_control_characters() -> None:
    odd = TracedCall(None, (), "", "", (message(0, "INVITE sip:\x1b[31m@h SIP/2.0", CALLER, incoming=True),))
    drawn = Ladder(whole=True).draw(odd)
    assert "CSeq: 1 INVITE" in drawn
    assert "\x1b" not in drawn


def test_nothing_that_peers_said_commands_the_terminal() -> None:
    hostile = "\x1b]0;x\x07"
    first = message(0, "INVITE sip:1@h SIP/2.0", CALLER, incoming=True)
    odd = TracedCall(None, (hostile,), f"INVITE {hostile} → 1", f"486 {hostile}", (first,))
    for shown in (Ladder().list([odd]), Ladder().draw(odd)):
        assert "486 ?]0;x?" in shown
        assert not {"\x1b", "\x07"} & set(shown)


@given(st.binary(max_size=300), st.booleans())
def test_anything_can_be_drawn(data: bytes, incoming: bool) -> None:
    call = TracedCall(None, (), "", "", (TracedMessage(0.0, incoming, "tcp", US, CALLER, data),))
    assert Ladder(whole=True).draw(call).endswith("\n")


def test_capture_files_are_read_by_tcpdump(tmp_path: Path) -> None:
    stream = [
        TracedMessage(2_000.25, True, "tls", SIX, ("::1", 40_000), CALL.messages[0].data),
        TracedMessage(2_000.5, False, "tls", SIX, ("::1", 40_000), CALL.messages[2].data),
    ]
    path = tmp_path / "x.pcap"
    path.write_bytes(capture([*CALL.messages, *stream]))
    done = subprocess.run(["tcpdump", "-nvvr", str(path)], capture_output=True, text=True, check=True)
    text = done.stdout
    assert text.count("[udp sum ok]") == len(CALL.messages)
    assert text.count("(correct)") == len(stream)
    assert "00:16:40.800000 IP" in text
    assert "127.0.0.4.5070 > 127.0.0.1.5060: [udp sum ok] SIP, length: 90" in text
    assert "::1.5060 > ::1.40000: Flags [P.]" in text
    assert "seq 1:81, ack 90" in text


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["udp", "tcp"]), st.binary(max_size=2_000))))
def test_capture_files_hold_every_byte(messages: list[tuple[bool, str, bytes]]) -> None:
    data = capture(TracedMessage(1.0, way, transport, US, CALLER, text) for way, transport, text in messages)
    at, found = 24, []
    while at < len(data):
        size = struct.unpack_from("<IIII", data, at)[2]
        packet = data[at + 16 : at + 16 + size]
        found.append(packet[28 if packet[9] == 17 else 40 :])
        at += 16 + size
    assert found == [text for _, _, text in messages]


class Kept:
    """A trace with one call."""

    async def find(self, *, call: str | None = None, number: str | None = None, limit: int) -> Findings:
        del limit
        return Findings(1_000.0, (CALL,) if call in (None, "CALL1") and number is None else ())


async def test_the_command_asks_the_engine_of_its_data_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DataFolder.at(tmp_path)
    folder.prepare()
    async with served_locally(Kept(), folder.control_socket):
        out = io.StringIO()
        assert await asyncio.to_thread(show, tmp_path, Wanted(), out) == 0
        assert "CALL1  INVITE 1001" in out.getvalue()
        out = io.StringIO()
        assert await asyncio.to_thread(show, tmp_path, Wanted(call="CALL1"), out) == 0
        assert "486 Busy Here" in out.getvalue()
        assert await asyncio.to_thread(show, tmp_path, Wanted(call="CALL1", pcap=tmp_path / "x.pcap"), out) == 0
        assert (tmp_path / "x.pcap").read_bytes() == capture(CALL.messages)
        assert await asyncio.to_thread(show, tmp_path, Wanted(call="other"), out) == 1
        assert "no message belongs to call other; the trace goes back to 00:16:40 UTC" in capsys.readouterr().err


def test_without_an_engine_the_command_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no murima runs on .*; start one, or name its data folder"):
        ask(DataFolder.at(tmp_path), Wanted())
