"""What each role may do: one table, asked by every route."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from config.schema import Role


class Permission(StrEnum):
    """What a route asks for."""

    CALLS_READ = "calls.read"
    CALLS_HANGUP = "calls.hangup"
    CALLS_HOLD = "calls.hold"
    CALLS_TRANSFER = "calls.transfer"
    CALLS_PLACE = "calls.place"
    QUEUES_READ = "queues.read"
    AGENTS_READ = "agents.read"
    AGENTS_STATE = "agents.state"
    TRUNKS_READ = "trunks.read"
    INTERACTIONS_READ = "interactions.read"
    EVENTS_READ = "events.read"
    SIP_TRACE = "sip.trace"
    SIP_BANS = "sip.bans"


class Scope(IntEnum):
    """How far a permission reaches: nowhere, to what is one's own, everywhere."""

    NONE = 0
    OWN = 1
    ALL = 2


_READS = (
    Permission.CALLS_READ,
    Permission.QUEUES_READ,
    Permission.AGENTS_READ,
    Permission.TRUNKS_READ,
    Permission.INTERACTIONS_READ,
    Permission.EVENTS_READ,
)

_COMMANDS = (
    Permission.CALLS_PLACE,
    Permission.CALLS_HANGUP,
    Permission.CALLS_HOLD,
    Permission.CALLS_TRANSFER,
    Permission.AGENTS_STATE,
)

PERMISSIONS: Mapping[Role, Mapping[Permission, Scope]] = {
    Role.ADMINISTRATOR: dict.fromkeys(Permission, Scope.ALL),
    Role.MANAGER: dict.fromkeys((*_READS, *_COMMANDS), Scope.ALL),
    Role.AGENT: dict.fromkeys((*_READS, *_COMMANDS), Scope.OWN),
    Role.VIEWER: dict.fromkeys(_READS, Scope.ALL),
}


def scope(role: Role, permission: Permission) -> Scope:
    """How far `permission` reaches for `role`."""
    return PERMISSIONS[role].get(permission, Scope.NONE)
