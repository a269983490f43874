"""Which trunk takes a call to the outside, and why: routes, times, priorities, health and limits.

Pure: the time, randomness and what became of earlier calls are handed in. The
first route whose numbers, time and people fit decides; of its trunks the lower
priority goes first, and among equal ones weight draws the lot (as RFC 2782
does). A `Search` then gives one gateway after the other for as long as the call
fails to get through.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Protocol, TypeVar


class RouteRefusal(StrEnum):
    """Why a route does not serve a call."""

    NUMBER = "number"  # it is for other numbers
    TIME = "time"  # not now
    CALLER = "caller"  # not for this caller


class TrunkRefusal(StrEnum):
    """Why a gateway of a trunk was passed over."""

    UNREACHABLE = "unreachable"  # it does not answer, or we are not registered
    OVERLOADED = "overloaded"  # it asked to be left alone for a while
    CALLS = "calls"  # as many calls as it may have at once
    RATE = "rate"  # as many calls as it may get in a second


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A time of the week.

    Attributes:
        days: on which it begins, Monday is 0.
        first, after: minutes of the day; a window that ends before it begins lasts into the next day.
        zone: whose clock counts.
    """

    days: frozenset[int]
    first: int
    after: int
    zone: tzinfo

    def holds(self, at: datetime) -> bool:
        """Whether an aware time lies within."""
        local = at.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if self.first < self.after:
            return local.weekday() in self.days and self.first <= minute < self.after
        if minute >= self.first:
            return local.weekday() in self.days
        return minute < self.after and (local - timedelta(days=1)).weekday() in self.days


class Weighted(Protocol):
    """What has a place in an order."""

    @property
    def priority(self) -> int: ...
    @property
    def weight(self) -> int: ...


@dataclass(frozen=True, slots=True)
class GatewayChoice:
    """One address of a trunk, by its place in the trunk's list."""

    index: int
    priority: int = 1
    weight: int = 1


