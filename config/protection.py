"""`sip.digest`, `sip.guard` and `sip.overload`: who is believed, who is kept off, and how much is taken on."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
)

from config.values import Model, Seconds, network

Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(network)]
Rate = Annotated[StrictFloat, Field(ge=0.1, le=100_000, allow_inf_nan=False)]


class Algorithm(StrEnum):
    """Digest algorithms (RFC 3261, RFC 8760)."""

    MD5 = "MD5"
    SHA_256 = "SHA-256"
    SHA_512_256 = "SHA-512-256"


def _once(value: tuple[Algorithm, ...]) -> tuple[Algorithm, ...]:
    if len(set(value)) != len(value):
        raise ValueError("an algorithm stands twice; remove one of the two")
    return value


Algorithms = Annotated[tuple[Algorithm, ...], Field(min_length=1), AfterValidator(_once)]
"""Offered in this order; many phones read the first only."""


class Digest(Model):
    """How phones prove who they are.

    Attributes:
        algorithms: of listeners that name none themselves.
        nonce_s: how long a challenge may be answered.
    """

    algorithms: Algorithms = (Algorithm.MD5,)
    nonce_s: Annotated[Seconds, Field(ge=10)] = 300


class Guard(Model):
    """Scanners, guessers and floods.

    Attributes:
        trusted: networks that are neither limited nor banned, beside those of trunks.
        failures: failed log-ins that ban an address; ten times as many where other phones log in.
        window_s: so many failures are forgotten in this time, evenly.
        ban_s: length of the first ban; each further one is twice as long, up to a day.
        requests_per_s, burst: what an address may send without proving itself.
        scanners: beginnings of User-Agent values that are dropped, beside the known ones.
    """

    enabled: StrictBool = True
    trusted: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
    failures: Annotated[StrictInt, Field(ge=1, le=100_000)] = 20
    window_s: Annotated[Seconds, Field(ge=1)] = 600
    ban_s: Annotated[Seconds, Field(ge=1)] = 600
    requests_per_s: Rate = 50
    burst: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 1000
    scanners: tuple[Annotated[StrictStr, StringConstraints(min_length=3, max_length=100)], ...] = ()


class Overload(Model):
    """Calls beyond what can be served.

    Attributes:
        max_calls_per_s: new calls that are taken at most, whatever the load; None: any number.
        emergency: dialled numbers that go first.
    """

    enabled: StrictBool = True
    max_calls_per_s: Rate | None = None
    emergency: tuple[Annotated[StrictStr, StringConstraints(pattern=r"^[0-9A-Za-z+*#._-]{1,64}$")], ...] = (
        "112",
        "911",
    )
