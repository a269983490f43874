"""The engine's end of a worker connection (asyncio).

The protocol's messages are re-exported, so users of a worker import only this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, cast

import msgspec

from media.framing import FrameError, Frames, frame
from media.protocol import (
    VERSION,
    AskStatistics,
    Bridge,
    CloseLeg,
    Codec,
    Command,
    Direction,
    Dtmf,
    Echo,
    Event,
    Hello,
    KeptCall,
    KeptCalls,
    LegClosed,
    LegFailed,
    LegOpened,
    LegStatistics,
    LoadPrompt,
    MediaResumed,
    MediaSilent,
    MoveLeg,
    OpenLeg,
    OrphanEnded,
    Play,
    PlayEnded,
    PromptFailed,
    PromptLoaded,
    PutSnapshot,
    Quit,
    RecordingEnded,
    Refused,
    ReleaseCall,
    SendDtmf,
    SetRemote,
    StartRecording,
    StopPlay,
    StopRecording,
    Unbridge,
    Welcome,
    WorkerStatistics,
)

__all__ = [
    "AskStatistics",
    "Bridge",
    "CloseLeg",
    "Codec",
    "Command",
    "Direction",
    "Dtmf",
    "Echo",
    "Event",
    "KeptCall",
    "LegClosed",
    "LegFailed",
    "LegOpened",
    "LegStatistics",
    "LoadPrompt",
    "MediaClient",
    "MediaError",
    "MediaResumed",
    "MediaSilent",
    "MoveLeg",
    "OpenLeg",
    "OrphanEnded",
    "Play",
    "PlayEnded",
    "PromptFailed",
    "PromptLoaded",
    "PutSnapshot",
    "Quit",
    "RecordingEnded",
    "Refused",
    "ReleaseCall",
    "SendDtmf",
    "SetRemote",
    "StartRecording",
    "StopPlay",
    "StopRecording",
    "Unbridge",
    "Welcome",
    "WorkerRefused",
    "WorkerStatistics",
    "WorkerUnavailable",
]

MAX_UNSENT: Final = 16 << 20  # bytes; a worker that reads nothing for so long is stuck
_decoder = msgspec.msgpack.Decoder(Event)


class MediaError(Exception):
    """Base of this module's errors."""


class WorkerUnavailable(MediaError):  # noqa: N818 - a state of the worker, not a fault of the caller
    """No worker listens, or the connection is gone."""


class WorkerRefused(MediaError):  # noqa: N818 - as above
    """The worker does not speak our version of the protocol."""


class MediaClient(asyncio.Protocol):
    """One connection to one worker; after it is lost, make a new client.

    Args:
        path: the worker's Unix socket.
        on_event: called for each event after the Welcome, in order, on the event loop.
        engine_name: for the worker's log.
        on_lost: called once when the connection ends other than by `close`.
    """

    def __init__(
        self,
        path: str,
        on_event: Callable[[Event], None],
        engine_name: str,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._path = path
        self._on_event = on_event
        self._engine_name = engine_name
        self._on_lost = on_lost
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._welcomed: asyncio.Future[Welcome] | None = None
        self._welcome: Welcome | None = None
        self._early: list[Event] | None = []  # events that come before connect() has returned
        self._unsent: list[bytes] = []
        self._ready = False  # the Welcome is complete
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        """Whether `send` reaches the worker."""
        return self._transport is not None and self._ready and not self._closing

    async def connect(self, timeout_s: float = 5.0) -> Welcome:
        """Connect and exchange Hello and Welcome; the Welcome lists the calls that the worker kept.

        Events that waited in the worker follow once the caller has had its turn.

        Raises:
            WorkerUnavailable: nobody listens, or there is no answer in time.
            WorkerRefused: the version differs.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._welcomed = loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_unix_connection(lambda: self, self._path)
                assert self._transport is not None
                self._transport.write(frame(Hello(VERSION, self._engine_name)))
                return await self._welcomed
        except TimeoutError as exc:
            self.close()
            raise WorkerUnavailable(f"no answer from the worker at {self._path}") from exc
        except OSError as exc:
            self.close()
            raise WorkerUnavailable(f"no worker at {self._path}: {exc}") from exc
        except BaseException:
            self.close()
            raise

    def send(self, command: Command) -> None:
        """Send a command; all commands of one turn of the event loop go out in one write.

        Raises:
            WorkerUnavailable: not connected, or the worker reads nothing any more.
        """
        transport = self._transport
        if transport is None or self._loop is None or not self.connected:
            raise WorkerUnavailable(f"not connected to {self._path}")
        if not self._unsent:
            if transport.get_write_buffer_size() > MAX_UNSENT:
                transport.abort()
                raise WorkerUnavailable(f"the worker at {self._path} reads nothing")
            self._loop.call_soon(self._flush)
        self._unsent.append(frame(command))

    def _flush(self) -> None:
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            if self._transport is not None:
                self._transport.write(data)

    def close(self) -> None:
        """Write what was sent and disconnect; the worker keeps its calls."""
        if self._closing:
            return
        self._flush()
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._on_message(_decoder.decode(body))
        except (FrameError, msgspec.DecodeError):
            if self._transport is not None:
                self._transport.abort()  # connection_lost follows

    def _on_message(self, event: Event) -> None:
        if self._early is None:
            self._on_event(event)
        elif isinstance(event, Refused):
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_exception(WorkerRefused(event.reason))
        elif isinstance(event, Welcome) and self._welcome is None:
            self._welcome = event
            self._on_calls(event.more)
        elif isinstance(event, KeptCalls) and self._welcome is not None and self._welcome.more:
            kept = self._welcome
            self._welcome = msgspec.structs.replace(kept, calls=kept.calls + event.calls, more=kept.more - 1)
            self._on_calls(self._welcome.more)
        else:
            self._early.append(event)

    def _on_calls(self, more: int) -> None:
        if more == 0 and self._welcomed is not None and not self._welcomed.done():
            assert self._welcome is not None
            assert self._loop is not None
            self._ready = True
            self._welcomed.set_result(self._welcome)
            self._loop.call_soon(self._deliver_early)  # after the task that awaits connect()

    def _deliver_early(self) -> None:
        early, self._early = self._early or [], None
        for event in early:
            self._on_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(WorkerUnavailable(f"the worker at {self._path} hung up: {exc}"))
            with contextlib.suppress(asyncio.CancelledError):
                self._welcomed.exception()  # connect() may have gone away already
            return
        if not self._closing:
            self._closing = True
            if self._on_lost is not None:
                self._on_lost()
