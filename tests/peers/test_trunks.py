"""Calls to the outside through carriers that ask, refuse, stay silent, and are registered with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.audio import align_and_correlate
from tests.peers.murima import MurimaProcess
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipPhone
from tests.peers.sipp import Sipp, run_sipp
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

PBX, STRANGER, CARRIER, SECOND = (loopback_address() for _ in range(4))
PORTS = {name: free_port(CARRIER) for name in ("plain", "asks", "bad", "silent")} | {"second": free_port(SECOND)}
LINE_PORT, REGISTRAR_PORT = free_port(CARRIER), free_port(SECOND)

CONFIG: dict[str, Any] = {
    "country": "KE",
    "sip": {
        "trunks": [
            {"name": "pbx", "match": [PBX], "dial_out": True},
            {"name": "stranger", "match": [STRANGER], "reach": ["500", "59"]},
            {
                "name": "plain",
                "address": f"sip:{CARRIER}:{PORTS['plain']}",
                "caller_id": {"number": "+254201234567", "name": "Murima", "format": "e164"},
            },
            {
                "name": "asks",
                "address": f"sip:{CARRIER}:{PORTS['asks']}",
                "digest": {"username": "me", "password": "secret"},
                "from_domain": "carrier.example",
                "caller_id": {"number": "+254201234567", "header": "pai"},
            },
            {"name": "bad", "address": f"sip:{CARRIER}:{PORTS['bad']}"},
            {"name": "silent", "address": f"sip:{CARRIER}:{PORTS['silent']}", "response_timeout_s": 1},
            {"name": "second", "address": f"sip:{SECOND}:{PORTS['second']}", "max_calls": 1},
            {"name": "nowhere", "address": f"sip:{SECOND}:{free_port(SECOND)};transport=tcp"},
        ],
    },
    "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
    "agents": [{"id": "a0001", "password": "secret"}],
    "numbers": {"500": {"echo": True}, "59": {"dial": "+254700000001"}, r"~9(\+?\d+)": {"dial": r"\1"}},
    "routes": [
        {"name": "asking", "match": "+254711*", "trunks": ["asks"], "strip": 1},
        {"name": "failover", "match": "+254722*", "trunks": ["bad", "nowhere", "second"]},
        {"name": "patience", "match": "+254733*", "trunks": ["silent", "second"]},
        {"name": "kenya", "match": "+254*", "trunks": ["plain"], "strip": 4, "prepend": "0"},
    ],
}


@pytest.fixture(scope="module")
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    async with MurimaProcess(CONFIG, tmp_path_factory.mktemp("trunks")) as murima:
        await murima.login()
        yield murima


def caller(bank: RtpBank, user: str = "0700111222", address: str = PBX) -> SipPhone:
    return SipPhone(user, bank, address=address)


def carrier(bank: RtpBank, name: str, *, answer: int = 180) -> SipPhone:
    address = SECOND if name == "second" else CARRIER
    return SipPhone("carrier", bank, address=address, port=PORTS[name], answer=answer)


async def test_number_goes_out_as_the_route_writes_it_and_both_hear_each_other(
    murima: MurimaProcess, bank: RtpBank
) -> None:
    async with carrier(bank, "plain") as outside, caller(bank, "0700999888") as phone:
        call = phone.dial("90700000111", murima.sip)
        offered = await outside.incoming.get()
        assert offered.request is not None
        assert "sip:0700000111@" in offered.request.start
        assert "sip:+254700999888@pbx.local" in offered.request.get("from")
        assert offered.request.get("x-murima-call-id") == ""
        assert "sip:90700000111@" in offered.request.get("diversion")
        await call.ringing()
        offered.answer()
        await call.answered()
        (shown,) = (await murima.get("/api/v1/calls"))["data"]
        assert shown["explanation"]["route"] == "kenya"
        said, answered = speech(1.0, variant=3), speech(1.0, variant=4)
        call.rtp.say(said)
        offered.rtp.say(answered)
        await call.rtp.until_quiet()
        await offered.rtp.until_quiet()
        assert align_and_correlate(said, offered.rtp.heard(), RATE).correlation >= 0.95
        assert align_and_correlate(answered, call.rtp.heard(), RATE).correlation >= 0.95
        await call.hang_up()
        assert await offered.ended() == "bye"


async def test_agent_dials_out_with_a_password_and_is_shown_by_the_number_of_the_trunk(
    murima: MurimaProcess, tmp_path: Path
) -> None:
    async with Sipp(tmp_path / "carrier", "uas", address=CARRIER, port=PORTS["plain"]) as outside:
        result = await run_sipp(
            tmp_path / "agent", "uac_login", murima.remote, service="0700123456", caller="a0001", talk_ms=200
        )
        assert (result.status, result.succeeded) == (0, 1), result.errors
        assert (await outside.result()).succeeded == 1
        invite = outside.messages()
    assert "INVITE sip:0700123456@" in invite
    assert 'From: "Murima" <sip:+254201234567@pbx.local>' in invite
    assert "a0001" not in invite


async def test_carrier_that_asks_for_a_password_gets_it(murima: MurimaProcess, tmp_path: Path) -> None:
    async with Sipp(tmp_path / "carrier", "uas_challenges", address=CARRIER, port=PORTS["asks"]) as outside:
        result = await run_sipp(
            tmp_path / "caller", "uac_silent", murima.remote, service="9+254711000111", address=PBX, talk_ms=200
        )
        assert (result.status, result.succeeded) == (0, 1), result.errors
        assert (await outside.result()).succeeded == 1
        invite = outside.messages()
    assert "INVITE sip:254711000111@" in invite
    assert "<sip:me@carrier.example>" in invite


async def test_next_trunk_is_taken_when_one_is_overloaded_and_another_unreachable(
    murima: MurimaProcess, bank: RtpBank, tmp_path: Path
) -> None:
    bad = Sipp(
        tmp_path / "bad", "uas_refuses_at_once", address=CARRIER, port=PORTS["bad"], status=503, reason="Overloaded"
    )
    async with bad, carrier(bank, "second") as second, caller(bank) as phone:
        call = phone.dial("9+254722000111", murima.sip)
        offered = await second.incoming.get()
        offered.answer()
        await call.answered()
        (shown,) = (await murima.get("/api/v1/calls"))["data"]
        tried = [(step["trunk"], step.get("failed")) for step in shown["explanation"]["trunks"]]
        assert tried == [("bad", "overloaded"), ("nowhere", "unreachable"), ("second", None)]
        await call.hang_up()
        assert await offered.ended() == "bye"
        assert (await bad.result()).succeeded == 1


async def test_silent_trunk_is_passed_over_after_a_second(murima: MurimaProcess, bank: RtpBank) -> None:
    async with carrier(bank, "second") as second, caller(bank) as phone:
        call = phone.dial("9+254733000111", murima.sip)
        offered = await second.incoming.get()
        offered.answer()
        await call.answered()
        await call.hang_up()
        assert await offered.ended() == "bye"


async def test_busy_number_is_not_tried_through_another_trunk(
    murima: MurimaProcess, bank: RtpBank, tmp_path: Path
) -> None:
    bad = Sipp(tmp_path / "bad", "uas_refuses_at_once", address=CARRIER, port=PORTS["bad"], status=486)
    async with bad, carrier(bank, "second") as second, caller(bank) as phone:
        call = phone.dial("9+254722000112", murima.sip)
        assert await call.ended() == "refused"
        assert call.status == 486
        assert second.incoming.empty()


async def test_trunk_takes_no_more_calls_than_it_may(murima: MurimaProcess, bank: RtpBank) -> None:
    async with carrier(bank, "second") as second, caller(bank) as phone:
        first = phone.dial("9+254722000113", murima.sip)
        offered = await second.incoming.get()
        offered.answer()
        await first.answered()
        other = phone.dial("9+254722000114", murima.sip)
        assert await other.ended() == "refused"
        await first.hang_up()
        assert await offered.ended() == "bye"


async def test_strangers_call_nobody_at_our_expense(murima: MurimaProcess, bank: RtpBank) -> None:
    async with carrier(bank, "plain") as outside, caller(bank, address=STRANGER) as phone:
        for number, status in (("90700000111", 404), ("+254700000111", 404), ("59", 403), ("112", 404)):
            call = phone.dial(number, murima.sip)
            assert await call.ended() == "refused"
            assert (number, call.status) == (number, status)
        echo = phone.dial("500", murima.sip)
        await echo.answered()
        await echo.hang_up()
        assert outside.incoming.empty()


async def test_registered_trunk_is_used_and_its_calls_are_known_by_the_line(bank: RtpBank, tmp_path: Path) -> None:
    config = {
        "sip": {
            "trunks": [
                {
                    "name": "carrier",
                    "address": f"sip:{SECOND}:{REGISTRAR_PORT}",
                    "register": {"username": "me", "password": {"env": "CARRIER_PASSWORD"}},
                }
            ]
        },
        "users": CONFIG["users"],
        "numbers": {"me": {"echo": True}},
    }
    registrar = Sipp(tmp_path / "registrar", "registrar", address=SECOND, port=REGISTRAR_PORT)
    murima = MurimaProcess(config, tmp_path / "murima", environment={"CARRIER_PASSWORD": "secret"})
    async with registrar:
        async with murima:
            await murima.login()
            (trunk,) = (await murima.until("/api/v1/trunks", lambda answer: answer["data"][0]["registered_until"]))[
                "data"
            ]
            assert (trunk["name"], trunk["state"], trunk["error"]) == ("carrier", "up", "")
            contact = next(line for line in registrar.messages().splitlines() if line.startswith("Contact: <sip:"))
            line = contact.partition("sip:")[2].partition("@")[0]
            assert f";line={line}>" in contact
            stranger = SipPhone("0700111222", bank, address=STRANGER)
            async with stranger:
                known = stranger.dial(line, murima.sip)
                assert await known.ended() == "refused"  # To names the line, no number that we serve
                assert known.status == 404
                unknown = stranger.dial("me", murima.sip)
                assert await unknown.ended() == "refused"
                assert unknown.status == 401
        result = await registrar.result()
    assert (result.status, result.succeeded) == (0, 1), result.errors
    assert registrar.messages().count("Expires: 0") >= 1
