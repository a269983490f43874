"""What a media worker keeps of each call for the next engine: small and versioned.

Fields are only ever added, at the end, with defaults: an older snapshot is
read by a newer engine. A snapshot of a newer version is refused cleanly.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from engine.call import Call

VERSION = 1


class SnapshotError(Exception):
    """The snapshot is damaged, or made by a newer engine."""


class CallSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """One call. Times are UTC, because the reader is another process."""

    version: int
    call_id: str
    state: str
    caller: str
    caller_name: str
    dialled: str
    trunk: str | None
    from_agent: str | None
    started_at: datetime
    answered_at: datetime | None
    queue_id: str | None
    joined_at: datetime | None
    agent_id: str | None
    caller_leg: str
    agent_leg: str | None
    recording: bool
    talk_started_at: datetime | None = None
    trunk_out: str | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallSnapshot)


def encode(call: Call) -> bytes:
    """A call as bytes for `Telephony.save_snapshot`."""
    return _encoder.encode(
        CallSnapshot(
            version=VERSION,
            call_id=call.call_id,
            state=call.state,
            caller=call.caller.number,
            caller_name=call.caller.name,
            dialled=call.dialled,
            trunk=call.source.trunk,
            from_agent=call.source.agent_id,
            started_at=call.started_at,
            answered_at=call.answered_at,
            queue_id=call.queue_id,
            joined_at=call.joined_at,
            agent_id=call.agent_id,
            caller_leg=call.caller_leg.leg_id,
            agent_leg=call.agent.leg_id if call.agent is not None else None,
            recording=call.recording,
            talk_started_at=call.talk_started_at,
            trunk_out=call.agent.trunk if call.agent is not None else None,
        )
    )


def decode(data: bytes) -> CallSnapshot:
    """Raises SnapshotError; nothing else escapes."""
    try:
        snapshot = _decoder.decode(data)
    except msgspec.MsgspecError as exc:
        raise SnapshotError(f"unreadable snapshot: {exc}") from exc
    if snapshot.version > VERSION:
        raise SnapshotError(f"snapshot version {snapshot.version} is newer than this engine's {VERSION}")
    return snapshot
