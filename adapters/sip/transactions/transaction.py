"""The four transactions of RFC 3261 17 with the corrections of RFC 6026, as tables.

A table maps (state, what happened) to (next state, actions). A pair that is
not listed is dropped: late and repeated messages are normal on UDP. Nothing
here reads a clock or touches a socket: times go in, effects come out.

Times are monotonic seconds. Timer names are those of RFC 3261 table 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from adapters.sip.syntax.message import Request, Response

T1 = 0.5  # estimate of the round trip
T2 = 4.0  # longest interval between repetitions of a non-INVITE request or an INVITE response
T4 = 5.0  # longest time a message stays in the network
TIMEOUT = 64 * T1  # timers B, F, H, J (unreliable), L, M
TIMER_D = 32.0  # how long a repeated failure is still ACKed (unreliable)


class State(IntEnum):
    """States of RFC 3261 figures 5 to 8 and RFC 6026 figures 1 and 2."""

    CALLING = 0
    TRYING = 1
    PROCEEDING = 2
    ACCEPTED = 3
    COMPLETED = 4
    CONFIRMED = 5
    TERMINATED = 6


class Kind(IntEnum):
    """What can happen to a transaction. Responses come from the wire (client) or from us (server)."""

    PROVISIONAL = 0
    SUCCESS = 1
    FAILURE = 2
    REPEAT = 3  # the request came once more
    ACK = 4
    RESEND = 5  # timers A, E, G
    TIMEOUT = 6  # timers B, D, F, H, I, J, K, L, M
    TRANSPORT_ERROR = 7


class Flow(NamedTuple):
    """Where bytes go, or came from.

    Attributes:
        transport: "udp", "tcp", "tls", "ws" or "wss".
        local: index of the listener, for UDP the socket to send from.
        host: IP address of the peer (or a name, to be looked up before sending).
        port: its port.
        connection: id of the stream connection; 0: UDP, or whichever connection leads there.
        domain: for TLS, the name that the peer's certificate must be for when `host` is an
            address that was found for a name (RFC 5922 4); "": that of `host`.
    """

    transport: str
    local: int
    host: str
    port: int
    connection: int = 0
    domain: str = ""

    @property
    def reliable(self) -> bool:
        """Whether the transport repeats what is lost, so that we need not."""
        return self.transport != "udp"


class Send(NamedTuple):
    """Bytes for the transport to put on the wire."""

    flow: Flow
    data: bytes


class PassUp(NamedTuple):
    """A message for the transaction's user."""

    message: Request | Response


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The peer did not answer (RFC 3261 8.1.3.1: treat as 408), or did not ACK our refusal."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The transport could not carry the message (treat as 503)."""


Effect = Send | PassUp | TimedOut | Unreachable
Action = Callable[[Any, Any, float, list[Effect]], None]
Table = Mapping[tuple[State, Kind], tuple[State, tuple[Action, ...]]]


def kind_of(status: int) -> Kind:
    """Sort a response by its status."""
    if status < 200:
        return Kind.PROVISIONAL
    return Kind.SUCCESS if status < 300 else Kind.FAILURE


class Transaction:
    """What the four have in common: a state, one message to repeat and two timers.

    Attributes:
        state: never goes back to an earlier one.
        request: the request that opened it.
        flow: where its messages go.
        key: under which the layer finds it; set by the layer.
        user: whoever is told of its messages; set by the layer's owner.
        course: where else its request may go; None: nowhere. Set by the layer's owner.
        scheduled_at: bookkeeping of the schedule.
    """

    TABLE: ClassVar[Table] = {}

    __slots__ = (
        "_data",
        "_end_at",
        "_interval",
        "_resend_at",
        "course",
        "flow",
        "key",
        "request",
        "scheduled_at",
        "state",
        "user",
    )

    def __init__(self, request: Request, flow: Flow, state: State, data: bytes) -> None:
        self.state = state
        self.request = request
        self.flow = flow
        self.key: object = None
        self.user: Any = None
        self.course: Any = None
        self.scheduled_at: float | None = None
        self._data = data  # what is repeated
        self._resend_at: float | None = None
        self._interval = T1
        self._end_at: float | None = None

    @property
    def sent(self) -> bytes:
        """What it sent last."""
        return self._data

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        if self._resend_at is None:
            return self._end_at
        if self._end_at is None or self._resend_at < self._end_at:
            return self._resend_at
        return self._end_at

    def on_time(self, now: float) -> list[Effect]:
        """Fire the timers that are due."""
        if self._end_at is not None and self._end_at <= now:
            return self._step(Kind.TIMEOUT, None, now)
        if self._resend_at is not None and self._resend_at <= now:
            return self._step(Kind.RESEND, None, now)
        return []

    def on_transport_error(self, now: float) -> list[Effect]:
        """The transport could not send."""
        return self._step(Kind.TRANSPORT_ERROR, None, now)

    def _step(self, kind: Kind, message: Request | Response | None, now: float) -> list[Effect]:
        found = self.TABLE.get((self.state, kind))
        if found is None:
            return []
        state, actions = found
        effects: list[Effect] = []
        self.state = state
        for action in actions:
            action(self, message, now, effects)
        if self.state is State.TERMINATED:
            self._resend_at = self._end_at = None
        return effects

    def _end(self, delay: float, now: float) -> None:
        """Stop repeating; stay for `delay` seconds to absorb what is late, then go."""
        self._resend_at = None
        if delay <= 0:
            self.state = State.TERMINATED
        else:
            self._end_at = now + delay


