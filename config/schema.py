"""The configuration document as frozen values (design section 10).

The models state the shape and the limits of each value; what spans several
places (references, duplicates, files) is checked in `config.check`, and what a
text may look like in `config.loader`. Build a `Document` with
`config.loader.load`: it reads secrets from the environment and resolves paths.

Durations are seconds, skill levels 1–100. `repr` never shows a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SecretStr,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from config.name_servers import Dns
from config.protection import Algorithms, Digest, Guard, Overload
from config.tls import HttpTls, SipTls
from config.trunks import Country, Number, Route, Trunk
from config.values import (
    DOMAIN,
    Address,
    IpAddress,
    Model,
    Name,
    Port,
    Seconds,
    address,
    environment_secret,
)

_ORIGIN = re.compile(r"(?i:https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_HEX = re.compile(r"[0-9a-fA-F]+")
_SIP_URI = re.compile(
    r"sips?:[A-Za-z0-9\-_.!~*'()&=+$,;?/%]+@"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(?P<parameters>(;[A-Za-z0-9\-_.!~*'%+=\[\]:]+)*)"
)


SkillLevel = Annotated[StrictInt, Field(ge=1, le=100)]


# --- addresses ----------------------------------------------------------------------------


def split_endpoint(text: str) -> tuple[str, int]:
    """Split `127.0.0.1:5060` or `[::1]:5060` into address and port.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("give an address and a port, like 127.0.0.1:5060 or [::1]:5060")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"put the IPv6 address in brackets, like [{host}]:{port}")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; give one, like 127.0.0.1, or 0.0.0.0 for all") from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"{port!r} is not a port; give a number from 1 to 65535")
    return str(address), int(port)


