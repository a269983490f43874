"""Trunks on a real UDP socket: what a carrier gets to see, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from adapters.native.settings import NativeSettings, RegistrationSettings, TrunkSettings
from adapters.sip.protection.login import Login
from adapters.sip.syntax.message import Request, Response, build_response, parse_message
from engine.events import (
    AgentId,
    CallId,
    EndCause,
    LegEnded,
    LegId,
    LegIncoming,
    LegRinging,
    LegTrying,
    Party,
    TrunkReachability,
)
from engine.telephony import Originate, Outside
from tests.native_rig import PASSWORD, WAIT_S, FakeWorker, Rig, make_rig, settings

LINE = "0123456789abcdef01234567"
LOGIN = Login("me", PASSWORD)


class Carrier(asyncio.DatagramProtocol):
    """A socket of a carrier; `answer` makes the response to a request, or None."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Response | None] = lambda _: None
        self.requests: asyncio.Queue[Request] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport
        self._peer = ("", 0)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    @property
    def uri(self) -> str:
        host, port = self._transport.get_extra_info("sockname")
        return f"sip:{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = parse_message(data)
        self._peer = addr
        if isinstance(message, Request):
            self.requests.put_nowait(message)
            response = self.answer(message) if message.method != "ACK" else None
            if response is not None:
                self._transport.sendto(response.serialise(), addr)

    async def asked(self, method: str) -> Request:
        async with asyncio.timeout(WAIT_S):
            while True:
                request = await self.requests.get()
                if request.method == method:
                    return request

    def send(self, message: Request | Response) -> None:
        self._transport.sendto(message.serialise(), self._peer)


def challenged(request: Request) -> Response | None:
    """401 to what has no credentials; 200 to a REGISTER that has, with its contact for ten minutes."""
    if not request.has("authorization"):
        response = build_response(request, 401, to_tag="x")
        response.set("www-authenticate", 'Digest realm="carrier", nonce="n", qop="auth"')
        return response
    if request.method == "REGISTER":
        response = build_response(request, 200, to_tag="x")
        response.set("contact", f"{request.get('contact')};expires=600")
        response.set("service-route", "<sip:127.0.0.1:9;lr>")
        return response
    return None


@asynccontextmanager
async def served(tmp_path: Path, *trunks: TrunkSettings) -> AsyncIterator[tuple[Rig, NativeSettings]]:
    first = dataclasses.replace(settings(tmp_path), trunks=trunks)
    async with make_rig(first) as rig:
        worker = FakeWorker(rig.telephony)
        worker.attach()
        rig.telephony.trunks.start()
        yield rig, first


def dial(rig: Rig, *, number: str = "+254700111222", withheld: bool = False, diverted: str = "") -> LegId:
    outside = Outside("carrier", 0, number, withheld, diverted)
    request = Originate(CallId("c1"), AgentId(""), Party("+254201234567", 'Ada "A"'), None, 30.0, outside=outside)
    rig.telephony.originate(LegId("out"), request)
    return LegId("out")


def trunk(carrier: Carrier, **more: object) -> TrunkSettings:
    return TrunkSettings("carrier", (), gateways=(carrier.uri,), priorities=(1,), **more)  # type: ignore[arg-type]  # test data


async def test_invite_has_the_number_the_caller_and_no_name_of_ours(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier)) as (rig, _):
        leg = dial(rig, diverted="0800")
        invite = await carrier.asked("INVITE")
        assert invite.uri == carrier.uri.replace("sip:", "sip:+254700111222@")
        assert invite.from_.display_name == 'Ada "A"'
        assert str(invite.from_.uri) == "sip:+254201234567@pbx.test"
        assert (invite.get("diversion") or "").startswith("<sip:0800@pbx.test>")
        for name in ("x-murima-call-id", "privacy", "p-asserted-identity"):
            assert not invite.has(name)
        carrier.send(build_response(invite, 180, to_tag="y"))
        await rig.inbox.wait(LegRinging)
        carrier.send(build_response(invite, 486, to_tag="y"))
        ended = await rig.inbox.wait(LegEnded)
        assert (ended.leg_id, ended.cause, ended.status) == (leg, EndCause.BUSY, 486)


async def test_withheld_number_is_told_to_the_carrier_alone(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier)) as (rig, _):
        dial(rig, withheld=True)
        invite = await carrier.asked("INVITE")
        assert str(invite.from_.uri) == "sip:anonymous@anonymous.invalid"
        assert invite.get("privacy") == "id"
        assert "+254201234567" in (invite.get("p-asserted-identity") or "")
        assert "Ada" not in (invite.get("from") or "")


