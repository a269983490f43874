"""Reliable provisional responses, the called side (RFC 3262 3)."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from adapters.sip.errors import PeerError
from adapters.sip.syntax.message import Response
from adapters.sip.syntax.option_tags import RELIABLE
from adapters.sip.transactions.repetition import Repetition

MAX_WAITING = 8  # provisional responses of one call; phones say ringing, early media, and little more

_RACK = re.compile(r"([0-9]{1,10})\s+([0-9]{1,10})\s+([A-Za-z0-9\-.!%*_+`'~]+)")


@dataclass(frozen=True, slots=True)
class RAck:
    """What a PRACK acknowledges: RSeq, and number and method of CSeq (RFC 3262 7.2)."""

    rseq: int
    cseq: int
    method: str

    @classmethod
    def parse(cls, text: str | None) -> RAck:
        """Read a header value.

        Raises:
            PeerError: 400, missing or malformed.
        """
        match = None if text is None else _RACK.fullmatch(text.strip())
        if match is None:
            raise PeerError("malformed or missing RAck")
        return cls(int(match[1]), int(match[2]), match[3])


class ReliableResponses:
    """Sends one at a time: the next one waits for the PRACK of the one before.

    Args:
        first: RSeq of the first, 1 to 2**31 - 1.

    Attributes:
        sent: the one that waits for its PRACK, None if none does; its owner repeats it.
        with_description: a session description is in it, or waits behind it.
        described: the PRACK for a session description has come.
    """

    __slots__ = ("_next", "_waiting", "described", "sent", "with_description")

    def __init__(self, first: int) -> None:
        self._next = first
        self._waiting: deque[Response] = deque()
        self.sent: Repetition | None = None
        self.with_description = False
        self.described = False

    def add(self, response: Response) -> bool:
        """Take a response; True: send it now, else it waits. Too many are dropped."""
        response.set("require", RELIABLE)
        response.set("rseq", self._next)
        if self.sent is not None:
            if len(self._waiting) < MAX_WAITING:
                self._next += 1
                self._waiting.append(response)
                self.with_description |= bool(response.body)
            return False
        self._next += 1
        self.with_description |= bool(response.body)
        return True

    def on_prack(self, rack: RAck, cseq: int) -> Response | None:
        """A PRACK came.

        Args:
            rack: of the PRACK.
            cseq: number of the INVITE.

        Returns:
            The response to be sent next, if one waits.

        Raises:
            PeerError: 481, it acknowledges nothing that waits.
        """
        if self.sent is None or (rack.rseq, rack.cseq, rack.method) != (self.sent.number, cseq, "INVITE"):
            raise PeerError("PRACK for nothing that waits", status=481)
        self.sent = None
        if self._waiting:
            return self._waiting.popleft()
        if self.with_description:
            self.with_description = False
            self.described = True
        return None

    def stop(self) -> None:
        """A final response went out: repeat nothing; its PRACK is still welcome."""
        self._waiting.clear()
