"""The events of whole calls, as the engine would log them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from engine.events import (
    AgentId,
    AgentStateChanged,
    CallAnswered,
    CallEnded,
    CallId,
    CallStarted,
    EndCause,
    HoldEnded,
    HoldStarted,
    LegMeasured,
    LogEvent,
    MediaStatistics,
    OfferMade,
    Party,
    QueueId,
    QueueJoined,
    QueueLeft,
    RecordingStored,
    TalkEnded,
    TalkStarted,
)

START = datetime(2026, 3, 4, 9, 0, tzinfo=UTC)


def queued_call(name: str, *, start: datetime = START, queue: str = "bench", agent: str = "a0001") -> list[LogEvent]:
    """A call through a queue to an agent, with a hold, a recording and both legs measured: 14 events."""
    call, seat, line = CallId(name), AgentId(agent), QueueId(queue)

    def common(step: int, after_s: float) -> tuple[str, datetime]:
        return f"{name}-{step:02}", start + timedelta(seconds=after_s)

    def audio(packets: int) -> MediaStatistics:
        return MediaStatistics(codec="PCMU", packets_received=packets, packets_sent=packets, jitter_ms=1.25)

    ids = [common(step, after) for step, after in enumerate([0, 0.5, 0.6, 1, 4, 4, 4, 10, 15, 34, 34.5, 35, 36, 37])]
    (i, t) = zip(*ids, strict=True)
    return [
        CallStarted(event_id=i[0], at=t[0], call_id=call, caller=Party("0151", "Ann"), dialled="500", trunk="carrier"),
        CallAnswered(event_id=i[1], at=t[1], call_id=call),
        QueueJoined(event_id=i[2], at=t[2], call_id=call, queue_id=line),
        OfferMade(
            event_id=i[3], at=t[3], call_id=call, queue_id=line, agent_id=seat, explanation={"rule": "longest_idle"}
        ),
        AgentStateChanged(event_id=i[4], at=t[4], call_id=call, agent_id=seat, old="ringing", new="talking"),
        QueueLeft(event_id=i[5], at=t[5], call_id=call, queue_id=line, outcome="answered", wait_s=3.4),
        TalkStarted(event_id=i[6], at=t[6], call_id=call, queue_id=line, agent_id=seat),
        HoldStarted(event_id=i[7], at=t[7], call_id=call, by="agent"),
        HoldEnded(event_id=i[8], at=t[8], call_id=call, by="agent"),
        TalkEnded(event_id=i[9], at=t[9], call_id=call, queue_id=line, agent_id=seat, talk_s=30.0),
        CallEnded(event_id=i[10], at=t[10], call_id=call, cause=EndCause.NORMAL, by="caller", duration_s=34.5),
        LegMeasured(event_id=i[11], at=t[11], call_id=call, party="caller", statistics=audio(1700)),
        LegMeasured(event_id=i[12], at=t[12], call_id=call, agent_id=seat, party="agent", statistics=audio(1500)),
        RecordingStored(
            event_id=i[13],
            at=t[13],
            call_id=call,
            path=f"recordings/{name}.wav",
            duration_ms=30000,
            size_bytes=960044,
            sha256="ab" * 32,
        ),
    ]
