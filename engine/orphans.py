"""Calls of an earlier engine, whose audio a media worker carries on until they end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from engine import events as ev
from engine import snapshot
from engine.events import AgentId, EndCause, QueueId

if TYPE_CHECKING:
    from engine.control import CallControl

log = logging.getLogger("murima.call")


def on_found(control: CallControl, event: ev.CallAbandonedByEngine) -> None:
    """A worker still carries a call that an engine before this one had set up.

    Its audio goes on untouched. Its agent counts as talking, so that no
    second caller is offered to the same phone.
    """
    try:
        kept = snapshot.decode(event.snapshot)
    except snapshot.SnapshotError as exc:
        log.warning("call.snapshot_unreadable", extra={"call_id": event.call_id, "error": str(exc)})
        return
    control.orphans[event.call_id] = kept
    control.outbound.on_found(kept)
    log.info("call.found", extra={"call_id": event.call_id, "agent_id": kept.agent_id, "state": kept.state})
    for agent_id in (kept.agent_id, kept.from_agent):
        if agent_id is not None:
            control.occupy(AgentId(agent_id), event.call_id)


def on_ended(control: CallControl, event: ev.OrphanEnded) -> None:
    """Such a call has ended, because its audio stopped."""
    kept = control.orphans.pop(event.call_id, None)
    if kept is None:
        return
    control.outbound.on_lost(kept)
    now = control.clock.utc()
    common: dict[str, Any] = {
        "at": now,
        "call_id": event.call_id,
        "agent_id": AgentId(kept.agent_id) if kept.agent_id else None,
        "queue_id": QueueId(kept.queue_id) if kept.queue_id else None,
    }
    if kept.talk_started_at is not None:
        talk_s = round((now - kept.talk_started_at).total_seconds(), 3)
        control.bus.publish(ev.TalkEnded(event_id=control.new_id(), talk_s=talk_s, **common))
    control.bus.publish(
        ev.CallEnded(
            event_id=control.new_id(),
            cause=EndCause.NORMAL,
            by="system",
            duration_s=round((now - kept.started_at).total_seconds(), 3),
            detail="the engine restarted during the call; ended when its audio stopped",
            **common,
        )
    )
    log.info("call.ended", extra={"call_id": event.call_id, "cause": EndCause.NORMAL, "by": "system"})
    for agent_id in (kept.agent_id, kept.from_agent):
        if agent_id is not None:
            control.part(event.call_id, AgentId(agent_id))
