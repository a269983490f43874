"""Trunks (carriers and other switches) and the routes that calls to the outside take."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from config.values import DOMAIN, Model, Name, Network, Seconds, Secret, address

_GATEWAY = re.compile(
    r"(?P<scheme>sips?):(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(;transport=(?P<transport>udp|tcp|tls))?"
)
_NUMBER = re.compile(r"\+?[0-9*#]{1,32}")
_USER = re.compile(r"[\x21-\x7e]{1,128}")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")
_COUNTRY = re.compile(r"[A-Z]{2}")


def _gateway(value: Any) -> Any:
    """Check the address of a gateway: a SIP URI without a user.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    match = _GATEWAY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("give a SIP address without a user, like sip:sip.example.net or sip:192.0.2.10:5060")
    host = match["host"]
    if host.startswith("["):
        address(host[1:-1])
    elif re.fullmatch(r"[0-9.]+", host):
        address(host)
    elif DOMAIN.fullmatch(host) is None:
        raise ValueError(f"{host!r} is not a host name or an IP address; give one like sip.example.net")
    if match["port"] and not 1 <= int(match["port"]) <= 65_535:
        raise ValueError(f"{match['port']} is not a port; give a number from 1 to 65535")
    return value


def country(value: Any) -> Any:
    """Check a country code.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    if not isinstance(value, str) or not _COUNTRY.fullmatch(value):
        raise ValueError("give the two capital letters of ISO 3166, like KE or DE")
    import phonenumbers  # reading its tables takes a moment, which only those pay who name a country

    if value not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{value} is no country with telephone numbers; give the two letters of ISO 3166, like KE")
    return value


def _dialled(value: Any) -> Any:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise ValueError('give a number in quotes, like "+254201234567"')
    return value


def _user(value: Any) -> Any:
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise ValueError("give a user name without blanks, in quotes")
    return value


GatewayAddress = Annotated[StrictStr, BeforeValidator(_gateway)]
Country = Annotated[StrictStr, BeforeValidator(country)]
Number = Annotated[StrictStr, BeforeValidator(_dialled)]
UserName = Annotated[StrictStr, BeforeValidator(_user)]
NumberPattern = Annotated[StrictStr, Field(min_length=1)]
"""A number, the beginning of one (`+254*`), or a regular expression after `~`; see `config.numbers.NumberSet`."""
Weight = Annotated[StrictInt, Field(ge=0, le=1000)]
Priority = Annotated[StrictInt, Field(ge=1, le=1000)]


class Gateway(Model):
    """One address of a carrier: lower `priority` first; among equals the share of calls follows `weight`."""

    address: GatewayAddress
    priority: Priority = 1
    weight: Weight = 1

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value


class Registration(Model):
    """Our registration with a carrier (RFC 3261 10).

    Attributes:
        realm: answer challenges of this realm only; None: of any.
        expires_s: asked for; the carrier may grant less.
    """

    username: UserName
    password: Secret
    realm: StrictStr | None = None
    expires_s: Annotated[StrictInt, Field(ge=60, le=86_400)] = 3600


class Credentials(Model):
    """A user name and a password for SIP digest."""

    username: UserName
    password: Secret


class Identify(StrEnum):
    """How a call is known to come from a trunk."""

    ADDRESS = "address"
    REGISTRATION = "registration"
    DIGEST = "digest"
    NONE = "none"  # this trunk sends no calls


class NumberFormat(StrEnum):
    """How a number is written."""

    E164 = "e164"
    NATIONAL = "national"
    AS_IS = "as_is"


class IdentityHeader(StrEnum):
    """Where the caller's number goes."""

    FROM = "from"
    PAI = "pai"


class CallerId(Model):
    """What the called side sees.

    Attributes:
        number: shown where the caller has no number of its own, or one that is not allowed.
        name: shown with `number`.
        allow: numbers of callers that may be shown, or "any".
        privacy: hide the number from the called person.
    """

    number: Number | None = None
    name: Annotated[StrictStr, Field(max_length=64)] = ""
    allow: Literal["any"] | tuple[NumberPattern, ...] = "any"
    format: NumberFormat = NumberFormat.AS_IS
    header: IdentityHeader = IdentityHeader.FROM
    privacy: StrictBool = False


class Srtp(StrEnum):
    """Whether audio with this trunk is encrypted."""

    NEVER = "never"


