"""The part of the configuration that phones and audio need, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from adapters.sip.dialogs.session_timer import TimerSettings
from adapters.sip.errors import PeerError
from adapters.sip.protection.access import AccessPolicy, Trunk
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.protection.guard import Guard
from adapters.sip.protection.login import Login
from adapters.sip.syntax.uri import SipUri


@dataclass(frozen=True, slots=True)
class RegistrationSettings:
    """Our registration with a carrier.

    Attributes:
        login: our credentials.
        line: user part of our Contact, which only the carrier learns.
        realm: answer challenges of this realm only; None: of any.
        expires_s: asked for.
    """

    login: Login
    line: str
    realm: str | None = None
    expires_s: int = 3600


@dataclass(frozen=True, slots=True)
class TrunkSettings:
    """A carrier.

    Attributes:
        networks: addresses or CIDR networks that its calls come from.
        by_address: a call from there is this trunk's without further proof.
        user, ha1s: what it logs in with when it calls; None: it does not.
        by_line: calls to the line that we registered are this trunk's.
        gateways: SIP URIs of where calls to it go, in the order of the configuration.
        priorities: of the gateways, for the registration.
        registration: None: we do not register.
        login: answers challenges to our calls.
        from_domain: host in From; None: our domain.
        number_in_from: the caller's number stands in From; False: in P-Asserted-Identity.
        trusted_identity: its P-Asserted-Identity is believed, and it gets ours.
        options_interval_s: of the alive-checks; 0: none.
        response_timeout_s: a gateway that says nothing for so long is given up.
        call_id_header: it gets our call id.
        watch: it may subscribe to the states of agents.
    """

    name: str
    networks: tuple[str, ...]
    by_address: bool = True
    user: str | None = None
    ha1s: Mapping[str, str] = field(default_factory=dict, repr=False)
    by_line: bool = False
    gateways: tuple[str, ...] = ()
    priorities: tuple[int, ...] = ()
    registration: RegistrationSettings | None = None
    login: Login | None = field(default=None, repr=False)
    from_domain: str | None = None
    number_in_from: bool = True
    trusted_identity: bool = True
    options_interval_s: float = 0.0
    response_timeout_s: float = 6.0
    call_id_header: bool = False
    watch: bool = False


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
        algorithms: of digest, offered in this order; None: those of the verifier.
        listener_algorithms: the same for some listeners, by `Flow.local`.
        session_timer: what calls are refreshed by, where phones know how.
        probe_silent_legs: ask a phone whose audio stopped if it is still there.
        probe_timeout_s: a phone that has not replied after this is gone; long enough for
            four repetitions over UDP.
    """

    domain: str
    trunks: tuple[TrunkSettings, ...]
    agents: tuple[AgentSettings, ...]
    prompts: Mapping[str, str]
    recordings: str
    algorithms: tuple[str, ...] | None = None
    listener_algorithms: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    session_timer: TimerSettings = field(default_factory=TimerSettings)
    probe_silent_legs: bool = True
    probe_timeout_s: float = 4.0

    def policy(self, verifier: DigestVerifier, guard: Guard | None = None) -> AccessPolicy:
        """Who may call and register; `guard` hears of right and wrong passwords.

        Raises:
            ValueError: a network is malformed.
        """
        return AccessPolicy(
            [
                Trunk(
                    t.name,
                    tuple(ip_network(network) for network in t.networks),
                    by_address=t.by_address,
                    line=t.registration.line if t.by_line and t.registration is not None else None,
                    user=t.user,
                    ha1s=t.ha1s,
                )
                for t in self.trunks
            ],
            {agent.agent_id: agent.ha1s for agent in self.agents},
            verifier,
            guard=guard,
            offered=self.algorithms,
            algorithms=self.listener_algorithms,
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
