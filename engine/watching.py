"""What colleagues may know of an agent: whether calls are taken, and why not."""

from __future__ import annotations

from collections.abc import Callable

from engine.bus import EventBus
from engine.control import CallControl
from engine.events import AgentId, AgentStateChanged, LogEvent, Presence
from routing.model import AgentState

PRESENCE = {
    AgentState.READY: Presence.AVAILABLE,
    AgentState.RINGING: Presence.IN_CALL,
    AgentState.TALKING: Presence.IN_CALL,
    AgentState.WRAP_UP: Presence.WORKING,
    AgentState.BREAK: Presence.AWAY,
    AgentState.OFFLINE: Presence.OFFLINE,
}


class AgentWatch:
    """Tells of changes as they happen, and of the present when asked.

    Args:
        control: whose agents.
        bus: brings the changes.
        on_change: told of an agent whose presence may have changed.
    """

    def __init__(self, control: CallControl, bus: EventBus, on_change: Callable[[AgentId], None]) -> None:
        self._control = control
        self._on_change = on_change
        bus.subscribe(self._on_event)

    def presence(self, agent_id: AgentId) -> Presence:
        """An agent's presence now; OFFLINE for one whom nobody knows."""
        status = self._control.router.agent(agent_id)
        return Presence.OFFLINE if status is None else PRESENCE[status.state]

    def _on_event(self, event: LogEvent) -> None:
        if isinstance(event, AgentStateChanged) and event.agent_id is not None and event.old != event.new:
            self._on_change(event.agent_id)
