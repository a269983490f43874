"""Answers that leave nothing behind (RFC 3261 8.2.7): challenges, refusals, and those to OPTIONS.

A repetition of the request gets an answer of its own with the same tag; the ACK
is known by that tag. Strangers can thus make us send, but not remember.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from adapters.sip.syntax.message import Request, Response, build_response

_MARK = "murima-0-"  # no tag of a dialog begins so
_IN_ACK = f";tag={_MARK}".encode()


class StatelessAnswers:
    """Makes them.

    Args:
        secret: unguessable text, so that nobody else can make our tags.
    """

    def __init__(self, secret: str) -> None:
        self._key = hashlib.blake2b(secret.encode()).digest()

    def make(self, request: Request, status: int, headers: Iterable[tuple[str, object]]) -> Response:
        """A final answer to a request outside a dialog, whose Via says already where it came from."""
        response = build_response(request, status, to_tag=self.tag(request))
        for name, value in headers:
            response.add(name, value)
        return response

    def tag(self, request: Request) -> str:
        """Ours for an answer to a request and to its repetitions."""
        named = f"{request.get('call-id')} {request.get('cseq')} {request.get('from')}"
        digest = hashlib.blake2b(named.encode("utf-8", "surrogateescape"), key=self._key, digest_size=8)
        return _MARK + digest.hexdigest()


class Refusals:
    """Which requests were refused without state lately, so that their repetitions are, too.

    A repetition that was admitted would make a call that its caller knows nothing of.

    Args:
        keep_s: at least; up to twice that. A request is repeated for 32 s.
        limit: of numbers remembered, about.
    """

    def __init__(self, keep_s: float = 32.0, limit: int = 200_000) -> None:
        self._keep_s = keep_s
        self._half = limit // 2
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._turned_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._young or self._old)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, key: object, now: float) -> None:
        """Remember one."""
        self._turn(now)
        self._young.add(hash(key))

    def has(self, key: object, now: float) -> bool:
        """Whether it was refused."""
        self._turn(now)
        number = hash(key)
        return number in self._young or number in self._old

    def _turn(self, now: float) -> None:
        passed = now - self._turned_at
        if passed >= self._keep_s or len(self._young) >= self._half:
            self._old = self._young if passed < 2 * self._keep_s else set()
            self._young = set()
            self._turned_at = now


def is_absorbed(data: bytes) -> bool:
    """Whether a message is the ACK to such an answer: there is nothing to do about it."""
    return data[:4] == b"ACK " and _IN_ACK in data
