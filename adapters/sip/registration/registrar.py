"""The registrar (RFC 3261 10.3): which addresses a user's phones can be reached at.

Pure: requests that were already authenticated and the time go in, outcomes
come out. A binding remembers the flow that its REGISTER came by, because that
is the way through a NAT; one that names a flow of its own (RFC 5626) is replaced
by the next of the same phone and flow, and ends with the connection it needs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr, format_params, parse_number
from adapters.sip.syntax.message import Request
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.schedule import Schedule
from adapters.sip.transactions.transaction import Flow

MAX_EXPIRES = 2**32 - 1
OUTBOUND, PATH = "outbound", "path"  # option tags of RFC 5626 and RFC 3327
MAX_REG_ID = 2**31 - 1

_MAX_INSTANCE = 256  # characters
_MAX_PATH = 8
_MAX_ADDRESS = 2048  # characters of a Contact or Path: all contacts must fit into one answer, and into memory
_Q = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class RegistrarLimits:
    """Times in seconds."""

    min_expires_s: int = 60
    default_expires_s: int = 3600
    max_expires_s: int = 7200
    per_user: int = 10
    total: int = 100_000


@dataclass(eq=False, slots=True)
class Binding:
    """One phone of a user.

    Attributes:
        uri: its Contact.
        flow: where its REGISTER came from.
        expires_at: monotonic seconds.
        sip_call_id, cseq: of the REGISTER that set it.
        q: preference among the phones of the user, 0 to 1 (RFC 3261 20.10).
        instance: +sip.instance of the phone.
        reg_id: number of its flow; None: the binding is no outbound flow (RFC 5626).
        path: routes to the phone, in the order of our requests (RFC 3327).
    """

    user: str
    uri: SipUri
    flow: Flow
    expires_at: float
    sip_call_id: str
    cseq: int
    q: float = 1.0
    instance: str | None = None
    reg_id: int | None = None
    path: tuple[str, ...] = ()
    live: bool = True
    scheduled_at: float | None = None

    @property
    def needs_connection(self) -> bool:
        """Whether the phone can be reached over the connection of its REGISTER alone."""
        flow = self.flow
        if not flow.connection or self.path:
            return False
        if self.reg_id is not None or flow.transport in ("ws", "wss"):
            return True
        host = self.uri.host
        return host != flow.host and (_is_address(host) or host.lower().endswith(".invalid"))

    def deadline(self) -> float | None:
        """When it runs out."""
        return self.expires_at if self.live else None


@dataclass(frozen=True, slots=True)
class Reachability:
    """A user's phone registered (its first binding, or a refresh), or the last one went."""

    user: str
    reachable: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a Contact asks for."""

    uri: SipUri
    expires_s: int
    q: float
    instance: str | None
    reg_id: int | None

    def replaces(self, binding: Binding) -> bool:
        """Whether it is about this binding (RFC 3261 10.3 step 7, RFC 5626 6)."""
        if self.reg_id is not None and binding.reg_id is not None:
            return (self.instance, self.reg_id) == (binding.instance, binding.reg_id)
        return binding.uri.equivalent(self.uri)


class IntervalTooBriefError(PeerError):
    """423: the answer names the shortest time allowed in Min-Expires."""


class Registrar:
    """All bindings of a domain."""

    def __init__(self, limits: RegistrarLimits | None = None) -> None:
        self.limits = limits or RegistrarLimits()
        self._bindings: dict[str, list[Binding]] = {}
        self._count = 0
        self._by_connection: dict[int, set[str]] = {}
        self.schedule: Schedule[Binding] = Schedule()

    def __len__(self) -> int:
        return self._count

    def bindings(self, user: str) -> list[Binding]:
        """Current bindings: the highest q first, among equals the one registered or refreshed last."""
        latest_first = self._bindings.get(user, [])[::-1]
        if any(binding.reg_id is not None for binding in latest_first):
            latest_first = _one_flow_each(latest_first)
        return sorted(latest_first, key=lambda binding: -binding.q) if len(latest_first) > 1 else latest_first

    def register(self, request: Request, user: str, flow: Flow, now: float) -> list[Reachability]:
        """Carry out a REGISTER as a whole or not at all.

        Raises:
            PeerError: to be answered with its status: 400 malformed, 423 too
                brief, 439 a proxy between us keeps no flows, 500 out of order,
                503 too many bindings.
        """
        contacts = request.contacts
        mine = self._bindings.get(user, [])
        call_id, cseq = request.call_id, request.cseq.number
        if any(c.uri == "*" for c in contacts):
            if len(contacts) != 1 or request.expires != 0:
                raise PeerError("Contact * is for Expires 0 alone", message=request)
            for binding in mine:
                _check_order(binding, call_id, cseq, request)
            return self._replace(user, [])
        fresh = list(mine)
        path = _path(request)
        wanted: list[tuple[_Wanted, Binding | None]] = []
        for contact in contacts:
            uri = contact.uri
            if (
                not isinstance(uri, SipUri)
                or uri.scheme == "tel"
                or any(uri.equivalent(other.uri) for other, _ in wanted)
            ):
                raise PeerError("Contact is repeated or not a SIP URI", message=request)
            if len(str(uri)) > _MAX_ADDRESS:
                raise PeerError("overlong Contact", message=request)
            asked = _Wanted(uri, self._expires(request, contact), _q(contact), *_outbound(request, contact, path))
            replaced = [b for b in fresh if asked.replaces(b)]
            for old in replaced:
                _check_order(old, call_id, cseq, request)
                fresh.remove(old)
            wanted.append((asked, replaced[0] if replaced else None))
        if len(wanted) > 1 and any(asked.reg_id is not None and asked.expires_s for asked, _ in wanted):
            raise PeerError("a flow registers one Contact (RFC 5626 6)", message=request)
        kept = sum(asked.expires_s > 0 for asked, _ in wanted)
        # The oldest go: a phone that comes back at another port each time must not shut itself out.
        del fresh[: max(0, len(fresh) + kept - self.limits.per_user)]
        growth = len(fresh) + kept - len(mine)
        if kept > self.limits.per_user or (growth > 0 and self._count + growth > self.limits.total):
            raise PeerError("too many bindings", status=503, message=request)
        for asked, known in wanted:
            if asked.expires_s == 0:
                continue
            binding = known or Binding(user, asked.uri, flow, 0.0, call_id, cseq)
            binding.uri, binding.flow, binding.expires_at = asked.uri, flow, now + asked.expires_s
            binding.sip_call_id, binding.cseq, binding.q = call_id, cseq, asked.q
            binding.instance, binding.reg_id, binding.path = asked.instance, asked.reg_id, path
            fresh.append(binding)
            self.schedule.update(binding)
            if flow.connection:
                self._by_connection.setdefault(flow.connection, set()).add(user)
        events = self._replace(user, fresh) if contacts else []
        # A refresh is news, too: the phone may have been given up meanwhile.
        return events if events or not kept else [Reachability(user, reachable=True)]

    def all_bindings(self) -> list[Binding]:
        """Every current binding, for keeping."""
        return [binding for bindings in self._bindings.values() for binding in bindings]

    def restore(self, bindings: Iterable[Binding]) -> list[Reachability]:
        """Take back what an earlier process kept; a user who has registered since is left alone."""
        events: list[Reachability] = []
        kept: dict[str, list[Binding]] = {}
        for binding in bindings:
            mine = kept.setdefault(binding.user, [])
            if binding.user not in self._bindings and len(mine) < self.limits.per_user:
                mine.append(binding)
        for user, mine in kept.items():
            if mine and self._count + len(mine) <= self.limits.total:
                events += self._replace(user, mine)
                for binding in mine:
                    self.schedule.update(binding)
        return events

    def contact_values(self, user: str, now: float) -> list[str]:
        """Contact values for the 200: each binding with the seconds it has left."""
        return [_contact_value(binding, now) for binding in self._bindings.get(user, ())]

    def on_connection_lost(self, number: int) -> list[Reachability]:
        """The connection of that number has ended: drop what needs it; other phones can still be called."""
        events: list[Reachability] = []
        for user in self._by_connection.pop(number, ()):
            mine = self._bindings.get(user, [])
            left = [b for b in mine if b.flow.connection != number or not b.needs_connection]
            if len(left) < len(mine):
                events += self._replace(user, left)
        return events

    def keep_only(self, users: Collection[str]) -> list[Reachability]:
        """Drop the bindings of all users but these (they were removed from the configuration)."""
        gone = [user for user in self._bindings if user not in users]
        return [event for user in gone for event in self._replace(user, [])]

    def deadline(self) -> float | None:
        """When `on_time` should be called next."""
        return self.schedule.next_at()

    def on_time(self, now: float) -> list[Reachability]:
        """Drop what has run out."""
        events: list[Reachability] = []
        for binding in self.schedule.due(now):
            events += self._replace(binding.user, [b for b in self._bindings[binding.user] if b is not binding])
        return events

    def _replace(self, user: str, fresh: list[Binding]) -> list[Reachability]:
        old = self._bindings.get(user, [])
        self._count += len(fresh) - len(old)
        for binding in old:
            binding.live = binding in fresh
        if fresh:
            self._bindings[user] = fresh
        else:
            self._bindings.pop(user, None)
        return [] if bool(old) == bool(fresh) else [Reachability(user, bool(fresh))]

    def _expires(self, request: Request, contact: NameAddr) -> int:
        """Seconds for one contact: its parameter, else the header, else the default (RFC 3261 10.3)."""
        asked: int | None = None
        value = contact.params.get("expires")
        if value is not None:
            try:
                asked = parse_number(value, MAX_EXPIRES)
            except PeerError:
                asked = self.limits.default_expires_s  # RFC 3261 20.10: malformed is as if it were 3600
        elif request.has("expires"):
            asked = request.expires
        if asked is None:
            asked = self.limits.default_expires_s
        if 0 < asked < self.limits.min_expires_s:
            raise IntervalTooBriefError("interval too brief", status=423, message=request)
        return min(asked, self.limits.max_expires_s)


def _check_order(binding: Binding, call_id: str, cseq: int, request: Request) -> None:
    """A request of the same phone must be newer than the one that set the binding (RFC 3261 10.3 step 7)."""
    if binding.sip_call_id == call_id and cseq <= binding.cseq:
        raise PeerError("REGISTER out of order", status=500, message=request)


def _one_flow_each(bindings: Iterable[Binding]) -> list[Binding]:
    """One binding of each phone that keeps several flows open (RFC 5626 5.3): the first."""
    seen: set[str | None] = set()
    found = []
    for binding in bindings:
        if binding.reg_id is None or binding.instance not in seen:
            found.append(binding)
        if binding.reg_id is not None:
            seen.add(binding.instance)
    return found


def is_outbound(request: Request) -> bool:
    """Whether a REGISTER that succeeded has set up a flow of RFC 5626."""
    return _supports(request, OUTBOUND) and any(_reg_id(contact) is not None for contact in request.contacts)


def _outbound(request: Request, contact: NameAddr, path: tuple[str, ...]) -> tuple[str | None, int | None]:
    """Instance and flow number of a Contact; the number only where the whole way supports it (RFC 5626 6)."""
    instance = contact.params.get("+sip.instance")
    if instance is not None and len(instance) > _MAX_INSTANCE:
        raise PeerError("overlong instance", message=request)
    reg_id = _reg_id(contact)
    if reg_id is None or not _supports(request, OUTBOUND):
        return instance, None
    if len(request.get_all("via")) > 1 and (not path or "ob" not in _uri_params(path[-1])):
        raise PeerError("the first hop keeps no flows", status=439, message=request)
    return instance, reg_id


def _reg_id(contact: NameAddr) -> int | None:
    value = contact.params.get("reg-id")
    if value is None or contact.params.get("+sip.instance") is None:
        return None
    try:
        return parse_number(value, MAX_REG_ID) or None
    except PeerError:
        return None


def _supports(request: Request, tag: str) -> bool:
    return any(item.lower() == tag for item in request.get_all("supported"))


def _path(request: Request) -> tuple[str, ...]:
    """The Path values, from us to the phone (RFC 3327 5.3)."""
    if not request.has("path"):
        return ()
    values = request.get_all("path")
    if len(values) > _MAX_PATH or sum(map(len, values)) > _MAX_ADDRESS:
        raise PeerError("overlong Path", message=request)
    for value in values:
        uri = NameAddr.parse(value).uri
        if not isinstance(uri, SipUri) or uri.scheme == "tel":
            raise PeerError("Path is not a SIP URI", message=request)
    return tuple(values)


def _uri_params(value: str) -> Collection[str]:
    uri = NameAddr.parse(value).uri
    return uri.params if isinstance(uri, SipUri) else ()


def _q(contact: NameAddr) -> float:
    value = contact.params.get("q")
    if not value or not _Q.fullmatch(value):
        return 1.0
    return float(value)


def _contact_value(binding: Binding, now: float) -> str:
    params: dict[str, str | None] = {"expires": str(max(1, round(binding.expires_at - now)))}
    if binding.q != 1.0:
        params["q"] = f"{binding.q:.3f}".rstrip("0").rstrip(".")
    if binding.instance is not None:
        params["+sip.instance"] = binding.instance
    if binding.reg_id is not None:
        params["reg-id"] = str(binding.reg_id)
    return f"<{binding.uri}>{format_params(params)}"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
