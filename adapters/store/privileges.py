"""Dropping root for a child process that must still reach its files.

PostgreSQL refuses to run as root. The user it runs as instead may have no
way into the folders above its binaries or its data: a virtual environment
below /root, a data folder below a 0700 one. For such a path, and only then,
the child keeps one capability, CAP_DAC_READ_SEARCH, as an ambient one: it may
pass through closed folders, and still writes nothing that is not its own.

Source: capabilities(7), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SERVICE_USERS = ("murima", "postgres", "nobody")

_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """The child cannot be given the rights it needs; `str()` says what would help."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a child runs as. `traverse`: it needs CAP_DAC_READ_SEARCH to reach its files."""

    name: str
    uid: int
    gid: int
    traverse: bool = False


def service_account(paths: Iterable[Path]) -> Account:
    """Choose whom the server runs as, when we are root, and whether `paths` are closed to them.

    Raises:
        PrivilegeError: none of the service users exists, or a path is closed
            to the one that does and we may not hand over the capability.
    """
    for name in SERVICE_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            break
    else:
        raise PrivilegeError(f"PostgreSQL does not run as root; create one of the users {', '.join(SERVICE_USERS)}")
    closed = next((f for path in paths for f in _folders(path) if not _may_pass(f, entry.pw_uid, entry.pw_gid)), None)
    if closed is not None and not _permitted(_CAP_DAC_READ_SEARCH):
        raise PrivilegeError(
            f"the user {entry.pw_name} cannot pass through {closed}: open it with 'chmod o+x', choose another"
            " folder, or grant this process CAP_DAC_READ_SEARCH"
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, traverse=closed is not None)


def become(account: Account | None, death_signal: signal.Signals | None = None) -> Callable[[], None]:
    """What a forked child does before exec: take the account on, and die with its parent.

    Args:
        account: whom to become; None stays who we are.
        death_signal: sent to the child by the kernel when this process ends.
    """

    def drop() -> None:
        if account is not None:
            if account.traverse:
                # Capabilities outlive the change of user, and access(2), which initdb asks about its own
                # binaries, counts them: the kernel leaves them out for ordinary users otherwise.
                _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
            os.setgroups([account.gid])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            if account.traverse:
                _hold_only(_CAP_DAC_READ_SEARCH)
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)
        if death_signal is not None:  # after the change of user, which would clear it
            _prctl(_PR_SET_PDEATHSIG, int(death_signal))

    return drop


def give(folder: Path, account: Account) -> None:
    """Make `folder` and all in it the account's own; does nothing when it is already."""
    if folder.stat().st_uid == account.uid:
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            os.chown(Path(parent) / name, account.uid, account.gid, follow_symlinks=False)
        os.chown(parent, account.uid, account.gid, follow_symlinks=False)


def _folders(path: Path) -> list[Path]:
    """The folders above `path`, outermost first, along the real path."""
    return list(reversed(path.resolve().parents))


def _may_pass(folder: Path, uid: int, gid: int) -> bool:
    entry = folder.stat()
    if entry.st_uid == uid:
        return bool(entry.st_mode & stat.S_IXUSR)
    if entry.st_gid == gid:
        return bool(entry.st_mode & stat.S_IXGRP)
    return bool(entry.st_mode & stat.S_IXOTH)


def _permitted(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(v) for v in (*values, 0, 0, 0, 0)[:4]]
    if _libc.prctl(ctypes.c_int(option), *padded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _hold_only(capability: int) -> None:
    """Set the permitted, effective and inheritable sets to one capability."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = (1 << capability) & 0xFFFFFFFF, (1 << capability) >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    if _libc.capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