@dataclass(frozen=True, slots=True)
class TrunkSettings:
    """What of a trunk counts for the choice."""

    name: str
    gateways: tuple[GatewayChoice, ...] = (GatewayChoice(0),)
    max_calls: int | None = None
    max_calls_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class TrunkChoice:
    """A trunk of a route."""

    trunk: str
    priority: int = 1
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """See the configuration of routes.

    Attributes:
        numbers: those it is for.
        when: None: always.
        callers: ids of the agents who may use it; None: every caller.
    """

    name: str
    numbers: Container[str]
    trunks: tuple[TrunkChoice, ...]
    when: TimeWindow | None = None
    strip: int = 0
    prepend: str = ""
    callers: frozenset[str] | None = None
    emergency: bool = False
    record: bool = False
    ring_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class OutboundSettings:
    """All trunks that take calls, and the routes to them, in order."""

    trunks: tuple[TrunkSettings, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: this gateway of this trunk is called with this number."""

    trunk: str
    gateway: int
    number: str


@dataclass(slots=True)
class _Line:
    """What is known of a trunk at the moment."""

    calls: int = 0
    tokens: float = 0.0
    counted_at: float | None = None
    down: bool = False  # the trunk as a whole: not registered
    gateways_down: set[int] = field(default_factory=set)
    quiet_until: dict[int, float] = field(default_factory=dict)


_W = TypeVar("_W", bound=Weighted)


class Search:
    """The way of one call through a route; made by `Outbound.search`.

    Attributes:
        route: the one that decides; None: no route serves this call.
        number: what is dialled on the trunks.
        explanation: JSON-ready: what was considered, and why it was passed over.
    """

    def __init__(self, outbound: Outbound, route: Route | None, number: str, routes: list[dict[str, object]]) -> None:
        self.route = route
        self.number = number
        self._outbound = outbound
        self._routes = routes
        self._tried: list[dict[str, object]] = []
        self._candidates: Iterator[tuple[str, int, bool]] = iter(())

    @property
    def explanation(self) -> Mapping[str, object]:
        return {
            "number": self.number,
            "route": None if self.route is None else self.route.name,
            "routes": list(self._routes),
            "trunks": [dict(tried) for tried in self._tried],
        }

    def refusals(self) -> frozenset[TrunkRefusal]:
        """Why gateways were passed over so far."""
        return frozenset(r for tried in self._tried if isinstance(r := tried["refused"], TrunkRefusal))

    def begin(self, candidates: Iterable[tuple[str, int, bool]]) -> None:
        """Take the order of trunks and gateways; the flag says: even if it seems dead."""
        self._candidates = iter(candidates)

    def next(self, now: float) -> Attempt | None:
        """The next gateway to call, its trunk's limits taken; None when there is none left.

        Whoever gets an attempt owes a `Outbound.release` of its trunk.
        """
        for trunk, gateway, desperate in self._candidates:
            emergency = self.route is not None and self.route.emergency
            refusal = self._outbound.take(trunk, gateway, now, emergency=emergency, desperate=desperate)
            # A dead gateway of an emergency call comes once more, at the end.
            self._tried.append({"trunk": trunk, "gateway": gateway, "refused": refusal})
            if refusal is None:
                return Attempt(trunk, gateway, self.number)
        return None

    def failed(self, cause: str, status: int | None) -> None:
        """The last attempt did not get through."""
        if self._tried:
            self._tried[-1].update(failed=cause, status=status)


class Outbound:
    """Trunks and routes of one engine.

    Args:
        settings: first configuration.
        draw: gives a number from 0 up to but without 1; decides among equals.
    """

    def __init__(self, settings: OutboundSettings, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._lines: dict[str, _Line] = {}
        self._settings: dict[str, TrunkSettings] = {}
        self._routes: tuple[Route, ...] = ()
        self.replace(settings)

    def replace(self, settings: OutboundSettings) -> None:
        """Put another configuration in force; calls in progress stay counted."""
        self._settings = {trunk.name: trunk for trunk in settings.trunks}
        # Stable: those for emergencies first, else as written.
        self._routes = tuple(sorted(settings.routes, key=lambda route: not route.emergency))
        self._lines = {name: line for name, line in self._lines.items() if line.calls or name in self._settings}

    @property
    def trunks(self) -> tuple[TrunkSettings, ...]:
        """Those of the configuration."""
        return tuple(self._settings.values())

    @property
    def routes(self) -> tuple[Route, ...]:
        """In the order in which they are asked."""
        return self._routes

    # --- choosing ---------------------------------------------------------------------------

    def serves(self, numbers: Iterable[str]) -> bool:
        """Whether any route is for a number, in one of its forms, whatever the time and the caller."""
        forms = tuple(numbers)
        return any(form and form in route.numbers for route in self._routes for form in forms)

    def search(self, numbers: Iterable[str], caller: str | None, at: datetime) -> Search:
        """Find the route of a call and the order of its trunks.

        Args:
            numbers: the dialled number in its forms, the preferred one first.
            caller: the calling agent's id; None: a trunk's caller, who may only use routes for everybody.
            at: the time, aware.
        """
        forms = tuple(numbers)
        considered: list[dict[str, object]] = []
        for route in self._routes:
            form = next((form for form in forms if form and form in route.numbers), None)
            refusal = _refusal(route, form, caller, at)
            considered.append({"route": route.name, "refused": refusal})
            if form is not None and refusal is None:
                search = Search(self, route, route.prepend + form[route.strip :], considered)
                search.begin(self._candidates(route))
                return search
        return Search(self, None, forms[0] if forms else "", considered)

    def _candidates(self, route: Route) -> list[tuple[str, int, bool]]:
        found = [
            (choice.trunk, gateway.index)
            for choice in in_order(route.trunks, self._draw)
            if (trunk := self._settings.get(choice.trunk)) is not None
            for gateway in in_order(trunk.gateways, self._draw)
        ]
        candidates = [(trunk, gateway, False) for trunk, gateway in found]
        if route.emergency:
            dead = [item for item in found if self.refusal_of_health(*item, now=None) is not None]
            candidates += [(trunk, gateway, True) for trunk, gateway in dead]
        return candidates

    # --- limits and health ------------------------------------------------------------------

    def take(
        self, trunk: str, gateway: int, now: float, *, emergency: bool = False, desperate: bool = False
    ) -> TrunkRefusal | None:
        """Count a call on a trunk, or say why it may not have it."""
        settings = self._settings.get(trunk)
        if settings is None:  # removed meanwhile
            return TrunkRefusal.UNREACHABLE
        line = self._line(trunk)
        if not desperate:
            refusal = self.refusal_of_health(trunk, gateway, now=now)
            if refusal is not None:
                return refusal
        rate = settings.max_calls_per_s
        if rate is not None:
            most = max(1.0, rate)
            since = 0.0 if line.counted_at is None else now - line.counted_at
            line.tokens = most if line.counted_at is None else min(most, line.tokens + since * rate)
            line.counted_at = now
        if not emergency:
            if settings.max_calls is not None and line.calls >= settings.max_calls:
                return TrunkRefusal.CALLS
            if rate is not None and line.tokens < 1.0:
                return TrunkRefusal.RATE
        if rate is not None:
            line.tokens = max(0.0, line.tokens - 1.0)
        line.calls += 1
        return None

    def occupy(self, trunk: str) -> None:
        """Count a call that came from a trunk, or that was there before us."""
        self._line(trunk).calls += 1

    def release(self, trunk: str) -> None:
        """A call on a trunk is over, or was none."""
        line = self._lines.get(trunk)
        if line is not None:
            line.calls = max(0, line.calls - 1)
            if not line.calls and trunk not in self._settings:
                del self._lines[trunk]

    def set_reachable(self, trunk: str, gateway: int | None, *, reachable: bool) -> bool:
        """A gateway, or (None) the trunk as a whole, went or came back; whether that is news."""
        line = self._line(trunk)
        was = not (line.down if gateway is None else gateway in line.gateways_down)
        if gateway is None:
            line.down = not reachable
        elif reachable:
            line.gateways_down.discard(gateway)
        else:
            line.gateways_down.add(gateway)
        return was != reachable

    def leave_alone(self, trunk: str, gateway: int, until: float) -> None:
        """A gateway asked for no more calls until then (Retry-After)."""
        self._line(trunk).quiet_until[gateway] = until

    def calls(self, trunk: str) -> int:
        """How many calls are counted on a trunk."""
        line = self._lines.get(trunk)
        return 0 if line is None else line.calls

    def refusal_of_health(self, trunk: str, gateway: int, *, now: float | None) -> TrunkRefusal | None:
        """Why a gateway is out of service; None: it is not. Without `now`, being left alone counts as it stands."""
        line = self._lines.get(trunk)
        if line is None:
            return None
        if line.down or gateway in line.gateways_down:
            return TrunkRefusal.UNREACHABLE
        until = line.quiet_until.get(gateway)
        if until is not None:
            if now is None or now < until:
                return TrunkRefusal.OVERLOADED
            del line.quiet_until[gateway]
        return None

    def _line(self, trunk: str) -> _Line:
        return self._lines.setdefault(trunk, _Line())


def _refusal(route: Route, form: str | None, caller: str | None, at: datetime) -> RouteRefusal | None:
    if form is None:
        return RouteRefusal.NUMBER
    if route.when is not None and not route.when.holds(at):
        return RouteRefusal.TIME
    if route.callers is not None and caller not in route.callers:
        return RouteRefusal.CALLER
    return None


def in_order(choices: Iterable[_W], draw: Callable[[], float]) -> list[_W]:
    """Sort by priority; among equals draw by weight, those of weight 0 last.

    Source: RFC 2782, "Usage rules".
    """
    ordered: list[_W] = []
    rest = sorted(choices, key=lambda choice: choice.priority)
    while rest:
        equal = [choice for choice in rest if choice.priority == rest[0].priority]
        rest = rest[len(equal) :]
        while len(equal) > 1:
            total = sum(choice.weight for choice in equal)
            if not total:
                break
            mark = draw() * total
            place = 0
            while place < len(equal) - 1 and mark >= equal[place].weight:
                mark -= equal[place].weight
                place += 1
            ordered.append(equal.pop(place))
        ordered += equal
    return ordered
