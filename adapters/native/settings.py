"""The part of the configuration that phones and audio need, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from adapters.sip.access import AccessPolicy, Trunk
from adapters.sip.digest import DigestVerifier
from adapters.sip.errors import PeerError
from adapters.sip.uri import SipUri


@dataclass(frozen=True, slots=True)
class TrunkSettings:
    """A carrier. `networks`: addresses or CIDR networks that its calls come from."""

    name: str
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """An agent's phone.

    Attributes:
        agent_id: also the SIP user name.
        ha1s: HA1 by algorithm ("MD5", "SHA-256") for the realm `domain`.
        contact: fixed SIP URI; None: the phone registers.
    """

    agent_id: str
    ha1s: Mapping[str, str] = field(repr=False)
    contact: str | None = None


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """One version of the configuration.

    Attributes:
        domain: digest realm, and the host of callers' addresses towards agents.
        prompts: path of the audio file by name.
        recordings: folder for `CALLID.wav`.
        probe_silent_legs: ask a phone whose audio stopped if it is still there.
        probe_timeout_s: a phone that has not replied after this is gone; long enough for
            four repetitions over UDP.
    """

    domain: str
    trunks: tuple[TrunkSettings, ...]
    agents: tuple[AgentSettings, ...]
    prompts: Mapping[str, str]
    recordings: str
    probe_silent_legs: bool = True
    probe_timeout_s: float = 4.0

    def policy(self, verifier: DigestVerifier) -> AccessPolicy:
        """Who may call and register.

        Raises:
            ValueError: a network is malformed.
        """
        return AccessPolicy(
            [Trunk(t.name, tuple(ip_network(network) for network in t.networks)) for t in self.trunks],
            {agent.agent_id: agent.ha1s for agent in self.agents},
            verifier,
        )

    def contacts(self) -> dict[str, SipUri]:
        """Fixed contacts by agent.

        Raises:
            ValueError: a contact is not a SIP URI.
        """
        found: dict[str, SipUri] = {}
        for agent in self.agents:
            if agent.contact is not None:
                try:
                    found[agent.agent_id] = SipUri.parse(agent.contact)
                except PeerError as exc:
                    raise ValueError(f"contact of agent {agent.agent_id}: {exc}") from exc
        return found
