"""Whether a certificate is for a SIP domain (RFC 5922 7)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address


def names_match(certificate: object, domain: str) -> bool:
    """Compare the identities in a verified certificate with a domain.

    SIP URIs among the alternative names count before DNS names, and both before
    the common name, which counts only where there is no alternative name at all.
    No wildcards (RFC 5922 7.2).

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` gives it; empty or None: the
            peer was not asked for one or it was not verified: nothing to compare.
        domain: host of the URI that was to be reached; a name or an IP address.
    """
    if not isinstance(certificate, Mapping) or not certificate:
        return True
    wanted = _normal(domain)
    alternatives = [(str(kind), str(value)) for kind, value in certificate.get("subjectAltName", ())]
    addresses = [_normal(value) for kind, value in alternatives if kind == "IP Address"]
    if wanted in addresses:
        return True
    uris = [value[4:] for kind, value in alternatives if kind == "URI" and value.lower().startswith("sip:")]
    if uris:
        return wanted in [_normal(host) for host in uris if "@" not in host]
    names = [value for kind, value in alternatives if kind == "DNS"]
    if names or alternatives:
        return wanted in [_normal(name) for name in names]
    subject = certificate.get("subject", ())
    common = [str(value) for parts in subject for kind, value in parts if kind == "commonName"]
    return wanted in [_normal(name) for name in common]


def _normal(name: str) -> str:
    try:
        return str(ip_address(name.strip("[]")))
    except ValueError:
        return name.rstrip(".").lower()
