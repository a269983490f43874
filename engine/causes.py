"""End causes of legs and calls, and what they are to the router."""

from __future__ import annotations

from engine.events import EndCause
from routing.decisions import Refusal
from routing.events import Failure

FAILURES = {
    EndCause.NO_ANSWER: Failure.NO_ANSWER,
    EndCause.REJECTED: Failure.REJECTED,
    EndCause.FORBIDDEN: Failure.REJECTED,
    EndCause.BUSY: Failure.BUSY,
    EndCause.UNREACHABLE: Failure.UNREACHABLE,
    EndCause.NOT_FOUND: Failure.UNREACHABLE,
}

REFUSALS = {
    Refusal.AGENT_BUSY: EndCause.BUSY,
    Refusal.AGENT_OFFLINE: EndCause.UNREACHABLE,
    Refusal.AGENT_UNREACHABLE: EndCause.UNREACHABLE,
    Refusal.NOBODY_QUALIFIES: EndCause.UNREACHABLE,
    Refusal.QUEUE_REMOVED: EndCause.UNREACHABLE,
    Refusal.AGENT_REMOVED: EndCause.UNREACHABLE,
    Refusal.UNKNOWN_QUEUE: EndCause.NOT_FOUND,
    Refusal.UNKNOWN_AGENT: EndCause.NOT_FOUND,
    Refusal.NO_ANSWER: EndCause.NO_ANSWER,
    Refusal.REJECTED: EndCause.REJECTED,
    Refusal.FAILED: EndCause.FAILED,
}

PHONE_FAILURES = (EndCause.BROKEN, EndCause.UNSUPPORTED)
"""Told to the caller as they are; to the router they are one."""
