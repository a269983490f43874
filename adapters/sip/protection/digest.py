"""Digest authentication, both sides (RFC 7616, RFC 8760; RFC 2617 for old peers).

Nonces carry their own time and proof, so a server keeps no state for those it
gave out; only those that were used leave a trace, within bounds, to refuse
replays.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from adapters.sip.errors import PeerError, UsageError
from adapters.sip.syntax.headers import is_token, quoted, unquoted

# Strongest first; not every build of OpenSSL has the first.
_HASHES = {"SHA-512-256": "sha512_256", "SHA-256": "sha256", "MD5": "md5"}
ALGORITHMS = tuple(name for name, ours in _HASHES.items() if ours in hashlib.algorithms_available)

_PARAM = re.compile(r"""\s*([A-Za-z0-9\-.!%*_+`'~]+)\s*=\s*("(?:[^"\\]|\\.)*+"|[^\s",]*+)\s*(?:,|$)""", re.DOTALL)
_HEX = re.compile(r"[0-9A-Fa-f]+")
_SALT_BYTES = 8
_TIME_BYTES = 8
_PROOF_BYTES = 16
_MAX_VALUE = 1024  # characters of any one parameter


class DigestResult(Enum):
    """Outcome of a check."""

    OK = "ok"
    STALE = "stale"  # the nonce is not ours or from elsewhere, or the password is right and it is too old or used:
    # challenge again with stale=true
    WRONG = "wrong"  # unknown user or wrong password, in answer to a challenge that its sender received
    MISSING = "missing"  # no credentials for this realm


def _hash(algorithm: str, data: bytes) -> str:
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown digest algorithm: {algorithm!r}")
    return hashlib.new(_HASHES[algorithm], data, usedforsecurity=False).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def ha1(username: str, realm: str, password: str, algorithm: str = "MD5") -> str:
    """Hash that stands for a password within a realm, in lower-case hex.

    Raises:
        UsageError: unknown algorithm.
    """
    return _hash(algorithm, _bytes(f"{username}:{realm}:{password}"))


def digest_response(
    *,
    ha1_hex: str,
    algorithm: str,
    method: str,
    uri: str,
    nonce: str,
    qop: str | None = None,
    cnonce: str = "",
    nc: str = "",
    body: bytes = b"",
) -> str:
    """Response value of RFC 7616 3.4.1; without qop that of RFC 2069.

    Raises:
        UsageError: unknown algorithm.
    """
    a2 = f"{method}:{uri}"
    if qop == "auth-int":
        a2 += f":{_hash(algorithm, body)}"
    middle = nonce if qop is None else f"{nonce}:{nc}:{cnonce}:{qop}"
    return _hash(algorithm, _bytes(f"{ha1_hex}:{middle}:{_hash(algorithm, _bytes(a2))}"))


def _parse_digest_params(value: str) -> dict[str, str]:
    """Parameters of a Digest header value, names in lower case, values without quotes.

    Raises:
        PeerError: 400, malformed, repeated or overlong.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() != "digest":
        raise PeerError("not a Digest value")
    params: dict[str, str] = {}
    position = 0
    rest = rest.strip()
    while position < len(rest):
        match = _PARAM.match(rest, position)
        if match is None:
            raise PeerError("malformed Digest parameter")
        name = match.group(1).lower()
        text = unquoted(match.group(2))
        if name in params or len(text) > _MAX_VALUE:
            raise PeerError("repeated or overlong Digest parameter")
        params[name] = text
        position = match.end()
    return params


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate or Proxy-Authenticate value.

    Attributes:
        qop: offered values; empty for RFC 2069.
    """

    realm: str
    nonce: str
    algorithm: str = "MD5"
    qop: tuple[str, ...] = ("auth",)
    opaque: str | None = None
    stale: bool = False

    @classmethod
    def parse(cls, value: str) -> Challenge:
        """Read a challenge; its algorithm may be one we do not know.

        Raises:
            PeerError: 400, malformed or not Digest. Nothing else escapes.
        """
        params = _parse_digest_params(value)
        if "realm" not in params or not params.get("nonce"):
            raise PeerError("Digest challenge without realm or nonce")
        return cls(
            realm=params["realm"],
            nonce=params["nonce"],
            algorithm=_algorithm(params),
            qop=tuple(item for item in (part.strip().lower() for part in params.get("qop", "").split(",")) if item),
            opaque=params.get("opaque"),
            stale=params.get("stale", "").lower() == "true",
        )

    def __str__(self) -> str:
        parts = [f"realm={quoted(self.realm)}", f"nonce={quoted(self.nonce)}"]
        if self.opaque is not None:
            parts.append(f"opaque={quoted(self.opaque)}")
        if self.stale:
            parts.append("stale=true")
        parts.append(f"algorithm={_checked_token(self.algorithm)}")
        if self.qop:
            parts.append(f"qop={quoted(','.join(self.qop))}")
        return "Digest " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Credentials:
    """An Authorization or Proxy-Authorization value.

    Attributes:
        response: lower-case hex.
        nc: eight hex digits as sent; None without qop.
    """

    username: str
    realm: str
    nonce: str
    uri: str
    response: str
    algorithm: str = "MD5"
    qop: str | None = None
    nc: str | None = None
    cnonce: str | None = None
    opaque: str | None = None

    @classmethod
    def parse(cls, value: str) -> Credentials:
        """Read credentials.

        Raises:
            PeerError: 400, malformed or not Digest. Nothing else escapes.
        """
        params = _parse_digest_params(value)
        try:
            username, realm, nonce = params["username"], params["realm"], params["nonce"]
            uri, response = params["uri"], params["response"].lower()
        except KeyError as exc:
            raise PeerError(f"Digest credentials without {exc.args[0]}") from None
        qop, nc, cnonce = params.get("qop"), params.get("nc"), params.get("cnonce")
        if qop is not None:
            qop = qop.lower()
            if not cnonce or nc is None or len(nc) != 8 or not _HEX.fullmatch(nc):
                raise PeerError("Digest credentials without proper nc or cnonce")
        if not _HEX.fullmatch(response):
            raise PeerError("Digest response is not hexadecimal")
        return cls(username, realm, nonce, uri, response, _algorithm(params), qop, nc, cnonce, params.get("opaque"))

    def __str__(self) -> str:
        parts = [
            f"username={quoted(self.username)}",
            f"realm={quoted(self.realm)}",
            f"nonce={quoted(self.nonce)}",
            f"uri={quoted(self.uri)}",
            f"response={quoted(self.response)}",
            f"algorithm={_checked_token(self.algorithm)}",
        ]
        if self.opaque is not None:
            parts.append(f"opaque={quoted(self.opaque)}")
        if self.qop is not None:
            parts.append(f"qop={_checked_token(self.qop)}")
            parts.append(f"nc={_checked_token(self.nc or '')}")
            parts.append(f"cnonce={quoted(self.cnonce or '')}")
        return "Digest " + ", ".join(parts)


def _algorithm(params: Mapping[str, str]) -> str:
    """Algorithm in our spelling; MD5 if absent, another text if it is none of ours."""
    return params.get("algorithm", "MD5").upper()


def _checked_token(text: str) -> str:
    if not is_token(text):
        raise UsageError("not a token")
    return text


class DigestVerifier:
    """Challenges requests and checks the answers.

    One object serves all users of a realm. Nodes that share `secret` accept each
    other's nonces; replays are noticed only by the node that saw the first use.

    An unknown user costs the same work as a known one with a wrong password and
    has the same outcome, so neither tells which names exist. A nonce that was
    not issued to where the answer comes from is stale, whatever the password:
    nobody can guess, or be made to look like a guesser, from an address where
    challenges do not arrive.
    """

    def __init__(
        self,
        realm: str,
        secret: bytes,
        *,
        algorithms: Sequence[str] = ("MD5",),
        qop: Sequence[str] = ("auth",),
        nonce_lifetime_s: float = 300.0,
        remembered_nonces: int = 10_000,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Set up.

        Args:
            realm: shown to users, part of each HA1.
            secret: key of the nonces, 16 bytes or more.
            algorithms: offered, in this order, one challenge each.
            qop: offered; "auth" and "auth-int" are both accepted in any case.
                Some phones fail on a list.
            nonce_lifetime_s: after this a right answer is STALE.
            remembered_nonces: how many used nonces to keep for the replay check.
                When more are in use, the one longest unused is forgotten and
                from then on counts as stale, never as fresh.
            random_bytes: source of salt, such as os.urandom.

        Raises:
            UsageError: unknown algorithm or a short secret.
        """
        if len(secret) < 16:
            raise UsageError("the nonce secret needs 16 bytes or more")
        if not algorithms or set(algorithms) - set(ALGORITHMS):
            raise UsageError("unknown digest algorithm")
        self.realm = realm
        self.algorithms = tuple(algorithms)
        self._qop = tuple(qop)
        self._secret = secret
        self._lifetime_s = nonce_lifetime_s
        self._remembered = remembered_nonces
        self._random_bytes = random_bytes
        # Nonce to the counts seen; the one used last is last.
        self._used: OrderedDict[str, _Window] = OrderedDict()
        # Nonces issued up to here may have been used and forgotten.
        self._forgotten_until = float("-inf")
        self._dummy = {name: _hash(name, secret + name.encode()) for name in ALGORITHMS}

    def challenges(
        self, now: float, *, stale: bool = False, origin: str = "", algorithms: Sequence[str] | None = None
    ) -> list[Challenge]:
        """New challenges, one for each algorithm, preferred first (RFC 8760 2.3).

        Args:
            now: seconds; any clock that does not go back and that all nodes
                sharing the secret agree on.
            stale: tell the client that the nonce was the fault, not the password.
            origin: where the answer must come from, as `check` is told.
            algorithms: to be offered instead of the usual ones.
        """
        nonce = self._make_nonce(now, origin)
        return [Challenge(self.realm, nonce, name, self._qop, None, stale) for name in algorithms or self.algorithms]

    def check(
        self,
        values: Sequence[str],
        method: str,
        lookup: Callable[[str, str], str | None],
        now: float,
        body: bytes = b"",
        *,
        origin: str = "",
        algorithms: Sequence[str] | None = None,
    ) -> tuple[DigestResult, str | None]:
        """Check the credentials of a request.

        Args:
            values: its Authorization (or Proxy-Authorization) values.
            method: of the request.
            lookup: gives the HA1 of (username, algorithm), None for an unknown user.
            now: as in `challenges`.
            body: of the request, for auth-int.
            origin, algorithms: as in `challenges`.

        Returns:
            The outcome, and the user name claimed, None if there was none. Trust
            the name only with OK.

        Raises:
            PeerError: 400, malformed Digest credentials.
        """
        credentials = self._ours(values, algorithms or self.algorithms)
        if credentials is None:
            return DigestResult.MISSING, None
        algorithm = credentials.algorithm
        known = lookup(credentials.username, algorithm)
        expected = digest_response(
            ha1_hex=(self._dummy[algorithm] if known is None else known).lower(),
            algorithm=algorithm,
            method=method,
            uri=credentials.uri,
            nonce=credentials.nonce,
            qop=credentials.qop,
            cnonce=credentials.cnonce or "",
            nc=credentials.nc or "",
            body=body,
        )
        issued = self._issued_at(credentials.nonce, origin)
        right = hmac.compare_digest(expected, credentials.response)
        if issued is None:  # ours from before a restart with another secret, from another address, or made up
            return DigestResult.STALE, credentials.username
        if not right or known is None:
            return DigestResult.WRONG, credentials.username
        if now - issued > self._lifetime_s or issued > now + 1.0:
            return DigestResult.STALE, credentials.username
        return self._count(credentials, issued), credentials.username

    def _ours(self, values: Sequence[str], algorithms: Sequence[str]) -> Credentials | None:
        """First credentials for our realm that we could have asked for."""
        for value in values:
            if value.lstrip()[:7].lower() != "digest ":
                continue
            credentials = Credentials.parse(value)
            if (
                credentials.realm == self.realm
                and credentials.algorithm in algorithms
                and credentials.qop in (None, "auth", "auth-int")
            ):
                return credentials
        return None

    def _make_nonce(self, now: float, origin: str) -> str:
        stamp = max(0, round(now * 1000)).to_bytes(_TIME_BYTES, "big") + self._random_bytes(_SALT_BYTES)
        return (stamp + self._prove(stamp, origin)).hex()

    def _prove(self, stamp: bytes, origin: str) -> bytes:
        return hmac.digest(self._secret, stamp + _bytes(f"{origin} {self.realm}"), "sha256")[:_PROOF_BYTES]

    def _issued_at(self, nonce: str, origin: str) -> float | None:
        """When we issued this nonce to `origin`, None if we did not."""
        try:
            raw = bytes.fromhex(nonce)
        except ValueError:
            return None
        # fromhex skips blanks and takes capitals: one nonce must have one spelling.
        if len(raw) != _TIME_BYTES + _SALT_BYTES + _PROOF_BYTES or raw.hex() != nonce:
            return None
        stamp = raw[: _TIME_BYTES + _SALT_BYTES]
        if not hmac.compare_digest(self._prove(stamp, origin), raw[_TIME_BYTES + _SALT_BYTES :]):
            return None
        return int.from_bytes(stamp[:_TIME_BYTES], "big") / 1000

    def _count(self, credentials: Credentials, issued: float) -> DigestResult:
        """Refuse a nonce count seen before (RFC 7616 3.4.5); without qop a nonce serves once."""
        count = 0 if credentials.nc is None else int(credentials.nc, 16)
        window = self._used.get(credentials.nonce)
        if window is None:
            if issued <= self._forgotten_until:
                return DigestResult.STALE
            window = self._used[credentials.nonce] = _Window(issued)
            if len(self._used) > self._remembered:
                _, dropped = self._used.popitem(last=False)
                self._forgotten_until = max(self._forgotten_until, dropped.issued)
        else:
            self._used.move_to_end(credentials.nonce)
        if window.take(count):
            return DigestResult.OK
        # A replay, or a client that does not count: an honest one is asked again and gets on.
        return DigestResult.STALE


class _Window:
    """Counts seen for one nonce: the highest, and which of the 64 before it.

    Requests overtake each other on UDP, so a lower count is fine once.
    """

    __slots__ = ("_highest", "_seen", "issued")

    def __init__(self, issued: float) -> None:
        self.issued = issued
        self._highest = -1
        self._seen = 0

    def take(self, count: int) -> bool:
        """Whether this count is new; it counts as seen from now on."""
        if count > self._highest:
            self._seen = (self._seen << min(count - self._highest, 64) | 1) & (1 << 64) - 1
            self._highest = count
            return True
        bit = 1 << (self._highest - count) if self._highest - count < 64 else 0
        if not bit or self._seen & bit:
            return False
        self._seen |= bit
        return True


def answer_challenge(
    challenges: Sequence[Challenge],
    *,
    method: str,
    uri: str,
    username: str,
    password: str | None = None,
    ha1s: Mapping[str, str] | None = None,
    body: bytes = b"",
    nc: int = 1,
    cnonce: str,
) -> str | None:
    """Make the Authorization value for the strongest challenge we can answer.

    Args:
        challenges: as received; of equally strong ones the first wins.
        method: of the request to send again.
        uri: its Request-URI.
        username: ours.
        password: ours, or None to use `ha1s`.
        ha1s: HA1 by algorithm, for the realm of the challenge.
        body: of the request, for auth-int (used only where auth is not offered).
        nc: how many requests have used this nonce, with this one.
        cnonce: fresh random text.

    Returns:
        The header value, or None if no challenge is one we can answer.
    """
    for algorithm in ALGORITHMS:
        if password is None and algorithm not in (ha1s or {}):
            continue
        for challenge in challenges:
            if challenge.algorithm != algorithm:
                continue
            qop = "auth" if "auth" in challenge.qop else "auth-int" if "auth-int" in challenge.qop else None
            if challenge.qop and qop is None:
                continue
            secret = (
                (ha1s or {})[algorithm] if password is None else ha1(username, challenge.realm, password, algorithm)
            )
            count = f"{nc:08x}" if qop else None
            return str(
                Credentials(
                    username=username,
                    realm=challenge.realm,
                    nonce=challenge.nonce,
                    uri=uri,
                    response=digest_response(
                        ha1_hex=secret,
                        algorithm=algorithm,
                        method=method,
                        uri=uri,
                        nonce=challenge.nonce,
                        qop=qop,
                        cnonce=cnonce,
                        nc=count or "",
                        body=body,
                    ),
                    algorithm=algorithm,
                    qop=qop,
                    nc=count,
                    cnonce=cnonce if qop else None,
                    opaque=challenge.opaque,
                )
            )
    return None
