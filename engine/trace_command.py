"""`murima sip trace`: asks the running engine through its data folder, and draws what it answers."""

from __future__ import annotations

import http.client
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO
from urllib.parse import urlencode

import msgspec

from engine.data_folder import DataFolder
from engine.ladder import Ladder
from engine.pcap import capture
from engine.tracing import Findings

_TIMEOUT_S = 30.0
_DRAWN = 20


class TraceError(Exception):
    """The trace cannot be had; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show.

    Attributes:
        call: our call id or a Call-ID header.
        number: of a party.
        whole: each message in full.
        pcap: write a capture file instead of drawing.
        limit: at most so many calls.
    """

    call: str | None = None
    number: str | None = None
    whole: bool = False
    pcap: Path | None = None
    limit: int = _DRAWN


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(folder: DataFolder, wanted: Wanted) -> Findings:
    """Ask the engine that serves a data folder.

    Raises:
        TraceError: nobody serves it, it is another user's, or it does not answer.
    """
    query = {"limit": str(wanted.limit)}
    query |= {"call": wanted.call} if wanted.call is not None else {}
    query |= {"number": wanted.number} if wanted.number is not None else {}
    connection = _Connection(folder.control_socket)
    try:
        connection.request("GET", f"/sip/trace?{urlencode(query)}")
        response = connection.getresponse()
        body = response.read()
    except (FileNotFoundError, ConnectionRefusedError):
        raise TraceError(
            f"no murima runs on {folder.root}; start one, or name its data folder: murima sip trace --data DIR"
        ) from None
    except PermissionError:
        raise TraceError(f"{folder.root} is another user's; run this as the user that murima runs as") from None
    except (OSError, http.client.HTTPException) as exc:
        raise TraceError(f"the engine of {folder.root} does not answer: {exc}") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise TraceError(body.decode("utf-8", "replace"))
    return msgspec.json.decode(body, type=Findings)


def show(data: Path, wanted: Wanted, out: TextIO) -> int:
    """Run the command; returns the exit status."""
    try:
        found = ask(DataFolder.at(data), wanted)
    except TraceError as exc:
        sys.stderr.write(f"murima: {exc}\n")
        return 1
    if not found.calls:
        sys.stderr.write(f"murima: {_nothing(found.since, wanted)}\n")
        return 1
    if wanted.pcap is not None:
        messages = sorted((message for call in found.calls for message in call.messages), key=lambda m: m.at)
        try:
            wanted.pcap.write_bytes(capture(messages))
        except OSError as exc:
            sys.stderr.write(f"murima: cannot write {wanted.pcap}: {exc.strerror}\n")
            return 1
        out.write(f"{wanted.pcap}: {len(messages)} messages of {len(found.calls)} calls\n")
        return 0
    ladder = Ladder(ascii_only=not _shows_arrows(out), whole=wanted.whole)
    if wanted.call is None and wanted.number is None:
        out.write(ladder.list(found.calls))
        out.write("\nmurima sip trace --call ID draws one of them; --number N all calls of a number.\n")
    else:
        out.write("\n".join(ladder.draw(call) for call in found.calls))
    return 0


def _nothing(since: float | None, wanted: Wanted) -> str:
    if since is None:
        return "no SIP message has come or gone since the engine started, or sip.trace_mb is 0"
    began = datetime.fromtimestamp(since, UTC).strftime("%H:%M:%S UTC")
    what = f"belongs to call {wanted.call}" if wanted.call is not None else f"names the number {wanted.number}"
    return f"no message {what}; the trace goes back to {began} ({time.time() - since:.0f} s)"


def _shows_arrows(out: TextIO) -> bool:
    try:
        "│─▶◀→·".encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
