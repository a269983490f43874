"""Answers to challenges: a request once more, with credentials (RFC 3261 22.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from adapters.sip.errors import PeerError
from adapters.sip.protection.digest import Challenge, answer_challenge
from adapters.sip.syntax.message import Request, Response

_HEADERS = {401: ("www-authenticate", "authorization"), 407: ("proxy-authenticate", "proxy-authorization")}


@dataclass(frozen=True, slots=True)
class Login:
    """What answers a challenge to our own requests: a password, or the HA1s of its realm.

    Attributes:
        realms: the only ones to answer; None: any.
    """

    username: str
    password: str | None = field(default=None, repr=False)
    ha1s: Mapping[str, str] | None = field(default=None, repr=False)
    realms: frozenset[str] | None = None

    def within(self, response: Response) -> Login:
        """For the dialog that a challenged request opens: there, nobody else learns what the password answers.

        Whoever is at the far end of a call chooses where our BYE goes, and could have it challenged.
        """
        return replace(self, realms=frozenset(challenge.realm for challenge in _challenges(response)))


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
    value = answer_challenge(
        [item for item in _challenges(response) if login.realms is None or item.realm in login.realms],
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
    retry.set(_HEADERS[response.status][1], value)
    retry.set("cseq", f"{number} {request.method}")
    return retry


def _challenges(response: Response) -> list[Challenge]:
    """Those of a 401 or 407; none if one of them is malformed."""
    try:
        return [Challenge.parse(value) for value in response.get_all(_HEADERS[response.status][0])]
    except PeerError:
        return []
