"""One call to several phones of an agent: those of the highest preference ring together, then the next ones.

The first to answer takes the call, the others are told that it did. A phone
that is busy or gone ends nothing while another one rings; one that declines for
its owner (6xx) ends all (RFC 3261 16.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapters.native.causes import cause_of, reason_headers
from adapters.native.exchange import Exchange
from adapters.native.legs import Leg
from adapters.sip.dialogs.session import Session, SessionAnswered, SessionEnded, SessionEvent, SessionProgress
from adapters.sip.endpoint import Effect
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow
from engine.events import EndCause

# What is told of several failures: rather what a person did than what the network did.
_TELLING = (EndCause.REJECTED, EndCause.NO_ANSWER, EndCause.BUSY, EndCause.UNSUPPORTED, EndCause.OVERLOADED)


@dataclass(frozen=True, slots=True)
class Phone:
    """Where one phone is.

    Attributes:
        flow: None: where `uri` says.
        routes: Route values for the way there, joined; "" without any.
    """

    uri: SipUri
    flow: Flow | None = None
    routes: str = ""


Invite = Callable[[Phone, float, object], tuple[Session | None, list[Effect]]]
"""Calls a phone for at most so many seconds; the last argument becomes the session's owner."""


class Branch:
    """The owner of the session with one of the phones, until one of them has answered."""

    __slots__ = ("fork", "session")

    def __init__(self, fork: Fork) -> None:
        self.fork = fork
        self.session: Session | None = None


class Fork:
    """A leg whose call rings at several phones.

    Args:
        exchange: what all parts of the provider share.
        leg: the leg; it has no session until a phone answers.
        groups: phones by preference.
        ring_timeout_s: for all groups together.
        invite: calls one phone.
        on_progress: a phone rings, or is heard.
        on_answered: a phone took the call.
    """

    def __init__(
        self,
        exchange: Exchange,
        leg: Leg,
        groups: Sequence[Sequence[Phone]],
        ring_timeout_s: float,
        invite: Invite,
        on_progress: Callable[[Leg, SessionProgress], None],
        on_answered: Callable[[Leg, bytes], None],
    ) -> None:
        self._exchange = exchange
        self._leg = leg
        self._groups = [list(group) for group in groups]
        self._end_at = exchange.carrier.clock() + ring_timeout_s
        self._invite = invite
        self._on_progress = on_progress
        self._on_answered = on_answered
        self._ringing: list[Branch] = []
        self._failure: tuple[EndCause, int | None, str] = (EndCause.UNREACHABLE, None, "no transport for the contact")
        self._failed = False

    @property
    def leg(self) -> Leg:
        """The leg."""
        return self._leg

    @property
    def sessions(self) -> list[Session]:
        """Those with the phones that are called now."""
        return [branch.session for branch in self._ringing if branch.session is not None]

    def begin(self) -> None:
        """Ring the first phones; the leg ends if none can be called."""
        while self._groups and not self._ringing and self._leg.fork is self:
            left_s = self._end_at - self._exchange.carrier.clock()
            if self._failed and left_s <= 0:
                break
            share_s = left_s / len(self._groups)
            for phone in self._groups.pop(0):
                branch = Branch(self)
                branch.session, effects = self._invite(phone, share_s, branch)
                if branch.session is not None:
                    self._ringing.append(branch)
                    self._exchange.run(effects)  # it may fail within
                if self._leg.fork is not self:
                    return
        if not self._ringing and self._leg.fork is self:
            cause, status, detail = self._failure
            self._exchange.finish(self._leg, cause, status, detail)

    def on_event(self, branch: Branch, event: SessionEvent) -> None:
        """Something happened at one of the phones."""
        if isinstance(event, SessionProgress):
            self._on_progress(self._leg, event)
        elif isinstance(event, SessionAnswered):
            self._ringing.remove(branch)
            self._leg.fork = None
            self._leg.session = event.session
            event.session.owner = self._leg
            self._cancel(reason_headers(EndCause.TAKEN))
            self._on_answered(self._leg, event.body)
        elif isinstance(event, SessionEnded):
            self._on_failed(branch, event)

    def stop(self, cause: EndCause) -> None:
        """The leg is over: no phone rings any more."""
        self._groups.clear()
        self._cancel(reason_headers(cause))

    def _on_failed(self, branch: Branch, event: SessionEnded) -> None:
        if branch not in self._ringing:
            return
        self._ringing.remove(branch)
        cause = cause_of(event.reason, event.status)
        if not self._failed or _rank(cause) < _rank(self._failure[0]):
            self._failure = (cause, event.status, event.detail)
        self._failed = True
        if event.status is not None and event.status >= 600:
            self.stop(EndCause.CANCELLED)
        if not self._ringing:
            self.begin()

    def _cancel(self, headers: Sequence[tuple[str, str]]) -> None:
        ringing, self._ringing = self._ringing, []
        endpoint, now = self._exchange.endpoint, self._exchange.carrier.clock()
        for branch in ringing:
            if branch.session is not None:
                branch.session.owner = None
                self._exchange.run(endpoint.hang_up(branch.session, now, headers=headers))


def _rank(cause: EndCause) -> int:
    if cause is EndCause.UNREACHABLE:
        return len(_TELLING) + 1
    return _TELLING.index(cause) if cause in _TELLING else len(_TELLING)
