"""Asterisk 22 at a trunk: as a carrier, as a PBX that registers with us, and as one that we register with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.peers.asterisk import Asterisk
from tests.peers.interop import account, assert_heard, office, until_free
from tests.peers.murima import MurimaProcess
from tests.peers.parties import LEAD_S, SPEECH_S, TALK_S, party, write_words
from tests.ports import free_port, loopback_address
from tests.speech import speech

CUSTOMER = ("254201234567", "carrier-secret")


async def test_calls_from_asterisk_through_a_queue_to_asterisk(tmp_path: Path) -> None:
    """One Asterisk is the carrier, matched by its address; another is where the agent's fixed contact lies."""
    carrier_address, desk_address = loopback_address(), loopback_address()
    desk_port = free_port(desk_address)
    config = office("a0001")
    config["agents"][0]["contact"] = f"sip:talk@{desk_address}:{desk_port}"
    config |= {
        "sip": {"trunks": [{"name": "carrier", "match": [carrier_address]}]},
        "queues": [{"id": "support", "members": ["a0001"], "wrap_up_s": 0}],
        "numbers": {"500": {"queue": "support"}},
    }
    async with (
        MurimaProcess(config, tmp_path / "murima") as murima,
        Asterisk(
            tmp_path / "carrier", murima.remote, address=carrier_address, play=write_words(tmp_path / "caller", 1)
        ) as carrier,
        Asterisk(
            tmp_path / "desk",
            murima.remote,
            address=desk_address,
            port=desk_port,
            play=write_words(tmp_path / "agent", 2),
        ) as desk,
    ):
        await carrier.dial("500", caller="0700111222")
        invite = await desk.expect("newchannel")
        assert invite["CallerIDNum"] == "0700111222"
        await desk.expect("mixmonitorstart")
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await carrier.hang_up()
        await desk.expect("hangup")
        assert_heard(speech(SPEECH_S, 1), await desk.heard())
        assert_heard(speech(SPEECH_S, 2), await carrier.heard())


async def test_asterisk_registers_and_calls_and_is_called_as_an_agent(tmp_path: Path) -> None:
    config = office("a0001", "a0002")
    async with (
        MurimaProcess(config, tmp_path / "murima") as murima,
        Asterisk(
            tmp_path / "asterisk",
            murima.remote,
            address=loopback_address(),
            account=("a0001", "secret"),
            numbers={"a0001": "talk"},
            play=write_words(tmp_path / "said", 3),
            transport="tcp",
        ) as asterisk,
        party("pjsua", tmp_path / "phone", "a0002", variant=4, **account(murima)) as phone,
    ):
        await murima.login()
        await asterisk.expect("registry", Status="Registered")
        await phone.dial("sip:a0001@pbx.local")
        await phone.talking()
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await phone.hang_up()
        await phone.ended()
        await asterisk.expect("hangup")
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())
        await until_free(murima, "a0001", "a0002")

        await asterisk.dial("a0002")  # murima asks for the password
        await phone.talking()
        await asyncio.sleep(TALK_S)
        await asterisk.hang_up()
        await phone.ended()
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())


async def test_we_register_with_asterisk_and_call_both_ways(tmp_path: Path) -> None:
    """Asterisk as a carrier with a password: our calls go out through a route, its calls come to our contact."""
    address = loopback_address()
    port = free_port(address)
    user, password = CUSTOMER
    config = office("a0001")
    config |= {
        "sip": {
            "trunks": [
                {
                    "name": "carrier",
                    "address": f"sip:{address}:{port}",
                    "register": {"username": user, "password": password, "expires_s": 60},
                    "caller_id": {"number": user},
                }
            ]
        },
        "routes": [{"name": "world", "match": "~0\\d{9}", "trunks": ["carrier"]}],
        "queues": [{"id": "support", "members": ["a0001"], "wrap_up_s": 0}],
        "numbers": {"500": {"queue": "support"}},
    }
    murima = MurimaProcess(config, tmp_path / "murima")
    async with (
        Asterisk(
            tmp_path / "carrier",
            murima.remote,
            address=address,
            port=port,
            customer=CUSTOMER,
            numbers={"0700111222": "talk"},
            play=write_words(tmp_path / "said", 5),
        ) as carrier,
        murima,
        party("baresip", tmp_path / "phone", "a0001", variant=6, **account(murima)) as phone,
    ):
        await murima.login()
        await carrier.expect("contactstatus", ContactStatus="NonQualified")
        await phone.dial("sip:0700111222@pbx.local")
        invite = await carrier.expect("newchannel")
        assert invite["CallerIDNum"] == user
        await phone.talking()
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await phone.hang_up()
        await carrier.expect("hangup")
        assert_heard(phone.words, await carrier.heard())
        assert_heard(speech(SPEECH_S, 5), phone.heard())
        await until_free(murima, "a0001")

        await carrier.dial("500")
        await phone.talking()
        await asyncio.sleep(TALK_S + LEAD_S)
        await carrier.hang_up()
        await phone.ended()
        assert_heard(phone.words, await carrier.heard())
        assert_heard(speech(SPEECH_S, 5), phone.heard())