# --- actions -------------------------------------------------------------------------------


def pass_up(_: Transaction, message: Request | Response, _now: float, effects: list[Effect]) -> None:
    """Hand the message to the user."""
    effects.append(PassUp(message))


def time_out(_: Transaction, _message: object, _now: float, effects: list[Effect]) -> None:
    """Tell the user that nobody answered."""
    effects.append(TimedOut())


def fail(_: Transaction, _message: object, _now: float, effects: list[Effect]) -> None:
    """Tell the user that nothing could be sent."""
    effects.append(Unreachable())


def repeat(tx: Transaction, _message: object, _now: float, effects: list[Effect]) -> None:
    """Send the last message again, if there is one yet."""
    if tx._data:
        effects.append(Send(tx.flow, tx._data))


def double(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Timer A: the interval doubles without bound."""
    tx._interval *= 2
    tx._resend_at = now + tx._interval


def double_up_to_t2(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Timers E and G."""
    tx._interval = min(tx._interval * 2, T2)
    tx._resend_at = now + tx._interval


def every_t2(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Timer E once a provisional response came."""
    tx._interval = T2
    tx._resend_at = now + T2


def stop_timers(tx: Transaction, _message: object, _now: float, _effects: list[Effect]) -> None:
    """Nothing to repeat, nothing to wait for."""
    tx._resend_at = tx._end_at = None


def send(tx: Transaction, message: Response, _now: float, effects: list[Effect]) -> None:
    """Send our response and keep it for repetition."""
    tx._data = message.serialise()
    effects.append(Send(tx.flow, tx._data))


def send_ack(tx: Transaction, message: Response, _now: float, effects: list[Effect]) -> None:
    """ACK a failure; the ACK is the same for each repetition (RFC 3261 17.1.1.3)."""
    if tx.state is State.COMPLETED and tx._end_at is not None:
        effects.append(Send(tx.flow, tx._data))
        return
    request = tx.request
    ack = Request.build(
        "ACK",
        request.uri,
        via=request.headers["via"][0],
        from_=request.headers["from"][0],
        to=message.headers["to"][0],
        call_id=request.headers["call-id"][0],
        cseq=request.cseq.number,
    )
    for route in request.headers.get("route", ()):
        ack.add("route", route)
    tx._data = ack.serialise()
    effects.append(Send(tx.flow, tx._data))


def start_d(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """How long a repeated failure is ACKed."""
    tx._end(0.0 if tx.flow.reliable else TIMER_D, now)


def start_m(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Timers L and M: absorb repetitions, whatever the transport (RFC 6026 7.1, 8.4)."""
    tx._end(TIMEOUT, now)


def start_k(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Timers I and K."""
    tx._end(0.0 if tx.flow.reliable else T4, now)


def start_j(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """How long a repeated request is answered."""
    tx._end(0.0 if tx.flow.reliable else TIMEOUT, now)


def start_g_h(tx: Transaction, _message: object, now: float, _effects: list[Effect]) -> None:
    """Repeat our refusal until the ACK comes, within limits."""
    tx._interval = T1
    tx._resend_at = None if tx.flow.reliable else now + T1
    tx._end_at = now + TIMEOUT


def build_cancel(request: Request) -> Request:
    """The CANCEL of an INVITE of ours: same branch, same number, same way (RFC 3261 9.1)."""
    cancel = Request.build(
        "CANCEL",
        request.uri,
        via=request.headers["via"][0],
        from_=request.headers["from"][0],
        to=request.headers["to"][0],
        call_id=request.headers["call-id"][0],
        cseq=request.cseq.number,
    )
    for route in request.headers.get("route", ()):
        cancel.add("route", route)
    return cancel


# --- tables --------------------------------------------------------------------------------

_CLIENT_FAILED = (State.TERMINATED, (fail,))
_CLIENT_TIMED_OUT = (State.TERMINATED, (time_out,))
_GONE: tuple[State, tuple[Action, ...]] = (State.TERMINATED, ())


class ClientTransaction(Transaction):
    """Sends a request until it is answered or the time is over."""

    __slots__ = ()

    def __init__(self, request: Request, flow: Flow, now: float) -> None:
        super().__init__(request, flow, self.FIRST, request.serialise())
        self._resend_at = None if flow.reliable else now + T1
        self._end_at = now + TIMEOUT

    FIRST: ClassVar[State] = State.CALLING
    SHORTENED: ClassVar[frozenset[State]] = frozenset({State.PROCEEDING})

    def give_up_at(self, deadline: float) -> None:
        """Wait for the final response no longer than this; without effect once it is here.

        An INVITE must have had its first response, so that it was cancelled (RFC 3261 9.1).
        """
        if self.state in self.SHORTENED:
            self._end_at = deadline

    def hold(self, until: float) -> None:
        """Send nothing before `restart`; wait for that until a time."""
        self.state = self.FIRST
        self._resend_at = None
        self._end_at = until

    def restart(self, flow: Flow, now: float, until: float) -> None:
        """Begin anew, towards another target and with the branch that the request has now.

        Args:
            flow: where to send.
            now: monotonic seconds.
            until: when to give up without any response; not later than timers B and F.
        """
        self.state = self.FIRST
        self.flow = flow
        self._data = self.request.serialise()
        self._interval = T1
        self._resend_at = None if flow.reliable else now + T1
        self._end_at = min(until, now + TIMEOUT)

    def start(self) -> list[Effect]:
        """The first sending of the request."""
        return [Send(self.flow, self._data)]

    def on_response(self, response: Response, now: float) -> list[Effect]:
        """A response that matches this transaction came."""
        return self._step(kind_of(response.status), response, now)


class InviteClientTransaction(ClientTransaction):
    """INVITE client transaction (RFC 3261 17.1.1, RFC 6026 8.4)."""

    __slots__ = ()

    TABLE: ClassVar[Table] = {
        (State.CALLING, Kind.RESEND): (State.CALLING, (repeat, double)),
        (State.CALLING, Kind.TIMEOUT): _CLIENT_TIMED_OUT,
        (State.CALLING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.CALLING, Kind.PROVISIONAL): (State.PROCEEDING, (stop_timers, pass_up)),
        (State.CALLING, Kind.SUCCESS): (State.ACCEPTED, (pass_up, start_m)),
        (State.CALLING, Kind.FAILURE): (State.COMPLETED, (stop_timers, send_ack, pass_up, start_d)),
        (State.PROCEEDING, Kind.PROVISIONAL): (State.PROCEEDING, (pass_up,)),
        (State.PROCEEDING, Kind.SUCCESS): (State.ACCEPTED, (pass_up, start_m)),
        (State.PROCEEDING, Kind.FAILURE): (State.COMPLETED, (stop_timers, send_ack, pass_up, start_d)),
        (State.PROCEEDING, Kind.TIMEOUT): _CLIENT_TIMED_OUT,  # after a CANCEL, see give_up_at
        (State.PROCEEDING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,  # the connection to a phone that rang is lost
        (State.ACCEPTED, Kind.SUCCESS): (State.ACCEPTED, (pass_up,)),  # a repeated 2xx must be ACKed again
        (State.ACCEPTED, Kind.TIMEOUT): _GONE,
        (State.COMPLETED, Kind.FAILURE): (State.COMPLETED, (send_ack,)),
        (State.COMPLETED, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.COMPLETED, Kind.TIMEOUT): _GONE,
    }


class NonInviteClientTransaction(ClientTransaction):
    """Non-INVITE client transaction (RFC 3261 17.1.2)."""

    __slots__ = ()

    FIRST: ClassVar[State] = State.TRYING
    SHORTENED: ClassVar[frozenset[State]] = frozenset({State.TRYING, State.PROCEEDING})
    TABLE: ClassVar[Table] = {
        (State.TRYING, Kind.RESEND): (State.TRYING, (repeat, double_up_to_t2)),
        (State.TRYING, Kind.TIMEOUT): _CLIENT_TIMED_OUT,
        (State.TRYING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.TRYING, Kind.PROVISIONAL): (State.PROCEEDING, (pass_up,)),
        (State.TRYING, Kind.SUCCESS): (State.COMPLETED, (pass_up, start_k)),
        (State.TRYING, Kind.FAILURE): (State.COMPLETED, (pass_up, start_k)),
        (State.PROCEEDING, Kind.RESEND): (State.PROCEEDING, (repeat, every_t2)),
        (State.PROCEEDING, Kind.TIMEOUT): _CLIENT_TIMED_OUT,
        (State.PROCEEDING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.PROCEEDING, Kind.PROVISIONAL): (State.PROCEEDING, (pass_up,)),
        (State.PROCEEDING, Kind.SUCCESS): (State.COMPLETED, (pass_up, start_k)),
        (State.PROCEEDING, Kind.FAILURE): (State.COMPLETED, (pass_up, start_k)),
        (State.COMPLETED, Kind.TIMEOUT): _GONE,
    }


class ServerTransaction(Transaction):
    """Absorbs repetitions of a request and repeats our answer."""

    __slots__ = ("merge_key",)

    FIRST: ClassVar[State] = State.PROCEEDING

    def __init__(self, request: Request, flow: Flow) -> None:
        super().__init__(request, flow, self.FIRST, b"")
        self.merge_key: object = None

    def on_request(self, request: Request, now: float) -> list[Effect]:
        """The request came again, or its ACK did."""
        return self._step(Kind.ACK if request.method == "ACK" else Kind.REPEAT, request, now)

    def respond(self, response: Response, now: float) -> list[Effect]:
        """Send our response; one that comes too late is dropped."""
        return self._step(kind_of(response.status), response, now)


class InviteServerTransaction(ServerTransaction):
    """INVITE server transaction (RFC 3261 17.2.1, RFC 6026 7.1). The user repeats its 2xx itself."""

    __slots__ = ()

    TABLE: ClassVar[Table] = {
        (State.PROCEEDING, Kind.REPEAT): (State.PROCEEDING, (repeat,)),
        (State.PROCEEDING, Kind.PROVISIONAL): (State.PROCEEDING, (send,)),
        (State.PROCEEDING, Kind.SUCCESS): (State.ACCEPTED, (send, start_m)),
        (State.PROCEEDING, Kind.FAILURE): (State.COMPLETED, (send, start_g_h)),
        (State.PROCEEDING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.ACCEPTED, Kind.REPEAT): (State.ACCEPTED, ()),
        (State.ACCEPTED, Kind.ACK): (State.ACCEPTED, (pass_up,)),  # phones that reuse the branch for the ACK of a 2xx
        (State.ACCEPTED, Kind.TRANSPORT_ERROR): (State.ACCEPTED, ()),
        (State.ACCEPTED, Kind.TIMEOUT): _GONE,
        (State.COMPLETED, Kind.REPEAT): (State.COMPLETED, (repeat,)),
        (State.COMPLETED, Kind.RESEND): (State.COMPLETED, (repeat, double_up_to_t2)),
        (State.COMPLETED, Kind.ACK): (State.CONFIRMED, (start_k,)),
        (State.COMPLETED, Kind.TIMEOUT): _CLIENT_TIMED_OUT,
        (State.COMPLETED, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.CONFIRMED, Kind.TIMEOUT): _GONE,
    }


class NonInviteServerTransaction(ServerTransaction):
    """Non-INVITE server transaction (RFC 3261 17.2.2)."""

    __slots__ = ()

    FIRST: ClassVar[State] = State.TRYING
    TABLE: ClassVar[Table] = {
        (State.TRYING, Kind.REPEAT): (State.TRYING, ()),
        (State.TRYING, Kind.PROVISIONAL): (State.PROCEEDING, (send,)),
        (State.TRYING, Kind.SUCCESS): (State.COMPLETED, (send, start_j)),
        (State.TRYING, Kind.FAILURE): (State.COMPLETED, (send, start_j)),
        (State.PROCEEDING, Kind.REPEAT): (State.PROCEEDING, (repeat,)),
        (State.PROCEEDING, Kind.PROVISIONAL): (State.PROCEEDING, (send,)),
        (State.PROCEEDING, Kind.SUCCESS): (State.COMPLETED, (send, start_j)),
        (State.PROCEEDING, Kind.FAILURE): (State.COMPLETED, (send, start_j)),
        (State.PROCEEDING, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
        (State.COMPLETED, Kind.REPEAT): (State.COMPLETED, (repeat,)),
        (State.COMPLETED, Kind.TIMEOUT): _GONE,
        (State.COMPLETED, Kind.TRANSPORT_ERROR): _CLIENT_FAILED,
    }
