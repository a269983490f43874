"""Who may call and register: source addresses for trunks, passwords for agents.

Wrong passwords and unknown users get the same answer, a fresh 401: nothing
tells which names exist, and a phone that only used an old nonce gets on. A 403
is kept for those who proved who they are and asked for what is not theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from adapters.sip.protection.digest import DigestResult, DigestVerifier
from adapters.sip.protection.guard import Guard
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow

_REMEMBERED_HOSTS = 4096


@dataclass(frozen=True, slots=True)
class Trunk:
    """A carrier or gateway, known by where its packets come from, by the line it calls, or by a password.

    Attributes:
        networks: where its calls come from; where it is known otherwise, none means anywhere.
        by_address: being there is proof enough.
        line: user part, or `line` parameter, of the contact that we registered with it.
        user, ha1s: what it logs in with.
    """

    name: str
    networks: tuple[IPv4Network | IPv6Network, ...]
    by_address: bool = True
    line: str | None = None
    user: str | None = None
    ha1s: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who a request is from: exactly one of the two is set. `line`: the Request-URI names our line, not a number."""

    trunk: str | None = None
    user: str | None = None
    line: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that may not be served."""

    status: int
    headers: tuple[tuple[str, str], ...]
    why: str  # for the counters: missing, wrong, stale or forbidden


class AccessPolicy:
    """Decides on requests from outside a dialog. Immutable: a new configuration makes a new one.

    Args:
        trunks: the first whose networks hold the source address wins.
        users: HA1 by algorithm, by user name.
        verifier: issues and checks challenges; shared by successive policies.
        guard: told of right and wrong passwords.
        offered: digest algorithms, instead of the verifier's.
        algorithms: the same for the listener of that index (`Flow.local`).
    """

    def __init__(
        self,
        trunks: Iterable[Trunk],
        users: Mapping[str, Mapping[str, str]],
        verifier: DigestVerifier,
        *,
        guard: Guard | None = None,
        offered: Sequence[str] | None = None,
        algorithms: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        trunks = tuple(trunks)
        self._trunks = tuple(trunk for trunk in trunks if trunk.by_address)
        self._lines = {trunk.line: trunk for trunk in trunks if trunk.line is not None}
        self._logins = {trunk.user: trunk for trunk in trunks if trunk.user is not None}
        self._users = users
        self._verifier = verifier
        self._guard = guard
        self._offered = offered
        self._algorithms = algorithms or {}
        self._by_host: dict[str, str | None] = {}

    def knows(self, user: str) -> bool:
        """Whether there is such a user."""
        return user in self._users

    def trunk_at(self, host: str) -> str | None:
        """Name of the trunk that sends from an IP address, or None."""
        try:
            return self._by_host[host]
        except KeyError:
            pass
        found = next((t.name for t in self._trunks if _within(host, t.networks)), None)
        if len(self._by_host) >= _REMEMBERED_HOSTS:
            self._by_host.clear()
        self._by_host[host] = found
        return found

    def admit(self, request: Request, source: Flow, now: float) -> Admitted | Refused:
        """Decide on an INVITE: from a trunk's address, or from the user named in From, with a password.

        Raises:
            PeerError: malformed From or credentials.
        """
        # A page may run anywhere, and a reverse proxy stands for all its browsers.
        trunk = None if source.transport in ("ws", "wss") else self.trunk_at(source.host)
        if trunk is not None:
            return Admitted(trunk=trunk)
        if self._lines:
            found = self._on_line(request, source.host)
            if found is not None:
                if self._guard is not None:
                    self._guard.on_success(source.host, now)
                return found
        return self._authenticate(request, request.from_.uri, source, now)

    def _on_line(self, request: Request, host: str) -> Admitted | None:
        """A call to the contact that we registered with a carrier; nobody else knows it."""
        uri = request.parsed_uri
        name = uri.user or ""
        trunk = self._lines.get(name) or self._lines.get(uri.params.get("line") or "")
        if trunk is None or (trunk.networks and not _within(host, trunk.networks)):
            return None
        return Admitted(trunk=trunk.name, line=name == trunk.line)

    def admit_registration(self, request: Request, source: Flow, now: float) -> Admitted | Refused:
        """Decide on a REGISTER: a user may change only the address of record of its own name.

        Raises:
            PeerError: malformed To or credentials.
        """
        return self._authenticate(request, request.to.uri, source, now)

    def _authenticate(self, request: Request, claimed: SipUri | str, source: Flow, now: float) -> Admitted | Refused:
        guard = self._guard
        origin = "" if guard is None else guard.origin(source.host)
        algorithms = self._algorithms.get(source.local, self._offered)
        result, user = self._verifier.check(
            request.get_all("authorization"),
            request.method,
            self._secret_of,
            now,
            request.body,
            origin=origin,
            algorithms=algorithms,
        )
        if result is DigestResult.OK and user is not None:
            if guard is not None:
                guard.on_success(source.host, now)
            if isinstance(claimed, SipUri) and claimed.user == user and user in self._users:
                return Admitted(user=user)
            trunk = self._logins.get(user)
            if trunk is not None and request.method == "INVITE":
                return (
                    Admitted(trunk=trunk.name)
                    if not trunk.networks or _within(source.host, trunk.networks)
                    else Refused(403, (), "forbidden")
                )
            return Refused(403, (), "forbidden")
        if result is DigestResult.WRONG and guard is not None:
            guard.on_failure(source.host, now)
        stale = result is DigestResult.STALE
        challenges = self._verifier.challenges(now, stale=stale, origin=origin, algorithms=algorithms)
        return Refused(401, tuple(("www-authenticate", str(challenge)) for challenge in challenges), result.value)

    def _secret_of(self, username: str, algorithm: str) -> str | None:
        # Both are asked for each name, so that the time does not tell which there are.
        known, trunk = self._users.get(username), self._logins.get(username)
        hashes = known if known is not None else trunk.ha1s if trunk is not None else {}
        return hashes.get(algorithm)


def _within(host: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    address = ip_address(host.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
