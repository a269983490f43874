"""Ladder diagrams: a call's SIP messages as arrows between columns, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from engine.tracing import Address, TracedCall, TracedMessage

_LEFT = 10  # columns of the time
_LEAST_WIDTH = 30  # between two participants


class Ladder:
    """Draws calls.

    Args:
        ascii_only: use no characters beyond ASCII, for terminals that cannot show them.
        whole: print each message below its arrow.
    """

    def __init__(self, *, ascii_only: bool = False, whole: bool = False) -> None:
        self._line, self._right, self._left, self._bar = ("-", ">", "<", "|") if ascii_only else ("─", "▶", "◀", "│")
        self._arrow, self._dot = ("->", ",") if ascii_only else ("→", " ·")
        self._whole = whole

    def draw(self, call: TracedCall) -> str:
        """The diagram of one call, with a heading; ends with a newline."""
        return "".join(f"{line.rstrip()}\n" for line in self._lines(call))

    def list(self, calls: Sequence[TracedCall]) -> str:
        """One line a call, for choosing one."""
        rows = [("began", "messages", "call", "what", "outcome")]
        rows += [
            (
                _clock(call.messages[0].at),
                str(len(call.messages)),
                call.call_id or (_printable(call.sip_call_ids[0]) if call.sip_call_ids else ""),
                self._plain(call.summary),
                _printable(call.outcome),
            )
            for call in calls
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n"
            for row in rows
        )

    def _lines(self, call: TracedCall) -> Iterator[str]:
        messages = call.messages
        started = messages[0].at
        named = f"call {call.call_id}" if call.call_id else "no call"
        outcome = f"   {_printable(call.outcome)}" if call.outcome else ""
        day = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        yield f"{named}   {self._plain(call.summary)}{outcome}   {day}"
        for sip_call_id in call.sip_call_ids:
            yield f"{'':{_LEFT}}Call-ID: {_printable(sip_call_id)}"
        yield ""
        remotes = list(dict.fromkeys(message.remote for message in messages))
        # We stand right of the first peer: a call comes from the left and goes out to the right.
        columns: list[Address | None] = [remotes[0], None, *remotes[1:]]
        seen: set[tuple[bool, bytes]] = set()
        labels: list[str] = []
        for message in messages:
            labels.append(self._label(message, again=(message.incoming, message.data) in seen))
            seen.add((message.incoming, message.data))
        width = max(_LEAST_WIDTH, *(len(label) + 8 for label in labels))
        centres = [_LEFT + width // 2 + width * index for index in range(len(columns))]
        names = ["murima" if column is None else _shown(column) for column in columns]
        yield _placed(names, centres)
        ours = list(dict.fromkeys(_shown(message.local) for message in messages))
        yield _placed(["" if column is not None else ours[0] for column in columns], centres)
        for message, label in zip(messages, labels, strict=True):
            yield self._row(message, label, columns, centres, started)
            if self._whole:
                for line in message.data.decode("utf-8", "replace").splitlines():
                    yield f"{'':{_LEFT}}  {_printable(line)}"
                yield ""

    def _row(
        self,
        message: TracedMessage,
        label: str,
        columns: Sequence[Address | None],
        centres: Sequence[int],
        started: float,
    ) -> str:
        us = centres[columns.index(None)]
        them = centres[columns.index(message.remote)]
        low, high = min(us, them), max(us, them)
        rightward = (them < us) == message.incoming
        row = [" "] * (centres[-1] + 1)
        for centre in centres:
            row[centre] = self._bar
        for place in range(low + 1, high):
            row[place] = self._line
        if rightward:
            row[high - 1] = self._right
        else:
            row[low + 1] = self._left
        text = f" {label} "
        # Beside us, so that an arrow over several columns keeps its words near their cause.
        begin = (us + 3 if them > us else us - 2 - len(text)) if high - low > len(text) + 60 else 0
        begin = begin or low + (high - low - len(text)) // 2 + 1
        row[begin : begin + len(text)] = text
        return f"{message.at - started:8.3f}  " + "".join(row)[_LEFT:]

    def _label(self, message: TracedMessage, *, again: bool) -> str:
        """What an arrow says: the request or response, its number, whether it carries a body."""
        head, _, body = message.data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        words = lines[0].decode("utf-8", "replace").split()
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.decode("utf-8", "replace").partition(":") for line in lines[1:])
        }
        if lines[0].startswith(b"SIP/2.0 "):
            method = headers.get("cseq", "").rpartition(" ")[2]
            label = " ".join(words[1:]) + (f" ({method})" if method not in ("", "INVITE") else "")
        else:
            label = words[0] if words else "?"
            if label in ("INVITE", "REFER", "SUBSCRIBE", "NOTIFY", "MESSAGE") and len(words) > 1:
                label += f" {_user(words[1])}"
            event = headers.get("event", headers.get("o", ""))
            if event:
                label += f" {event.partition(';')[0]}"
        kind = headers.get("content-type", headers.get("c", ""))
        if body:
            label += f"{self._dot} {'SDP' if kind.lower().startswith('application/sdp') else kind.partition(';')[0]}"
        if message.transport != "udp":
            label += f" [{message.transport}]"
        if again:
            label += " (again)"
        text = _printable(label)
        return text if len(text) <= 60 else f"{text[:57]}..."

    def _plain(self, text: str) -> str:
        return _printable(text).replace("→", self._arrow)


def _printable(text: str) -> str:
    """What peers said, without what would command the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _user(uri: str) -> str:
    return uri.partition(":")[2].partition("@")[0].partition(";")[0]


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _placed(texts: Sequence[str], centres: Sequence[int]) -> str:
    line = ""
    for text, centre in zip(texts, centres, strict=True):
        begin = max(centre - len(text) // 2, len(line) + (1 if line else 0))
        line = f"{line:{begin}}{text}" if text else line
    return line


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
