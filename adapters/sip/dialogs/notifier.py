"""Event subscriptions (RFC 6665), from the notifier's side: who is told of a state, and when.

A subscription is a dialog of its own, made by SUBSCRIBE. Each NOTIFY carries
the whole state, so a lost one does no harm, and changes that come faster than
once a second are told by the last of them. Nothing survives a restart: phones
subscribe again when they are told that it is over, or when it expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from adapters.sip.dialogs.dialog import Dialog
from adapters.sip.dialogs.dialog_request import NO_RESPONSE, NOT_SENT, DialogRequest, Opener
from adapters.sip.dialogs.session import AGENT
from adapters.sip.errors import PeerError
from adapters.sip.protection.access import Admitted, Refused
from adapters.sip.syntax.headers import parse_number
from adapters.sip.syntax.message import Request, Response, build_response
from adapters.sip.syntax.refer import EventName
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.schedule import Schedule
from adapters.sip.transactions.transaction import Flow, ServerTransaction

DEFAULT_EXPIRES_S = 3600
MIN_EXPIRES_S = 60
MAX_EXPIRES_S = 7200
MAX_SUBSCRIPTIONS = 20_000
MAX_PER_USER = 200
NOTIFY_INTERVAL_S = 1.0
TRUNK = "trunk "  # before a trunk's name; no user's name holds a blank
LONGEST_PAUSE_S = 600  # that a subscriber may ask for with Retry-After


class Package(Protocol):
    """One kind of state (an event package).

    Attributes:
        content_type: of its documents.
    """

    content_type: str

    def admit(self, subscriber: Admitted, resource: str, /) -> None:
        """Raises PeerError with the status: 403, 404."""

    def document(self, resource: str, version: int, /) -> bytes:
        """The whole state of a resource now. Versions of a subscription count from 0."""


class Core(Opener, Protocol):
    """What is needed of the endpoint."""

    def respond(self, tx: ServerTransaction, response: Response, now: float) -> None: ...
    def contact(self, flow: Flow) -> str: ...
    def admit_subscription(self, request: Request, source: Flow, now: float) -> Admitted | Refused: ...


class IntervalError(PeerError):
    """A subscription is asked for too short a time."""

    def __init__(self) -> None:
        super().__init__("interval too brief", status=423)


class BadEventError(PeerError):
    """No such event package."""

    def __init__(self) -> None:
        super().__init__("no such event package", status=489)


class Subscription:
    """Somebody who is told of one resource's state.

    Attributes:
        dialog: with the subscriber.
        event: as it was asked for.
        user: whose limit it counts against.
        scheduled_at: bookkeeping of the schedule.
    """

    __slots__ = (
        "_busy",
        "_core",
        "_dirty",
        "_expires_at",
        "_not_before",
        "_notifier",
        "_package",
        "_reason",
        "_version",
        "dialog",
        "event",
        "resource",
        "scheduled_at",
        "user",
    )

    def __init__(
        self, notifier: Notifier, dialog: Dialog, event: EventName, package: Package, user: str, resource: str
    ) -> None:
        self._notifier = notifier
        self._core = notifier.core
        self._package = package
        self.dialog = dialog
        self.event = event
        self.user = user
        self.resource = resource
        self.scheduled_at: float | None = None
        self._version = 0
        self._dirty = False
        self._busy = False  # a NOTIFY waits for its answer
        self._reason: str | None = None  # why it ends
        self._expires_at = 0.0
        self._not_before = 0.0

    @property
    def over(self) -> bool:
        """Whether its last NOTIFY is on the way, or waits."""
        return self._reason is not None

    def renew(self, expires_s: int, now: float) -> None:
        """SUBSCRIBE came, the first or another: it is answered by the whole state (RFC 6665 4.2.1.2)."""
        self._expires_at = now + expires_s
        self._dirty = True
        self._not_before = now
        if expires_s == 0:
            self._reason = "timeout"

    def change(self) -> None:
        """The state has changed."""
        self._dirty = True

    def end(self, reason: str) -> None:
        """Tell the subscriber that it is over, whatever else waits."""
        if self._reason is None:
            self._reason = reason
            self._dirty = True
            self._not_before = 0.0

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        if self._busy:
            return None  # its answer, or the lack of one, comes first
        if self._reason is not None:
            return self._not_before if self._dirty else None  # it has run out, and still has to be told
        return min(self._not_before, self._expires_at) if self._dirty else self._expires_at

    def on_time(self, now: float) -> None:
        """Notify if it is time to."""
        if self._busy:
            return
        if now >= self._expires_at and self._reason is None:
            self._reason, self._dirty, self._not_before = "timeout", True, now
        if self._dirty and now >= self._not_before:
            self._notify(now)

    def _notify(self, now: float) -> None:
        self._dirty = False
        self._busy = True
        self._not_before = now + NOTIFY_INTERVAL_S
        dialog = self.dialog
        request = dialog.request("NOTIFY", self._core.via(dialog.flow))
        request.set("event", self.event)
        left_s = max(0, round(self._expires_at - now))
        state = f"active;expires={left_s}" if self._reason is None else f"terminated;reason={self._reason}"
        request.set("subscription-state", state)
        request.set("contact", self._core.contact(dialog.flow))
        request.set("user-agent", AGENT)
        request.body = self._package.document(self.resource, self._version)
        if request.body:
            request.set("content-type", self._package.content_type)
        self._version += 1
        DialogRequest(self._core, dialog, request, self._on_notified).send(now)

    def _on_notified(self, status: int, response: Response | None, now: float) -> None:
        self._busy = False
        if self._reason is not None and not self._dirty:
            self._notifier.forget(self)
            return
        if status >= 300 or (response is None and status in (NO_RESPONSE, NOT_SENT)):
            pause_s = None if response is None else _retry_after_s(response)
            if pause_s is None or status == 481:  # it is gone (RFC 6665 4.2.2)
                self._notifier.forget(self)
                return
            self._dirty = True
            self._not_before = now + pause_s
        self.on_time(now)
        self._notifier.wake(self)


def _retry_after_s(response: Response) -> float | None:
    value = response.get("retry-after")
    if value is None:
        return None
    try:
        return min(parse_number(value.partition(";")[0].partition("(")[0].strip(), 2**32), LONGEST_PAUSE_S)
    except PeerError:
        return None


class Notifier:
    """All subscriptions of one endpoint.

    Args:
        core: the endpoint.
        packages: by name.

    Attributes:
        core: as given.
    """

    def __init__(self, core: Core, packages: Mapping[str, Package]) -> None:
        self.core = core
        self._packages = packages
        self._by_dialog: dict[tuple[str, str], Subscription] = {}
        self._by_resource: dict[tuple[str, str], set[Subscription]] = {}
        self._per_user: Counter[str] = Counter()
        self.schedule: Schedule[Subscription] = Schedule()

    def __len__(self) -> int:
        return len(self._by_dialog)

    @property
    def allow_events(self) -> str:
        """The packages, as Allow-Events has them."""
        return ", ".join(self._packages)

    # --- SUBSCRIBE ------------------------------------------------------------------------

    def find(self, request: Request) -> Subscription | None:
        """The subscription that a request within a dialog belongs to."""
        return self._by_dialog.get((request.call_id, request.to.tag or ""))

    def on_subscribe(self, tx: ServerTransaction, source: Flow, now: float) -> Refused | None:
        """A SUBSCRIBE outside a dialog.

        Returns:
            Why the subscriber is not let in (its password is asked for), or None: it is answered.

        Raises:
            PeerError: to be answered with its status.
        """
        request = tx.request
        event = EventName.of(request)
        package = self._packages.get(event.package)
        if package is None:
            raise BadEventError
        subscriber = self.core.admit_subscription(request, source, now)
        if isinstance(subscriber, Refused):
            return subscriber
        if "accept" in request.headers and not _accepts(request, package.content_type):
            raise PeerError("no such document", status=406)
        uri = request.parsed_uri
        resource = uri.user or _user_of(request)
        package.admit(subscriber, resource)
        expires_s = _expires_s(request)
        user = subscriber.user or f"{TRUNK}{subscriber.trunk}"
        if len(self._by_dialog) >= MAX_SUBSCRIPTIONS or self._per_user[user] >= MAX_PER_USER:
            raise PeerError("too many subscriptions", status=503)
        dialog = Dialog.from_request(request, self.core.new_token(), source)
        subscription = Subscription(self, dialog, event, package, user, resource)
        self._by_dialog[dialog.sip_call_id, dialog.local_tag] = subscription
        self._by_resource.setdefault((event.package, resource), set()).add(subscription)
        self._per_user[user] += 1
        self._accept(subscription, tx, expires_s, now)
        return None

    def on_request(self, subscription: Subscription, tx: ServerTransaction, source: Flow, now: float) -> None:
        """A request within a subscription's dialog.

        Raises:
            PeerError: to be answered with its status.
        """
        request = tx.request
        dialog = subscription.dialog
        if request.from_.tag != dialog.remote_tag or subscription.over:
            raise PeerError("no such subscription", status=481)
        if not dialog.accepts(request):
            raise PeerError("CSeq out of order", status=500)
        if request.method != "SUBSCRIBE":
            raise PeerError("only SUBSCRIBE belongs here", status=405)
        if EventName.of(request) != subscription.event:
            raise BadEventError
        expires_s = _expires_s(request)
        dialog.refresh_target(request, source)
        self._accept(subscription, tx, expires_s, now)

    def _accept(self, subscription: Subscription, tx: ServerTransaction, expires_s: int, now: float) -> None:
        request = tx.request
        response = build_response(request, 200, to_tag=subscription.dialog.local_tag)
        if "record-route" in request.headers:
            response.headers["record-route"] = list(request.headers["record-route"])
        response.set("contact", self.core.contact(tx.flow))
        response.set("expires", expires_s)
        response.set("server", AGENT)
        self.core.respond(tx, response, now)
        subscription.renew(expires_s, now)
        subscription.on_time(now)
        self.wake(subscription)

    # --- changes --------------------------------------------------------------------------

    def watches(self, package: str, resource: str) -> bool:
        """Whether anybody is told of this state."""
        return (package, resource) in self._by_resource

    def change(self, package: str, resource: str, now: float) -> None:
        """A state has changed: those who watch it hear of it, now or when their second is over."""
        for subscription in tuple(self._by_resource.get((package, resource), ())):
            subscription.change()
            subscription.on_time(now)
            self.wake(subscription)

    def end_all(self, reason: str, now: float, resources: Iterable[tuple[str, str]] | None = None) -> None:
        """End the subscriptions to some resources, or all of them."""
        wanted = list(self._by_resource) if resources is None else resources
        for key in wanted:
            for subscription in tuple(self._by_resource.get(key, ())):
                subscription.end(reason)
                subscription.on_time(now)
                self.wake(subscription)

    def keep_only(self, users: frozenset[str], now: float) -> None:
        """End the subscriptions by users, and to users, who are no longer there."""
        gone = [(package, resource) for package, resource in self._by_resource if resource not in users]
        self.end_all("noresource", now, gone)
        for subscription in tuple(self._by_dialog.values()):
            if subscription.user not in users and not subscription.user.startswith(TRUNK):
                subscription.end("rejected")
                subscription.on_time(now)
                self.wake(subscription)

    def forget(self, subscription: Subscription) -> None:
        """It is over, and its subscriber knows or cannot be told."""
        dialog = subscription.dialog
        if self._by_dialog.pop((dialog.sip_call_id, dialog.local_tag), None) is None:
            return
        key = (subscription.event.package, subscription.resource)
        watchers = self._by_resource[key]
        watchers.discard(subscription)
        if not watchers:
            del self._by_resource[key]
        self._per_user[subscription.user] -= 1
        if not self._per_user[subscription.user]:
            del self._per_user[subscription.user]

    # --- time -----------------------------------------------------------------------------

    def wake(self, subscription: Subscription) -> None:
        """Its deadline may have changed."""
        dialog = subscription.dialog
        if (dialog.sip_call_id, dialog.local_tag) in self._by_dialog:
            self.schedule.update(subscription)

    def deadline(self) -> float | None:
        """When `on_time` should be called next."""
        return self.schedule.next_at()

    def on_time(self, now: float) -> None:
        """Send what is due."""
        for subscription in self.schedule.due(now):
            dialog = subscription.dialog
            if (dialog.sip_call_id, dialog.local_tag) in self._by_dialog:
                subscription.on_time(now)
                self.wake(subscription)


def _user_of(request: Request) -> str:
    uri = request.to.uri
    return uri.user or "" if isinstance(uri, SipUri) else ""


def _expires_s(request: Request) -> int:
    asked = request.expires
    if asked is None:
        return DEFAULT_EXPIRES_S
    if 0 < asked < MIN_EXPIRES_S:
        raise IntervalError
    return min(asked, MAX_EXPIRES_S)


def _accepts(request: Request, content_type: str) -> bool:
    group = content_type.partition("/")[0]
    wanted = (item.partition(";")[0].strip().lower() for item in request.get_all("accept"))
    return any(item in (content_type, f"{group}/*", "*/*") for item in wanted)
