"""Trunks from our side: registrations, alive-checks, and calls to numbers outside.

The machines that decide are in `adapters.sip.registration.registrant` and `adapters.sip.registration.health`;
here their requests are sent, their outcomes told to call control, and INVITEs
get the headers that a carrier expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial

from adapters.native.exchange import CALL_ID_HEADER, Exchange
from adapters.native.legs import Cancellable, Leg
from adapters.native.parties import ANONYMOUS
from adapters.native.settings import TrunkSettings
from adapters.sip.dialogs.session import AGENT
from adapters.sip.errors import PeerError
from adapters.sip.registration.health import ANSWER_S, HealthCheck
from adapters.sip.registration.registrant import Account, Register, Registrant, RegistrationState
from adapters.sip.syntax.headers import NameAddr, quoted
from adapters.sip.syntax.message import Request, Response
from adapters.sip.syntax.uri import SipUri, escape
from adapters.sip.targets.failover import FAILOVER_AFTER_S
from adapters.sip.targets.location import is_address
from adapters.sip.transactions.transaction import ClientTransaction, Flow
from engine.events import EndCause, LegTrying, TrunkReachability
from engine.operations import GatewayLine, TrunkLine
from engine.telephony import Originate, Outside

SERVERS_OF_A_NAME_S = 2 * FAILOVER_AFTER_S


@dataclass(slots=True)
class _Trunk:
    """One trunk that calls or registrations go to."""

    settings: TrunkSettings
    gateways: tuple[SipUri, ...]
    registrant: Registrant | None = None
    order: tuple[int, ...] = ()  # of the gateways, for the registration
    checks: dict[int, HealthCheck] = field(default_factory=dict)
    told_registered: bool | None = None
    flow: Flow | None = None  # that the registration holds by


class Trunks:
    """See the module.

    Args:
        exchange: what all parts of the provider share.
        draw: a random number from 0 up to 1: spreads requests over time.
    """

    def __init__(self, exchange: Exchange, draw: Callable[[], float]) -> None:
        self._exchange = exchange
        self._draw = draw
        self._trunks: dict[str, _Trunk] = {}
        self._distrusted: frozenset[str] = frozenset()
        self._leaving: set[Registrant] = set()
        self._started = False
        self._timer: Cancellable | None = None
        self._timer_at = 0.0
        exchange.endpoint.on_flows_lost = self.on_flows_lost

    # --- configuration ----------------------------------------------------------------------

    def trusts(self, name: str | None) -> bool:
        """Whether what a trunk says of its callers is believed."""
        return name is not None and name not in self._distrusted

    def replace(self, settings: Sequence[TrunkSettings]) -> None:
        """Put another configuration in force; while the account with a carrier stays, so does its registration.

        Raises:
            ValueError: the address of a gateway is malformed; nothing has changed then.
        """
        wanted = {item.name: (item, _gateways(item)) for item in settings if item.gateways}
        self._distrusted = frozenset(item.name for item in settings if not item.trusted_identity)
        for name in self._trunks.keys() - wanted.keys():
            self._stop(self._trunks.pop(name))
        for name, (item, gateways) in wanted.items():
            old = self._trunks.get(name)
            if old is None:
                self._trunks[name] = _Trunk(item, gateways)
                self._begin(self._trunks[name])
            elif old.settings != item:
                self._change(old, item, gateways)
        self._rearm()

    def _change(self, trunk: _Trunk, settings: TrunkSettings, gateways: tuple[SipUri, ...]) -> None:
        """The same trunk, set otherwise."""
        old = trunk.settings
        same_places = (old.gateways, old.priorities) == (settings.gateways, settings.priorities)
        if not (same_places and old.registration == settings.registration):
            # What would remove the old registration could arrive after the new one, and remove that.
            if not (same_places and _address_of_record(old) == _address_of_record(settings)):
                self._stop(trunk)
            trunk.registrant = trunk.told_registered = None
        trunk.checks.clear()
        trunk.settings, trunk.gateways = settings, gateways
        self._begin(trunk)

    def start(self) -> None:
        """Sockets are there: register, and ask who is alive."""
        self._started = True
        for trunk in self._trunks.values():
            self._begin(trunk)
        self._rearm()

    def stop(self) -> None:
        """Remove our registrations; the requests are on their way when this returns."""
        for trunk in self._trunks.values():
            self._stop(trunk)
        self._trunks.clear()
        self._rearm()

    @property
    def leaving(self) -> bool:
        """Whether carriers are still to be told that we go."""
        return bool(self._leaving)

    def _begin(self, trunk: _Trunk) -> None:
        if not self._started:
            return
        settings, now = trunk.settings, self._exchange.carrier.clock()
        for index in range(len(trunk.gateways)):
            self._tell(trunk, index, reachable=True)  # an older configuration may have left it dead
            if settings.options_interval_s:
                trunk.checks[index] = HealthCheck(settings.options_interval_s, self._draw, now)
        registration = settings.registration
        if trunk.registrant is not None:
            return  # it goes on
        if registration is None:
            self._tell(trunk, None, reachable=True)
            return
        trunk.order = tuple(sorted(range(len(trunk.gateways)), key=lambda index: settings.priorities[index]))
        account = Account(
            tuple(trunk.gateways[index] for index in trunk.order),
            registration.login,
            registration.line,
            registration.realm,
            registration.expires_s,
        )
        trunk.registrant = Registrant(account, self._exchange.endpoint.new_token, self._draw)
        self._note_registration(trunk, trunk.registrant)
        self._register(trunk, trunk.registrant, trunk.registrant.start())

    def _stop(self, trunk: _Trunk) -> None:
        registrant = trunk.registrant
        goodbye = None if registrant is None else registrant.stop()
        if registrant is not None and goodbye is not None:
            self._leaving.add(registrant)
            self._register(trunk, registrant, goodbye)
        trunk.checks.clear()
        self._hold(trunk, None)

    # --- time -------------------------------------------------------------------------------

    def _rearm(self) -> None:
        """One timer for all: the next thing that is due."""
        due = min(self._deadlines(), default=None)
        if self._timer is not None and (due is None or due < self._timer_at):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer_at = due
            delay_s = max(0.0, due - self._exchange.carrier.clock())
            self._timer = self._exchange.loop.call_later(delay_s, self._on_time)

    def _deadlines(self) -> Iterator[float]:
        for trunk in self._trunks.values():
            for machine in (trunk.registrant, *trunk.checks.values()):
                at = None if machine is None else machine.deadline()
                if at is not None:
                    yield at

    def _on_time(self) -> None:
        self._timer = None
        now = self._exchange.carrier.clock()
        for trunk in tuple(self._trunks.values()):
            if trunk.registrant is not None:
                self._register(trunk, trunk.registrant, trunk.registrant.on_time(now))
                self._note_registration(trunk, trunk.registrant)
            for index, check in trunk.checks.items():
                if check.on_time(now):
                    self._ask(trunk, index, check)
        self._rearm()

    # --- registration -----------------------------------------------------------------------

    def _register(self, trunk: _Trunk, registrant: Registrant, register: Register | None) -> None:
        """Send a REGISTER, if there is one to send."""
        endpoint, account = self._exchange.endpoint, registrant.account
        while register is not None:
            gateway = account.gateways[register.gateway]
            domain = SipUri(gateway.scheme, None, host=gateway.host, params=gateway.params, port=gateway.port)
            flow = endpoint.flow_to(gateway)
            if flow is None:
                self._leaving.discard(registrant)
                register = registrant.on_failure(self._exchange.carrier.clock(), reached=False)
                continue
            person = f"<{gateway.scheme}:{escape(account.login.username)}@{_host(gateway.host)}>"
            request = Request.build(
                "REGISTER",
                domain,
                via=endpoint.via(flow),
                from_=f"{person};tag={endpoint.new_token()}",
                to=person,
                call_id=registrant.sip_call_id,
                cseq=register.cseq,
            )
            contact = endpoint.contact(flow, secure=gateway.scheme == "sips").replace("murima", account.line, 1)
            request.set("contact", f"{contact[:-1]};line={account.line}>")
            request.set("expires", register.expires_s)
            request.set("supported", "path")
            request.set("allow", endpoint.allow)
            request.set("user-agent", AGENT)
            user = _Outcome(partial(self._on_registered, trunk, registrant))
            self._exchange.run(endpoint.send_request(request, flow, user, self._exchange.carrier.clock()))
            return

    def _on_registered(
        self, trunk: _Trunk, registrant: Registrant, tx: ClientTransaction, response: Response | _Silence
    ) -> None:
        stopped = registrant.state is RegistrationState.STOPPED
        if registrant is not trunk.registrant and not stopped:
            return  # another one has taken its place
        now = self._exchange.carrier.clock()
        if isinstance(response, _Silence):
            reached = response is _Silence.NO_ANSWER
            self._register(trunk, registrant, registrant.on_failure(now, reached=reached))
        else:
            following = registrant.on_response(tx.request, response, now)
            if isinstance(following, Register):
                self._register(trunk, registrant, following)
            elif following is not None:
                endpoint = self._exchange.endpoint
                following.set("via", endpoint.via(tx.flow))
                user = _Outcome(partial(self._on_registered, trunk, registrant))
                self._exchange.run(endpoint.send_request(following, tx.flow, user, now))
                return
            if not stopped:
                self._hold(trunk, tx.flow if registrant.state is RegistrationState.REGISTERED else None)
        if stopped:
            self._leaving.discard(registrant)
        self._note_registration(trunk, registrant)
        self._rearm()

    def _hold(self, trunk: _Trunk, flow: Flow | None) -> None:
        """Keep the way open that the carrier's calls come by: we may be behind a NAT."""
        if trunk.flow == flow:
            return
        carrier = self._exchange.carrier
        if trunk.flow is not None:
            carrier.let_go(trunk.flow)
        if flow is not None:
            carrier.keep_open(flow)
        trunk.flow = flow

    def on_flows_lost(self, flows: Sequence[Flow]) -> None:
        """Connections have ended: the carriers who call us by them need new ones."""
        now = self._exchange.carrier.clock()
        for trunk in self._trunks.values():
            if trunk.flow in flows and trunk.registrant is not None:
                trunk.registrant.on_flow_lost(now)
        self._rearm()

    def _note_registration(self, trunk: _Trunk, registrant: Registrant) -> None:
        """Tell call control when the registration comes or goes."""
        registered = registrant.state is RegistrationState.REGISTERED
        if registrant.state is not RegistrationState.STOPPED and registered != trunk.told_registered:
            trunk.told_registered = registered
            self._tell(trunk, None, reachable=registered, detail=registrant.error)

    # --- health -----------------------------------------------------------------------------

    def _ask(self, trunk: _Trunk, index: int, check: HealthCheck) -> None:
        endpoint, gateway = self._exchange.endpoint, trunk.gateways[index]
        flow = endpoint.flow_to(gateway)
        if flow is None:
            self._on_health(trunk, index, check, None)
            return
        request = Request.build(
            "OPTIONS",
            gateway,
            via=endpoint.via(flow),
            from_=f"<sip:murima@{self._exchange.settings.domain}>;tag={endpoint.new_token()}",
            to=f"<{gateway}>",
            call_id=endpoint.new_token(),
            cseq=1,
        )
        request.set("contact", endpoint.contact(flow))
        request.set("accept", "application/sdp")
        request.set("user-agent", AGENT)
        now = self._exchange.carrier.clock()
        user = _Outcome(
            lambda _, response: self._on_health(
                trunk, index, check, None if isinstance(response, _Silence) else response.status
            )
        )
        self._exchange.run(endpoint.send_request(request, flow, user, now, timeout_s=ANSWER_S))

    def _on_health(self, trunk: _Trunk, index: int, check: HealthCheck, status: int | None) -> None:
        if check.on_outcome(status, self._exchange.carrier.clock()) and trunk.checks.get(index) is check:
            self._tell(trunk, index, reachable=check.alive, detail=check.error)
        self._rearm()

    def _tell(self, trunk: _Trunk, gateway: int | None, *, reachable: bool, detail: str = "") -> None:
        self._exchange.emit(TrunkReachability(trunk.settings.name, gateway, reachable, detail))

    def lines(self) -> list[TrunkLine]:
        """What is known of each trunk that calls go to."""
        now, utc = self._exchange.carrier.clock(), datetime.now(UTC)
        found: list[TrunkLine] = []
        for name, trunk in self._trunks.items():
            registrant, until = trunk.registrant, None
            if registrant is not None and registrant.registered_until is not None:
                until = utc + timedelta(seconds=round(registrant.registered_until - now))
            gateways = [
                GatewayLine(str(uri), check is None or check.alive, "" if check is None else check.error)
                for index, uri in enumerate(trunk.gateways)
                for check in (trunk.checks.get(index),)
            ]
            registers = registrant is not None
            error = "" if registrant is None else registrant.error
            found.append(TrunkLine(name, registers, until, gateways, error))
        return found

    # --- calls ------------------------------------------------------------------------------

    def knows(self, outside: Outside) -> bool:
        """Whether there is such a gateway."""
        trunk = self._trunks.get(outside.trunk)
        return trunk is not None and outside.gateway < len(trunk.gateways)

    def invite(self, leg: Leg, request: Originate, outside: Outside, port: int) -> None:
        """Send the INVITE of a leg to the outside, now that it has an RTP port."""
        trunk, worker = self._trunks.get(outside.trunk), leg.call.worker
        if trunk is None or worker is None or outside.gateway >= len(trunk.gateways):
            self._exchange.drop(leg, EndCause.UNREACHABLE, "no such trunk")
            return
        gateway, settings = trunk.gateways[outside.gateway], trunk.settings
        target = SipUri(gateway.scheme, outside.number, host=gateway.host, port=gateway.port, params=gateway.params)
        from_, headers = self._identity(settings, gateway, request, outside)
        if settings.call_id_header:
            headers.append((CALL_ID_HEADER, leg.call.call_id))
        flow = None
        if trunk.registrant is not None and trunk.registrant.service_route:
            headers += [("route", route) for route in trunk.registrant.service_route]
            flow = self._flow_of_route(trunk.registrant.service_route[0])
        session, effects = self._exchange.endpoint.invite(
            target,
            leg.audio.offer(worker.address, port, leg.preferred),
            from_=from_,
            now=self._exchange.carrier.clock(),
            flow=flow,
            headers=headers,
            ring_timeout_s=request.ring_timeout_s,
            login=settings.login,
            max_forwards=leg.max_forwards,
            owner=leg,
        )
        if session is None:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "no transport for the gateway")
            return
        leg.session = session
        self._exchange.on_dialog(session.sip_call_id, leg.call.call_id)
        self._exchange.emit(LegTrying(leg.leg_id))
        # A gateway that is silent must not cost the half minute that SIP would wait for it.
        patience_s = settings.response_timeout_s
        if not is_address(gateway.host):  # a name may stand for several servers, tried in turn
            patience_s += SERVERS_OF_A_NAME_S
        leg.probe_timer = self._exchange.loop.call_later(patience_s, lambda: self._on_silent(leg))
        self._exchange.run(effects)

    def _on_silent(self, leg: Leg) -> None:
        leg.probe_timer = None
        if leg.leg_id in self._exchange.legs and not leg.answered:
            self._exchange.drop(leg, EndCause.UNREACHABLE, "the gateway does not respond")

    def _flow_of_route(self, route: str) -> Flow | None:
        try:
            uri = NameAddr.parse(route).uri
        except PeerError:
            return None
        return self._exchange.endpoint.flow_to(uri) if isinstance(uri, SipUri) else None

    def _identity(
        self, settings: TrunkSettings, gateway: SipUri, request: Originate, outside: Outside
    ) -> tuple[str, list[tuple[str, str]]]:
        """From, and the headers that tell who calls (RFC 3261 20.20, 3323, 3325, 5806)."""
        own = self._exchange.settings.domain
        ours = settings.from_domain or (_host(gateway.host) if settings.login is not None else own)
        caller = request.caller
        name = f"{quoted(caller.name)} " if caller.name else ""
        shown = f"{name}<sip:{escape(caller.number) or 'anonymous'}@{ours}>"
        headers: list[tuple[str, str]] = []
        if outside.withheld:
            from_ = ANONYMOUS
            headers.append(("privacy", "id"))
            if settings.trusted_identity and caller.number != "anonymous":
                headers.append(("p-asserted-identity", shown))
        elif settings.number_in_from or settings.login is None:
            from_ = shown
            if not settings.number_in_from:
                headers.append(("p-asserted-identity", shown))
        else:
            from_ = f"{name}<sip:{escape(settings.login.username)}@{ours}>"
            headers.append(("p-asserted-identity", shown))
        if outside.diverted_from:
            headers.append(("diversion", f"<sip:{escape(outside.diverted_from)}@{own}>;reason=unconditional"))
        if request.forwarded.user_to_user:
            headers.append(("user-to-user", request.forwarded.user_to_user))
        return from_, headers


class _Silence(Enum):
    """What comes instead of a response."""

    NO_ANSWER = "no answer"
    UNREACHABLE = "unreachable"


class _Outcome:
    """The user of a request outside dialogs: told of its final response, or that there is none."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[ClientTransaction, Response | _Silence], None]) -> None:
        self._tell = tell

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> None:  # noqa: ARG002 - the protocol's
        if response.status >= 200:
            self._tell(tx, response)

    def on_timeout(self, tx: ClientTransaction, now: float, *, reached: bool) -> None:  # noqa: ARG002 - the protocol's
        self._tell(tx, _Silence.NO_ANSWER if reached else _Silence.UNREACHABLE)


def _gateways(settings: TrunkSettings) -> tuple[SipUri, ...]:
    try:
        return tuple(SipUri.parse(gateway) for gateway in settings.gateways)
    except PeerError as exc:
        raise ValueError(f"gateway of trunk {settings.name}: {exc}") from exc


def _address_of_record(settings: TrunkSettings) -> str | None:
    return None if settings.registration is None else settings.registration.login.username


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
