"""Certificates and keys, as `sip.tls` and `http.tls` give them."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StrictBool, StrictStr, model_validator

from config.values import DOMAIN, Model


def _host_name(value: str) -> str:
    if DOMAIN.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a host name; give one, like sip.example.org")
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return value.lower()
    raise ValueError(f"{value} is an IP address, which no client sends as a server name; give a host name")


HostName = Annotated[StrictStr, AfterValidator(_host_name)]


class NamedCertificate(Model):
    """A certificate for clients that ask for one of `names` (SNI, RFC 6066 3)."""

    names: Annotated[tuple[HostName, ...], Field(min_length=1)]
    certificate: Path
    key: Path


class HttpTls(Model):
    """HTTPS and WSS. Paths of PEM files; the certificate with those that lead to its root.

    Attributes:
        certificate: for clients that name no server, or one that no other is for.
        certificates: for those that name one.
    """

    certificate: Path
    key: Path
    certificates: tuple[NamedCertificate, ...] = ()


class ClientCertificate(StrEnum):
    """Whether peers that connect to us must show a certificate."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class SipTls(Model):
    """SIP over TLS.

    Attributes:
        certificate, key, certificates: as `HttpTls`; we show the first to servers, too.
        ca: roots that peers are verified by; None: those of this system.
        client_certificate: what is asked of peers that connect to us.
        verify_server: whether servers that we connect to must prove who they are.
    """

    certificate: Path | None = None
    key: Path | None = None
    certificates: tuple[NamedCertificate, ...] = ()
    ca: Path | None = None
    client_certificate: ClientCertificate = ClientCertificate.NONE
    verify_server: StrictBool = True

    @model_validator(mode="after")
    def _pairs(self) -> SipTls:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise ValueError(f"certificate and key belong together; add {missing}: tls/{missing}.pem")
        if self.certificates and self.certificate is None:
            raise ValueError("certificates are for server names; give certificate and key for all others")
        return self
