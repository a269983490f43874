"""From the configuration document to the plain values that each part wants."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from adapters.native.settings import AgentSettings as PhoneSettings
from adapters.native.settings import NativeSettings
from adapters.sip.dialogs.session_timer import TimerSettings
from config.numbers import DialPlan
from config.schema import Agent, Document, Listener, Password, Role
from config.secrets import ALGORITHMS, sip_ha1
from engine.api import Account, Identity
from engine.control import ControlSettings, QueueCare
from engine.data_folder import DataFolder
from engine.events import AgentId
from engine.start.protection import listener_algorithms
from engine.start.trunks import native_trunk, outbound_rules
from routing.model import AgentSettings, NoAnswer, QueueSettings, RoutingSettings, Strategy


def control_settings(document: Document) -> ControlSettings:
    """What call control and the router take from a document."""
    return ControlSettings(
        dial_plan=DialPlan(document.numbers),
        routing=RoutingSettings(
            agents=tuple(
                AgentSettings(
                    agent_id=agent.id,
                    skills=dict(agent.skills),
                    auto_ready=agent.auto_ready,
                    fixed_contact=agent.contact is not None,
                )
                for agent in document.agents
            ),
            queues=tuple(
                QueueSettings(
                    queue_id=queue.id,
                    strategy=Strategy(queue.strategy),
                    members=queue.members,
                    requires=dict(queue.requires),
                    ring_timeout_s=float(queue.ring_timeout_s),
                    wrap_up_s=float(queue.wrap_up_s),
                    no_answer=NoAnswer(queue.no_answer),
                )
                for queue in document.queues
            ),
        ),
        queues={queue.id: QueueCare(music=queue.music, record=queue.record) for queue in document.queues},
        supervising_trunks=frozenset(trunk.name for trunk in document.sip.trunks if trunk.supervise),
        transferring_trunks=frozenset(trunk.name for trunk in document.sip.trunks if trunk.transfer),
        outbound=outbound_rules(document),
    )


def web_accounts(document: Document) -> list[Account]:
    """Who may log in over HTTP: users by name, agents by id."""

    def account(identity: Identity, password: Password) -> Account:
        return Account(
            identity,
            password_hash=password.argon2id.get_secret_value() if password.argon2id else "",
            password=password.plain.get_secret_value() if password.plain else "",
        )

    return [
        *(account(Identity(user.username, user.role), user.password) for user in document.users),
        *(account(Identity(agent.id, Role.AGENT, AgentId(agent.id)), agent.password) for agent in document.agents),
    ]


def native_settings(
    document: Document, recordings: Path, line_key: bytes, bound: Sequence[Listener] | None = None
) -> NativeSettings:
    """What SIP and the media workers take from a document.

    Args:
        document: the configuration.
        recordings: folder.
        line_key: the secret that the contacts are made of which we register with carriers.
        bound: the listeners that are served, if not those of the document.
    """

    def hashes(agent: Agent) -> dict[str, str]:
        found = ((algorithm, sip_ha1(agent, document.domain, algorithm)) for algorithm in ALGORITHMS)
        return {algorithm: ha1 for algorithm, ha1 in found if ha1 is not None}

    return NativeSettings(
        domain=document.domain,
        trunks=tuple(native_trunk(trunk, document.domain, line_key) for trunk in document.sip.trunks),
        agents=tuple(PhoneSettings(agent.id, hashes(agent), agent.contact) for agent in document.agents),
        prompts={name: str(path) for name, path in document.prompts.items()},
        recordings=str(recordings),
        algorithms=tuple(map(str, document.sip.digest.algorithms)),
        listener_algorithms=listener_algorithms(document.sip.listen if bound is None else bound, document),
        session_timer=TimerSettings(document.sip.session_expires_s, document.sip.session_min_s),
    )


def kept_secret(folder: DataFolder, name: str) -> bytes:
    """A random key of 32 bytes that stays the same over restarts, in a file that only we may read."""
    path = folder.root / "secrets" / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == 32:
            return key
        path.unlink()  # cut short by a full disk: a new key only means logging in again
        return kept_secret(folder, name)
    key = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    return key
