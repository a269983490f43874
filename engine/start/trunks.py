"""Trunks and routes, from the document to the plain values that each part wants."""

from __future__ import annotations

import hashlib
import hmac
from datetime import tzinfo
from zoneinfo import ZoneInfo

from adapters.native.settings import RegistrationSettings
from adapters.native.settings import TrunkSettings as NativeTrunk
from adapters.sip.protection.login import Login
from config.numbering import Numbering
from config.numbers import NumberSet
from config.schema import Document
from config.secrets import ALGORITHMS, ha1
from config.trunks import DAYS, Credentials, Identify, IdentityHeader, Registration, Trunk, When
from config.trunks import Route as RouteInDocument
from engine.events import Party
from engine.outbound import OutboundRules, TrunkRules
from routing.outbound import (
    GatewayChoice,
    OutboundSettings,
    Route,
    TimeWindow,
    TrunkChoice,
    TrunkSettings,
)


def outbound_rules(document: Document) -> OutboundRules:
    """What call control takes from trunks and routes."""
    return OutboundRules(
        choice=OutboundSettings(
            trunks=tuple(
                TrunkSettings(
                    trunk.name,
                    tuple(
                        GatewayChoice(index, gateway.priority, gateway.weight)
                        for index, gateway in enumerate(trunk.targets)
                    ),
                    trunk.max_calls,
                    trunk.max_calls_per_s,
                )
                for trunk in document.sip.trunks
            ),
            routes=tuple(_route(route) for route in document.routes),
        ),
        trunks={trunk.name: _rules(trunk) for trunk in document.sip.trunks},
        numbering=Numbering(document.country, document.short_numbers),
    )


def _route(route: RouteInDocument) -> Route:
    return Route(
        name=route.name,
        numbers=NumberSet(route.match),
        trunks=tuple(TrunkChoice(item.trunk, item.priority, item.weight) for item in route.trunks),
        when=None if route.when is None else _window(route.when),
        strip=route.strip,
        prepend=route.prepend,
        callers=None if route.allow is None else frozenset(route.allow),
        emergency=route.emergency,
        record=route.record,
        ring_timeout_s=float(route.ring_timeout_s),
    )


def _window(when: When) -> TimeWindow:
    first, after = when.minutes
    zone: tzinfo = ZoneInfo(when.time_zone)
    return TimeWindow(frozenset(DAYS.index(day) for day in when.days), first, after, zone)


def _rules(trunk: Trunk) -> TrunkRules:
    caller_id = trunk.caller_id
    return TrunkRules(
        reach=None if trunk.reach is None else NumberSet(trunk.reach),
        dial_out=trunk.dial_out,
        shown=None if caller_id.number is None else Party(caller_id.number, caller_id.name),
        allow=None if caller_id.allow == "any" else NumberSet(caller_id.allow),
        number_format=caller_id.format,
        withhold=caller_id.privacy,
        country=trunk.country,
    )


def native_trunk(trunk: Trunk, domain: str, line_key: bytes) -> NativeTrunk:
    """What SIP takes from a trunk.

    Args:
        trunk: of the document.
        domain: realm of what it logs in with.
        line_key: secret from which the lines come that we register.
    """
    credentials = trunk.digest or trunk.register_
    known_by = trunk.identified_by
    return NativeTrunk(
        name=trunk.name,
        networks=tuple(str(network) for network in trunk.match),
        by_address=known_by is Identify.ADDRESS,
        user=None if trunk.login is None else trunk.login.username,
        ha1s={} if trunk.login is None else _hashes(trunk.login, domain),
        by_line=known_by is Identify.REGISTRATION,
        gateways=tuple(gateway.address for gateway in trunk.targets),
        priorities=tuple(gateway.priority for gateway in trunk.targets),
        registration=None if trunk.register_ is None else _registration(trunk.register_, trunk.name, line_key),
        login=None if credentials is None else _login(credentials),
        from_domain=trunk.from_domain,
        number_in_from=trunk.caller_id.header is IdentityHeader.FROM,
        trusted_identity=trunk.trusted_identity,
        options_interval_s=float(trunk.options_interval_s),
        response_timeout_s=float(trunk.response_timeout_s),
        call_id_header=trunk.call_id_header,
        watch=trunk.watch,
    )


def _registration(registration: Registration, trunk: str, line_key: bytes) -> RegistrationSettings:
    # The same over restarts: a carrier may call the old contact for a while.
    line = hmac.digest(line_key, trunk.encode(), hashlib.sha256).hex()[:24]
    return RegistrationSettings(_login(registration), line, registration.realm, registration.expires_s)


def _login(credentials: Credentials | Registration) -> Login:
    return Login(credentials.username, credentials.password.get_secret_value())


def _hashes(login: Credentials, domain: str) -> dict[str, str]:
    password = login.password.get_secret_value()
    return {algorithm: ha1(login.username, domain, password, algorithm) for algorithm in ALGORITHMS}
