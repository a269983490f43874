"""Asterisk 22 at a trunk: as a carrier, as a PBX that registers with us, and as one that we register with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.peers.asterisk import Asterisk
from tests.peers.interop import account, all_of, assert_heard, office, until_free
from tests.peers.murima import MurimaProcess
from tests.peers.parties import SPEECH_S, TALK_S, party, write_words
from tests.ports import free_port, loopback_address
from tests.speech import speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

CUSTOMER = ("254201234567", "carrier-secret")
CARRIER, DESK, REGISTRAR = (loopback_address() for _ in range(3))
DESK_PORT, REGISTRAR_PORT = free_port(DESK), free_port(REGISTRAR)


class Site(NamedTuple):
    murima: MurimaProcess
    registrar: Asterisk  # the carrier that murima registers with


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    user, password = CUSTOMER
    config = office(
        *(f"a{number:04}" for number in range(1, 5)),
        sip={
            "trunks": [
                {"name": "carrier", "match": [CARRIER]},
                {
                    "name": "registrar",
                    "address": f"sip:{REGISTRAR}:{REGISTRAR_PORT}",
                    "register": {"username": user, "password": password, "expires_s": 60},
                    "caller_id": {"number": user},
                },
            ]
        },
        routes=[{"name": "world", "match": "~0\\d{9}", "trunks": ["registrar"]}],
        queues=[
            {"id": "desk", "members": ["a0001"], "wrap_up_s": 0},
            {"id": "phone", "members": ["a0004"], "wrap_up_s": 0},
        ],
        numbers={"501": {"queue": "desk"}, "504": {"queue": "phone"}},
    )
    config["agents"][0]["contact"] = f"sip:talk@{DESK}:{DESK_PORT}"
    murima = MurimaProcess(config, folder / "murima")
    async with (
        Asterisk(  # first, so that it hears our first REGISTER
            folder / "registrar",
            murima.remote,
            address=REGISTRAR,
            port=REGISTRAR_PORT,
            customer=CUSTOMER,
            numbers={"0700111222": "talk"},
            play=write_words(folder / "said", 5),
        ) as registrar,
        murima,
    ):
        await murima.login()
        yield Site(murima, registrar)


async def from_asterisk_through_a_queue_to_asterisk(site: Site, folder: Path) -> None:
    """One Asterisk is the carrier, matched by its address; another is where the agent's fixed contact lies."""
    remote = site.murima.remote
    async with (
        Asterisk(folder / "carrier", remote, address=CARRIER, play=write_words(folder / "caller", 1)) as carrier,
        Asterisk(folder / "desk", remote, address=DESK, port=DESK_PORT, play=write_words(folder / "agent", 2)) as desk,
    ):
        await carrier.dial("501", caller="0700111222")
        invite = await desk.expect("newchannel")
        assert invite["CallerIDNum"] == "0700111222"
        await desk.expect("mixmonitorstart")
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await carrier.hang_up()
        await desk.expect("hangup")
        assert_heard(speech(SPEECH_S, 1), await desk.heard())
        assert_heard(speech(SPEECH_S, 2), await carrier.heard())


async def asterisk_registers_as_an_agent(site: Site, folder: Path) -> None:
    """It calls, with a password, and is called."""
    async with (
        Asterisk(
            folder / "asterisk",
            site.murima.remote,
            address=loopback_address(),
            account=("a0002", "secret"),
            numbers={"a0002": "talk"},
            play=write_words(folder / "said", 3),
            transport="tcp",
        ) as asterisk,
        party("pjsua", folder / "phone", "a0003", variant=4, **account(site.murima)) as phone,
    ):
        await asterisk.expect("registry", Status="Registered")
        await phone.dial("sip:a0002@pbx.local")
        await phone.talking()
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await phone.hang_up()
        await phone.ended()
        await asterisk.expect("hangup")
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())
        await until_free(site.murima, "a0002", "a0003")

        await asterisk.dial("a0003")
        await phone.talking()
        await asyncio.sleep(TALK_S)
        await asterisk.hang_up()
        await phone.ended()
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())


async def we_register_with_asterisk(site: Site, folder: Path) -> None:
    """Our calls go out through a route, with a password; its calls come to the contact that we registered."""
    carrier = site.registrar
    async with party("baresip", folder / "phone", "a0004", variant=6, **account(site.murima)) as phone:
        await phone.dial("sip:0700111222@pbx.local")
        invite = await carrier.expect("newchannel")
        assert invite["CallerIDNum"] == CUSTOMER[0]
        await phone.talking()
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await phone.hang_up()
        await phone.ended()
        await carrier.expect("hangup")
        assert_heard(phone.words, await carrier.heard())
        assert_heard(speech(SPEECH_S, 5), phone.heard())
        await until_free(site.murima, "a0004")

        await carrier.dial("504")
        await phone.talking()
        await asyncio.sleep(TALK_S)
        await carrier.hang_up()
        await phone.ended()
        assert_heard(phone.words, await carrier.heard())
        assert_heard(speech(SPEECH_S, 5), phone.heard())


async def test_asterisk_calls_and_is_called_at_every_kind_of_trunk(tmp_path: Path, site: Site) -> None:
    await all_of(
        from_asterisk_through_a_queue_to_asterisk(site, tmp_path / "1"),
        asterisk_registers_as_an_agent(site, tmp_path / "2"),
        we_register_with_asterisk(site, tmp_path / "3"),
    )
