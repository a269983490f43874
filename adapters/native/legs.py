"""What the provider remembers of calls and their legs."""

from __future__ import annotations

from typing import Protocol

from adapters.native.audio import LegAudio
from adapters.sip.dialogs.session import Session
from adapters.sip.syntax.sdp import SessionDescription
from engine.events import CallId, EndCause, LegId
from engine.telephony import Originate
from media.client import Command


class Link(Protocol):
    """The connection to one media worker; `media.client.MediaClient` is one."""

    @property
    def connected(self) -> bool: ...

    def send(self, command: Command) -> None:
        """Raises WorkerUnavailable."""


class Cancellable(Protocol):
    """A timer of the event loop."""

    def cancel(self) -> None: ...


class Stoppable(Protocol):
    """Phones that ring for one leg; `adapters.native.forking.Fork` is one."""

    def stop(self, cause: EndCause) -> None: ...


class Worker:
    """A media worker.

    Attributes:
        address: IP address that its legs are offered at.
        legs: legs that hold ports, those being closed included, and whether we called them.
        loading: prompts that it was asked to load and has not answered for.
        orphans: calls of an earlier engine that it carries on.
        unreleased: calls to be released once it can be reached again.
    """

    __slots__ = ("address", "legs", "link", "loading", "name", "orphans", "unreleased")

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.link: Link | None = None
        self.legs: dict[str, bool] = {}
        self.loading: set[str] = set()
        self.orphans: set[str] = set()
        self.unreleased: set[str] = set()

    @property
    def connected(self) -> bool:
        """Whether commands reach it."""
        return self.link is not None and self.link.connected

    @property
    def ready(self) -> bool:
        """Whether it can serve a call: reached, and every prompt loaded or found unusable."""
        return self.connected and not self.loading


class Call:
    """Legs that share a worker, because they will share audio.

    Attributes:
        worker: None until a leg needs one.
        recording: path of the recording that runs, or None.
    """

    __slots__ = ("call_id", "legs", "recording", "worker")

    def __init__(self, call_id: CallId) -> None:
        self.call_id = call_id
        self.worker: Worker | None = None
        self.legs: set[LegId] = set()
        self.recording: str | None = None


class Leg:
    """One party's connection.

    Attributes:
        offer: their offer, None for a call of ours or a delayed offer.
        preferred: the codec to prefer: theirs, then that of the leg to be bridged with.
        port: our RTP port, None until the worker opened it.
        opening: the worker was asked for a port.
        answering: `answer` waits for the port.
        request: of an outgoing leg; its INVITE waits for the port as long as `session` is None.
        probe_timer: the next probe while the leg stays silent; on its way out, the end
            of our patience with a gateway that does not respond.
        fork: of a leg that rings at several phones; None once one has answered.
        early: audio of the called side was told before its answer.
        early_answer: our answer that the caller was told before it was answered.
        early_peer: `progress` waits for the port.
        referred: it asked for a transfer before.
        user: the agent whose phone it is.
    """

    __slots__ = (
        "answered",
        "answering",
        "audio",
        "call",
        "early",
        "early_answer",
        "early_peer",
        "fork",
        "held",
        "leg_id",
        "max_forwards",
        "offer",
        "opening",
        "port",
        "preferred",
        "probe_timer",
        "referred",
        "request",
        "ringing",
        "session",
        "silent_s",
        "status",
        "user",
    )

    def __init__(self, leg_id: LegId, call: Call, audio: LegAudio) -> None:
        self.leg_id = leg_id
        self.call = call
        self.audio = audio
        self.session: Session | None = None
        self.request: Originate | None = None
        self.offer: SessionDescription | None = None
        self.preferred: str | None = None
        self.port: int | None = None
        self.opening = False
        self.answering = False
        self.answered = False
        self.ringing = False
        self.fork: Stoppable | None = None
        self.early = False
        self.early_answer = b""
        self.early_peer: LegId | None = None
        self.held = False
        self.status: int | None = None
        self.max_forwards = 70
        self.silent_s = 0.0
        self.referred = False
        self.user: str | None = None
        self.probe_timer: Cancellable | None = None
