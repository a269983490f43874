"""TLS contexts of the listeners, and for connections of ours; replaced while they are in use.

A server's context stays the same object for as long as it listens: each
handshake takes the certificates in force then, so that a reload reaches new
connections and leaves the others alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from config.tls import ClientCertificate, HttpTls, NamedCertificate, SipTls


class TlsError(OSError):
    """Certificates cannot be loaded; `str()` says which and why."""


_VERIFY = {
    ClientCertificate.NONE: ssl.CERT_NONE,
    ClientCertificate.OPTIONAL: ssl.CERT_OPTIONAL,
    ClientCertificate.REQUIRED: ssl.CERT_REQUIRED,
}


class ServerTls:
    """Certificates of a listener.

    Args:
        settings: with a certificate; paths are absolute.

    Raises:
        TlsError: a file cannot be used.

    Attributes:
        context: for the listener.
    """

    def __init__(self, settings: SipTls | HttpTls) -> None:
        self._default, self._named = _load(settings)
        self.context = _server_context(settings)
        self.context.sni_callback = self._choose

    def replace(self, settings: SipTls | HttpTls) -> None:
        """Use other certificates for new connections.

        Raises:
            TlsError: a file cannot be used; nothing has changed.
        """
        self._default, self._named = _load(settings)
        self.context.verify_mode = _verify_mode(settings)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, whether or not the client named a server."""
        connection.context = self._named.get((name or "").lower(), self._default)


class ClientTls:
    """What our connections to servers are made with.

    Args:
        settings: paths are absolute.

    Raises:
        TlsError: a file cannot be used.
    """

    def __init__(self, settings: SipTls) -> None:
        self._context = _client_context(settings)

    def context(self) -> ssl.SSLContext:
        """The context for one more connection."""
        return self._context

    def replace(self, settings: SipTls) -> None:
        """Use other files for new connections.

        Raises:
            TlsError: a file cannot be used; nothing has changed.
        """
        self._context = _client_context(settings)


def _load(settings: SipTls | HttpTls) -> tuple[ssl.SSLContext, Mapping[str, ssl.SSLContext]]:
    named: dict[str, ssl.SSLContext] = {}
    for item in settings.certificates:
        context = _server_context(settings, item)
        named.update(dict.fromkeys(item.names, context))
    return _server_context(settings), named


def _server_context(settings: SipTls | HttpTls, named: NamedCertificate | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs us more than them
    _show(context, named or settings)
    context.verify_mode = _verify_mode(settings)
    if isinstance(settings, SipTls):
        _trust(context, settings, ssl.Purpose.CLIENT_AUTH)
        context.num_tickets = 0  # a resumed session would be judged by the roots of its first handshake
        context.options |= ssl.OP_NO_TICKET
    return context


def _client_context(settings: SipTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # RFC 5922 has rules of its own
    context.verify_mode = ssl.CERT_REQUIRED if settings.verify_server else ssl.CERT_NONE
    if settings.certificate is not None:
        _show(context, settings)
    _trust(context, settings, ssl.Purpose.SERVER_AUTH)
    return context


def _verify_mode(settings: SipTls | HttpTls) -> ssl.VerifyMode:
    return _VERIFY[settings.client_certificate] if isinstance(settings, SipTls) else ssl.CERT_NONE


def _show(context: ssl.SSLContext, files: SipTls | HttpTls | NamedCertificate) -> None:
    if files.certificate is None or files.key is None:
        raise TlsError("no certificate is configured")
    try:
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except OSError as exc:  # ssl.SSLError is one
        raise TlsError(f"{files.certificate} with {files.key}: {_reason(exc)}") from exc


def _trust(context: ssl.SSLContext, settings: SipTls, purpose: ssl.Purpose) -> None:
    if settings.ca is None:
        if context.verify_mode is not ssl.CERT_NONE:
            context.load_default_certs(purpose)
        return
    try:
        context.load_verify_locations(settings.ca)
    except OSError as exc:
        raise TlsError(f"{settings.ca}: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    reason = exc.reason if isinstance(exc, ssl.SSLError) else exc.strerror
    return (reason or str(exc)).lower().replace("_", " ")
