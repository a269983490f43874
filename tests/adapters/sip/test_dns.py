from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets import dns as sip_dns
from adapters.sip.targets.dns import MAX_ANSWERS, PARALLEL, STALE_S, DnsSettings, Resolver
from adapters.sip.targets.location import Kind, Naptr, Question, Record, Srv, Target
from adapters.sip.targets.locator import Locator
from tests.dns_server import DnsServer, dns_server

HOST = Question("one.example.com", Kind.A)


class Bench:
    """A resolver before the server, on a clock that the test steps."""

    def __init__(self, server: DnsServer, timeout_s: float = 1.0) -> None:
        self.now = 1000.0
        self.server = server
        self.counters: Counter[str] = Counter()
        self.resolver = Resolver(
            DnsSettings((server.address,), timeout_s), clock=lambda: self.now, counters=self.counters
        )

    async def ask(self, question: Question = HOST) -> Sequence[Record]:
        await self.resolver.ask([question])
        found = self.resolver.known(question)
        assert found is not None
        return found


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.add("example.com", 300, "NAPTR", '10 20 "S" "SIP+D2U" "" _sip._udp.Example.com.')
        server.add("_sip._udp.example.com", 300, "SRV", "10 5 5070 one.example.com.", "20 0 0 .")
        server.add("one.example.com", 300, "A", "192.0.2.1", "192.0.2.2")
        server.add("one.example.com", 300, "AAAA", "2001:db8::1")
        server.add("alias.example.com", 30, "CNAME", "one.example.com.")
        yield server


@pytest.fixture
async def bench(server: DnsServer) -> AsyncIterator[Bench]:
    bench = Bench(server)
    yield bench
    await bench.resolver.close()


async def test_records_of_each_kind(bench: Bench) -> None:
    assert list(await bench.ask(Question("example.com", Kind.NAPTR))) == [
        Naptr(10, 20, "S", "SIP+D2U", "_sip._udp.example.com")
    ]
    assert set(await bench.ask(Question("_sip._udp.example.com", Kind.SRV))) == {
        Srv(10, 5, 5070, "one.example.com"),
        Srv(20, 0, 0, ""),
    }
    assert set(await bench.ask()) == {"192.0.2.1", "192.0.2.2"}
    assert list(await bench.ask(Question("one.example.com", Kind.AAAA))) == ["2001:db8::1"]
    assert set(await bench.ask(Question("alias.example.com", Kind.A))) == {"192.0.2.1", "192.0.2.2"}
    assert list(await bench.ask(Question("nothing.example.com", Kind.A))) == []


async def test_an_answer_lives_as_long_as_it_says(bench: Bench) -> None:
    await bench.ask()
    bench.server.add("one.example.com", 300, "A", "192.0.2.9")
    bench.now += 299
    assert set(await bench.ask()) == {"192.0.2.1", "192.0.2.2"}
    bench.now += 2
    assert bench.resolver.known(HOST) is None
    assert list(await bench.ask()) == ["192.0.2.9"]
    assert bench.server.asked["one.example.com A"] == 2


async def test_the_alias_shortens_the_life_of_an_answer(bench: Bench) -> None:
    alias = Question("alias.example.com", Kind.A)
    await bench.ask(alias)
    bench.now += 31
    assert bench.resolver.known(alias) is None


@pytest.mark.parametrize(("ttl", "kept_s", "gone_s"), [(0, 4.0, 6.0), (1_000_000, 3599.0, 3601.0)])
async def test_lifetimes_have_bounds(bench: Bench, ttl: int, kept_s: float, gone_s: float) -> None:
    bench.server.add("one.example.com", ttl, "A", "192.0.2.1")
    await bench.ask()
    bench.now += kept_s
    assert bench.resolver.known(HOST) is not None
    bench.now += gone_s - kept_s
    assert bench.resolver.known(HOST) is None


@pytest.mark.parametrize(
    "question", [Question("nobody.example.com", Kind.A), Question("one.example.com", Kind.SRV)], ids=["name", "kind"]
)
async def test_what_does_not_exist_is_remembered_too(bench: Bench, question: Question) -> None:
    assert list(await bench.ask(question)) == []
    bench.now += 59
    assert list(await bench.ask(question)) == []
    assert bench.server.asked.total() == 1
    bench.now += 2  # the SOA says 60
    await bench.ask(question)
    assert bench.server.asked.total() == 2


async def test_a_truncated_answer_is_asked_again_over_tcp(bench: Bench) -> None:
    bench.server.truncate = True
    assert set(await bench.ask()) == {"192.0.2.1", "192.0.2.2"}
    assert bench.server.asked["one.example.com A"] == 2


async def test_a_question_is_asked_once_for_all_who_wait(bench: Bench) -> None:
    bench.server.delay_s = 0.05
    await asyncio.gather(*(bench.ask() for _ in range(20)))
    assert bench.server.asked.total() == 1


async def test_few_questions_are_under_way_at_once(bench: Bench) -> None:
    bench.server.delay_s = 0.02
    await bench.resolver.ask([Question(f"n{n}.example.com", Kind.A) for n in range(PARALLEL * 2)])
    assert bench.server.asked.total() == PARALLEL * 2
    assert bench.server.busiest <= PARALLEL


async def test_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip_dns, "MAX_ANSWERS", 20)
    assert MAX_ANSWERS > 20
    await bench.resolver.ask([Question(f"n{n}.example.com", Kind.A) for n in range(50)])
    assert len(bench.resolver) == 20
    monkeypatch.setattr(sip_dns, "MAX_WAITING", 0)
    assert list(await bench.ask()) == []
    assert bench.counters["sip_lookups_failed_total"] == 1


