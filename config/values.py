"""Small values that the sections of the configuration share."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationInfo,
)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_DIALLED = 64
"""Longest dialled number that is looked at, in characters."""

DOMAIN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Model(BaseModel):
    """Frozen, and a key that is not listed is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


Name = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length=1, max_length=64)]
"""An identity: letters, digits, dot, dash and underscore, 1–64 characters."""

Seconds = Annotated[StrictFloat, Field(ge=0, le=86_400, allow_inf_nan=False)]
Port = Annotated[StrictInt, Field(ge=1, le=65_535)]


def network(value: Any) -> IpNetwork:
    """Read an address or a network.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    if not isinstance(value, str):
        raise ValueError("give an address or a network as text, like 192.0.2.10 or 192.0.2.0/24")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        wide = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            f"{value!r} is not an address or a network; give one like 192.0.2.10 or 192.0.2.0/24"
        ) from None
    raise ValueError(f"{value!r} names an address and a network at once; write {wide} for the whole network")


def address(value: Any) -> IpAddress:
    """Read an IP address.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    try:
        return ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address; give one, like 192.0.2.10") from None


Network = Annotated[IpNetwork, BeforeValidator(network)]
Address = Annotated[IpAddress, BeforeValidator(address)]


def environment_secret(name: Any, info: ValidationInfo) -> str:
    """The text of the environment variable that `{env: NAME}` names.

    Raises:
        ValueError: saying what is wrong and what would be right.
    """
    if not isinstance(name, str) or not _ENVIRONMENT_NAME.fullmatch(name):
        raise ValueError("env wants the name of an environment variable, like {env: ADMIN_PASSWORD}")
    environ: Mapping[str, str] = (info.context or {}).get("environ", {})
    secret = environ.get(name, "")
    if not secret:
        raise ValueError(f"the environment variable {name} is not set; set it before starting murima")
    return secret


def _secret(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping) and value.keys() == {"env"}:
        return environment_secret(value["env"], info)
    raise ValueError("give text in quotes, or {env: NAME}")


Secret = Annotated[SecretStr, BeforeValidator(_secret)]
"""A password that we send to others: text, or `{env: NAME}`."""
