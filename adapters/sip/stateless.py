"""Answers that leave nothing behind (RFC 3261 8.2.7): challenges, and refusals under load.

A repetition of the request gets an answer of its own with the same tag; the ACK
is known by that tag. Strangers can thus make us send, but not remember.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from adapters.sip.message import Request, Response, build_response

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
        response = build_response(request, status, to_tag=self._tag(request))
        for name, value in headers:
            response.add(name, value)
        return response

    def _tag(self, request: Request) -> str:
        named = f"{request.get('call-id')} {request.get('cseq')} {request.get('from')}"
        digest = hashlib.blake2b(named.encode("utf-8", "surrogateescape"), key=self._key, digest_size=8)
        return _MARK + digest.hexdigest()


def is_absorbed(data: bytes) -> bool:
    """Whether a message is the ACK to such an answer: there is nothing to do about it."""
    return data[:4] == b"ACK " and _IN_ACK in data
