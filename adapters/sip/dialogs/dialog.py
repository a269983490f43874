"""Dialogs (RFC 3261 12): what two user agents remember of each other between requests."""

from __future__ import annotations

from ipaddress import ip_address

from adapters.sip.errors import PeerError
from adapters.sip.syntax.headers import NameAddr
from adapters.sip.syntax.message import Message, Request, Response
from adapters.sip.syntax.uri import SipUri
from adapters.sip.targets.location import is_address
from adapters.sip.transactions.layer import MAGIC_COOKIE
from adapters.sip.transactions.transaction import Flow

DEFAULT_PORT = 5060
# RFC 3261 19.1.2, RFC 7118 5.1
PORTS = {"udp": DEFAULT_PORT, "tcp": DEFAULT_PORT, "tls": 5061, "ws": 80, "wss": 443}

_PLAIN = {None: "udp", "udp": "udp", "tcp": "tcp", "tls": "tls", "ws": "ws", "wss": "wss"}
_SECURE = {None: "tls", "tcp": "tls", "tls": "tls", "ws": "wss", "wss": "wss"}  # RFC 3261 26.2.2, RFC 7118 5.3


def destination(uri: SipUri) -> tuple[str, str, int] | None:
    """Transport, host and port that a URI names (RFC 3261 19.1.2, RFC 3263 without DNS).

    Returns:
        None for what this endpoint cannot reach: tel, another transport, sips over UDP.
    """
    if uri.scheme == "tel":
        return None
    asked = uri.params.get("transport")
    transport = (_SECURE if uri.scheme == "sips" else _PLAIN).get(asked.lower() if asked else None)
    if transport is None:
        return None
    return transport, uri.params.get("maddr") or uri.host, uri.port or PORTS[transport]


def next_flow(target: SipUri, source: Flow, sent_by: str | None) -> Flow:
    """Where requests to `target` go, given where its owner's last message came from.

    Args:
        target: the first route, else the remote target.
        source: the flow of the message that named it.
        sent_by: host that the sender gave in Via (of a request), or the host we
            sent to (of a response).

    A connection is used as long as it lasts. A phone behind a NAT names an
    address that only itself knows, in Contact as in Via: the source is used
    instead. A host name is looked up by the transport.
    """
    found = destination(target)
    if found is None:
        return source
    transport, host, port = found
    if source.transport != "udp":
        if "transport" not in target.params and target.port is None:
            port = PORTS[source.transport]
        # Carriers name addresses in Contact, and have certificates for their names.
        domain = source.domain if source.domain and is_address(host) else ""
        return Flow(source.transport, source.local, host, port, source.connection, domain)
    if transport != "udp":
        return Flow(transport, source.local, host, port)
    if host == source.host:
        # A phone with "ob" asks for the flow that it opened the dialog by (RFC 5626 4.3).
        return source if "ob" in target.params else Flow("udp", source.local, host, port)
    if host == sent_by or _hidden(host, source.host):
        return source
    return Flow("udp", source.local, host, port)


def _hidden(host: str, seen: str) -> bool:
    """Whether `host` is a private or unspecified address, but the peer was seen at a public one."""
    try:
        named, real = ip_address(host), ip_address(seen)
    except ValueError:
        return False
    return named.is_unspecified or (named.is_private and not real.is_private)


