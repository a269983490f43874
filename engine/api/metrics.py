"""Figures for Prometheus: the engine's own, the process's, and HTTP's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.operations import Operations

_NAME = re.compile(r"^([a-zA-Z_][a-zA-Z0-9_]*)(?:\{(.*)\})?$", re.DOTALL)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class StreamFigures(Protocol):
    """What the event stream counts."""

    dropped: int

    @property
    def clients(self) -> int: ...


def split_name(text: str) -> tuple[str, dict[str, str]]:
    """Take `name{label="value",…}` apart.

    Raises:
        ValueError: it has another form.
    """
    match = _NAME.match(text)
    if match is None:
        raise ValueError(f"not a metric name: {text!r}")
    labels: dict[str, str] = {}
    rest = match[2] or ""
    while rest:
        label = _LABEL.match(rest)
        if label is None:
            raise ValueError(f"not metric labels: {text!r}")
        labels[label[1]] = re.sub(r"\\.", lambda m: _ESCAPES.get(m[0], m[0]), label[2])
        rest = rest[label.end() :]
    return match[1], labels


class EngineCollector(Collector):
    """`operations.counters()` under murima_*, and which components are up, read at each scrape."""

    def __init__(self, operations: Operations, stream: StreamFigures) -> None:
        self._operations = operations
        self._stream = stream

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Nothing in advance: the engine need not be ready when it is registered."""
        return ()

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        yield from families(self._operations.counters())
        up = GaugeMetricFamily("murima_component_up", "1 when a part of the system works.", labels=["component"])
        for component in self._operations.health():
            up.add_metric([component.name], float(component.ok))
        yield up
        clients = GaugeMetricFamily("murima_event_clients", "Event streams that are open.", self._stream.clients)
        yield clients
        yield CounterMetricFamily(
            "murima_event_dropped", "Events that slow event streams missed.", self._stream.dropped
        )


def families(counters: Mapping[str, float]) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
    """Group samples by metric; names that end in _total are counters, others gauges.

    Samples of one metric must carry the same labels; one that does not is left out,
    as is a malformed name: figures must never take the page of figures down.
    """
    found: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    keys: dict[str, list[str]] = {}
    for text, value in counters.items():
        try:
            name, labels = split_name(text)
        except ValueError:
            continue
        if name not in found:
            keys[name] = sorted(labels)
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            found[name] = kind(f"murima_{name.removesuffix('_total')}", "See docs/api.md.", labels=keys[name])
        if keys[name] == sorted(labels):
            found[name].add_metric([labels[key] for key in keys[name]], value)
    return found.values()


class Metrics:
    """Our own registry: nothing that a library registers globally leaks into it."""

    def __init__(self, operations: Operations, stream: StreamFigures) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "murima_http_requests",
            "HTTP requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "murima_http_request_duration_seconds",
            "Time from a request's headers to its answer, event streams excepted.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        ProcessCollector(namespace="murima", registry=self._registry)
        self._registry.register(EngineCollector(operations, stream))

    def count(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """Count one request; `duration_s` is None for event streams."""
        self._requests.labels(method, route, str(status)).inc()
        if duration_s is not None:
            self._seconds.labels(method, route).observe(duration_s)

    def text(self) -> bytes:
        """The exposition (content type: prometheus_client.CONTENT_TYPE_LATEST)."""
        return generate_latest(self._registry)
