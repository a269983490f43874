"""The registrar (RFC 3261 10.3): which addresses a user's phones can be reached at.

Pure: requests that were already authenticated and the time go in, outcomes
come out. A binding remembers the flow that its REGISTER came by, because that
is the way through a NAT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from adapters.sip.errors import PeerError
from adapters.sip.headers import NameAddr, parse_number
from adapters.sip.message import Request
from adapters.sip.schedule import Schedule
from adapters.sip.transaction import Flow
from adapters.sip.uri import SipUri

MAX_EXPIRES = 2**32 - 1


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
    """

    user: str
    uri: SipUri
    flow: Flow
    expires_at: float
    sip_call_id: str
    cseq: int
    live: bool = True
    scheduled_at: float | None = None

    def deadline(self) -> float | None:
        """When it runs out."""
        return self.expires_at if self.live else None


@dataclass(frozen=True, slots=True)
class Reachability:
    """A user's phone registered (its first binding, or a refresh), or the last one went."""

    user: str
    reachable: bool


class IntervalTooBriefError(PeerError):
    """423: the answer names the shortest time allowed in Min-Expires."""


class Registrar:
    """All bindings of a domain."""

    def __init__(self, limits: RegistrarLimits | None = None) -> None:
        self.limits = limits or RegistrarLimits()
        self._bindings: dict[str, list[Binding]] = {}
        self._count = 0
        self._schedule: Schedule[Binding] = Schedule()

    def __len__(self) -> int:
        return self._count

    def bindings(self, user: str) -> list[Binding]:
        """Current bindings, the one registered or refreshed last first."""
        return list(reversed(self._bindings.get(user, ())))

    def register(self, request: Request, user: str, flow: Flow, now: float) -> list[Reachability]:
        """Carry out a REGISTER as a whole or not at all.

        Raises:
            PeerError: to be answered with its status: 400 malformed, 423 too
                brief, 500 out of order, 503 too many bindings.
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
        wanted: list[tuple[SipUri, int, Binding | None]] = []
        for contact in contacts:
            uri = contact.uri
            if not isinstance(uri, SipUri) or uri.scheme != "sip" or any(uri.equivalent(w[0]) for w in wanted):
                raise PeerError("Contact is repeated or not a SIP URI", message=request)
            old = next((b for b in fresh if b.uri.equivalent(uri)), None)
            if old is not None:
                _check_order(old, call_id, cseq, request)
                fresh.remove(old)
            wanted.append((uri, self._expires(request, contact), old))
        kept = sum(expires_s > 0 for _, expires_s, _ in wanted)
        # The oldest go: a phone that comes back at another port each time must not shut itself out.
        del fresh[: max(0, len(fresh) + kept - self.limits.per_user)]
        growth = len(fresh) + kept - len(mine)
        if kept > self.limits.per_user or (growth > 0 and self._count + growth > self.limits.total):
            raise PeerError("too many bindings", status=503, message=request)
        for uri, expires_s, old in wanted:
            if expires_s == 0:
                continue
            binding = old or Binding(user, uri, flow, 0.0, call_id, cseq)
            binding.uri, binding.flow, binding.expires_at = uri, flow, now + expires_s
            binding.sip_call_id, binding.cseq = call_id, cseq
            fresh.append(binding)
            self._schedule.update(binding)
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
                    self._schedule.update(binding)
        return events

    def contact_values(self, user: str, now: float) -> list[str]:
        """Contact values for the 200: each binding with the seconds it has left."""
        return [f"<{b.uri}>;expires={max(1, round(b.expires_at - now))}" for b in self._bindings.get(user, ())]

    def keep_only(self, users: Collection[str]) -> list[Reachability]:
        """Drop the bindings of all users but these (they were removed from the configuration)."""
        gone = [user for user in self._bindings if user not in users]
        return [event for user in gone for event in self._replace(user, [])]

    def deadline(self) -> float | None:
        """When `on_time` should be called next."""
        return self._schedule.next_at()

    def on_time(self, now: float) -> list[Reachability]:
        """Drop what has run out."""
        events: list[Reachability] = []
        for binding in self._schedule.due(now):
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
