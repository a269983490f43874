"""Whatever is wrong outside gets the right SIP status or a clear message, and calls in progress go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.audio import align_and_correlate, save_wav
from tests.peers.murima import MurimaProcess
from tests.peers.rtp_phone import RtpBank
from tests.peers.sip_phone import Message, SipCall, SipPhone
from tests.peers.wire import Wire, credentials
from tests.ports import free_port, loopback_address
from tests.speech import RATE, speech

pytestmark = pytest.mark.asyncio(loop_scope="module")

CARRIER = loopback_address()
STRANGER = loopback_address()
AGENT = loopback_address()
AGENT_PORT = free_port(AGENT)
SEED = 20261123


def config() -> dict[str, Any]:
    return {
        "drain_s": 1,
        "sip": {"trunks": [{"name": "carrier", "match": [CARRIER]}]},
        "users": [{"username": "admin", "password": "secret", "role": "administrator"}],
        "agents": [
            {"id": "a0001", "password": "secret", "contact": f"sip:a0001@{AGENT}:{AGENT_PORT}", "auto_ready": True},
            {"id": "a0002", "password": "secret", "auto_ready": True},
        ],
        "queues": [
            {"id": "brief", "members": ["a0001"], "ring_timeout_s": 1},
            {"id": "nobody", "requires": {"greek": 50}},
        ],
        "prompts": {"welcome": "welcome.wav", "broken": "broken.wav"},
        "numbers": {
            "500": {"queue": "brief"},
            "501": {"queue": "nobody"},
            "600": {"answer": "silence"},
            "602": {"echo": True},
            "603": {"play": "broken", "then": "hangup"},
            "~7(.*)": {"agent": "\\1"},
            "~6(.{5})": {"agent": "\\1", "record": True},
        },
    }


@pytest.fixture(scope="module")
def bank() -> Iterator[RtpBank]:
    with RtpBank() as bank:
        yield bank


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def murima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MurimaProcess]:
    folder = tmp_path_factory.mktemp("bad-input")
    save_wav(folder / "welcome.wav", speech(1.0), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF\x10\0\0\0WAVEthis is no audio")
    async with MurimaProcess(config(), folder, rtp_ports=2000) as murima:
        await murima.login()
        await murima.database_connected()
        yield murima


@asynccontextmanager
async def call_up(murima: MurimaProcess, bank: RtpBank) -> AsyncIterator[SipCall]:
    """A call with echo: whatever happens meanwhile, it is still up and heard at the end."""
    async with SipPhone("1999", bank, address=CARRIER) as phone:
        call = phone.dial("602", murima.sip)
        await call.answered()
        yield call
        await still_heard(call)
        await call.hang_up()


async def still_heard(call: SipCall, variant: int = 9) -> None:
    said = speech(0.8, variant=variant)
    call.rtp.say(said)
    await call.rtp.until_quiet()
    assert align_and_correlate(said, call.rtp.heard(), RATE).correlation >= 0.95
    assert not call.end_reason


async def logged(murima: MurimaProcess, text: str) -> None:
    async with asyncio.timeout(10):
        while text not in murima.log():  # noqa: ASYNC110 - a log file does not tell
            await asyncio.sleep(0.05)


async def metric(murima: MurimaProcess, name: str) -> float:
    """Sum of a metric over its labels; 0 when it was never counted."""
    found = re.findall(rf"^murima_{name}(?:{{[^}}]*}})? (\S+)$", await murima.metrics(), re.MULTILINE)
    return sum(map(float, found))


async def no_call(murima: MurimaProcess) -> None:
    await murima.until("/api/v1/calls", lambda document: document["data"] == [])


async def agent_is(murima: MurimaProcess, agent: str, state: str, reason: str) -> None:
    def fits(document: dict[str, list[dict[str, object]]]) -> bool:
        return any((a["id"], a["state"], a["reason"]) == (agent, state, reason) for a in document["data"])

    await murima.until("/api/v1/agents", fits)


async def answers(murima: MurimaProcess) -> None:
    """It still answers over SIP."""
    async with Wire(STRANGER) as wire:
        assert (await wire.ask(wire.request("OPTIONS", f"sip:{murima.remote}"), murima.sip)).status == 200


# --- what stands in the way of a start ------------------------------------------------------


async def not_started(config: dict[str, Any], folder: Path, prepare: Callable[[MurimaProcess], None]) -> str:
    """Start murima, which must end with 1; returns what it says."""
    murima = MurimaProcess(config, folder)
    prepare(murima)
    try:
        await murima.start(ready=False)
        assert await murima.wait(20) == 1
        return murima.log()
    finally:
        await murima.stop()
        shutil.rmtree(murima.data)


def simple_config() -> dict[str, Any]:
    return {"numbers": {"600": {"answer": "silence"}}}


async def test_a_broken_configuration_is_named_by_key_line_and_remedy(tmp_path: Path) -> None:
    broken = {**simple_config(), "queues": [{"id": "sales", "strategy": "longest_idel"}]}
    said = await not_started(broken, tmp_path, lambda _: None)
    line = next(n for n, text in enumerate((tmp_path / "murima.yaml").read_text().splitlines(), 1) if "idel" in text)
    assert re.search(rf"murima\.yaml:{line}:\d+: queues\[0\]\.strategy: .*longest_idle", said)


async def test_a_missing_prompt_is_named(tmp_path: Path) -> None:
    missing = {"prompts": {"welcome": "nowhere.wav"}, "numbers": {"601": {"play": "welcome"}}}
    said = await not_started(missing, tmp_path, lambda _: None)
    assert "prompts.welcome" in said
    assert "nowhere.wav does not exist; create it" in said


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")])
async def test_a_port_in_use_names_who_uses_it(tmp_path: Path, kind: socket.SocketKind, protocol: str) -> None:
    with socket.socket(socket.AF_INET, kind) as other:

        def occupy(murima: MurimaProcess) -> None:
            other.bind((murima.address, murima.sip_port if protocol == "UDP" else murima.http_port))
            if protocol == "TCP":
                other.listen()

        said = await not_started(simple_config(), tmp_path, occupy)
    assert f"{protocol} port {other_port(said)} is in use by" in said
    assert f"(process {os.getpid()})" in said


def other_port(said: str) -> str:
    found = re.search(r"port (\d+) is in use", said)
    assert found, said
    return found[1]


async def test_a_recording_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def stand_in_the_way(murima: MurimaProcess) -> None:
        (murima.data / "recordings").write_text("a file, no folder")

    said = await not_started(simple_config(), tmp_path, stand_in_the_way)
    assert re.search(r"/recordings is a file; remove it", said)


# --- callers --------------------------------------------------------------------------------


async def test_strangers_learn_nothing(murima: MurimaProcess) -> None:
    before = await metric(murima, "sip_auth_refused_total")
    shapes = set()
    async with Wire(STRANGER) as wire:
        for number in ("600", "999", "501", "a0001"):
            for user in ("a0001", "nobody", "admin"):
                uri = f"sip:{number}@{murima.remote}"
                answer = await wire.ask(wire.request("INVITE", uri, user=user, body=wire.sdp()), murima.sip)
                assert answer.status == 401
                lengths = tuple((name, len(value)) for name, value in answer.headers if name != "to")
                shapes.add((answer.start, tuple(name for name, _ in lengths)))
    assert len(shapes) == 1
    assert await metric(murima, "sip_auth_refused_total") == before + 12
    assert (await murima.get("/api/v1/calls"))["data"] == []


async def test_wrong_passwords(murima: MurimaProcess) -> None:
    registrar = f"sip:{murima.remote}"
    number = f"sip:600@{murima.remote}"
    async with Wire(STRANGER) as wire:

        async def attempt(method: str, uri: str, user: str, password: str, claimed: str = "") -> int:
            body = wire.sdp() if method == "INVITE" else ""
            to = f"sip:{claimed or user}@pbx.local" if method == "REGISTER" else None

            def request(*headers: str) -> bytes:
                return wire.request(method, uri, user=claimed or user, to=to, headers=headers, body=body)

            challenge = await wire.ask(request(), murima.sip)
            assert challenge.status == 401
            answer = await wire.ask(request(credentials(challenge, method, uri, user, password)), murima.sip)
            return answer.status or 0

        assert await attempt("REGISTER", registrar, "a0002", "wrong") == 401
        assert await attempt("REGISTER", registrar, "nobody", "secret") == 401
        assert await attempt("INVITE", number, "a0002", "wrong") == 401
        assert await attempt("INVITE", number, "nobody", "secret") == 401
        (agent,) = (a for a in (await murima.get("/api/v1/agents"))["data"] if a["id"] == "a0002")
        assert (agent["state"], agent["reachable"]) == ("offline", False)
        # Who proves to be somebody, and asks for what is another's, is told so.
        assert await attempt("REGISTER", registrar, "a0002", "secret", claimed="a0001") == 403
        assert await attempt("REGISTER", registrar, "a0002", "secret") == 200
        await agent_is(murima, "a0002", "ready", "reachable")
        assert await attempt("INVITE", f"sip:999@{murima.remote}", "a0002", "secret") == 404


async def test_numbers_that_lead_nowhere(murima: MurimaProcess, bank: RtpBank) -> None:
    async with call_up(murima, bank), SipPhone("1000", bank, address=CARRIER) as phone:
        for number, status in (("999", 404), ("7nobody", 404), ("501", 480)):
            call = phone.dial(number, murima.sip)
            assert await call.ended(5) == "refused"
            assert call.status == status, number
            with pytest.raises(Exception, match="did not be answered"):
                await call.answered()


@pytest.mark.parametrize(
    ("media", "content_type", "statuses"),
    [
        ("m=audio 4000 RTP/AVP 0\r\n", "text/plain", {415}),
        ("m=video 4000 RTP/AVP 96\r\n", "application/sdp", {488}),
        ("m=audio 4000 RTP/AVP 96\r\na=rtpmap:96 speex/16000\r\n", "application/sdp", {488}),
        ("m=audio 0 RTP/AVP 0\r\n", "application/sdp", {488}),
        ("m=audio 4000 RTP/AVP\r\n", "application/sdp", {400, 488}),
        ("m=audio 99999 RTP/AVP 0\r\n", "application/sdp", {400, 488}),
        ("m=audio -1 RTP/AVP 0\r\n", "application/sdp", {400, 488}),
        ("c=IN IP4 999.1.1.1\r\nm=audio 4000 RTP/AVP 0\r\nc=IN IP4 999.1.1.1\r\n", "application/sdp", {400, 488}),
        ("m=\r\n" * 2000, "application/sdp", {400, 488, 513}),
        ("\0\xff\r\n", "application/sdp", {400, 488}),
    ],
)
async def test_offers_that_make_no_sense(
    murima: MurimaProcess, media: str, content_type: str, statuses: set[int]
) -> None:
    async with Wire(CARRIER) as wire:
        body = wire.sdp(media)
        request = wire.request("INVITE", f"sip:602@{murima.remote}", body=body, content_type=content_type)
        assert (await wire.ask(request, murima.sip)).status in statuses
        garbage = wire.request("INVITE", f"sip:602@{murima.remote}", body="no SDP", content_type=content_type)
        assert (await wire.ask(garbage, murima.sip)).status in {400, 415}
    await no_call(murima)


async def test_a_bad_change_of_a_session_leaves_it_as_it_was(murima: MurimaProcess, bank: RtpBank) -> None:
    async with call_up(murima, bank) as call:
        for body in ("no SDP", "v=0\r\n", "v=0\r\no=- 1 2 IN IP4 x\r\ns=-\r\nt=0 0\r\nm=audio 1 RTP/AVP 96\r\n"):
            answer = await call.phone.request(call, "UPDATE", body)
            assert answer.status in {400, 488}
            await still_heard(call)


# --- floods of nonsense ---------------------------------------------------------------------


def mutated(message: bytes, chance: random.Random) -> bytes:
    """Break a message somehow."""
    data = bytearray(message)
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randrange(1, 40))
        match chance.randrange(7):
            case 0:
                data[start:end] = chance.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end] * chance.randrange(1, 30)
            case 3:
                del data[start:]
            case 4:
                numbers = [m.span() for m in re.finditer(rb"\d+", bytes(data))] or [(0, 0)]
                low, high = chance.choice(numbers)
                data[low:high] = chance.choice([b"-1", b"99999999999999999999", b"\xb2", b"4294967296", b"0"])
            case 5:
                lines = bytes(data).split(b"\r\n")
                chance.shuffle(lines)
                data[:] = b"\r\n".join(lines)
            case _:
                data[start:start] = chance.choice(
                    [b"\r\n", b"\0", b"<", b'"', b";tag=", b"\xc3\x28", b"%00", b":", b","]
                )
        if not data:
            break
    return bytes(data[:60_000])


async def test_a_flood_of_broken_datagrams(murima: MurimaProcess, bank: RtpBank) -> None:
    chance = random.Random(SEED)
    async with call_up(murima, bank), Wire(STRANGER) as stranger, Wire(CARRIER) as trunk:
        log_before = len(murima.log().splitlines())
        counted_before = await metric(murima, "sip_rejected_total") + await metric(murima, "sip_auth_refused_total")
        for number in range(600):
            method = chance.choice(["INVITE", "INVITE", "REGISTER", "BYE", "CANCEL", "ACK", "OPTIONS", "MESSAGE"])
            good = stranger.request(method, f"sip:600@{murima.remote}", body=stranger.sdp())
            stranger.send(chance.randbytes(chance.randrange(1, 800)), murima.sip)
            stranger.send(mutated(good, chance), murima.sip)
            stranger.send(mutated(b"SIP/2.0 200 OK" + good[good.index(b"\r\n") :], chance), murima.sip)
            if number % 20 == 0:
                await asyncio.sleep(0.002)  # a socket buffer holds only so much
        await answers(murima)
        counted = await metric(murima, "sip_rejected_total") + await metric(murima, "sip_auth_refused_total")
        assert counted > counted_before + 300
        assert len(murima.log().splitlines()) <= log_before + 3
        # A trunk's broken calls to a number that does not exist, refused like whole ones.
        for number in range(300):
            trunk.send(
                mutated(trunk.request("INVITE", f"sip:999@{murima.remote}", body=trunk.sdp()), chance), murima.sip
            )
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await answers(murima)
    assert await metric(murima, "sip_faults_total") == 0
    await no_call(murima)


async def test_broken_streams(murima: MurimaProcess, bank: RtpBank) -> None:
    chance = random.Random(SEED)
    async with call_up(murima, bank), Wire(STRANGER) as wire:
        good = wire.request("OPTIONS", f"sip:{murima.remote};transport=tcp").replace(b"SIP/2.0/UDP", b"SIP/2.0/TCP")
        log_before = len(murima.log().splitlines())
        floods = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
            good.replace(b"Content-Length: 0", b"Content-Length: -1"),
            good.replace(b"Content-Length: 0", b"Content-Length: 99999999999"),
            good.replace(b"Content-Length: 0\r\n", b""),
            b"OPTIONS " + b"x" * 200_000,
            b"\r\n\r\n" * 5000,
            good[:100],
            *(mutated(good, chance) for _ in range(100)),
            *(chance.randbytes(chance.randrange(1, 3000)) for _ in range(30)),
        ]
        for flood in floods:
            await pour(flood, murima, STRANGER)
        reader, writer = await connect(murima, STRANGER)
        writer.write(good[:50])
        await writer.drain()
        writer.write(good[50:] + good)
        for _ in range(2):
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"SIP/2.0 200 OK")
        writer.close()
        assert len(murima.log().splitlines()) <= log_before + 3
    assert await metric(murima, "sip_faults_total") == 0


async def connect(murima: MurimaProcess, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*murima.sip, local_addr=(address, 0))


async def pour(data: bytes, murima: MurimaProcess, address: str) -> None:
    """Send it all on a connection of its own; being cut off is fine."""
    _, writer = await connect(murima, address)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def test_rubbish_on_a_media_port(murima: MurimaProcess, bank: RtpBank) -> None:
    chance = random.Random(SEED)
    async with call_up(murima, bank) as call:
        await still_heard(call, variant=3)
        log_before = len(murima.log().splitlines())
        host, port = call.rtp.remote or ("", 0)
        packet = bytes([0x80, 0]) + chance.randbytes(170)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((STRANGER, 0))
            for number in range(400):
                rubbish = chance.choice(
                    [b"", packet, chance.randbytes(chance.randrange(1, 1500)), mutated(packet, chance)]
                )
                stranger.sendto(rubbish, (host, port))
                stranger.sendto(rubbish, (host, port + 1))
                # From the phone itself: what is no RTP, or of a payload type that nobody agreed on.
                own = chance.choice(
                    [b"\0" * 40, b"\x80\xff" + bytes(30), b"\x80\x60" + bytes(170), chance.randbytes(11)]
                )
                call.rtp.socket.sendto(own, (host, port))
                if number % 20 == 0:
                    await asyncio.sleep(0.002)
        await still_heard(call, variant=4)
        assert len(murima.log().splitlines()) <= log_before + 3


# --- files ----------------------------------------------------------------------------------


async def test_a_prompt_that_is_no_audio(murima: MurimaProcess, bank: RtpBank) -> None:
    await logged(murima, "prompt.failed")
    assert "broken.wav" in murima.log()
    async with SipPhone("1000", bank, address=CARRIER) as phone:
        call = phone.dial("603", murima.sip)
        await call.answered()
        assert await call.ended(5) == "bye"  # nothing to play: on to what comes then
    await no_call(murima)


async def test_recordings_that_cannot_be_written(murima: MurimaProcess, bank: RtpBank) -> None:
    folder, away = murima.data / "recordings", murima.data / "elsewhere"
    folder.rename(away)
    folder.write_text("in the way")
    try:
        async with (
            SipPhone("a0001", bank, address=AGENT, port=AGENT_PORT) as agent,
            SipPhone("1000", bank, address=CARRIER) as phone,
        ):
            call = phone.dial("6a0001", murima.sip)
            await call.answered()
            offered = await agent.incoming.get()
            said = speech(1.0, variant=2)
            call.rtp.say(said)
            await call.rtp.until_quiet()
            assert align_and_correlate(said, offered.rtp.heard(), RATE).correlation >= 0.95
            await call.hang_up()
    finally:
        folder.unlink()
        away.rename(folder)
    await logged(murima, "recording.failed")
    document = await murima.until(
        "/api/v1/interactions?filter=dialled:6a0001",
        lambda document: document["data"] and document["data"][0]["recording_error"],
    )
    assert "FileExists" in document["data"][0]["recording_error"]


# --- agents' phones -------------------------------------------------------------------------


def response(request: Message, status: str, contact: str, body: str = "") -> bytes:
    lines = [
        f"SIP/2.0 {status}",
        f"Via: {request.get('via')}",
        f"From: {request.get('from')}",
        f"To: {request.get('to')};tag=odd",
        f"Call-ID: {request.get('call-id')}",
        f"CSeq: {request.get('cseq')}",
        f"Contact: <{contact}>",
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


CONTACT = f"sip:a0001@{AGENT}:{AGENT_PORT}"
SDP = f"v=0\r\no=- 1 1 IN IP4 {AGENT}\r\ns=-\r\nc=IN IP4 {AGENT}\r\nt=0 0\r\n"

BROKEN_ANSWERS: dict[str, Callable[[Message], Iterable[bytes]]] = {
    "no session description": lambda m: [response(m, "200 OK", CONTACT)],
    "no SDP": lambda m: [response(m, "200 OK", CONTACT, "garbage")],
    "a codec that nobody offered": lambda m: [response(m, "200 OK", CONTACT, SDP + "m=audio 4000 RTP/AVP 18\r\n")],
    "audio declined": lambda m: [response(m, "200 OK", CONTACT, SDP + "m=audio 0 RTP/AVP 0\r\n")],
    "a contact that is none": lambda m: [response(m, "200 OK", "nonsense", SDP + "m=audio 4000 RTP/AVP 0\r\n")],
}
NO_ANSWERS: dict[str, Callable[[Message], Iterable[bytes]]] = {
    "silence": lambda _: [],
    "garbage": lambda _: [b"\0\x01\x02 garbage", b"SIP/2.0 OK\r\n\r\n", b"SIP/2.0 999 What\r\n\r\n"],
    "a status that is none": lambda m: [response(m, "999 What", CONTACT), response(m, "2000 OK", CONTACT)],
    "a response to something else": lambda m: [response(m, "200 OK", CONTACT).replace(b";branch=", b";branch=x")],
}


@pytest.mark.parametrize("kind", BROKEN_ANSWERS)
async def test_an_agents_phone_that_answers_with_nonsense(murima: MurimaProcess, bank: RtpBank, kind: str) -> None:
    def reply(message: Message) -> Iterable[bytes]:
        if message.method == "INVITE":
            return BROKEN_ANSWERS[kind](message)
        return [response(message, "200 OK", CONTACT)] if message.method == "BYE" else []

    async with Wire(AGENT, AGENT_PORT, reply) as agent, SipPhone("1000", bank, address=CARRIER) as phone:
        call = phone.dial("7a0001", murima.sip)
        assert await call.ended(5) == "refused"
        assert call.status == 502
        methods = [(await asyncio.wait_for(agent.arrived.get(), 5)).method for _ in range(3)]
        assert methods == ["INVITE", "ACK", "BYE"]  # the phone is not left hanging
    await no_call(murima)


@pytest.mark.parametrize("kind", NO_ANSWERS)
async def test_an_agents_phone_that_does_not_reply(murima: MurimaProcess, bank: RtpBank, kind: str) -> None:
    await murima.put("/api/v1/agents/a0001/state", {"state": "ready"})
    async with (
        call_up(murima, bank),
        Wire(AGENT, AGENT_PORT, lambda m: NO_ANSWERS[kind](m) if m.method == "INVITE" else ()) as agent,
        SipPhone("1000", bank, address=CARRIER) as phone,
    ):
        call = phone.dial("500", murima.sip)
        await call.answered()
        assert (await asyncio.wait_for(agent.arrived.get(), 5)).method == "INVITE"
        await agent_is(murima, "a0001", "break", "no-answer")
        assert not call.end_reason  # the caller waits on
        await call.hang_up()
    await no_call(murima)


async def test_an_agents_phone_that_only_rings(murima: MurimaProcess, bank: RtpBank) -> None:
    await murima.put("/api/v1/agents/a0001/state", {"state": "ready"})
    async with (
        SipPhone("a0001", bank, address=AGENT, port=AGENT_PORT, answer=180) as agent,
        SipPhone("1000", bank, address=CARRIER) as phone,
    ):
        call = phone.dial("500", murima.sip)
        async with asyncio.timeout(5):
            offered = await agent.incoming.get()
        assert await offered.ended(5) == "cancel"
        await agent_is(murima, "a0001", "break", "no-answer")
        assert not call.end_reason
        await call.hang_up()
    await no_call(murima)


async def test_calls_between_phones_that_talk_nonsense(murima: MurimaProcess, bank: RtpBank) -> None:
    """The last test here, because some of its calls stay up until somebody finds out that nobody is there."""
    chance = random.Random(SEED)
    answer = SDP + "m=audio 4000 RTP/AVP 0\r\n"

    def agent_says(message: Message) -> list[bytes]:
        if message.status is not None or message.method == "ACK":
            return []
        if message.method != "INVITE":
            return [mutated(response(message, "200 OK", CONTACT), chance), response(message, "200 OK", CONTACT)]
        status = chance.choice(["200 OK", "200 OK", "302 Moved", "401 Unauthorized", "486 Busy Here", "603 Decline"])
        good = [response(message, "183 Session Progress", CONTACT, answer), response(message, status, CONTACT, answer)]
        return [mutated(one, chance) if chance.random() < 0.7 else one for one in good]

    def caller_says(message: Message) -> list[bytes]:
        if message.status is None or message.get("cseq") != "1 INVITE" or message.status < 200:
            return []
        said = [within(message, "ACK", 1)]
        for number in range(2, 5):
            method = chance.choice(["INVITE", "UPDATE", "INFO", "OPTIONS", "PRACK", "MESSAGE", "REFER", "CANCEL"])
            said.append(mutated(within(message, method, number, answer), chance))
        return [*said, *([within(message, "BYE", 9)] if chance.random() < 0.8 else [])]

    def within(message: Message, method: str, number: int, body: str = "") -> bytes:
        lines = wire.request(method, f"sip:murima@{murima.remote}", body=body).decode().split("\r\n")
        told = {name: f"{name}: {message.get(name.lower())}" for name in ("From", "To", "Call-ID")}
        told["CSeq"] = f"CSeq: {number} {method}"
        return "\r\n".join(told.get(line.partition(":")[0], line) for line in lines).encode()

    faults = await metric(murima, "sip_faults_total")
    async with (
        call_up(murima, bank),
        Wire(AGENT, AGENT_PORT, agent_says),
        Wire(CARRIER, reply=caller_says) as wire,
    ):
        for _ in range(300):
            number = chance.choice(["500", "602", "603", "600", "7a0001", "6a0001", "501"])
            invite = wire.request("INVITE", f"sip:{number}@{murima.remote}", body=wire.sdp())
            wire.send(mutated(invite, chance) if chance.random() < 0.3 else invite, murima.sip)
            await asyncio.sleep(0.01)  # a call takes a moment
        await answers(murima)
        assert await metric(murima, "sip_faults_total") == faults == 0
        assert "Traceback" not in murima.log()