class Transport(StrEnum):
    """What SIP travels on."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


class Endpoint(Model):
    """An address of this machine and a TCP port; written `127.0.0.1:8080` or `[::1]:8080`."""

    host: StrictStr
    port: Port

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("give text: an address and a port, like 127.0.0.1:8080")
        host, port = split_endpoint(value)
        return {"host": host, "port": port}

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener(Model):
    """Where SIP is received; written `udp:127.0.0.1:5060`, `tcp:[::1]:5060` or `tls:127.0.0.1:5061`.

    `{listen: "tls:0.0.0.0:5061", digest: [SHA-256, MD5]}` offers other digest algorithms than `sip.digest`.
    """

    transport: Transport
    host: StrictStr
    port: Port
    digest: Algorithms | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_document(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            unknown = sorted(str(key) for key in value if key not in ("listen", "digest"))
            if unknown or "listen" not in value:
                raise ValueError(
                    "give the keys listen and digest, like {listen: 'tls:0.0.0.0:5061', digest: [SHA-256]}"
                )
            return {**cls._from_text(value["listen"]), "digest": value.get("digest")}
        return cls._from_text(value)

    @classmethod
    def _from_text(cls, value: Any) -> dict[str, object]:
        if not isinstance(value, str):
            raise ValueError("give text: a transport, an address and a port, like udp:127.0.0.1:5060")
        transport, _, rest = value.partition(":")
        if transport not in {"udp", "tcp", "tls"}:
            raise ValueError(
                f"{transport!r} is not a transport; begin with udp:, tcp: or tls:, like udp:127.0.0.1:5060"
            )
        host, port = split_endpoint(rest)
        return {"transport": Transport(transport), "host": host, "port": port}

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport.value}:{host}:{self.port}"


def _origin(value: str) -> str:
    if _ORIGIN.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not an origin; give one without a path, like https://desk.example.org")
    return value.lower()


Origin = Annotated[StrictStr, AfterValidator(_origin)]


def _contact(value: Any) -> Any:
    match = _SIP_URI.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("give a SIP address, like sip:a0001@192.0.2.20:5060")
    host = match["host"]
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{host} is not an IPv6 address; write one like sip:a0001@[2001:db8::20]:5060") from None
    elif DOMAIN.fullmatch(host) is None:
        raise ValueError(f"{host!r} is not a host name or an IP address")
    elif re.fullmatch(r"[0-9.]+", host):
        address(host)
    if match["port"] and not 1 <= int(match["port"]) <= 65_535:
        raise ValueError(f"{match['port']} is not a port; give a number from 1 to 65535")
    return value


SipUri = Annotated[StrictStr, BeforeValidator(_contact)]


# --- passwords ----------------------------------------------------------------------------


class Ha1(Model):
    """SIP password hashes, `H(id:domain:password)` in hex (RFC 7616 3.4.2), one per algorithm."""

    md5: SecretStr | None = None
    sha256: SecretStr | None = None
    sha512_256: SecretStr | None = None

    @field_validator("md5", "sha256", "sha512_256")
    @classmethod
    def _hex(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        digits = 32 if info.field_name == "md5" else 64
        if value is not None and (
            len(value.get_secret_value()) != digits or not _HEX.fullmatch(value.get_secret_value())
        ):
            raise ValueError(f"give {digits} hexadecimal digits")
        return None if value is None else SecretStr(value.get_secret_value().lower())

    @model_validator(mode="after")
    def _not_empty(self) -> Ha1:
        if self.md5 is None and self.sha256 is None and self.sha512_256 is None:
            raise ValueError("give md5, sha256, sha512_256 or several of them")
        return self


class Password(Model):
    """A password: plain text, from the environment, or hashed.

    Attributes:
        plain: the password itself (also when it came from the environment).
        env: name of the environment variable that it came from.
        argon2id: hash for the web login, `$argon2id$…`.
        ha1: hashes for SIP digest; only agents have them.
    """

    plain: SecretStr | None = None
    env: StrictStr | None = None
    argon2id: SecretStr | None = None
    ha1: Ha1 | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_document(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            if not value:
                raise ValueError("an empty password protects nothing; give one, or {env: NAME}")
            return {"plain": value}
        if not isinstance(value, Mapping):
            raise ValueError("give text in quotes, {env: NAME} or {argon2id: …}")
        if not value or "plain" in value:
            raise ValueError("give text in quotes, {env: NAME} or {argon2id: …}")
        if "env" in value:
            if len(value) > 1:
                raise ValueError("env stands alone: give {env: NAME}, or hashes")
            return cls._from_environment(value["env"], info)
        return value

    @classmethod
    def _from_environment(cls, name: Any, info: ValidationInfo) -> Any:
        secret = environment_secret(name, info)
        return {"env": name, "plain": secret}

    @field_validator("argon2id")
    @classmethod
    def _argon2id(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith("$argon2id$v="):
            raise ValueError("give an Argon2id hash that begins with $argon2id$v=")
        return value


# --- sections -----------------------------------------------------------------------------


class Sip(Model):
    """SIP listeners and trunks.

    Attributes:
        trace_mb: memory for recent messages, shown by `murima sip trace`; 0: none.
        dns: how host names are looked up.
        digest: how phones prove who they are.
        guard: what keeps scanners, guessers and floods off.
        overload: what is refused when more comes than can be served.
        connections_per_address: TCP, TLS and WebSocket connections from one address that no
            registration has come by; trunks may have any number.
        session_expires_s: a call that neither side has refreshed for so long has ended, where the
            phone knows session timers; 0: we ask for none.
        session_min_s: phones that ask for less are told to ask for more.
    """

    listen: Annotated[tuple[Listener, ...], Field(min_length=1)]
    tls: SipTls | None = None
    dns: Dns = Dns()
    digest: Digest = Digest()
    guard: Guard = Guard()
    overload: Overload = Overload()
    connections_per_address: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    session_expires_s: Annotated[StrictInt, Field(ge=0, le=86_400)] = 1800
    session_min_s: Annotated[StrictInt, Field(ge=90, le=86_400)] = 90
    trunks: tuple[Trunk, ...] = ()
    trace_mb: Annotated[StrictInt, Field(ge=0, le=4096)] = 32

    @field_validator("session_expires_s")
    @classmethod
    def _long_enough(cls, value: int) -> int:
        if 0 < value < 90:
            raise ValueError("nobody may ask for a session timer below 90 s (RFC 4028); write 0 for none")
        return value


class Media(Model):
    """Where audio flows. `ports` is inclusive; a leg takes a pair (RTP even, RTCP odd)."""

    address: Address
    ports: Annotated[tuple[Port, Port], Field(description="first and last UDP port")]
    workers: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    silence_timeout_s: Seconds = 60
    orphan_grace_s: Seconds = 10
    advertise: Address | None = None

    @field_validator("ports")
    @classmethod
    def _range(cls, value: tuple[int, int]) -> tuple[int, int]:
        low, high = value
        if low % 2:
            raise ValueError(f"the first port must be even (RTP is even, RTCP odd); write [{low + 1}, {high}]")
        if low < 1024:
            raise ValueError("ports below 1024 belong to the system; begin at 1024 or higher, like [20000, 29999]")
        if high < low + 3:
            raise ValueError("a call needs two pairs of ports; give a range like [20000, 29999]")
        return value

    @property
    def public_address(self) -> IpAddress:
        """The address that SDP names: `advertise`, or `address`."""
        return self.advertise or self.address

    def worker_ports(self, index: int) -> tuple[int, int]:
        """First and last port of worker `index`: an equal share of whole pairs, first even."""
        low, high = self.ports
        pairs = (high - low + 1) // 2 // self.workers
        first = low + index * pairs * 2
        return first, first + pairs * 2 - 1


class Http(Model):
    """The API and the web application.

    Attributes:
        tls: HTTPS; None: plain HTTP.
        origins: pages of these origins may use WebSockets and the session cookie, beside our own.
    """

    listen: Endpoint
    tls: HttpTls | None = None
    origins: tuple[Origin, ...] = ()


class Role(StrEnum):
    """What a person may do over HTTP. A manager is what call centres call a supervisor."""

    ADMINISTRATOR = "administrator"
    MANAGER = "manager"
    AGENT = "agent"
    VIEWER = "viewer"


class User(Model):
    """A person who takes no calls."""

    username: Name
    password: Password
    role: Role

    @field_validator("password")
    @classmethod
    def _web_only(cls, value: Password) -> Password:
        if value.ha1 is not None:
            raise ValueError("ha1 is for agents; users have no phone. Give text, {env: NAME} or {argon2id: …}")
        return value


class Agent(Model):
    """A person who takes calls; logs in by id, and the phone registers by id.

    Attributes:
        contact: fixed SIP address of the phone; None: the phone registers.
        auto_ready: ready at start and after each wrap-up.
    """

    id: Name
    name: StrictStr = ""
    password: Password
    contact: SipUri | None = None
    skills: Mapping[Name, SkillLevel] = Field(default_factory=dict)
    auto_ready: StrictBool = False

    @property
    def display_name(self) -> str:
        return self.name or self.id


class Strategy(StrEnum):
    """Who of the agents that fit is offered the call."""

    LONGEST_IDLE = "longest_idle"
    ROUND_ROBIN = "round_robin"
    RING_ALL = "ring_all"
    TOP_SKILL = "top_skill"


class NoAnswer(StrEnum):
    """What a missed offer does to the agent."""

    BREAK = "break"
    READY = "ready"


class Queue(Model):
    """Where calls wait for an agent.

    Attributes:
        members: ids of the agents who serve it; None: every agent who meets `requires`.
        requires: least level per skill.
        music: what waiting callers hear: a name in `Document.prompts` (a path in
            the document becomes a prompt of that name), or None for no RTP.
        record: record every call of this queue.
    """

    id: Name
    strategy: Strategy = Strategy.LONGEST_IDLE
    members: tuple[Name, ...] | None = None
    requires: Mapping[Name, SkillLevel] = Field(default_factory=dict)
    ring_timeout_s: Annotated[Seconds, Field(ge=1, le=600)] = 15
    wrap_up_s: Seconds = 0
    music: StrictStr | None = None
    no_answer: NoAnswer = NoAnswer.BREAK
    record: StrictBool = False


# --- numbers ------------------------------------------------------------------------------


class Action(Model):
    """What happens to a call to a number; the key decides which kind it is."""


class ToQueue(Action):
    """Answer and wait in a queue."""

    queue: Name


class AnswerSilence(Action):
    """Answer, send nothing, keep the call up."""

    answer: Literal["silence"]


class PlayPrompt(Action):
    """Answer, play a prompt (a name in `Document.prompts`, like `Queue.music`), go on with `then`."""

    play: StrictStr
    then: Annotated[
        Annotated[Literal["silence", "hangup"], Tag("word")] | Annotated[AnyAction, Tag("action")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "action"),
    ] = "hangup"


class EchoBack(Action):
    """Answer and send the caller's audio back."""

    echo: Literal[True]


