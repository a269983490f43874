"""The in-process event bus: log events go in once and out to whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.events import LogEvent

log = logging.getLogger("murima.bus")

Listener = Callable[[LogEvent], None]


class EventBus:
    """Hands every published event to every listener, in order, at once.

    Listeners must not block: those with slow work keep a bounded queue of
    their own. A listener that raises is logged and does not disturb the rest.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; the function returned removes it again (safe to call twice)."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def publish(self, event: LogEvent) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # one broken listener must not stop the call that published
                log.exception("bus.listener_failed", extra={"event": event.name})
