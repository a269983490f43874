"""Events between layers and into the event log.

A leaf: it imports nothing of ours, so adapters, casebridge and the engine can
all speak it. Two families live here:

* **Leg events** go from a `Telephony` provider up to call control. They are
  neutral: a leg says trying, ringing, answered, held, dtmf, ended. Nothing
  above an adapter ever sees SIP or AMI.
* **Log events** (`LogEvent`) say what happened to calls, queues and agents.
  They go onto the bus, to the event WebSocket and into the append-only log
  from which every figure is derived.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, NewType

CallId = NewType("CallId", str)
LegId = NewType("LegId", str)
PlayId = NewType("PlayId", str)
TransferId = NewType("TransferId", str)
AgentId = NewType("AgentId", str)
QueueId = NewType("QueueId", str)


class EndCause(StrEnum):
    """Why a leg or a call ended, in words that no protocol owns."""

    NORMAL = "normal"  # hung up after an answer
    CANCELLED = "cancelled"  # the calling side gave up before the answer
    BUSY = "busy"
    NO_ANSWER = "no_answer"  # rang until the timeout
    REJECTED = "rejected"  # declined by a person or a phone
    UNREACHABLE = "unreachable"  # no route, no registration, no reply
    NOT_FOUND = "not_found"  # unknown number or user
    FORBIDDEN = "forbidden"
    UNSUPPORTED = "unsupported"  # no common codec, or a service that is not there
    MEDIA_LOST = "media_lost"  # audio stopped and the phone no longer answers
    TAKEN = "taken"  # another phone took the call
    BROKEN = "broken"  # the called side's answer makes no sense
    OVERLOADED = "overloaded"
    SHUTDOWN = "shutdown"
    FAILED = "failed"  # a fault, ours or theirs


class TransferState(StrEnum):
    """How a transfer goes, in the eyes of the phone that asked for it."""

    REFUSED = "refused"  # not begun: see the cause
    BUSY = "busy"  # not begun: another one of this call is in progress
    TRYING = "trying"
    RINGING = "ringing"
    DONE = "done"
    FAILED = "failed"  # the conversation goes on as before; see the cause


class Presence(StrEnum):
    """Whether an agent takes calls, and why not, for the eyes of colleagues."""

    AVAILABLE = "available"
    IN_CALL = "in_call"
    WORKING = "working"  # after a call
    AWAY = "away"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Party:
    """Who calls: the number as it came, and the display name if there was one."""

    number: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an inbound leg comes from: exactly one of the two is set."""

    trunk: str | None = None
    agent_id: AgentId | None = None


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a caller's signalling says that whoever is called for it is told, too.

    Attributes:
        diverted_from: the number that was called first, if the call was diverted on its way to us.
        user_to_user: data of the caller's application (RFC 7433), as it came.
        withheld: the called side must not see the caller's number.
    """

    diverted_from: str = ""
    user_to_user: str = ""
    withheld: bool = False


NOTHING_FORWARDED = Forwarded()


@dataclass(frozen=True, slots=True)
class MediaStatistics:
    """One leg's audio at its end. Times in milliseconds, jitter per RFC 3550 6.4.1."""

    codec: str = ""
    packets_received: int = 0
    packets_sent: int = 0
    packets_lost: int = 0  # expected minus received, RFC 3550 A.3
    packets_discarded: int = 0  # wrong source, malformed, unknown payload type
    jitter_ms: float = 0.0
    remote_packets_lost: int | None = None  # from the peer's RTCP reports
    remote_jitter_ms: float | None = None
    round_trip_ms: float | None = None


# --- leg events: Telephony → call control ------------------------------------------------


@dataclass(frozen=True, slots=True)
class LegIncoming:
    """A new inbound leg waits for `ring`, `answer` or `reject`."""

    leg_id: LegId
    call_id: CallId  # made by the provider; the engine keeps it for the whole call
    caller: Party
    dialled: str  # the user part, as dialled
    source: Source
    peer_reference: str = ""  # the peer's own name of the call (the Call-ID header), for logs
    replaces: LegId | None = None  # it wants the place of this leg; `call_id` is then that leg's call
    forwarded: Forwarded = NOTHING_FORWARDED


