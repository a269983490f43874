"""Whether certificate and key files can be used; part of `config.references`."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from config.problems import KeyPath
from config.schema import Document, Transport
from config.tls import HttpTls, NamedCertificate, SipTls

Finding = tuple[KeyPath, str, str]

_REMEDY = "give a PEM file that OpenSSL reads"
SOON = timedelta(days=14)

_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_* of OpenSSL's x509_vfy.h


def check(document: Document, base: Path) -> Iterator[Finding]:
    """Find files that cannot be used. `base`: the folder that relative paths start from."""
    sip, http = document.sip.tls, document.http.tls
    for index, listener in enumerate(document.sip.listen):
        if listener.transport is Transport.TLS and (sip is None or sip.certificate is None):
            message = f"{listener} needs a certificate"
            yield ("sip", "listen", index), message, "add tls: {certificate: tls/cert.pem, key: tls/key.pem} under sip"
    for path, certificate, key in _pairs(document, base):
        yield from _unusable(path, certificate, key)
    if sip is not None and sip.ca is not None:
        yield from _unusable_ca(resolved(base, sip.ca))
    for section, tls in (("sip", sip), ("http", http)):
        seen: set[str] = set()
        for index, item in enumerate(tls.certificates if tls is not None else ()):
            for place, name in enumerate(item.names):
                if name in seen:
                    path = (section, "tls", "certificates", index, "names", place)
                    yield path, f"{name} stands twice", "remove one of the two"
                seen.add(name)


def warnings(document: Document, base: Path) -> Iterator[Finding]:
    """Find certificates that clients will refuse, and keys that others can read."""
    now = datetime.now(UTC)
    for path, certificate, key in _pairs(document, base):
        if next(_unusable(path, certificate, key), None) is not None:
            continue
        yield from _out_of_date((*path, "certificate"), certificate, key, now)
        yield from _foreign_names(document, path, certificate, key)
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o077:
            message = f"{key} can be read by others (mode {mode:03o})"
            yield (*path, "key"), message, f"chmod 600 {key}, owned by the user that runs murima"


def resolved(base: Path, path: Path) -> Path:
    """The absolute path of a file that the document names."""
    return (base / path.expanduser()).resolve()


def resolve(document: Document, base: Path) -> Document:
    """The document with all these paths absolute."""
    sip, http = document.sip, document.http
    if sip.tls is not None:
        tls = _resolved_tls(sip.tls, base)
        if isinstance(tls, SipTls) and tls.ca is not None:
            tls = tls.model_copy(update={"ca": resolved(base, tls.ca)})
        sip = sip.model_copy(update={"tls": tls})
    if http.tls is not None:
        http = http.model_copy(update={"tls": _resolved_tls(http.tls, base)})
    return document.model_copy(update={"sip": sip, "http": http})


def _resolved_tls(tls: SipTls | HttpTls, base: Path) -> SipTls | HttpTls:
    def absolute(item: SipTls | HttpTls | NamedCertificate) -> dict[str, Path | None]:
        return {
            "certificate": None if item.certificate is None else resolved(base, item.certificate),
            "key": None if item.key is None else resolved(base, item.key),
        }

    named = tuple(item.model_copy(update=absolute(item)) for item in tls.certificates)
    return tls.model_copy(update={**absolute(tls), "certificates": named})


def _pairs(document: Document, base: Path) -> Iterator[tuple[KeyPath, Path, Path]]:
    for section, tls in (("sip", document.sip.tls), ("http", document.http.tls)):
        if tls is None:
            continue
        if tls.certificate is not None and tls.key is not None:
            yield (section, "tls"), resolved(base, tls.certificate), resolved(base, tls.key)
        for index, item in enumerate(tls.certificates):
            path = (section, "tls", "certificates", index)
            yield path, resolved(base, item.certificate), resolved(base, item.key)


def _unusable(path: KeyPath, certificate: Path, key: Path) -> Iterator[Finding]:
    readable = True
    for name, file, marks in (
        ("certificate", certificate, (b"-----BEGIN CERTIFICATE-----",)),
        ("key", key, (b"PRIVATE KEY-----",)),
    ):
        found = _unreadable(file, f"a PEM file with a {name}", *marks)
        if found is None and name == "key" and _is_encrypted(file):
            found = f"{file} is protected by a password", f"take it off: openssl pkey -in {file} -out {file}"
        if found is not None:
            readable = False
            yield (*path, name), *found
    if not readable:
        return
    try:
        _context(certificate, key)
    except ssl.SSLError as exc:
        if "MISMATCH" in (exc.reason or ""):
            message = f"{key} is not the key of {certificate}"
            yield (*path, "key"), message, "give the key that the certificate was requested with"
        else:
            yield (*path, "certificate"), f"{certificate} cannot be used: {_reason(exc)}", _REMEDY


def _unreadable(file: Path, what: str, *marks: bytes) -> tuple[str, str] | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return f"{file} does not exist", "check the path; relative paths start from the folder of this file"
    except OSError as exc:
        return f"{file} cannot be read: {exc.strerror}", "let the user that runs murima read it, and nobody else"
    if not any(mark in data for mark in marks):
        return f"{file} is not {what}", "give a file that begins with -----BEGIN"
    return None


def _unusable_ca(file: Path) -> Iterator[Finding]:
    path: KeyPath = ("sip", "tls", "ca")
    found = _unreadable(file, "a PEM file with certificates", b"-----BEGIN CERTIFICATE-----")
    if found is not None:
        yield path, *found
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as exc:
        yield path, f"{file} cannot be used: {_reason(exc)}", _REMEDY


def _reason(exc: ssl.SSLError) -> str:
    return (exc.reason or str(exc)).lower().replace("_", " ")


def _is_encrypted(key: Path) -> bool:
    data = key.read_bytes()
    return b"ENCRYPTED PRIVATE KEY" in data or b"Proc-Type: 4,ENCRYPTED" in data


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password=lambda: b"")  # never ask at the terminal
    return context


def _foreign_names(document: Document, path: KeyPath, certificate: Path, key: Path) -> Iterator[Finding]:
    """Names that clients ask for, but that the certificate does not hold."""
    if len(path) < 4:
        return
    tls = document.sip.tls if path[0] == "sip" else document.http.tls
    try:
        shown = _as_clients_see(certificate, key)
    except ssl.SSLError:
        return
    held = {str(value).lower() for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"}
    for place, name in enumerate(tls.certificates[int(path[3])].names if tls is not None and held else ()):
        if name not in held and f"*.{name.partition('.')[2]}" not in held:
            message = f"{certificate} is not for {name}, but for {', '.join(sorted(held))}"
            yield (*path, "names", place), message, "give the certificate for this name"


def _out_of_date(path: KeyPath, certificate: Path, key: Path, now: datetime) -> Iterator[Finding]:
    try:
        shown = _as_clients_see(certificate, key)
    except ssl.SSLCertVerificationError as exc:
        renew = "renew it: clients that verify it refuse to connect"
        if exc.verify_code == _EXPIRED:
            yield path, f"{certificate} has expired", renew
        elif exc.verify_code == _NOT_YET_VALID:
            yield path, f"{certificate} is not valid yet", "check its dates and this machine's clock"
        return
    except ssl.SSLError:
        return  # judged by those who verify it for what it is used for
    end = str(shown.get("notAfter", ""))
    if end:
        left = datetime.fromtimestamp(ssl.cert_time_to_seconds(end), UTC) - now
        if left < SOON:
            yield path, f"{certificate} expires in {max(left.days, 0)} days", "renew it, and send SIGHUP"


def _as_clients_see(certificate: Path, key: Path) -> Mapping[str, Any]:
    """What a client that trusts the certificate itself learns of it.

    The standard library reads certificates only in a handshake.

    Raises:
        ssl.SSLError: a client would refuse it; `SSLCertVerificationError` for its dates.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = _context(certificate, key).wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.getpeercert() or {}
