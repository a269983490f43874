"""Admission control: refuse new work in time, so that what is taken on is served quickly.

Somebody watches the load while work arrives and reports it here. Load that
stays too high switches a limit on: first well below the rate that was too much
until the backlog is gone, then just below it, then slowly up again, as TCP
finds the capacity of a path. The limit goes when nothing had to be refused for
a while. Short bursts never switch it on.

Emergency calls have a share of their own on top; registrations and the like
only take what calls leave.

Pure: times, samples and random numbers go in. Source: RFC 7339 5 (rate-based
reaction), RFC 6357.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from adapters.sip.syntax.message import Request

EMERGENCY_NUMBERS = frozenset({"112", "911"})

_SAMPLES_TO_BEGIN = 3
_SAMPLES_TO_BRAKE = 2
_MEASURED_S = 1.0  # the rate of admitted work is taken over this time
_BRAKE_S = 0.5  # load that does not fall within this time brakes harder
_LOSING = 0.4  # of the time to wait, when datagrams are lost: calls in progress suffer
_TIGHTER = 0.3  # of the lateness and waiting that switch the limit on
_BACK_OFF = 0.9  # of the rate that was too much
_DRAIN = 0.5  # of the rate to come back to, while the backlog is worked off
_GROWTH = 0.1  # a second, at first; the longer nothing happens, the faster
_MOST_GROWTH = 0.3
_DOUBLING_S = 2.0
_STEP = 0.5  # calls a second, a second: so that small rates grow, too
_LEAVE_S = 3.0  # without a refusal
_IDLE_S = 1.0  # without an arrival nobody need watch
_LEAST = 5.0  # calls a second that are taken whatever happens
_BURST_S = 0.1  # of the rate
_EMERGENCY_SHARE = 0.2
_LIGHT = 0.25  # what a registration costs, in calls
_RETRY_CALL_S = (2, 6)
_RETRY_OTHER_S = (10, 40)


class Urgency(Enum):
    """What goes first."""

    EMERGENCY = "emergency"
    CALL = "call"
    OTHER = "other"  # registrations, subscriptions, messages: their senders try again by themselves


@dataclass(frozen=True, slots=True)
class Load:
    """One look at how far behind we are.

    Attributes:
        late_s: how late a timer of the event loop fired.
        wait_s: how long what waits in receive queues will wait, at the present pace.
        dropped: datagrams that the kernel had no room for since the last look.
    """

    late_s: float = 0.0
    wait_s: float = 0.0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """When to refuse.

    Attributes:
        late_s: lateness that is too much.
        wait_s: waiting that is too much.
        sustained_s: how long load must be too high before anything is refused.
        max_calls_per_s: new calls a second that are taken at most, however low the load is; None: any number.
        emergency: dialled numbers that go first.
    """

    late_s: float = 0.25
    wait_s: float = 0.1
    sustained_s: float = 0.5
    max_calls_per_s: float | None = None
    emergency: frozenset[str] = EMERGENCY_NUMBERS


class _Bucket:
    """Tokens that come at a rate; at most `_BURST_S` seconds' worth, and one, are kept."""

    __slots__ = ("at", "rate", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.at = now
        self.tokens = self.size

    @property
    def size(self) -> float:
        return max(1.0, self.rate * _BURST_S)

    def take(self, cost: float, now: float, *, leave: float = 0.0) -> bool:
        self.tokens = min(self.size, self.tokens + (now - self.at) * self.rate)
        self.at = now
        # The sum of many small times falls short of a whole token by rounding.
        if self.tokens + 1e-9 < cost + leave:
            return False
        self.tokens -= cost
        return True


def _nobody() -> None:
    """Nobody watches."""


class Admission:
    """Decides on each request that begins something new.

    Args:
        settings: limits; replaced by `configure`.
        random: numbers from 0 to 1, to spread those who come again.

    Attributes:
        watch: called when work arrives and nobody watches; whoever it is calls `observe` until that says False.
        counters: what was refused, by urgency.
    """

    def __init__(self, settings: OverloadSettings | None = None, *, random: Callable[[], float]) -> None:
        self.watch: Callable[[], None] = _nobody
        self.counters: Counter[str] = Counter()
        self._random = random
        self._watched = False
        self._arrived_at = 0.0
        self._admitted = 0.0  # in calls
        self._history: deque[tuple[float, float]] = deque()
        self._high_since: float | None = None
        self._high_samples = 0
        self._limit: _Bucket | None = None
        self._cap: _Bucket | None = None
        self._emergency = _Bucket(_LEAST, 0.0)
        self._target = 0.0
        self._braked_at: float | None = None
        self._calm_since = 0.0
        self._looked_at = 0.0
        self._refused_at = 0.0
        self._settings = OverloadSettings()
        self.configure(settings or OverloadSettings())

    def configure(self, settings: OverloadSettings) -> None:
        """Put other settings in force."""
        self._settings = settings
        cap = settings.max_calls_per_s
        self._cap = None if cap is None else _Bucket(cap, self._cap.at if self._cap is not None else 0.0)

    @property
    def limiting(self) -> bool:
        """Whether anything may be refused now: if not, `refuses` need not be asked."""
        return self._limit is not None or self._cap is not None

    @property
    def shedding(self) -> bool:
        """Whether the load is too high, or was a moment ago."""
        return self._limit is not None

    # --- requests -------------------------------------------------------------------------

    def urgency(self, request: Request) -> Urgency:
        """How urgent a request outside a dialog is (RFC 4412, RFC 3261 20.26)."""
        if request.method != "INVITE":
            return Urgency.OTHER
        number = request.uri.partition(":")[2].partition("@")[0].partition(";")[0]
        headers = request.headers
        if (
            number in self._settings.emergency
            or ("priority" in headers and (request.get("priority") or "").lower() == "emergency")
            or (
                "resource-priority" in headers
                and any(value.strip().lower().startswith("esnet.") for value in headers["resource-priority"])
            )
        ):
            return Urgency.EMERGENCY
        return Urgency.CALL

    def on_admitted(self, *, call: bool, now: float) -> None:
        """New work was taken on."""
        self._admitted += 1 if call else _LIGHT
        self._arrived_at = now
        if not self._watched:
            self._watched = True
            self._history.clear()
            self._looked_at = now
            self.watch()

    def refuses(self, urgency: Urgency, now: float) -> int | None:
        """Whether to refuse new work: seconds for Retry-After, or None to serve it."""
        if self._take(urgency, now):
            return None
        self.counters[f'sip_overload_refused_total{{urgency="{urgency.value}"}}'] += 1
        self._refused_at = self._arrived_at = now
        return self.retry_after(urgency)

    def retry_after(self, urgency: Urgency) -> int:
        """Seconds for Retry-After: never the same for all."""
        low, high = _RETRY_OTHER_S if urgency is Urgency.OTHER else _RETRY_CALL_S
        return low + int(self._random() * (high - low + 1))

    def _take(self, urgency: Urgency, now: float) -> bool:
        if urgency is Urgency.EMERGENCY:
            self._emergency.rate = max(_LEAST, _EMERGENCY_SHARE * (self._limit or self._cap or self._emergency).rate)
            if self._emergency.take(1.0, now):
                return True
        for bucket in (self._limit, self._cap):
            if bucket is None or (bucket is self._cap and urgency is Urgency.OTHER):
                continue
            light = urgency is Urgency.OTHER
            if not bucket.take(_LIGHT if light else 1.0, now, leave=bucket.size / 2 if light else 0.0):
                return False
        return True

    # --- load -----------------------------------------------------------------------------

    def observe(self, load: Load, now: float) -> bool:
        """Take in a look at the load; returns whether to look again soon."""
        settings = self._settings
        # A limit keeps queues short; before there is one, a burst may fill them for a moment.
        share = 1.0 if self._limit is None else _TIGHTER
        high = load.late_s >= settings.late_s * share or load.wait_s >= settings.wait_s * share or load.dropped > 0
        passed = max(0.0, now - self._looked_at)
        self._looked_at = now
        history = self._history
        history.append((now, self._admitted))
        while len(history) > 2 and history[1][0] <= now - _MEASURED_S:
            history.popleft()
        if high:
            self._high_samples += 1
            if self._high_since is None:
                self._high_since = now
        else:
            self._high_samples = 0
            self._high_since = None
        if self._limit is None:
            since = self._high_since
            if (
                since is not None
                and self._high_samples >= _SAMPLES_TO_BEGIN
                and now - since + min(load.late_s, settings.sustained_s) >= self._patience_s(load)
            ):
                self._begin(now)
        else:
            self._adapt(self._limit, passed, now)
        self._watched = self._limit is not None or now - self._arrived_at < _IDLE_S
        return self._watched

    def _patience_s(self, load: Load) -> float:
        """How long to put up with a load like this."""
        return self._settings.sustained_s * (_LOSING if load.dropped else 1.0)

    def _rate(self) -> float:
        """Calls admitted a second, lately."""
        (first_at, first), (last_at, last) = self._history[0], self._history[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def _begin(self, now: float) -> None:
        self.counters["sip_overload_begun_total"] += 1
        self._target = max(_LEAST, self._rate() * _BACK_OFF)
        self._limit = _Bucket(max(_LEAST, self._target * _DRAIN), now)
        self._limit.tokens = 0.0
        self._braked_at = self._refused_at = now

    def _adapt(self, limit: _Bucket, passed: float, now: float) -> None:
        if self._high_samples >= (1 if self._braked_at is not None else _SAMPLES_TO_BRAKE):
            if self._braked_at is None:
                self._target = max(_LEAST, min(limit.rate, self._rate()) * _BACK_OFF)
            elif now - self._braked_at < _BRAKE_S:
                return
            else:
                self._target = max(_LEAST, self._target * _BACK_OFF)
            limit.rate = max(_LEAST, self._target * _DRAIN)
            self._braked_at = now
        elif self._high_samples:
            return
        elif self._braked_at is not None:
            self._braked_at = None
            self._calm_since = now
            limit.rate = self._target
        else:
            growth = min(_MOST_GROWTH, _GROWTH * 2.0 ** ((now - self._calm_since) / _DOUBLING_S))
            limit.rate += (limit.rate * growth + _STEP) * passed
            if now - self._refused_at >= _LEAVE_S:
                self._limit = None
                self._high_since = None

    def figures(self) -> dict[str, float]:
        """Counters and gauges by metric name."""
        return {
            **self.counters,
            "sip_overload_limited": float(self._limit is not None),
            "sip_overload_calls_per_second": 0.0 if self._limit is None else round(self._limit.rate, 1),
        }