@dataclass(frozen=True, slots=True)
class LegTrying:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegRinging:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegEarlyMedia:
    """A leg that we called is to be heard before its answer; `Telephony.progress` lets the caller hear it."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegAnswered:
    """The leg talks: an originated leg was answered, or our answer went out."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegHeld:
    """The far side put us on hold."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegResumed:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegDtmf:
    leg_id: LegId
    digit: str  # one of 0-9 * # A-D
    duration_ms: int


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The last event of a leg, exactly once; its media and ports are being released."""

    leg_id: LegId
    cause: EndCause
    status: int | None = None  # the peer's SIP status, where one decided it; for the record only
    detail: str = ""
    retry_after_s: float | None = None  # the peer asked for no more calls for so long


@dataclass(frozen=True, slots=True)
class LegTransferAsked:
    """The far side wants to leave, and its partner to be connected elsewhere; `Telephony.report_transfer` answers.

    Attributes:
        target: whom it wants, as it would dial it.
        replaces: the far side's other leg, whose partner is the target (attended transfer).
    """

    leg_id: LegId
    transfer_id: TransferId
    target: str
    replaces: LegId | None = None


@dataclass(frozen=True, slots=True)
class LegReferred:
    """How a transfer that we asked the far side for (`Telephony.refer`) goes; DONE, REFUSED and FAILED are the last."""

    leg_id: LegId
    transfer_id: TransferId
    state: TransferState
    cause: EndCause = EndCause.NORMAL


@dataclass(frozen=True, slots=True)
class LegReport:
    """Final audio figures of a leg; follows LegEnded when the worker has closed it."""

    leg_id: LegId
    call_id: CallId
    statistics: MediaStatistics
    originated: bool = False  # True: we called this leg (an agent's phone); False: it called us


@dataclass(frozen=True, slots=True)
class PlayFinished:
    leg_id: LegId
    play_id: PlayId
    completed: bool  # False: stopped, replaced, leg gone or prompt missing


@dataclass(frozen=True, slots=True)
class RecordingFinished:
    call_id: CallId
    path: str
    duration_ms: int
    size_bytes: int
    sha256: str
    error: str = ""  # empty: the file is complete


@dataclass(frozen=True, slots=True)
class CallAbandonedByEngine:
    """A call of an earlier engine, whose audio a worker still carries (found at start)."""

    call_id: CallId
    snapshot: bytes


@dataclass(frozen=True, slots=True)
class OrphanEnded:
    """A worker ended a call of an earlier engine because its audio stopped."""

    call_id: CallId


@dataclass(frozen=True, slots=True)
class AgentReachability:
    """An agent's phone registered, or its last registration expired or was removed."""

    agent_id: AgentId
    reachable: bool


@dataclass(frozen=True, slots=True)
class TrunkReachability:
    """A trunk, or one of its gateways, went out of service or came back."""

    trunk: str
    gateway: int | None  # its place among the trunk's addresses; None: the trunk as a whole
    reachable: bool
    detail: str = ""


LegEvent = (
    LegIncoming
    | LegTrying
    | LegRinging
    | LegEarlyMedia
    | LegAnswered
    | LegHeld
    | LegResumed
    | LegDtmf
    | LegEnded
    | LegTransferAsked
    | LegReferred
    | LegReport
    | PlayFinished
    | RecordingFinished
    | CallAbandonedByEngine
    | OrphanEnded
    | AgentReachability
    | TrunkReachability
)


