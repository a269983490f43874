"""Phones and switches of other makes over TLS and WSS, who check our certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.certificates import Authority, Files
from tests.peers.asterisk import Asterisk
from tests.peers.interop import account, all_of, assert_heard, office, until_free
from tests.peers.jssip_phone import JsSip
from tests.peers.murima import MurimaProcess
from tests.peers.parties import SPEECH_S, TALK_S, party, write_words
from tests.peers.process import PeerError
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import SipPhone
from tests.ports import free_port, loopback_address
from tests.speech import speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASTERISK = loopback_address()
ASTERISK_PORT = free_port(ASTERISK)
CALLER = loopback_address()


class Secure(NamedTuple):
    """A murima with a TLS listener and HTTPS, and the files for those who talk to it."""

    murima: MurimaProcess
    remote: str  # `host:port` of its TLS listener
    ca: Path
    asterisk: Files


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secure(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secure]:
    folder = tmp_path_factory.mktemp("murima")
    address = loopback_address()
    port = free_port(address, span=2)
    authority = Authority(folder)
    files = authority.issue(address, "pbx.local", file="murima")
    tls = {"certificate": files.certificate.name, "key": files.key.name}
    config = office(*(f"a{number:04}" for number in range(1, 5)))
    config |= {
        "sip": {
            "listen": [f"udp:{address}:{port}", f"tls:{address}:{port + 1}"],
            "tls": {**tls, "ca": authority.root.name},
            "trunks": [
                {"name": "plain", "match": [CALLER]},
                {
                    "name": "asterisk",
                    "match": [ASTERISK],
                    "address": f"sip:{ASTERISK}:{ASTERISK_PORT};transport=tls",
                },
            ],
        },
        "http": {"tls": tls},
        "numbers": {"~7(\\d{4})": {"agent": "a\\1"}},
        "routes": [{"name": "world", "match": "~0\\d{9}", "trunks": ["asterisk"]}],
    }
    trust = ssl.create_default_context(cafile=str(authority.root))
    async with MurimaProcess(config, folder, address=address, tls=trust) as murima:
        await murima.login()
        yield Secure(murima, f"{address}:{port + 1}", authority.root, authority.issue(ASTERISK, file="asterisk"))


async def call_over_tls(secure: Secure, folder: Path, caller_make: str, agent_make: str, first_agent: int) -> None:
    caller_id, agent_id = f"a{first_agent:04}", f"a{first_agent + 1:04}"
    options = account(secure.murima, transport="tls", proxy=secure.remote, ca=secure.ca)
    async with (
        party(agent_make, folder / "agent", agent_id, variant=1, **options) as agent,
        party(caller_make, folder / "caller", caller_id, variant=2, **options) as caller,
    ):
        await until_free(secure.murima, caller_id, agent_id)
        await caller.dial(f"sip:{agent_id}@pbx.local")
        await asyncio.gather(caller.talking(), agent.talking())
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await agent.hang_up()
        await asyncio.gather(caller.ended(), agent.ended())
        assert_heard(caller.words, agent.heard())
        assert_heard(agent.words, caller.heard())


async def test_phones_call_each_other_over_tls(tmp_path: Path, secure: Secure) -> None:
    await all_of(
        call_over_tls(secure, tmp_path / "1", "linphone", "baresip", 1),
        call_over_tls(secure, tmp_path / "2", "baresip", "linphone", 3),
    )


async def test_asterisk_is_called_and_calls_over_tls(tmp_path: Path, secure: Secure) -> None:
    async with (
        Asterisk(
            tmp_path / "asterisk",
            secure.remote,
            address=ASTERISK,
            port=ASTERISK_PORT,
            numbers={"0700111222": "talk"},
            play=write_words(tmp_path / "said", 3),
            transport="tls",
            certificate=secure.asterisk,
            ca=secure.ca,
        ) as asterisk,
        party("pjsua", tmp_path / "phone", "a0001", variant=4, **account(secure.murima, proxy=_udp(secure))) as phone,
    ):
        await until_free(secure.murima, "a0001")
        await phone.dial("sip:0700111222@pbx.local")
        await phone.talking()
        await asyncio.sleep(TALK_S)  # the speech takes its time
        await phone.hang_up()
        await phone.ended()
        await asterisk.expect("hangup")
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())
        await until_free(secure.murima, "a0001")

        await asterisk.dial("70001")
        await phone.talking()
        await asyncio.sleep(TALK_S)
        await asterisk.hang_up()
        await phone.ended()
        assert_heard(phone.words, await asterisk.heard())
        assert_heard(speech(SPEECH_S, 3), phone.heard())


def _udp(secure: Secure) -> str:
    host, port = secure.remote.split(":")
    return f"{host}:{int(port) - 1}"


async def test_jssip_registers_asks_and_is_called_over_wss(tmp_path: Path, secure: Secure) -> None:
    murima = secure.murima
    url = f"wss://{murima.address}:{murima.http_port}/sip"
    with RtpBank() as bank:
        async with SipPhone("0700111222", bank, address=CALLER) as caller:
            async with JsSip(tmp_path / "jssip", url, "a0003", password="secret", ca=secure.ca) as phone:
                registered = await phone.register()
                assert registered["code"] == 200
                assert len(registered["contacts"]) == 1
                await murima.until("/api/v1/agents/a0003", lambda answer: answer["data"]["state"] == "ready")
                options = await phone.options("sip:pbx.local")
                assert options["code"] == 200
                assert "INVITE" in options["allow"]
                host, port = _udp(secure).split(":")
                call = caller.dial("70003", (host, int(port)))
                assert await call.ended() == "refused"
                assert call.status == 488  # from JsSIP, because Node has no audio
                await phone.unregister()
                await murima.until("/api/v1/agents/a0003", lambda answer: answer["data"]["state"] == "offline")
            async with JsSip(tmp_path / "wrong", url, "a0003", password="wrong", ca=secure.ca) as stranger:
                with pytest.raises(PeerError, match="401"):
                    await stranger.register()
