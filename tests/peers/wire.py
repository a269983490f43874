"""Raw SIP datagrams for tests: whatever bytes, from whatever address, and what comes back."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tests.peers.sip_phone import Address, Message
from tests.ports import free_port


class Wire(asyncio.DatagramProtocol):
    """One UDP socket that keeps what arrives; `async with Wire("127.0.0.9") as wire`.

    Args:
        address: loopback address to send from.
        port: a free one by default.
        reply: called with each message that arrives; the datagrams it returns go back.
    """

    def __init__(
        self, address: str, port: int | None = None, reply: Callable[[Message], Iterable[bytes]] = lambda _: ()
    ) -> None:
        self.address = address
        self.port = port if port is not None else free_port(address)
        self.arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        local = (self.address, self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=local)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport is not None
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        message = Message.parse(data)
        self.arrived.put_nowait(message)
        for answer in self._reply(message):
            self.send(answer, addr)

    def send(self, data: bytes, remote: Address) -> None:
        assert self._transport is not None
        self._transport.sendto(data, remote)

    def request(
        self,
        method: str,
        uri: str,
        *,
        user: str = "1000",
        to: str | None = None,
        headers: Iterable[str] = (),
        body: str = "",
        content_type: str = "application/sdp",
    ) -> bytes:
        """A complete request of our own, outside of any dialog."""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.address}:{self.port};branch=z9hG4bK{secrets.token_hex(6)};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@pbx.local>;tag={secrets.token_hex(4)}",
            f"To: <{to or uri}>",
            f"Call-ID: {secrets.token_hex(8)}",
            f"CSeq: 1 {method}",
            f"Contact: <sip:{user}@{self.address}:{self.port}>",
            *headers,
            *([f"Content-Type: {content_type}"] if body else []),
            f"Content-Length: {len(body.encode())}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    async def ask(self, data: bytes, remote: Address, timeout_s: float = 5.0) -> Message:
        """Send a request and return its final response, acknowledged.

        Raises:
            TimeoutError: none came.
        """
        request = Message.parse(data)
        self.send(data, remote)
        async with asyncio.timeout(timeout_s):
            while True:
                response = await self.arrived.get()
                if response.get("call-id") == request.get("call-id") and (response.status or 0) >= 200:
                    break
        if request.method == "INVITE":
            ack = f"ACK {request.start.split()[1]} SIP/2.0\r\n" + "".join(
                f"{name}: {value}\r\n"
                for name, value in (
                    ("Via", request.get("via")),
                    ("From", request.get("from")),
                    ("To", response.get("to")),
                    ("Call-ID", request.get("call-id")),
                    ("CSeq", request.get("cseq").replace("INVITE", "ACK")),
                    ("Content-Length", "0"),
                )
            )
            self.send(f"{ack}\r\n".encode(), remote)
        return response

    def sdp(self, media: str = "m=audio 4000 RTP/AVP 0\r\n") -> str:
        """A session description with this media section."""
        return f"v=0\r\no=- 1 1 IN IP4 {self.address}\r\ns=-\r\nc=IN IP4 {self.address}\r\nt=0 0\r\n{media}"


def credentials(challenge: Message, method: str, uri: str, user: str, password: str) -> str:
    """Answer the MD5 challenge of a 401 (RFC 7616); a whole header line."""
    for value in challenge.all("www-authenticate"):
        found = dict(re.findall(r'(\w+)="?([^",]+)"?', value))
        if found.get("algorithm", "MD5") == "MD5":
            break
    else:
        raise AssertionError(f"no MD5 challenge: {challenge}")
    cnonce = secrets.token_hex(8)
    realm, nonce = found["realm"], found["nonce"]
    ha1, ha2 = _md5(f"{user}:{realm}:{password}"), _md5(f"{method}:{uri}")
    response = _md5(f"{ha1}:{nonce}:00000001:{cnonce}:auth:{ha2}")
    return (
        f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{uri}", '
        f'response="{response}", algorithm=MD5, cnonce="{cnonce}", qop=auth, nc=00000001'
    )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