async def test_a_silent_server_costs_no_more_than_the_timeout(server: DnsServer) -> None:
    bench = Bench(server, timeout_s=0.2)
    server.silent = True
    async with asyncio.timeout(2):
        assert list(await bench.ask()) == []
    assert bench.counters["sip_lookups_failed_total"] == 1
    server.silent = False
    assert list(await bench.ask()) == []  # for a short while nobody asks again
    bench.now += 6
    assert set(await bench.ask()) == {"192.0.2.1", "192.0.2.2"}
    await bench.resolver.close()


async def test_old_addresses_serve_while_no_server_answers(server: DnsServer) -> None:
    bench = Bench(server, timeout_s=0.1)
    await bench.ask()
    server.silent = True
    bench.now += 301
    assert set(await bench.ask()) == {"192.0.2.1", "192.0.2.2"}
    bench.now += STALE_S
    assert list(await bench.ask()) == []
    await bench.resolver.close()


def strange(kind: str, query: dns.message.QueryMessage) -> bytes | None:
    name = query.question[0].name
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    if kind == "junk":
        return b"\x00\x01junk"
    if kind == "loop":
        for here, there in (("one.example.com.", "two.example.com."), ("two.example.com.", "one.example.com.")):
            response.answer.append(dns.rrset.from_text(here, 60, "IN", "CNAME", there))
    elif kind == "long chain":
        for n in range(40):
            here = name.to_text() if n == 0 else f"c{n}.example.com."
            response.answer.append(dns.rrset.from_text(here, 60, "IN", "CNAME", f"c{n + 1}.example.com."))
    elif kind == "other name":
        response.answer.append(dns.rrset.from_text("evil.example.", 60, "IN", "A", "192.0.2.66"))
    elif kind == "other question":
        response = dns.message.make_response(dns.message.make_query("evil.example.", "A"))
        response.answer.append(dns.rrset.from_text("evil.example.", 60, "IN", "A", "192.0.2.66"))
    elif kind == "refused":
        response.set_rcode(dns.rcode.REFUSED)
    elif kind == "fault":
        response.set_rcode(dns.rcode.SERVFAIL)
    return response.to_wire()


@pytest.mark.parametrize(
    "kind", ["junk", "loop", "long chain", "other name", "other question", "refused", "fault", "empty"]
)
async def test_strange_answers_are_no_records(server: DnsServer, kind: str) -> None:
    bench = Bench(server, timeout_s=0.3)
    server.answerer = lambda query, _: strange(kind, query)
    async with asyncio.timeout(3):
        assert list(await bench.ask()) == []
    await bench.resolver.close()


async def test_a_fault_of_the_library_is_no_records(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Record:
        raise AttributeError("what no test foresaw")

    monkeypatch.setattr(sip_dns, "_record", fail)
    assert list(await bench.ask()) == []
    assert bench.counters["sip_dns_faults_total"] == 1


async def test_a_huge_answer_is_cut(bench: Bench) -> None:
    bench.server.add("one.example.com", 60, "A", *[f"10.0.{n // 250}.{n % 250}" for n in range(2000)])
    assert len(await bench.ask()) == 64


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["y" * 60] * 6), "phone.invalid", "invalid"])
async def test_what_can_be_no_name_is_not_asked(bench: Bench, name: str) -> None:
    assert list(await bench.ask(Question(name, Kind.A))) == []
    assert list(await bench.ask(Question(f"_sip._udp.{name}", Kind.SRV))) == []
    assert not bench.server.asked


async def test_localhost_and_the_hosts_file_go_before_name_servers(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "127.0.0.1" in await bench.ask(Question("localhost", Kind.A))
    assert list(await bench.ask(Question("_sip._udp.localhost", Kind.SRV))) == []
    assert not bench.server.asked
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 local\n192.0.2.77  One.example.com other # a comment\n")
    monkeypatch.setattr(sip_dns, "_HOSTS", hosts)
    assert list(await bench.ask(Question("one.example.com", Kind.NAPTR))) == []
    assert not bench.server.asked


async def test_without_any_name_server_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip_dns, "_RESOLV_CONF", tmp_path / "resolv.conf")
    counters: Counter[str] = Counter()
    resolver = Resolver(DnsSettings(), clock=lambda: 0.0, counters=counters)
    await resolver.ask([Question("localhost", Kind.A)])
    assert "127.0.0.1" in (resolver.known(Question("localhost", Kind.A)) or ())
    await resolver.close()


async def test_a_locator_walks_the_chain_and_then_knows(server: DnsServer) -> None:
    counters: Counter[str] = Counter()
    locator = Locator(counters, DnsSettings((server.address,), 1.0), random=lambda _: 0)
    locator.ways = (("udp", 4), ("udp", 6))
    uri = SipUri.parse("sip:a@example.com")
    expected = [Target("udp", address, 5070, "example.com") for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
    found: asyncio.Future[Sequence[Target]] = asyncio.get_running_loop().create_future()
    locator.locate(uri, found.set_result)
    async with asyncio.timeout(3):
        assert sorted(await found) == sorted(expected)
    again: list[Sequence[Target]] = []
    locator.locate(uri, again.append)
    assert sorted(again[0]) == sorted(expected)
    assert server.asked["example.com NAPTR"] == 1
    address: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    locator.find("nobody.example.com", 4, address.set_result)
    assert await address is None
    await locator.close()
    assert locator.asked == 0
