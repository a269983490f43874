"""Whom to ask for host names."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from pydantic import Field, StrictFloat, StrictStr, model_validator

from config.values import Model, Port

DNS_PORT = 53


class NameServer(Model):
    """A DNS server; written `192.0.2.53`, `2001:db8::53`, `192.0.2.53:5353` or `[2001:db8::53]:5353`."""

    host: StrictStr
    port: Port

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("give text: the address of a DNS server, like 192.0.2.53 or 192.0.2.53:5353")
        host, port = value, str(DNS_PORT)
        if value.startswith("[") or value.count(":") == 1:
            host, _, port = value.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(
                f"{value!r} is not the address of a DNS server; give one, like 192.0.2.53 or 192.0.2.53:5353"
            ) from None
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
            raise ValueError(f"{port!r} is not a port; give a number from 1 to 65535")
        return {"host": str(address), "port": int(port)}

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Dns(Model):
    """How SIP finds hosts.

    Attributes:
        servers: none: those of the system.
        timeout_s: for each question, over all servers.
    """

    servers: Annotated[tuple[NameServer, ...], Field(max_length=3)] = ()
    timeout_s: Annotated[StrictFloat, Field(ge=0.1, le=30, allow_inf_nan=False)] = 3.0
