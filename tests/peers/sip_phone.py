"""A small SIP phone of our own for tests: many calls in one process, RTP by `RtpPhone`.

It shares no code with the product. It speaks just enough of RFC 3261 over UDP
to call, ring, answer, refuse, cancel and hang up, and repeats its requests
until they are answered. Passwords are for baresip and pjsua2.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.peers.process import PeerError
from tests.peers.rtp_phone import RtpBank, RtpPhone
from tests.ports import free_port

Address = tuple[str, int]

_T1_S = 0.5
_TRIES = 6


@dataclass(slots=True)
class Message:
    """A SIP message taken apart; header names in lower case, in order."""

    start: str
    headers: list[tuple[str, str]]
    body: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        head, _, body = data.decode(errors="replace").partition("\r\n\r\n")
        start, *lines = head.split("\r\n")
        fields = [line.partition(":") for line in lines if ":" in line]
        return cls(start, [(name.strip().lower(), value.strip()) for name, _, value in fields], body)

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def status(self) -> int | None:
        """The status of a response; None for a request."""
        return int(self.start.split()[1]) if self.start.startswith("SIP/2.0 ") else None

    @property
    def method(self) -> str:
        return self.get("cseq").split()[-1] if self.status is not None else self.start.split()[0]


@dataclass(eq=False, slots=True)
class SipCall:
    """One call of a `SipPhone`, dialled or taken."""

    phone: SipPhone
    sip_call_id: str
    local: str  # From of our requests, with tag
    remote: str  # To of our requests, with tag once known
    target: str  # request URI of our requests
    peer: Address
    rtp: RtpPhone
    outgoing: bool
    request: Message | None = None  # the INVITE that came in
    branch: str = ""
    route: list[str] = field(default_factory=list)
    status: int = 0  # of the last response to our INVITE
    response: Message | None = None  # the final one
    end_reason: str = ""  # "bye" from them, or "cancel", "refused", "hung up"
    _heard: asyncio.Event = field(default_factory=asyncio.Event)  # any response: the INVITE has arrived
    _rang: asyncio.Event = field(default_factory=asyncio.Event)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(2))

    async def ringing(self, timeout_s: float = 10.0) -> None:
        """Wait for 180 or 183. Raises PeerError when it does not come."""
        await self._await(self._rang, "ring", timeout_s)

    async def answered(self, timeout_s: float = 10.0) -> None:
        """Wait until the call is up. Raises PeerError when it is refused or takes longer."""
        await self._await(self._answered, "be answered", timeout_s)

    async def ended(self, timeout_s: float = 10.0) -> str:
        """Wait for the end; returns why: "bye", "cancel", "refused" or "hung up"."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            raise PeerError(f"call of {self.phone.user} did not end within {timeout_s} s") from None
        return self.end_reason

    async def _await(self, event: asyncio.Event, what: str, timeout_s: float) -> None:
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not event.is_set():
            state = f"{self.end_reason} {self.status}" if self._ended.is_set() else f"nothing in {timeout_s} s"
            raise PeerError(f"call of {self.phone.user} to {self.target} did not {what}: {state}")

    def ring(self) -> None:
        """Answer an incoming call with 180."""
        self.phone.respond(self, 180, "Ringing")

    def answer(self) -> None:
        """Answer an incoming call with 200."""
        self.phone.accept(self)

    def refuse(self, status: int = 486, reason: str = "Busy Here") -> None:
        self.phone.respond(self, status, reason)
        self.finish("refused")

    async def hang_up(self) -> None:
        """BYE, or CANCEL before the answer; returns when the other side has confirmed. Ended already is fine."""
        if self._ended.is_set():
            return
        if self._answered.is_set():
            await self.phone.request(self, "BYE")
            self.finish("hung up")
        elif self.outgoing:
            await self.phone.request(self, "CANCEL")
            with contextlib.suppress(PeerError):
                await self._await(self._answered, "be cancelled", 10)
            if self._answered.is_set() and not self._ended.is_set():  # the answer crossed our CANCEL
                await self.hang_up()
            await self.ended()
        else:
            self.refuse()

    def finish(self, reason: str) -> None:
        if not self._ended.is_set():
            self.end_reason = reason
            self.rtp.sending = False
            self._ended.set()


