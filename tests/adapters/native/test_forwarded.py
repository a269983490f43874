"""What a caller's signalling says and the called phone is told; why calls end, in the network's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.native.causes import reason_headers
from adapters.native.parties import ANONYMOUS, forwarded_by, forwarded_headers
from adapters.sip.dialogs.session import EndReason, SessionEnded
from adapters.sip.syntax.message import Request
from engine.events import NOTHING_FORWARDED, EndCause, Forwarded, LegIncoming
from engine.telephony import Originate
from tests.native_scene import AGENT, Scene, make_scene


@pytest.fixture
async def faked(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield await make_scene(stack, tmp_path, fake=True)


def invite(*headers: tuple[str, str]) -> Request:
    request = Request("INVITE", "sip:500@x")
    for name, value in headers:
        request.add(name, value)
    return request


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], NOTHING_FORWARDED),
        ([("diversion", "<sip:2@x>;reason=no-answer"), ("diversion", '"A" <sip:1@x>')], Forwarded("1")),
        ([("diversion", "<sip:2@x>, <sip:1@x;user=phone>;privacy=off")], Forwarded("1")),
        ([("diversion", "<tel:+4930>")], Forwarded("+4930")),
        ([("diversion", "<<nonsense")], NOTHING_FORWARDED),
        ([("history-info", "<sip:1@x>;index=1, <sip:2@x;cause=302>;index=1.1")], Forwarded("1")),
        ([("history-info", "<sip:1@x>;index=1")], NOTHING_FORWARDED),
        ([("user-to-user", "56a390f3d2b7;encoding=hex")], Forwarded(user_to_user="56a390f3d2b7;encoding=hex")),
        ([("user-to-user", "5" * 2000)], NOTHING_FORWARDED),
        ([("privacy", "header; id")], Forwarded(withheld=True)),
        ([("privacy", "none")], NOTHING_FORWARDED),
    ],
)
def test_headers_are_read(headers: list[tuple[str, str]], expected: Forwarded) -> None:
    assert forwarded_by(invite(*headers)) == expected


@given(st.sampled_from(["diversion", "history-info", "user-to-user", "privacy"]), st.text(max_size=80))
def test_whatever_they_hold_is_read_and_written(name: str, value: str) -> None:
    found = forwarded_by(invite((name, value), (name, "<sip:1@x>")))
    written = invite(*forwarded_headers(found, "x"))
    assert b"\r\n\r\n" not in written.serialise()[:-4]


async def test_called_phone_is_told(faked: Scene) -> None:
    headers = [("diversion", "<sip:4930777@carrier>"), ("user-to-user", "a1;encoding=hex"), ("privacy", "id")]
    headers.append(("p-asserted-identity", "<sip:4930123@carrier>"))
    faked.trunk.call(faked.rig.number("500"), headers=headers)
    incoming = await faked.rig.inbox.wait(LegIncoming)
    assert incoming.caller.number == "4930123"
    assert incoming.forwarded == Forwarded("4930777", "a1;encoding=hex", withheld=True)
    leg_id = faked.new_leg()
    request = Originate(incoming.call_id, AGENT, incoming.caller, incoming.leg_id, 15, forwarded=incoming.forwarded)
    faked.telephony.originate(leg_id, request)
    told = (await faked.agent.ringing()).request
    assert (told.get("from") or "").startswith(ANONYMOUS)
    assert b"4930123" not in told.serialise()
    assert told.get("diversion") == "<sip:4930777@pbx.test>;reason=unknown"
    assert (told.get("user-to-user"), told.get("privacy")) == ("a1;encoding=hex", "id")
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()


def test_each_cause_but_a_callers_own_has_a_reason() -> None:
    assert [cause for cause in EndCause if not reason_headers(cause)] == [EndCause.CANCELLED]
    assert reason_headers(EndCause.TAKEN) == (("reason", 'SIP;cause=200;text="Call completed elsewhere"'),)


async def test_parties_are_told_why_a_call_ends(faked: Scene) -> None:
    incoming, caller, leg_id, phone = await faked.talking()
    faked.telephony.hang_up(leg_id)
    ended = await faked.agent.inbox.wait(SessionEnded)
    assert (ended.session, ended.reason) == (phone, EndReason.BYE)
    assert ended.detail == 'Q.850;cause=16;text="Normal call clearing"'
    why = [("reason", 'Q.850;cause=31;text="Normal, unspecified"')]
    faked.trunk.transport.carry_out(faked.trunk.endpoint.hang_up(caller, faked.trunk.now, headers=why))
    assert (await faked.ended(incoming.leg_id)).detail == why[0][1]
    faked.telephony.release_call(incoming.call_id)
    await faked.rig.settled()
