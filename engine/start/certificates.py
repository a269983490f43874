"""The certificates of every listener, renewed with each reload."""

from __future__ import annotations

import logging
import ssl

from config.schema import Document
from config.tls import SipTls
from engine.tls import ClientTls, ServerTls, TlsError

log = logging.getLogger("murima.engine")


class Certificates:
    """TLS contexts of a document and its successors.

    Raises:
        TlsError: a file cannot be used.

    Attributes:
        sip: for `tls:` listeners; None without a certificate.
        http: None: plain HTTP.
    """

    def __init__(self, document: Document) -> None:
        tls = document.sip.tls
        self.sip = None if tls is None or tls.certificate is None else ServerTls(tls)
        self.http = None if document.http.tls is None else ServerTls(document.http.tls)
        self._client_settings = tls or SipTls()
        self._client: ClientTls | None = None

    def client(self) -> ssl.SSLContext:
        """For a connection of ours; the roots of the system are read when the first is made.

        Raises:
            TlsError: a file cannot be used.
        """
        if self._client is None:
            self._client = ClientTls(self._client_settings)
        return self._client.context()

    def replace(self, document: Document) -> None:
        """Read all files again. What cannot be used is logged, and stays as it was."""
        tls, http = document.sip.tls, document.http.tls
        self._client_settings = tls or SipTls()
        if self.sip is not None and tls is not None and tls.certificate is not None:
            _replace("sip.tls", self.sip, tls)
        if self._client is not None:
            _replace("sip.tls", self._client, self._client_settings)
        if self.http is not None and http is not None:
            try:
                self.http.replace(http)
            except TlsError as exc:
                log.error("tls.refused", extra={"key": "http.tls", "problems": str(exc)})


def _replace(key: str, part: ServerTls | ClientTls, settings: SipTls) -> None:
    try:
        part.replace(settings)
    except TlsError as exc:
        log.error("tls.refused", extra={"key": key, "problems": str(exc)})
