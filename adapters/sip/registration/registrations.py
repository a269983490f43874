"""Registrations that outlive the process: a small file, so that a restarted engine still reaches its phones.

A phone renews its registration after minutes or an hour, not when we restart.
What came by TCP is left out: its connection ended with the process, which the
phone notices.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from adapters.sip.errors import SipError
from adapters.sip.registration.registrar import Binding
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.uri import SipUri
from adapters.sip.transactions.transaction import Flow

log = logging.getLogger("murima.sip")

_VERSION = 1
_LONGEST_S = 86_400.0  # beyond what the registrar grants: the clock was set back


def encode(bindings: Iterable[Binding], now: float, utc: float) -> bytes:
    """Bindings as the file holds them.

    Args:
        bindings: what to keep.
        now: monotonic seconds, as the bindings count.
        utc: the same moment in seconds since 1970, as the file counts.
    """
    rows = [
        {
            "user": binding.user,
            "uri": str(binding.uri),
            "local": binding.flow.local,
            "host": binding.flow.host,
            "port": binding.flow.port,
            "expires": binding.expires_at - now + utc,
            "call_id": binding.sip_call_id,
            "cseq": binding.cseq,
            **_extras(binding),
        }
        for binding in bindings
        if not binding.flow.reliable
    ]
    return json.dumps({"version": _VERSION, "bindings": rows}).encode()


def decode(data: bytes, now: float, utc: float) -> list[Binding]:
    """The bindings that have not run out.

    Raises:
        ValueError: this is not what `encode` wrote. Nothing else escapes.
    """
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError("another version")
        found = [_binding(row, now - utc) for row in document["bindings"]]
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, SipError) as exc:
        raise ValueError(f"malformed registrations: {exc}") from exc
    return [binding for binding in found if now < binding.expires_at <= now + _LONGEST_S]


def _binding(row: dict[str, object], to_monotonic: float) -> Binding:
    match row:
        case {
            "user": str(user),
            "uri": str(text),
            "local": int(local),
            "host": str(host),
            "port": int(port),
            "expires": float(expires),
            "call_id": str(call_id),
            "cseq": int(cseq),
        }:
            uri = NameAddr.parse(f"<{text}>").uri
            if not isinstance(uri, SipUri) or uri.scheme == "tel":
                raise ValueError("not a SIP URI")
            binding = Binding(user, uri, Flow("udp", local, host, port), expires + to_monotonic, call_id, cseq)
            _add_extras(binding, row)
            return binding
        case _:
            raise ValueError("malformed registration")


def _extras(binding: Binding) -> dict[str, object]:
    """What most phones leave out; older versions wrote none of it."""
    found: dict[str, object] = {}
    if binding.q != 1.0:
        found["q"] = binding.q
    if binding.instance is not None:
        found["instance"] = binding.instance
    if binding.reg_id is not None:
        found["reg_id"] = binding.reg_id
    if binding.path:
        found["path"] = list(binding.path)
    return found


def _add_extras(binding: Binding, row: dict[str, object]) -> None:
    q, instance, reg_id, path = row.get("q", 1.0), row.get("instance"), row.get("reg_id"), row.get("path", [])
    if not isinstance(q, int | float) or not 0 <= q <= 1 or not isinstance(instance, str | None):
        raise ValueError("malformed registration")
    if not isinstance(reg_id, int | None) or not isinstance(path, list):
        raise ValueError("malformed registration")
    binding.q, binding.instance, binding.reg_id = float(q), instance, reg_id
    for value in path:
        if not isinstance(value, str) or not isinstance(NameAddr.parse(value).uri, SipUri):
            raise ValueError("malformed registration")
    binding.path = tuple(path)


def write(path: Path, data: bytes) -> None:
    """Replace the file as a whole. Blocks: for a thread. A failure is logged; calls go on without the file."""
    fresh = path.with_suffix(".new")
    try:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        fresh.replace(path)
    except OSError as exc:
        log.warning("sip.registrations_not_kept", extra={"reason": exc.strerror or str(exc)})


def read(path: Path, now: float, utc: float) -> list[Binding]:
    """What the file holds; nothing if there is none or it is damaged, which is logged."""
    try:
        return decode(path.read_bytes(), now, utc)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        log.warning("sip.registrations_unreadable", extra={"reason": str(exc)})
        return []