async def test_withheld_number_is_not_told_to_who_is_not_trusted(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier, trusted_identity=False)) as (rig, _):
        dial(rig, withheld=True)
        assert b"254201234567" not in (await carrier.asked("INVITE")).serialise()


async def test_account_in_from_and_number_in_p_asserted_identity(tmp_path: Path) -> None:
    wanted = {"login": LOGIN, "number_in_from": False, "from_domain": "carrier.example", "call_id_header": True}
    async with Carrier() as carrier, served(tmp_path, trunk(carrier, **wanted)) as (rig, _):
        dial(rig)
        invite = await carrier.asked("INVITE")
        assert str(invite.from_.uri) == "sip:me@carrier.example"
        assert "<sip:+254201234567@carrier.example>" in (invite.get("p-asserted-identity") or "")
        assert invite.get("x-murima-call-id") == "c1"


async def test_challenge_is_answered_with_the_password(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier, login=LOGIN)) as (rig, _):
        carrier.answer = challenged
        dial(rig)
        await carrier.asked("INVITE")
        again = await carrier.asked("INVITE")
        assert 'username="me"' in (again.get("authorization") or "")
        assert again.cseq.number == 2


async def test_refusal_tells_how_long_to_stay_away(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier)) as (rig, _):

        def overloaded(request: Request) -> Response:
            response = build_response(request, 503, to_tag="x")
            response.set("retry-after", "17 (later)")
            return response

        carrier.answer = overloaded
        dial(rig)
        ended = await rig.inbox.wait(LegEnded)
        assert (ended.cause, ended.status, ended.retry_after_s) == (EndCause.OVERLOADED, 503, 17.0)


async def test_silent_gateway_is_given_up_early_and_a_ringing_one_is_not(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier, response_timeout_s=0.2)) as (rig, _):
        dial(rig)
        ended = await rig.inbox.wait(LegEnded)
        assert (ended.cause, ended.status, ended.detail) == (
            EndCause.UNREACHABLE,
            None,
            "the gateway does not respond",
        )
        carrier.answer = lambda request: build_response(request, 100) if request.method == "INVITE" else None
        dial(rig)
        await rig.inbox.wait(LegTrying)
        await asyncio.sleep(0.4)  # twice the time after which a silent one is given up
        assert len(rig.inbox.of(LegEnded)) == 1


async def test_unknown_trunk_and_gateway_end_at_once(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier)) as (rig, _):
        request = Originate(CallId("c1"), AgentId(""), Party("1"), None, 30.0, outside=Outside("carrier", 7, "1"))
        rig.telephony.originate(LegId("x"), request)
        assert (await rig.inbox.wait(LegEnded)).cause is EndCause.UNREACHABLE


async def test_registers_is_called_by_its_line_and_says_goodbye(tmp_path: Path) -> None:
    registration = RegistrationSettings(LOGIN, LINE)
    wanted = {"registration": registration, "login": LOGIN, "by_address": False, "by_line": True}
    async with Carrier() as carrier:
        carrier.answer = challenged
        async with served(tmp_path, trunk(carrier, **wanted)) as (rig, first):
            down = await rig.inbox.wait(TrunkReachability, lambda event: event.gateway is None)
            assert not down.reachable
            register = await carrier.asked("REGISTER")
            assert str(register.to.uri) == "sip:me@127.0.0.1"
            assert register.get("supported") == "path"
            await rig.inbox.wait(TrunkReachability, lambda event: event.gateway is None and event.reachable)
            (line,) = rig.telephony.trunks.lines()
            assert line.registers
            assert line.registered_until is not None
            assert line.error == ""

            contact = next(iter(register.addresses("contact"))).uri
            invite = Request.build(
                "INVITE",
                contact,
                via=f"SIP/2.0/UDP {carrier.uri[4:]};branch=z9hG4bKcall",
                from_="<sip:0700111222@carrier.example>;tag=1",
                to="<sip:+254800123456@pbx.test>",
                call_id="from-carrier",
                cseq=1,
            )
            invite.set("contact", f"<{carrier.uri}>")
            carrier.send(invite)
            incoming = await rig.inbox.wait(LegIncoming)
            assert (incoming.source.trunk, incoming.dialled) == ("carrier", "+254800123456")
            assert incoming.caller.number == "0700111222"

            rig.telephony.reconfigure(first)  # nothing changed: the registration stays
            dial(rig)
            assert rig.telephony.trunks.lines()[0].registered_until is not None

            rig.telephony.trunks.stop()
            assert rig.telephony.busy
            while (await carrier.asked("REGISTER")).get("expires") != "0":
                pass
            async with asyncio.timeout(WAIT_S):
                while rig.telephony.trunks.leaving:  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.005)


