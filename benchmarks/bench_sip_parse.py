"""How many microseconds do reading and writing a SIP message cost?

Budget: about 4-6 µs for the split of a usual INVITE (the design's comparison:
4 µs for a lazy split, 28 µs for aiosipua). `checked` adds validate_request or
validate_response, which reads every header that a transaction needs; addresses
seen before come from a cache. `answered` builds and writes a response.

The baseline, in the same run, is aiosipua, the SIP library in Python that the
design weighed: the same messages parsed, parsed with the headers that
`checked` reads, and written.

    .venv/bin/python -m benchmarks.bench_sip_parse [--quick]
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from time import process_time_ns

import aiosipua

from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import (
    Request,
    Response,
    build_response,
    parse_message,
    validate_request,
    validate_response,
)
from adapters.sip.transports.stream import StreamFramer

BATCH = 20  # calls per sample: one alone is too short for the clock
BUDGET_US = 6.0

SDP = (
    b"v=0\r\no=- 3900000001 3900000001 IN IP4 192.0.2.30\r\ns=-\r\nc=IN IP4 192.0.2.30\r\nt=0 0\r\n"
    b"m=audio 4000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n"
    b"a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n"
)


def message(start: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([start, *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


MESSAGES = {
    "INVITE": message(
        "INVITE sip:500@pbx.example.com SIP/2.0",
        "Via: SIP/2.0/UDP 192.0.2.30:5060;branch=z9hG4bK-524287-1---a3b1c2d4e5f6;rport",
        "Max-Forwards: 70",
        "Contact: <sip:carol@192.0.2.30:5060;transport=udp>",
        "To: <sip:500@pbx.example.com>",
        'From: "Carol" <sip:+441632960123@pbx.example.com>;tag=8f1e2d3c',
        "Call-ID: 98143ZWRiMmEwYzQyNjBkZTk4",
        "CSeq: 1 INVITE",
        "Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE",
        "Content-Type: application/sdp",
        "Supported: replaces, norefersub, extended-refer, timer",
        "User-Agent: Phone 5.4",
        body=SDP,
    ),
    "200": message(
        "SIP/2.0 200 OK",
        "Via: SIP/2.0/UDP 192.0.2.30:5060;branch=z9hG4bK-524287-1---a3b1c2d4e5f6;rport=5060;received=192.0.2.30",
        'From: "Carol" <sip:+441632960123@pbx.example.com>;tag=8f1e2d3c',
        "To: <sip:500@pbx.example.com>;tag=as58f4201b",
        "Call-ID: 98143ZWRiMmEwYzQyNjBkZTk4",
        "CSeq: 1 INVITE",
        "Server: Switch 22.1",
        "Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, SUBSCRIBE, NOTIFY, INFO",
        "Supported: replaces, timer",
        "Contact: <sip:500@192.0.2.40:5060>",
        "Content-Type: application/sdp",
        body=SDP,
    ),
    "BYE": message(
        "BYE sip:500@192.0.2.40:5060 SIP/2.0",
        "Via: SIP/2.0/UDP 192.0.2.30:5060;branch=z9hG4bK-524287-1---b7a1d2;rport",
        "Max-Forwards: 70",
        'From: "Carol" <sip:+441632960123@pbx.example.com>;tag=8f1e2d3c',
        "To: <sip:500@pbx.example.com>;tag=as58f4201b",
        "Call-ID: 98143ZWRiMmEwYzQyNjBkZTk4",
        "CSeq: 2 BYE",
        "User-Agent: Phone 5.4",
    ),
}


def aiosipua_checked(data: bytes) -> object:
    read = aiosipua.SipMessage.parse(data)
    return read.via, read.from_addr, read.to_addr, read.cseq, read.call_id, read.contact


def checked(data: bytes) -> Request | Response:
    read = parse_message(data)
    if isinstance(read, Request):
        validate_request(read)
    else:
        validate_response(read)
    return read


def checked_next(messages: Iterator[bytes]) -> object:
    return checked(next(messages))


def cut(data: bytes) -> object:
    return StreamFramer().feed(data)


def answered(request: Request) -> bytes:
    return build_response(request, 200, to_tag="t").serialise()


def sample(call: Callable[[], object], samples: int) -> list[float]:
    """CPU microseconds per call, one figure for each batch."""
    for _ in range(BATCH * 20):
        call()
    figures = []
    for _ in range(samples):
        started = process_time_ns()
        for _ in range(BATCH):
            call()
        figures.append((process_time_ns() - started) / BATCH / 1000)
    return figures


def report(what: str, runs: list[list[float]]) -> float:
    """Print the middle run for each percentile and how far the medians lie apart; return the lowest median."""
    cuts = [statistics.quantiles(run, n=100) for run in runs]
    p50, p95, p99 = (statistics.median(cut[at] for cut in cuts) for at in (49, 94, 98))
    medians = [cut[49] for cut in cuts]
    print(f"{what:<28}{p50:>8.2f}{p95:>8.2f}{p99:>8.2f}{max(medians) - min(medians):>9.2f}")
    return min(medians)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="fewer samples, to see that it works")
    quick = options.parse_args().quick
    samples, repeats = (50, 3) if quick else (1000, 5)

    print(
        f"aiosipua {aiosipua.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    )
    print(f"{repeats} runs of {samples} samples of {BATCH} calls; CPU µs per call")
    print(f"{'':<28}{'p50':>8}{'p95':>8}{'p99':>8}{'spread':>9}")
    gc.freeze()
    failures = 0
    medians: dict[tuple[str, str], float] = {}
    for name, data in MESSAGES.items():
        try:
            read = checked(data)
            assert parse_message(read.serialise()).serialise() == read.serialise()
        except (PeerError, AssertionError):
            failures += 1
            continue
        # More dialogs in turn than any cache of ours holds.
        dialogs = cycle([data.replace(b"tag=8f1e2d3c", b"tag=%08x" % tag) for tag in range(10_000)])
        tasks: list[tuple[str, Callable[[], object]]] = [
            ("split", partial(parse_message, data)),
            ("checked, new dialog", partial(checked_next, dialogs)),
            ("checked, same dialog", partial(checked, data)),
            ("written", read.serialise),
            ("cut from a stream", partial(cut, data)),
            ("aiosipua: split", partial(aiosipua.SipMessage.parse, data)),
            ("aiosipua: checked", partial(aiosipua_checked, data)),
            ("aiosipua: written", partial(bytes, aiosipua.SipMessage.parse(data))),
        ]
        if isinstance(read, Request):
            tasks.insert(3, ("answered", partial(answered, read)))
        for task, call in tasks:
            medians[name, task] = report(f"{name:<7}{task}", [sample(call, samples) for _ in range(repeats)])
    print(f"failures: {failures}")
    for name in MESSAGES:
        for ours, theirs in (("split", "split"), ("checked, new dialog", "checked"), ("written", "written")):
            mine, other = medians.get((name, ours), 0.0), medians.get((name, f"aiosipua: {theirs}"), 0.0)
            if mine:
                print(f"{name:<7}{theirs:<8}{mine:>7.2f} µs, aiosipua {other:>7.2f} µs: {other / mine:.1f} times")
    split_us = medians.get(("INVITE", "split"), 0.0)
    print(f"split of the INVITE, least disturbed run: {split_us:.2f} µs, budget {BUDGET_US:.0f} µs")
    return 1 if failures or (split_us > BUDGET_US and not quick) else 0


if __name__ == "__main__":
    sys.exit(main())
