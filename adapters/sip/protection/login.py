"""Answers to challenges: a request once more, with credentials (RFC 3261 22.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adapters.sip.errors import PeerError
from adapters.sip.protection.digest import Challenge, answer_challenge
from adapters.sip.syntax.message import Request, Response

_HEADERS = {401: ("www-authenticate", "authorization"), 407: ("proxy-authenticate", "proxy-authorization")}


@dataclass(frozen=True, slots=True)
class Login:
    """What answers a challenge to our own requests: a password, or the HA1s of its realm."""

    username: str
    password: str | None = field(default=None, repr=False)
    ha1s: Mapping[str, str] | None = field(default=None, repr=False)


def with_credentials(
    request: Request, response: Response, login: Login, number: int, new_token: Callable[[], str]
) -> Request | None:
    """The request once more, with an answer to a 401 or 407.

    Args:
        request: what was challenged.
        response: the challenge.
        login: our credentials.
        number: CSeq of the new request; its Via is still that of the old one.
        new_token: makes the client nonce.

    Returns:
        None if the challenge is malformed, or none that the login can answer.
    """
    challenge, answer = _HEADERS[response.status]
    try:
        challenges = [Challenge.parse(value) for value in response.get_all(challenge)]
    except PeerError:
        return None
    value = answer_challenge(
        challenges,
        method=request.method,
        uri=request.uri,
        username=login.username,
        password=login.password,
        ha1s=login.ha1s,
        body=request.body,
        cnonce=new_token(),
    )
    if value is None:
        return None
    retry = Request(request.method, request.uri, dict(request.headers), request.body)
    retry.set(answer, value)
    retry.set("cseq", f"{number} {request.method}")
    return retry