async def test_calls_of_a_registered_trunk_take_its_service_route(tmp_path: Path) -> None:
    wanted = {"registration": RegistrationSettings(LOGIN, LINE), "login": LOGIN}
    async with Carrier() as carrier, Carrier() as edge:
        route = f"<{edge.uri};lr>"

        def registrar(request: Request) -> Response | None:
            response = challenged(request)
            if response is not None and response.status == 200:
                response.set("service-route", route)
            return response

        carrier.answer = registrar
        async with served(tmp_path, trunk(carrier, **wanted)) as (rig, _):
            await rig.inbox.wait(TrunkReachability, lambda event: event.gateway is None and event.reachable)
            dial(rig)
            invite = await edge.asked("INVITE")
            assert invite.get_all("route") == [route]
            assert "+254700111222" in invite.uri


async def test_dead_gateway_is_found_out_and_comes_back(tmp_path: Path) -> None:
    async with Carrier() as carrier, served(tmp_path, trunk(carrier, options_interval_s=0.05)) as (rig, _):
        alive = True
        carrier.answer = lambda request: build_response(request, 404 if alive else 503, to_tag="x")
        options = await carrier.asked("OPTIONS")
        assert str(options.from_.uri) == "sip:murima@pbx.test"
        alive = False
        await rig.inbox.wait(TrunkReachability, lambda event: event.gateway == 0 and not event.reachable)
        (line,) = rig.telephony.trunks.lines()
        assert [gateway.reachable for gateway in line.gateways] == [False]
        alive = True
        await rig.inbox.wait(TrunkReachability, lambda event: event.gateway == 0 and event.reachable)


async def test_wrong_password_leaves_the_trunk_out_of_service(tmp_path: Path) -> None:
    wanted = {"registration": RegistrationSettings(LOGIN, LINE), "login": LOGIN}
    async with Carrier() as carrier:

        def never(request: Request) -> Response:
            response = build_response(request, 401, to_tag="x")
            response.set("www-authenticate", 'Digest realm="carrier", nonce="n", qop="auth"')
            return response

        carrier.answer = never
        async with served(tmp_path, trunk(carrier, **wanted)) as (rig, _):
            await carrier.asked("REGISTER")
            await carrier.asked("REGISTER")
            async with asyncio.timeout(WAIT_S):
                while rig.telephony.trunks.lines()[0].error == "not registered yet":  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.005)
            (line,) = rig.telephony.trunks.lines()
            assert line.error == "401 the carrier does not take our password"
            assert all(not event.reachable for event in rig.inbox.of(TrunkReachability) if event.gateway is None)


async def test_new_settings_keep_the_registration_of_the_same_account(tmp_path: Path) -> None:
    wanted = {"registration": RegistrationSettings(LOGIN, LINE), "login": LOGIN}
    async with Carrier() as carrier:
        carrier.answer = challenged
        async with served(tmp_path, trunk(carrier, **wanted)) as (rig, first):

            def change(**more: object) -> None:
                changed = (trunk(carrier, **{**wanted, **more}),)
                rig.telephony.reconfigure(dataclasses.replace(first, trunks=changed))

            async def registered() -> Request:
                while not (request := await carrier.asked("REGISTER")).has("authorization"):
                    pass
                return request

            before = await registered()
            await rig.inbox.wait(TrunkReachability, lambda event: event.gateway is None and event.reachable)
            change(from_domain="carrier.example")
            change(registration=RegistrationSettings(LOGIN, LINE, expires_s=120))
            again = await registered()  # with a longer term, and nothing was removed before it
            assert (again.get("expires"), again.call_id != before.call_id) == ("120", True)
            await rig.inbox.wait(TrunkReachability, lambda event: event.gateway is None and event.reachable)
            change(registration=RegistrationSettings(Login("other", PASSWORD), LINE))
            seen = {
                (request.get("expires"), str(request.to.uri)) for request in [await registered(), await registered()]
            }
            assert seen == {("0", "sip:me@127.0.0.1"), ("3600", "sip:other@127.0.0.1")}
