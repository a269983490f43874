"""A small authoritative DNS server for tests: UDP and TCP on one port of loopback, from records in zone-file form."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.ports import free_port

Answerer = Callable[[dns.message.QueryMessage, bool], bytes | None]


class DnsServer:
    """Answers from `records`; `answerer` takes over where a test wants strange answers.

    Attributes:
        asked: how often each question came, as "name TYPE".
        silent: answer nothing.
        truncate: answer over UDP with the TC bit and nothing else.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.asked: Counter[str] = Counter()
        self.silent = False
        self.truncate = False
        self.answerer: Answerer | None = None
        self.busiest = 0
        self.delay_s = 0.0
        self._busy = 0
        self._records: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}

    def add(self, name: str, ttl: int, kind: str, *data: str) -> None:
        """Serve a record set, replacing an earlier one."""
        rrset = dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *data)
        self._records[rrset.name, rrset.rdtype] = rrset

    def remove(self, name: str, kind: str) -> None:
        del self._records[dns.name.from_text(name), dns.rdatatype.from_text(kind)]

    def answer(self, query: dns.message.QueryMessage, *, tcp: bool) -> bytes | None:
        question = query.question[0]
        self.asked[f"{question.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(question.rdtype)}"] += 1
        if self.silent:
            return None
        if self.answerer is not None:
            return self.answerer(query, tcp)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA | dns.flags.AA
        if self.truncate and not tcp:
            response.flags |= dns.flags.TC
            return response.to_wire()
        name = question.name
        for _ in range(20):  # follows aliases, as a recursive server does
            found = self._records.get((name, question.rdtype))
            alias = self._records.get((name, dns.rdatatype.CNAME))
            if found is not None:
                response.answer.append(found)
                break
            if alias is None:
                break
            response.answer.append(alias)
            name = alias[0].target
        if not response.answer:
            if not any(known == name for known, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            soa = dns.rrset.from_text(".", 60, "IN", "SOA", "ns. root. 1 60 60 60 60")
            response.authority.append(soa)
        return response.to_wire(max_size=65535 if tcp else 1232, prefer_truncation=True)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                query = dns.message.from_wire(await reader.readexactly(length))
                assert isinstance(query, dns.message.QueryMessage)
                wire = self.answer(query, tcp=True)
                if wire is not None:
                    writer.write(len(wire).to_bytes(2) + wire)
        writer.close()

    async def answer_later(self, query: dns.message.QueryMessage, reply: Callable[[bytes], None]) -> None:
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        await asyncio.sleep(self.delay_s)
        self._busy -= 1
        wire = self.answer(query, tcp=False)
        if wire is not None:
            reply(wire)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # narrower
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        assert isinstance(query, dns.message.QueryMessage)
        if self._server.delay_s:
            later = self._server.answer_later(query, lambda wire: self._transport.sendto(wire, addr))
            task = asyncio.get_running_loop().create_task(later)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        wire = self._server.answer(query, tcp=False)
        if wire is not None:
            self._transport.sendto(wire, addr)


@contextlib.asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    loop = asyncio.get_running_loop()
    server = DnsServer(("127.0.0.1", free_port()))
    udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), server.address, family=socket.AF_INET)
    tcp = await asyncio.start_server(server.serve_stream, *server.address)
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
        await asyncio.sleep(0)