class Trunk(Model):
    """A carrier or another switch.

    Attributes:
        match: where its calls come from; with `identify: address` they need no password.
        identify: how its calls are known; None: by address if `match` is given, else by registration if there is one.
        transfer: its side of a call may transfer us, to numbers that it could dial itself.
        watch: it may subscribe to the calls and the presence of agents.
        address: where calls to it go; `gateways` where there are several addresses.
        login: what it authenticates with when it calls us (`identify: digest`).
        register_: our registration with it (`register` in the document).
        digest: our credentials when it challenges our calls; None: those of `register`.
        from_domain: host in From; None: the gateway's where we have credentials, else our domain.
        options_interval_s: how often it is asked whether it is alive; 0: never.
        response_timeout_s: a gateway that says nothing for so long is passed over.
        max_calls: calls at once, both ways; beyond it none is sent.
        reach: numbers that its callers may dial; None: all of `numbers`.
        dial_out: its callers may be sent out again through routes.
        trusted_identity: believe its P-Asserted-Identity, and send it ours.
        call_id_header: send it our call id in X-Murima-Call-ID.
    """

    name: Name
    match: tuple[Network, ...] = ()
    identify: Identify | None = None
    supervise: StrictBool = False
    transfer: StrictBool = False
    watch: StrictBool = False
    address: GatewayAddress | None = None
    gateways: tuple[Gateway, ...] = ()
    login: Credentials | None = None
    register_: Annotated[Registration | None, Field(alias="register")] = None
    digest: Credentials | None = None
    from_domain: StrictStr | None = None
    options_interval_s: Seconds = 0
    response_timeout_s: Annotated[Seconds, Field(ge=1, le=32)] = 6
    max_calls: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = None
    max_calls_per_s: Annotated[Seconds, Field(gt=0, le=10_000)] | None = None
    caller_id: CallerId = Field(default_factory=CallerId)
    country: Country | None = None
    srtp: Srtp = Srtp.NEVER
    reach: tuple[NumberPattern, ...] | None = None
    dial_out: StrictBool = False
    trusted_identity: StrictBool = True
    call_id_header: StrictBool = False

    @field_validator("srtp", mode="before")
    @classmethod
    def _srtp(cls, value: Any) -> Any:
        if value != Srtp.NEVER.value:
            raise ValueError(
                "this release carries audio without encryption (RTP), so it can neither promise nor offer SRTP; "
                "write never, or leave the trunk out"
            )
        return value

    @field_validator("options_interval_s")
    @classmethod
    def _interval(cls, value: float) -> float:
        if 0 < value < 5:
            raise ValueError("asking more often than every 5 seconds is a flood; give 5 or more, or 0 for never")
        return value

    @field_validator("from_domain")
    @classmethod
    def _from_domain(cls, value: str | None) -> str | None:
        if value is not None and DOMAIN.fullmatch(value) is None:
            raise ValueError("give a host name, like sip.example.net")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Trunk:
        if self.address is not None and self.gateways:
            raise ValueError("it has both address and gateways; move the address into gateways")
        if not (self.match or self.targets or self.login):
            raise ValueError('nothing leads to or from it; add match: ["192.0.2.10"] or address: "sip:192.0.2.10"')
        if self.register_ is not None and not self.targets:
            raise ValueError('register needs to know where; add address: "sip:sip.example.net"')
        if self.digest is not None and not self.targets:
            raise ValueError('digest is for calls to the trunk; add address: "sip:sip.example.net"')
        if self.options_interval_s and not self.targets:
            raise ValueError('options_interval_s needs to know whom to ask; add address: "sip:sip.example.net"')
        if self.identify is Identify.ADDRESS and not self.match:
            raise ValueError('identify: address needs addresses; add match: ["192.0.2.10"]')
        if self.identify is Identify.REGISTRATION and self.register_ is None:
            raise ValueError('identify: registration needs one; add register: {username: …, password: "…"}')
        if self.identify is Identify.DIGEST and self.login is None:
            raise ValueError('identify: digest needs credentials; add login: {username: …, password: "…"}')
        if self.login is not None and self.identified_by is not Identify.DIGEST:
            raise ValueError("login is only asked for with identify: digest; add that, or remove login")
        return self

    @property
    def targets(self) -> tuple[Gateway, ...]:
        """Where calls to it go."""
        return self.gateways or (() if self.address is None else (Gateway(address=self.address),))

    @property
    def identified_by(self) -> Identify:
        """How its calls are known."""
        if self.identify is not None:
            return self.identify
        if self.match:
            return Identify.ADDRESS
        return Identify.REGISTRATION if self.register_ is not None else Identify.NONE


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class When(Model):
    """A time of the week. `hours`: `08:00-18:00`; one that ends before it begins lasts into the next day."""

    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS
    hours: StrictStr = "00:00-24:00"
    time_zone: StrictStr = "UTC"

    @field_validator("hours")
    @classmethod
    def _hours(cls, value: str) -> str:
        match = _HOURS.fullmatch(value)
        if match is None or (match[3] == "24" and match[4] != "00"):
            raise ValueError('give two times of the day, like "08:00-18:00"')
        if match[1] + match[2] == match[3] + match[4]:
            raise ValueError('the two times are the same; write "00:00-24:00" for the whole day')
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; give one like Africa/Nairobi or UTC") from None
        return value

    @property
    def minutes(self) -> tuple[int, int]:
        """First minute of the day, and the first one after."""
        match = _HOURS.fullmatch(self.hours)
        assert match is not None
        return int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])


class RouteTrunk(Model):
    """A trunk of a route; written as its name, or with priority and weight."""

    trunk: Name
    priority: Priority = 1
    weight: Weight = 1


def _in_order(value: Any) -> Any:
    """Names alone are tried in the order written."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return [{"trunk": item, "priority": place} for place, item in enumerate(value, 1)]
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        raise ValueError("names and mappings cannot be mixed; write {trunk: …, priority: …} for all")
    return value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Route(Model):
    """Which trunks calls to some numbers take.

    Attributes:
        match: numbers, as `NumberPattern` says; in E.164 where `country` is known, and as dialled.
        strip: so many characters of the number are removed in front, then `prepend` is put there.
        allow: ids of the agents who may use it; None: all.
        emergency: goes before all others, and no limit holds it up.
        record: record its calls.
        ring_timeout_s: give up when nobody answers for so long.
    """

    name: Name
    match: Annotated[
        tuple[NumberPattern, ...],
        Field(min_length=1),
        BeforeValidator(_several),
    ]
    when: When | None = None
    trunks: Annotated[tuple[RouteTrunk, ...], Field(min_length=1), BeforeValidator(_in_order)]
    strip: Annotated[StrictInt, Field(ge=0, le=32)] = 0
    prepend: Annotated[StrictStr, Field(pattern=r"^\+?[0-9*#]{0,32}$")] = ""
    allow: tuple[Name, ...] | None = None
    emergency: StrictBool = False
    record: StrictBool = False
    ring_timeout_s: Annotated[Seconds, Field(ge=1, le=600)] = 60