class RingAgent(Action):
    """Ring one agent; `agent` may hold groups of the pattern as `\\1`."""

    agent: StrictStr
    record: StrictBool = False


class DialOut(Action):
    """Call a number outside, through the routes; `dial` may hold groups of the pattern as `\\1`."""

    dial: StrictStr
    record: StrictBool = False


class Supervise(Action):
    """Join the call that an agent is in; the field that names the agent may hold groups as `\\1`."""


class Listen(Supervise):
    """Hear an agent's call, unheard."""

    listen: StrictStr


class Whisper(Supervise):
    """Hear an agent's call and be heard by the agent alone."""

    whisper: StrictStr


class Barge(Supervise):
    """Hear an agent's call and be heard by all."""

    barge: StrictStr


ACTION_KEYS = ("queue", "answer", "play", "echo", "agent", "dial", "listen", "whisper", "barge")


def _action_key(value: Any) -> str | None:
    keys = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", ())
    return next((key for key in ACTION_KEYS if key in keys), None)


AnyAction = Annotated[
    Annotated[ToQueue, Tag("queue")]
    | Annotated[AnswerSilence, Tag("answer")]
    | Annotated[PlayPrompt, Tag("play")]
    | Annotated[EchoBack, Tag("echo")]
    | Annotated[RingAgent, Tag("agent")]
    | Annotated[DialOut, Tag("dial")]
    | Annotated[Listen, Tag("listen")]
    | Annotated[Whisper, Tag("whisper")]
    | Annotated[Barge, Tag("barge")],
    Discriminator(
        _action_key,
        custom_error_type="unknown_action",
        custom_error_message="no action is named; give one of " + ", ".join(ACTION_KEYS) + ", like {queue: support}",
    ),
]


class Document(Model):
    """The whole configuration.

    Attributes:
        domain: name of this system and realm of SIP digest.
        drain_s: how long a stopping engine waits for calls in progress.
        prompts: audio files by name; absolute after loading.
        numbers: what is dialled → what happens; see `config.numbers.DialPlan`.
        country: where this system is: numbers without a country code belong there.
        short_numbers: dialled as they are, like those of emergency services.
        routes: how calls reach the outside.
    """

    domain: StrictStr
    sip: Sip
    media: Media
    http: Http
    drain_s: Seconds = 30
    prompts: Mapping[StrictStr, Path] = Field(default_factory=dict)
    users: tuple[User, ...] = ()
    agents: tuple[Agent, ...] = ()
    queues: tuple[Queue, ...] = ()
    numbers: Mapping[StrictStr, AnyAction] = Field(default_factory=dict)
    country: Country | None = None
    short_numbers: tuple[Number, ...] = ()
    routes: tuple[Route, ...] = ()

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        if DOMAIN.fullmatch(value) is None:
            raise ValueError("give a host name, like pbx.example.org")
        return value


PlayPrompt.model_rebuild()
Document.model_rebuild()