class Dialog:
    """One dialog, from our side.

    Attributes:
        sip_call_id: the Call-ID header.
        local_tag, remote_tag: the remote one is None for equipment of RFC 2543.
        local, remote: our and their From/To values, tags included.
        target: the URI that requests go to.
        routes: route set, in the order of our requests.
        flow: where requests go; follows from the two above.
        local_cseq: of our last request.
        remote_cseq: of their last request; None before the first.
    """

    __slots__ = (
        "flow",
        "local",
        "local_cseq",
        "local_tag",
        "remote",
        "remote_cseq",
        "remote_tag",
        "routes",
        "sip_call_id",
        "target",
    )

    def __init__(
        self,
        *,
        sip_call_id: str,
        local: str,
        local_tag: str,
        remote: str,
        remote_tag: str | None,
        routes: list[str],
        target: str,
        flow: Flow,
        local_cseq: int,
        remote_cseq: int | None,
    ) -> None:
        self.sip_call_id = sip_call_id
        self.local = local
        self.local_tag = local_tag
        self.remote = remote
        self.remote_tag = remote_tag
        self.routes = routes
        self.target = target
        self.flow = flow
        self.local_cseq = local_cseq
        self.remote_cseq = remote_cseq

    @classmethod
    def from_request(cls, request: Request, local_tag: str, source: Flow) -> Dialog:
        """The dialog that an INVITE opens on the called side (RFC 3261 12.1.1).

        Equipment of RFC 2543, told by its Via, may leave out Contact: it is called back by its From.

        Raises:
            PeerError: 400, there is no Contact or a header is malformed.
        """
        contact = _contact(request)
        if contact is None:
            caller = request.from_.uri
            if (
                (request.top_via.branch or "").startswith(MAGIC_COOKIE)
                or not isinstance(caller, SipUri)
                or not caller.host
            ):
                raise PeerError("INVITE without Contact", message=request)
            contact = caller
        routes = request.get_all("record-route")
        dialog = cls(
            sip_call_id=request.call_id,
            local=f"{request.headers['to'][0]};tag={local_tag}",
            local_tag=local_tag,
            remote=request.headers["from"][0],
            remote_tag=request.from_.tag,
            routes=routes,
            target=str(contact),
            flow=source,
            local_cseq=0,
            remote_cseq=request.cseq.number,
        )
        if routes or request.has("contact"):
            dialog._aim(contact, source, request.top_via.host)
        return dialog

    @classmethod
    def from_response(cls, request: Request, response: Response, flow: Flow) -> Dialog:
        """The dialog that a 2xx to our INVITE opens (RFC 3261 12.1.2).

        Without Contact, which RFC 2543 allowed, requests go where the INVITE went.

        Raises:
            PeerError: a header is malformed.
        """
        contact = _contact(response)
        routes = response.get_all("record-route")
        routes.reverse()
        dialog = cls(
            sip_call_id=request.call_id,
            local=request.headers["from"][0],
            local_tag=request.from_.tag or "",
            remote=response.headers["to"][0],
            remote_tag=response.to.tag,
            routes=routes,
            target=request.uri if contact is None else str(contact),
            flow=flow,
            local_cseq=request.cseq.number,
            remote_cseq=None,
        )
        if contact is not None or routes:
            target = request.parsed_uri
            dialog._aim(contact or target, flow, target.host)
        return dialog

    @classmethod
    def without_contact(cls, request: Request, response: Response, flow: Flow) -> Dialog:
        """The dialog of a 2xx that is malformed: what must be said in it goes the way of the INVITE."""
        return cls(
            sip_call_id=request.call_id,
            local=request.headers["from"][0],
            local_tag=request.from_.tag or "",
            remote=response.headers["to"][0],
            remote_tag=response.to.tag,
            routes=[],
            target=request.uri,
            flow=flow,
            local_cseq=request.cseq.number,
            remote_cseq=None,
        )

    def take_over(self, early: Dialog) -> None:
        """Go on counting where the early dialog of the same tags has stopped."""
        self.local_cseq = max(self.local_cseq, early.local_cseq)
        self.remote_cseq = early.remote_cseq

    def accepts(self, request: Request) -> bool:
        """Whether a request within the dialog is in order; remembers its number (RFC 3261 12.2.2)."""
        number = request.cseq.number
        if self.remote_cseq is not None and number < self.remote_cseq:
            return False
        self.remote_cseq = number
        return True

    def refresh_target(self, message: Request | Response, source: Flow) -> None:
        """Take over a new Contact (re-INVITE, UPDATE and their 2xx).

        Raises:
            PeerError: Contact is malformed.
        """
        contact = _contact(message)
        if contact is None:
            return
        if isinstance(message, Request):
            # Also with the same Contact: the phone may be behind another port of its NAT, or a new connection.
            self._aim(contact, source, message.top_via.host)
        elif str(contact) != self.target:
            self._aim(contact, source, source.host)
        self.target = str(contact)

    def request(self, method: str, via: str, cseq: int | None = None) -> Request:
        """Build a request within the dialog (RFC 3261 12.2.1.1).

        Args:
            method: ACK takes the number of its INVITE in `cseq`; others get the next one.
            via: our complete Via value.
            cseq: see `method`.
        """
        if cseq is None:
            self.local_cseq += 1
            cseq = self.local_cseq
        uri, routes = self.target, self.routes
        if routes:
            first = NameAddr.parse(routes[0]).uri
            if isinstance(first, SipUri) and "lr" not in first.params:  # strict router
                uri, routes = str(first), [*routes[1:], f"<{self.target}>"]
        request = Request.build(
            method, uri, via=via, from_=self.local, to=self.remote, call_id=self.sip_call_id, cseq=cseq
        )
        for route in routes:
            request.add("route", route)
        return request

    def _aim(self, contact: SipUri, source: Flow, sent_by: str | None) -> None:
        if not self.routes:
            self.flow = next_flow(contact, source, sent_by)
            return
        first = NameAddr.parse(self.routes[0]).uri
        if isinstance(first, SipUri):
            self.flow = next_flow(first, source, None)


def _contact(message: Message) -> SipUri | None:
    if not message.has("contact"):
        return None
    contacts = message.contacts
    uri = contacts[0].uri if contacts else None
    if not isinstance(uri, SipUri) or uri.scheme == "tel":
        raise PeerError("Contact is not a SIP URI")
    return uri
