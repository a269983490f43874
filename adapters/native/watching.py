"""What phones may subscribe to: each other's calls and presence, their messages and registrations.

Agents watch agents (busy lamp fields), and themselves alone where it is
nobody else's business. Trunks watch only where the configuration says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from adapters.native.exchange import Exchange
from adapters.native.forking import Fork
from adapters.native.legs import Leg
from adapters.sip.dialogs.notifier import Notifier, Package
from adapters.sip.dialogs.outgoing import OutgoingSession
from adapters.sip.errors import PeerError
from adapters.sip.protection.access import Admitted
from adapters.sip.syntax.event_documents import (
    DIALOG_INFO,
    MESSAGE_SUMMARY,
    PIDF,
    REGINFO,
    Activity,
    DialogFacts,
    Progress,
    dialog_info,
    message_summary,
    presence,
    reginfo,
)
from adapters.sip.syntax.uri import escape
from engine.events import AgentId, Party, Presence

_ACTIVITIES: dict[Presence, Activity] = {
    Presence.IN_CALL: "on-the-phone",
    Presence.WORKING: "busy",
    Presence.AWAY: "away",
}
_NOTES = {
    Presence.AVAILABLE: "Available",
    Presence.IN_CALL: "In a call",
    Presence.WORKING: "Working after a call",
    Presence.AWAY: "Away",
    Presence.OFFLINE: "Offline",
}


class Watching:
    """Serves SUBSCRIBE at the endpoint.

    Attributes:
        notifier: the subscriptions.
        presence: asked for an agent's presence; set by the start-up module.
        trunks: names of those that may watch agents.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.presence: Callable[[AgentId], Presence] = _unknown
        self.trunks: frozenset[str] = frozenset()
        packages: dict[str, Package] = {
            "dialog": _Dialogs(self),
            "presence": _People(self),
            "message-summary": _Messages(self),
            "reg": _Registrations(self),
        }
        self.notifier = exchange.endpoint.notifier = Notifier(exchange.endpoint, packages)
        self._changed: set[tuple[str, str]] = set()
        exchange.on_calls_changed = self._on_calls_changed

    # --- changes --------------------------------------------------------------------------

    def on_registration(self, user: str) -> None:
        """A user's phones have changed."""
        self._change("reg", user)

    def on_presence(self, agent_id: AgentId) -> None:
        """An agent's presence may have changed."""
        self._change("presence", agent_id)

    def _on_calls_changed(self, user: str) -> None:
        self._change("dialog", user)

    def _change(self, package: str, user: str) -> None:
        """Notify once what happens now is over: several changes of one moment are told together."""
        if self.notifier.watches(package, user):
            if not self._changed:
                self._exchange.loop.call_soon(self._notify)
            self._changed.add((package, user))

    def _notify(self) -> None:
        changed, self._changed = self._changed, set()
        now = self._exchange.carrier.clock()
        for package, user in changed:
            self.notifier.change(package, user, now)
        self._exchange.run(self._exchange.endpoint.effects())

    def keep_only(self, users: frozenset[str]) -> None:
        """End what those watch, and what others watch of those, who are no longer there."""
        self.notifier.keep_only(users, self._exchange.carrier.clock())
        self._exchange.run(self._exchange.endpoint.effects())

    def end(self) -> None:
        """Tell all subscribers to subscribe again: we stop."""
        self.notifier.end_all("deactivated", self._exchange.carrier.clock())
        self._exchange.run(self._exchange.endpoint.effects())

    # --- facts ----------------------------------------------------------------------------

    def admit(self, subscriber: Admitted, resource: str) -> None:
        """Whether somebody may watch an agent.

        Raises:
            PeerError: 403, may not; 404, there is no such agent.
        """
        if subscriber.user is None and subscriber.trunk not in self.trunks:
            raise PeerError("this trunk may not watch", status=403)
        if not self._exchange.endpoint.policy.knows(resource):
            raise PeerError("no such agent", status=404)

    def entity(self, user: str) -> str:
        """The address of record of a user."""
        return f"sip:{escape(user)}@{self._exchange.settings.domain}"

    def dialogs(self, user: str) -> list[DialogFacts]:
        """The calls of an agent's phones."""
        return [self._facts(leg) for leg in self._exchange.legs_of(user)]

    def _facts(self, leg: Leg) -> DialogFacts:
        domain = self._exchange.settings.domain
        progress: Progress = "confirmed" if leg.answered else "trying"
        if leg.request is None:
            uri = None if leg.session is None else leg.session.request.parsed_uri
            dialled = (uri.user if uri is not None else None) or "anonymous"
            return DialogFacts(leg.leg_id, "initiator", progress, f"sip:{escape(dialled)}@{domain}")
        caller = Party("") if leg.request.forwarded.withheld else leg.request.caller
        remote = f"sip:{escape(caller.number) or 'anonymous'}@{domain}"
        sessions = leg.fork.sessions if isinstance(leg.fork, Fork) else [leg.session]
        early = ((s, s.early_tag) for s in sessions if isinstance(s, OutgoingSession))
        session, tag = next(((s, tag) for s, tag in early if tag is not None), (None, None))
        if leg.answered or session is None or tag is None:
            if leg.ringing and not leg.answered:
                progress = "early"
            return DialogFacts(leg.leg_id, "recipient", progress, remote, caller.name)
        # Only what rings can be picked up: whoever knows the names of a dialog may ask for its place.
        return DialogFacts(
            leg.leg_id, "recipient", "early", remote, caller.name, session.sip_call_id, tag, session.local_tag
        )

    def contacts(self, user: str) -> list[tuple[str, str, float]]:
        """Name, URI and seconds left of a user's registrations."""
        registrar = self._exchange.endpoint.registrar
        now = self._exchange.carrier.clock()
        bindings = [] if registrar is None else registrar.bindings(user)
        return [(f"c{zlib.crc32(str(b.uri).encode()):08x}", str(b.uri), b.expires_at - now) for b in bindings]


def _unknown(_agent_id: AgentId) -> Presence:
    """Nobody keeps track of agents."""
    return Presence.OFFLINE


class _Dialogs:
    content_type = DIALOG_INFO

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def admit(self, subscriber: Admitted, resource: str) -> None:
        self._watching.admit(subscriber, resource)

    def document(self, resource: str, version: int) -> bytes:
        return dialog_info(self._watching.entity(resource), self._watching.dialogs(resource), version)


class _People:
    content_type = PIDF

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def admit(self, subscriber: Admitted, resource: str) -> None:
        self._watching.admit(subscriber, resource)

    def document(self, resource: str, _version: int) -> bytes:
        seen = self._watching.presence(AgentId(resource))
        return presence(
            self._watching.entity(resource),
            resource,
            is_open=seen is not Presence.OFFLINE,
            activity=_ACTIVITIES.get(seen),
            note=_NOTES[seen],
        )


class _Messages:
    """Voice messages: there is no voicemail yet, so none wait."""

    content_type = MESSAGE_SUMMARY

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def admit(self, subscriber: Admitted, resource: str) -> None:
        _own(subscriber, resource)

    def document(self, resource: str, _version: int) -> bytes:
        return message_summary(self._watching.entity(resource), 0, 0)


class _Registrations:
    content_type = REGINFO

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def admit(self, subscriber: Admitted, resource: str) -> None:
        _own(subscriber, resource)

    def document(self, resource: str, version: int) -> bytes:
        return reginfo(self._watching.entity(resource), self._watching.contacts(resource), version)


def _own(subscriber: Admitted, resource: str) -> None:
    if subscriber.user is None or subscriber.user != resource:
        raise PeerError("that is nobody else's business", status=403)