# --- log events: the append-only record ---------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """One fact. `event_id` is unique for ever, so inserting it twice is harmless."""

    name: ClassVar[str] = ""

    event_id: str
    at: datetime  # UTC, aware
    call_id: CallId | None = None
    agent_id: AgentId | None = None
    queue_id: QueueId | None = None

    def facts(self) -> dict[str, object]:
        """What this kind of event adds to the common fields; JSON-ready."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in _COMMON}


_COMMON = frozenset({"event_id", "at", "call_id", "agent_id", "queue_id"})


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStarted(LogEvent):
    name: ClassVar[str] = "engine.started"
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(LogEvent):
    name: ClassVar[str] = "call.started"
    caller: Party
    dialled: str
    trunk: str | None = None
    from_agent: AgentId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswered(LogEvent):
    """The caller's leg was answered (by us, or because an agent answered)."""

    name: ClassVar[str] = "call.answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueJoined(LogEvent):
    name: ClassVar[str] = "queue.joined"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferMade(LogEvent):
    """An agent's phone is about to ring. `explanation` says why this agent."""

    name: ClassVar[str] = "offer.made"
    explanation: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFailed(LogEvent):
    """The agent offered did not take the call; the caller waits on at the old place."""

    name: ClassVar[str] = "offer.failed"
    cause: EndCause


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLeft(LogEvent):
    """The caller no longer waits. `outcome` is answered, abandoned, refused, transferred or ended."""

    name: ClassVar[str] = "queue.left"
    outcome: str
    wait_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundTried(LogEvent):
    """A number outside is called through a trunk. `explanation` says why this one."""

    name: ClassVar[str] = "outbound.tried"
    trunk: str
    gateway: int
    number: str
    explanation: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundFailed(LogEvent):
    """A number outside was not reached through this trunk."""

    name: ClassVar[str] = "outbound.failed"
    trunk: str
    gateway: int
    cause: EndCause
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkStateChanged(LogEvent):
    """A trunk, or one of its gateways, went out of service or came back."""

    name: ClassVar[str] = "trunk.state"
    trunk: str
    gateway: int | None = None
    reachable: bool = True
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkStarted(LogEvent):
    """Caller and agent hear each other."""

    name: ClassVar[str] = "talk.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkEnded(LogEvent):
    name: ClassVar[str] = "talk.ended"
    talk_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldStarted(LogEvent):
    name: ClassVar[str] = "hold.started"
    by: str  # caller, agent or callee, whose phone holds; or on whose word: agent or operator


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldEnded(LogEvent):
    name: ClassVar[str] = "hold.ended"
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DtmfReceived(LogEvent):
    """A key was pressed. The digit itself is personal data (card numbers) and is not logged."""

    name: ClassVar[str] = "dtmf.received"
    by: str  # caller or agent


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingStarted(LogEvent):
    name: ClassVar[str] = "recording.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingStored(LogEvent):
    name: ClassVar[str] = "recording.stored"
    path: str  # relative to the data folder
    duration_ms: int
    size_bytes: int
    sha256: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegMeasured(LogEvent):
    """Audio figures of one leg after its end."""

    name: ClassVar[str] = "leg.measured"
    party: str  # caller or agent
    statistics: MediaStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStarted(LogEvent):
    """Somebody wants the call to go on with somebody else.

    Attributes:
        by: agent, caller or operator; `from_agent`: the agent who leaves, if one does.
        attended: the two had spoken before, in `other_call`, which is over once they are joined.
        released: the far side was asked to place the new call itself.
    """

    name: ClassVar[str] = "transfer.started"
    transfer_id: TransferId
    by: str
    target: str
    from_agent: AgentId | None = None
    attended: bool = False
    released: bool = False
    other_call: CallId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCompleted(LogEvent):
    """Who wanted to leave has left. `to_agent`: the agent who talks now, if it is one."""

    name: ClassVar[str] = "transfer.completed"
    transfer_id: TransferId
    target: str
    to_agent: AgentId | None = None
    other_call: CallId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed(LogEvent):
    """The conversation goes on as before, unless one of the two has hung up meanwhile."""

    name: ClassVar[str] = "transfer.failed"
    transfer_id: TransferId
    target: str
    cause: EndCause


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(LogEvent):
    name: ClassVar[str] = "call.ended"
    cause: EndCause
    by: str  # caller, agent or system
    duration_s: float
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStateChanged(LogEvent):
    name: ClassVar[str] = "agent.state"
    old: str
    new: str
    reason: str = ""
