"""Our registration with a carrier (RFC 3261 10.2), as a machine that does no I/O.

Requests come out, responses and the time go in. A binding is renewed well
before it ends; while renewals fail it counts until its end. Gateways are tried
in order; when none takes us, the pause grows, with jitter, so that a carrier
that comes back is not met by all its customers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from adapters.sip.errors import PeerError
from adapters.sip.protection.digest import Challenge
from adapters.sip.protection.login import Login, with_credentials
from adapters.sip.syntax.message import Request, Response
from adapters.sip.syntax.uri import SipUri

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 600.0
FLOW_PAUSE_S = 2.0  # at most, before the connection is made again
REFUSED_PAUSE_S = 60.0  # a wrong password does not become right by asking often
LONGEST_EXPIRES_S = 86_400
SHORTEST_REFRESH_S = 5.0


class RegistrationState(StrEnum):
    """Where a registration stands."""

    UNREGISTERED = "unregistered"
    REGISTERED = "registered"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's account with a carrier.

    Attributes:
        gateways: where to register, in the order in which to try.
        login: our credentials; its user name is the user of the address of record.
        line: user part of our Contact, which nobody can guess: calls to it come from this carrier.
        realm: answer challenges of this realm only; None: of any.
        expires_s: asked for.
    """

    gateways: tuple[SipUri, ...]
    login: Login
    line: str
    realm: str | None = None
    expires_s: int = 3600


@dataclass(frozen=True, slots=True)
class Register:
    """A REGISTER to send.

    Attributes:
        gateway: place in `Account.gateways`.
        cseq: its number.
        expires_s: 0: the binding is removed.
    """

    gateway: int
    cseq: int
    expires_s: int