class SipPhone(asyncio.DatagramProtocol):
    """A phone with one UDP socket; `async with SipPhone("1000", bank) as phone`.

    Args:
        user: user part of its address.
        bank: serves the RTP of its calls.
        address: loopback address to bind.
        port: SIP port; a free one by default.
        answer: what it does when called: 200 answers at once (180 first), 180 rings until
            `SipCall.answer`, any other status refuses.
        payload_type: 0 (PCMU) or 8 (PCMA).
    """

    def __init__(
        self,
        user: str,
        bank: RtpBank,
        *,
        address: str = "127.0.0.1",
        port: int | None = None,
        answer: int = 200,
        payload_type: int = 0,
    ) -> None:
        self.user = user
        self.address = address
        self.port = port if port is not None else free_port(address)
        self.incoming: asyncio.Queue[SipCall] = asyncio.Queue()
        self._bank = bank
        self._answer = answer
        self._payload_type = payload_type
        self._calls: dict[str, SipCall] = {}
        self._waiting: dict[tuple[str, str], asyncio.Future[Message]] = {}
        self._repeats: set[asyncio.Task[None]] = set()
        self._acked: dict[str, asyncio.Event] = {}
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def uri(self) -> str:
        return f"sip:{self.user}@{self.address}:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        local = (self.address, self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=local)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await asyncio.gather(*(call.hang_up() for call in self._calls.values()))
        for task in tuple(self._repeats):
            task.cancel()
        for call in self._calls.values():
            call.finish("hung up")
            self._bank.remove(call.rtp)
        if self._transport is not None:
            self._transport.close()

    def vanish(self) -> None:
        """Drop off the network: no BYE, no RTP, no answer."""
        for call in self._calls.values():
            call.finish("hung up")
        if self._transport is not None:
            self._transport.close()

    def dial(self, number: str, remote: Address) -> SipCall:
        """Send an INVITE for this number to `remote`; await `answered` on the call that is returned."""
        host = f"{remote[0]}:{remote[1]}"
        call = SipCall(
            phone=self,
            sip_call_id=secrets.token_hex(8),
            local=f"<sip:{self.user}@{self.address}:{self.port}>;tag={secrets.token_hex(4)}",
            remote=f"<sip:{number}@{host}>",
            target=f"sip:{number}@{host}",
            peer=remote,
            rtp=self._rtp(),
            outgoing=True,
            branch=_branch(),
        )
        self._calls[call.sip_call_id] = call
        self._repeat(self._request(call, "INVITE", 1, call.branch, self._sdp(call)), remote, call._heard)
        return call

    def _rtp(self) -> RtpPhone:
        return self._bank.add(RtpPhone(self.address, payload_type=self._payload_type))

    def _sdp(self, call: SipCall) -> str:
        pt, name = (0, "PCMU") if self._payload_type == 0 else (8, "PCMA")
        return (
            f"v=0\r\no=- 1 1 IN IP4 {self.address}\r\ns=-\r\nc=IN IP4 {self.address}\r\nt=0 0\r\n"
            f"m=audio {call.rtp.port} RTP/AVP {pt} 101\r\na=rtpmap:{pt} {name}/8000\r\n"
            "a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n"
        )

    def _request(self, call: SipCall, method: str, sequence: int, branch: str, body: str = "") -> bytes:
        lines = [
            f"{method} {call.target} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.address}:{self.port};branch={branch};rport",
            "Max-Forwards: 70",
            *(f"Route: {route}" for route in call.route),
            f"From: {call.local}",
            f"To: {call.remote}",
            f"Call-ID: {call.sip_call_id}",
            f"CSeq: {sequence} {method}",
            f"Contact: <{self.uri}>",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    async def request(self, call: SipCall, method: str, body: str = "") -> Message:
        """Send a request within the call, with this body as SDP, and return its final response.

        Raises:
            PeerError: none came.
        """
        cancel = method == "CANCEL"
        sequence = 1 if cancel else next(call._sequence)
        branch = call.branch if cancel else _branch()
        answer = asyncio.get_running_loop().create_future()
        self._waiting[call.sip_call_id, f"{sequence} {method}"] = answer
        done = asyncio.Event()
        self._repeat(self._request(call, method, sequence, branch, body), call.peer, done)
        try:
            async with asyncio.timeout(_T1_S * 2**_TRIES):
                response: Message = await answer
                return response
        except TimeoutError:
            raise PeerError(f"no answer to the {method} of {self.user}") from None
        finally:
            done.set()

    def _send(self, data: bytes, peer: Address) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, peer)

    def _repeat(self, data: bytes, peer: Address, until: asyncio.Event) -> None:
        """Send now, and again at doubling intervals until the event is set (RFC 3261 timers A and E)."""

        async def again() -> None:
            for attempt in range(_TRIES):
                try:
                    async with asyncio.timeout(_T1_S * 2**attempt):
                        await until.wait()
                        return
                except TimeoutError:
                    self._send(data, peer)

        self._send(data, peer)
        task = asyncio.ensure_future(again())
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not data.strip():
            return  # keep-alive
        message = Message.parse(data)
        call = self._calls.get(message.get("call-id"))
        if message.status is not None:
            if call is not None:
                self._on_response(call, message)
            return
        if message.method == "INVITE" and call is None:
            self._on_invite(message, addr)
        elif message.method == "ACK":
            if call is not None:
                self._acked[call.sip_call_id].set()
        elif call is None:
            self._send(_response(message, 481 if message.method != "OPTIONS" else 200, "-", "x"), addr)
        elif message.method == "CANCEL":
            self._send(_response(message, 200, "OK", _tag(call.local)), addr)
            if not call._answered.is_set():
                self.respond(call, 487, "Request Terminated")
                call.finish("cancel")
        elif message.method == "INVITE":  # a changed session: the same answer again
            self._take_sdp(call, message.body)
            self._send(_response(message, 200, "OK", _tag(call.local), self._contact(), self._sdp(call)), addr)
        else:
            self._send(_response(message, 200, "OK", _tag(call.local)), addr)
            if message.method == "BYE":
                call.finish("bye")

    def _on_response(self, call: SipCall, message: Message) -> None:
        status = message.status or 0
        if message.method != "INVITE":
            waiting = self._waiting.get((call.sip_call_id, message.get("cseq")))
            if status >= 200 and waiting is not None and not waiting.done():
                waiting.set_result(message)
            return
        call._heard.set()
        call.status = max(call.status, status)
        if status > 100:
            call._rang.set()
        if status < 200:
            return
        call.remote = message.get("to")
        call.response = message
        if status < 300:
            match = re.search(r"sip:[^>;\s]+", message.get("contact"))
            call.target = match[0] if match else call.target
            call.route = list(reversed(message.all("record-route")))
            self._send(self._request(call, "ACK", 1, _branch()), call.peer)
            self._take_sdp(call, message.body)
            call._answered.set()
        else:
            self._send(self._request(call, "ACK", 1, call.branch), call.peer)
            call.finish("cancel" if status == 487 else "refused")

    def _on_invite(self, message: Message, peer: Address) -> None:
        match = re.search(r"sip:[^>;\s]+", message.get("contact"))
        call = SipCall(
            phone=self,
            sip_call_id=message.get("call-id"),
            local=f"{message.get('to')};tag={secrets.token_hex(4)}",
            remote=message.get("from"),
            target=match[0] if match else f"sip:{peer[0]}:{peer[1]}",
            peer=peer,
            rtp=self._rtp(),
            outgoing=False,
            request=message,
            route=message.all("record-route"),
        )
        self._calls[call.sip_call_id] = call
        self._acked[call.sip_call_id] = asyncio.Event()
        self._take_sdp(call, message.body)
        if self._answer == 200:
            call.ring()
            call.answer()
        elif self._answer == 180:
            call.ring()
        else:
            call.refuse(self._answer, "Refused")
        self.incoming.put_nowait(call)

    def _contact(self) -> str:
        return f"<{self.uri}>"

    def respond(self, call: SipCall, status: int, reason: str) -> None:
        assert call.request is not None
        data = _response(call.request, status, reason, _tag(call.local), self._contact())
        if status < 200:
            self._send(data, call.peer)
        else:
            self._repeat(data, call.peer, self._acked[call.sip_call_id])

    def accept(self, call: SipCall) -> None:
        assert call.request is not None
        data = _response(call.request, 200, "OK", _tag(call.local), self._contact(), self._sdp(call))
        self._repeat(data, call.peer, self._acked[call.sip_call_id])
        call._answered.set()

    @staticmethod
    def _take_sdp(call: SipCall, sdp: str) -> None:
        address = re.search(r"^c=IN IP4 (\S+)", sdp, re.MULTILINE)
        port = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
        if address and port and int(port[1]):
            call.rtp.remote = (address[1], int(port[1]))


def _response(request: Message, status: int, reason: str, tag: str, contact: str = "", body: str = "") -> bytes:
    to = request.get("to")
    lines = [
        f"SIP/2.0 {status} {reason}",
        *(f"Via: {via}" for via in request.all("via")),
        *(f"Record-Route: {route}" for route in request.all("record-route")),
        f"From: {request.get('from')}",
        f"To: {to if 'tag=' in to else f'{to};tag={tag}'}",
        f"Call-ID: {request.get('call-id')}",
        f"CSeq: {request.get('cseq')}",
        *([f"Contact: {contact}"] if contact else []),
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def _branch() -> str:
    return f"z9hG4bK{secrets.token_hex(6)}"


def _tag(address: str) -> str:
    match = re.search(r";tag=([^;>]+)", address)
    return match[1] if match else ""
