"""The `Telephony` protocol: what call control asks of the layer that owns phones and audio.

Commands return at once and never block; what came of them arrives as leg
events (`engine.events`) through the sink given to the provider. A command for
a leg that has ended meanwhile is ignored: both sides may be on the way to the
same end. Every leg ends with exactly one `LegEnded`, whoever ended it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.events import (
    NOTHING_FORWARDED,
    AgentId,
    CallId,
    EndCause,
    Forwarded,
    LegEvent,
    LegId,
    Party,
    PlayId,
    TransferId,
    TransferState,
)

EventSink = Callable[[LegEvent], None]

DTMF_DIGITS = frozenset("0123456789*#ABCD")


def is_dtmf(digits: str) -> bool:
    """Whether every character is a key that RFC 4733 names (an empty text is)."""
    return DTMF_DIGITS.issuperset(digits)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where a call to the outside goes.

    Attributes:
        trunk: its name.
        gateway: place of the address among those of the trunk.
        number: what is dialled there.
        withheld: the person called must not see the caller's number.
        diverted_from: the number whose call is passed on, if it is one.
    """

    trunk: str
    gateway: int
    number: str
    withheld: bool = False
    diverted_from: str = ""


@dataclass(frozen=True, slots=True)
class Originate:
    """A new leg towards an agent's phone, or to the outside.

    Attributes:
        agent_id: whose phone rings (fixed contact, or the registered one); "" for a call to the outside.
        caller: shown to the called side as the From user part and display name.
        peer: the leg it will be bridged with; its codec is offered first, so
            that audio can be relayed untouched.
        ring_timeout_s: give up (cause NO_ANSWER) after this many seconds.
        outside: set for a call through a trunk.
        forwarded: what the caller's signalling says that the called side is told.
        referred_by: the agent who transferred the call, or "".
    """

    call_id: CallId
    agent_id: AgentId
    caller: Party
    peer: LegId | None
    ring_timeout_s: float
    outside: Outside | None = None
    forwarded: Forwarded = NOTHING_FORWARDED
    referred_by: str = ""


class Telephony(Protocol):
    """Commands from call control. None of them raises for what a peer did."""

    def ring(self, leg_id: LegId) -> None:
        """Tell an incoming leg that the other side is being alerted."""

    def progress(self, leg_id: LegId, peer: LegId) -> None:
        """Let an incoming or an answered leg hear `peer` before that is answered (where it cannot: as `ring`)."""

    def answer(self, leg_id: LegId, *, peer: LegId | None = None) -> None:
        """Answer an incoming leg, preferring `peer`'s codec; LegAnswered follows, or LegEnded."""

    def reject(self, leg_id: LegId, cause: EndCause) -> None:
        """Refuse an incoming leg; LegEnded follows."""

    def originate(self, leg_id: LegId, request: Originate) -> None:
        """Call an agent's phone or a number outside; LegTrying, LegRinging, LegAnswered or LegEnded follow."""

    def hang_up(self, leg_id: LegId, cause: EndCause = EndCause.NORMAL) -> None:
        """End a leg in any state (CANCEL, BYE or a final refusal); LegEnded follows."""

    def bridge(self, a: LegId, b: LegId) -> None:
        """Join the audio of two answered legs, both ways."""

    def unbridge(self, a: LegId, b: LegId) -> None:
        """Part two legs; both stay up and hear nothing."""

    def play(self, leg_id: LegId, play_id: PlayId, prompt: str, *, loop: bool = False) -> None:
        """Play a prompt by its configured name; PlayFinished follows.

        While it plays, it replaces what the leg would hear through a bridge.
        A new play replaces the one before it.
        """

    def stop_play(self, leg_id: LegId) -> None:
        """Stop whatever plays on the leg; a bridge is heard again."""

    def echo(self, leg_id: LegId) -> None:
        """Send a leg's own audio back to it."""

    def shares_audio(self, a: LegId, b: LegId) -> bool:
        """Whether two legs, of one call or of two, can be bridged."""

    def move_leg(self, leg_id: LegId, call_id: CallId) -> None:
        """Make a leg part of another call whose audio it can share; its own call goes on without it."""

    def report_transfer(self, transfer_id: TransferId, state: TransferState, cause: EndCause = EndCause.NORMAL) -> None:
        """Tell the phone that asked for a transfer how it goes; nothing follows REFUSED, BUSY, DONE and FAILED."""

    def refer(self, leg_id: LegId, transfer_id: TransferId, target: str) -> None:
        """Ask the far side to call `target` in our place; LegReferred follows until it is over."""

    def send_dtmf(self, leg_id: LegId, digits: str) -> None:
        """Send digits to the far phone (RFC 4733 where it was negotiated)."""

    def start_recording(self, call_id: CallId, left: LegId, right: LegId) -> None:
        """Record two legs of a call into one stereo file; RecordingFinished follows at its end.

        The channel of a leg that does not exist stays silent. While the call is
        being recorded, its file goes on with these two.
        """

    def stop_recording(self, call_id: CallId) -> None:
        """Finish the call's recording now (it also ends with the call)."""

    def save_snapshot(self, call_id: CallId, snapshot: bytes) -> None:
        """Let the call's media worker keep `snapshot`, so that a later engine can read it back."""

    def release_call(self, call_id: CallId) -> None:
        """Forget a call: its legs have ended, its recording and snapshot are no longer wanted open."""