class Registrant:
    """See the module. Every method that gives a request wants it sent, and its outcome told.

    Args:
        account: with whom.
        new_token: makes Call-IDs and client nonces.
        draw: a random number from 0 up to 1.

    Attributes:
        sip_call_id: the same for all requests (RFC 3261 10.2).
        registered_until: monotonic end of the binding; None: there is none.
        gateway: the one that holds the binding, or is asked.
        service_route: where our requests go through (RFC 3608), as Route values.
        error: why it is not registered, for people; empty while it is.
    """

    def __init__(self, account: Account, new_token: Callable[[], str], draw: Callable[[], float]) -> None:
        self.account = account
        self.sip_call_id = new_token()
        self.registered_until: float | None = None
        self.gateway = 0
        self.service_route: tuple[str, ...] = ()
        self.error = "not registered yet"
        self._new_token = new_token
        self._draw = draw
        self._cseq = 0
        self._expires_s = account.expires_s
        self._next_at: float | None = None
        self._logins = 0  # since the last request without credentials
        self._tried_interval = False
        self._failed_gateways = 0
        self._rounds = 0
        self._stopped = False

    @property
    def state(self) -> RegistrationState:
        if self._stopped:
            return RegistrationState.STOPPED
        return RegistrationState.UNREGISTERED if self.registered_until is None else RegistrationState.REGISTERED

    def deadline(self) -> float | None:
        """Monotonic seconds at which `on_time` is due, or None."""
        times = [at for at in (self._next_at, self.registered_until) if at is not None]
        return min(times) if times and not self._stopped else None

    # --- requests ---------------------------------------------------------------------------

    def start(self) -> Register:
        """Register."""
        return self._ask()

    def on_time(self, now: float) -> Register | None:
        """Renew, try again, or notice that the binding is over."""
        if self._stopped:
            return None
        if self.registered_until is not None and self.registered_until <= now:
            self.registered_until = None
            self.error = self.error or "the registration ran out"
        if self._next_at is not None and self._next_at <= now:
            return self._ask()
        return None

    def on_flow_lost(self, now: float) -> None:
        """The connection that the carrier calls us by has ended: renew soon (RFC 5626 4.5)."""
        if self.registered_until is not None and self._next_at is not None:
            self._next_at = min(self._next_at, now + FLOW_PAUSE_S * self._draw())

    def stop(self) -> Register | None:
        """Remove the binding; None when there is none."""
        registered = self.registered_until is not None
        self._stopped = True
        self._next_at = self.registered_until = None
        if not registered:
            return None
        self._logins = 0
        return self._request(0)

    def _ask(self) -> Register:
        self._next_at = None
        self._logins = 0
        self._tried_interval = False
        return self._request(self._expires_s)

    def _request(self, expires_s: int) -> Register:
        self._cseq += 1
        return Register(self.gateway, self._cseq, expires_s)

    # --- outcomes ---------------------------------------------------------------------------

    def on_response(self, request: Request, response: Response, now: float) -> Request | Register | None:
        """A final response. A `Request` in return wants a Via and goes to the same place."""
        status = response.status
        if status in (401, 407):
            retry = self._log_in(request, response)
            if retry is not None:
                return retry
        if self._stopped:
            return None
        if status < 300:
            self._on_success(response, now)
            return None
        if status == 423 and not self._tried_interval:
            least = _number(response.get("min-expires"))
            if least is not None and self._expires_s < least <= LONGEST_EXPIRES_S:
                self._tried_interval, self._expires_s = True, least
                self._logins = 0
                return self._request(least)
        pause = _number(response.get("retry-after")) if status >= 500 or status in (404, 413, 480, 486) else None
        refused = status in (401, 403, 404, 407)
        if status in (401, 407):
            reason = "the carrier does not take our password" if self._login_fits(response) else "another realm"
        else:
            reason = response.reason
        return self._fail(f"{status} {reason}".strip(), now, REFUSED_PAUSE_S if refused else pause)

    def on_failure(self, now: float, *, reached: bool) -> Register | None:
        """No answer, or (`reached` False) no way there."""
        if self._stopped:
            return None
        return self._fail("no answer" if reached else "unreachable", now, None)

    def _log_in(self, request: Request, response: Response) -> Request | None:
        """Once with our password; once more if it was right and only the nonce too old (RFC 7616 3.3)."""
        stale = any(challenge.stale for challenge in _challenges(response))
        if self._logins > stale or not self._login_fits(response):
            return None
        retry = with_credentials(request, response, self.account.login, self._cseq + 1, self._new_token)
        if retry is not None:
            self._cseq += 1
            self._logins += 1
        return retry

    def _login_fits(self, response: Response) -> bool:
        realm = self.account.realm
        return realm is None or any(challenge.realm == realm for challenge in _challenges(response))

    def _on_success(self, response: Response, now: float) -> None:
        granted = self._granted(response)
        self._failed_gateways = self._rounds = 0
        if granted <= 0:
            self.registered_until = None
            self.error = "the carrier removed the registration"
            self._next_at = now + FIRST_PAUSE_S
            return
        self.error = ""
        self.registered_until = now + granted
        # Early enough for two more tries; not all customers of a carrier at once.
        self._next_at = now + max(min(SHORTEST_REFRESH_S, granted / 2), granted * (0.7 + 0.15 * self._draw()))
        self.service_route = _routes(response)

    def _granted(self, response: Response) -> float:
        """Seconds that the carrier gave our binding (RFC 3261 10.2.4)."""
        common = _number(response.get("expires"))
        try:
            for contact in response.addresses("contact"):
                if isinstance(contact.uri, SipUri) and contact.uri.user == self.account.line:
                    own = _number(contact.params.get("expires"))
                    common = common if own is None else own
                    break
        except PeerError:
            pass
        return self._expires_s if common is None else common

    def _fail(self, reason: str, now: float, pause_s: float | None) -> Register | None:
        """On to the next gateway; after the last, wait."""
        self.error = reason
        self._failed_gateways += 1
        self.gateway = (self.gateway + 1) % len(self.account.gateways)
        if self._failed_gateways < len(self.account.gateways):
            return self._ask()
        self._failed_gateways = 0
        self._rounds += 1
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._rounds - 1, 10))
        wait_s = max(longest, min(pause_s or 0.0, LONGEST_PAUSE_S)) * (0.75 + 0.25 * self._draw())
        if self.registered_until is not None:  # rather too often than to lose the binding
            wait_s = min(wait_s, max(1.0, (self.registered_until - now) / 4))
        self._next_at = now + wait_s
        return None


def _routes(response: Response) -> tuple[str, ...]:
    """Service-Route; none if one of its values could not be followed."""
    try:
        routes = response.addresses("service-route")
    except PeerError:
        return ()
    followed = all(isinstance(route.uri, SipUri) and route.uri.host for route in routes)
    return tuple(response.get_all("service-route")) if followed else ()


def _challenges(response: Response) -> list[Challenge]:
    header = "www-authenticate" if response.status == 401 else "proxy-authenticate"
    found: list[Challenge] = []
    for value in response.get_all(header):
        try:
            found.append(Challenge.parse(value))
        except PeerError:
            continue
    return found


def _number(text: str | None) -> int | None:
    """The digits that a value begins with (Retry-After may go on with a comment)."""
    digits = (text or "").split(";")[0].split("(")[0].strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else None
