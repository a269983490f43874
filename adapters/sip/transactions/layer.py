"""Finds the transaction that a message belongs to (RFC 3261 17.1.3, 17.2.3, 9.2, 8.2.2.2).

The tables are bounded: beyond their limit new requests are to be refused, so a
flood takes a fixed amount of memory.
"""

from __future__ import annotations

from copy import copy

from adapters.sip.errors import UsageError
from adapters.sip.syntax.message import Request, Response
from adapters.sip.transactions.schedule import Schedule
from adapters.sip.transactions.transaction import (
    TIMEOUT,
    ClientTransaction,
    Effect,
    Flow,
    InviteClientTransaction,
    InviteServerTransaction,
    NonInviteClientTransaction,
    NonInviteServerTransaction,
    ServerTransaction,
    State,
    Transaction,
)

MAGIC_COOKIE = "z9hG4bK"
MAX_TRANSACTIONS = 200_000  # about ten times what 600 calls a second leave behind in 32 s

_TERMINATED = State.TERMINATED


class TransactionLayer:
    """All transactions of one endpoint, and their timers (`schedule`)."""

    def __init__(self, *, limit: int = MAX_TRANSACTIONS) -> None:
        self._clients: dict[object, ClientTransaction] = {}
        self._servers: dict[object, ServerTransaction] = {}
        self._merged: dict[object, ServerTransaction] = {}
        self._by_stream: dict[Flow, dict[ClientTransaction, None]] = {}  # so that a lost connection costs little
        self.schedule: Schedule[Transaction] = Schedule()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._clients) + len(self._servers)

    @property
    def full(self) -> bool:
        """Whether new requests should be refused without state (503)."""
        return len(self._servers) >= self._limit

    # --- server side ----------------------------------------------------------------------

    def find_server(self, request: Request, key: object | None = None) -> ServerTransaction | None:
        """The transaction that an incoming request (or an ACK to our refusal) belongs to.

        `key` is `server_key(request)`, for those who need it more than once.
        """
        return self._servers.get(server_key(request) if key is None else key)

    def find_cancelled(self, cancel: Request) -> InviteServerTransaction | None:
        """The INVITE that a CANCEL means (RFC 3261 9.2)."""
        found = self._servers.get(_server_key(cancel, "INVITE"))
        return found if isinstance(found, InviteServerTransaction) else None

    def is_merged(self, request: Request) -> bool:
        """Whether a new request outside a dialog came before by another path (RFC 3261 8.2.2.2)."""
        return not request.to.tag and _merge_key(request) in self._merged

    def open_server(self, request: Request, flow: Flow, key: object | None = None) -> ServerTransaction:
        """Begin a transaction for a request that `find_server` does not know; ACK never has one."""
        method = request.method
        tx: ServerTransaction
        tx = InviteServerTransaction(request, flow) if method == "INVITE" else NonInviteServerTransaction(request, flow)
        tx.key = server_key(request) if key is None else key
        self._servers[tx.key] = tx
        if method != "CANCEL" and not request.to.tag:
            tx.merge_key = _merge_key(request)
            self._merged.setdefault(tx.merge_key, tx)
        return tx

    def discard(self, tx: ServerTransaction) -> None:
        """Forget a transaction that was not answered: its request gets an answer without state."""
        self._servers.pop(tx.key, None)
        if tx.merge_key is not None and self._merged.get(tx.merge_key) is tx:
            del self._merged[tx.merge_key]

    def on_request(self, tx: ServerTransaction, request: Request, now: float) -> list[Effect]:
        """A repetition of `tx`'s request, or its ACK."""
        return self._settle(tx, tx.on_request(request, now))

    def respond(self, tx: ServerTransaction, response: Response, now: float) -> list[Effect]:
        """Answer a request."""
        return self._settle(tx, tx.respond(response, now))

    # --- client side ----------------------------------------------------------------------

    def open_client(self, request: Request, flow: Flow, now: float) -> tuple[ClientTransaction, list[Effect]]:
        """Send a request (other than ACK).

        Raises:
            UsageError: the branch of the request is not new, or no branch.
        """
        tx: ClientTransaction
        if request.method == "INVITE":
            tx = InviteClientTransaction(request, flow, now)
        else:
            tx = NonInviteClientTransaction(request, flow, now)
        self._enter(tx)
        return tx, self._settle(tx, tx.start())

    def _enter(self, tx: ClientTransaction) -> None:
        request = tx.request
        branch = request.top_via.branch
        tx.key = (branch, request.method)
        if not branch or tx.key in self._clients:
            raise UsageError("a request needs a branch of its own")
        self._clients[tx.key] = tx
        if tx.flow.reliable:
            self._by_stream.setdefault(tx.flow, {})[tx] = None

    # --- requests that go to one target after another -------------------------------------

    def open_held(self, request: Request, flow: Flow, now: float) -> ClientTransaction:
        """As `open_client`, but send nothing before `move`.

        Raises:
            UsageError: the branch of the request is not new, or no branch.
        """
        kind = InviteClientTransaction if request.method == "INVITE" else NonInviteClientTransaction
        tx = kind(request, flow, now)
        self._enter(tx)
        tx.hold(now + TIMEOUT)
        self.schedule.update(tx)
        return tx

    def hold(self, tx: ClientTransaction, now: float) -> None:
        """Take a failed transaction back, to `move` it."""
        tx.hold(now + TIMEOUT)
        self._clients[tx.key] = tx
        self.schedule.update(tx)

    def holds(self, tx: ClientTransaction) -> bool:
        """Whether a transaction is still here."""
        return self._clients.get(tx.key) is tx

    def move(self, tx: ClientTransaction, via: str, flow: Flow, now: float, until: float) -> list[Effect]:
        """Send the request of `tx` to another target: a new transaction (RFC 3263 4.3) for the same user.

        Args:
            tx: waits, or has failed.
            via: for the request, with a new branch.
            flow: where to send.
            now: monotonic seconds.
            until: when to give up without any response.
        """
        if self.holds(tx):
            del self._clients[tx.key]
        if tx.flow.reliable:
            self._leave_stream(tx.flow, tx)
        tx.request.set("via", via)
        tx.restart(flow, now, until)
        self._enter(tx)
        return self._settle(tx, tx.start())

    def leave(self, tx: ClientTransaction, now: float) -> ClientTransaction:
        """A copy of an INVITE transaction that stays for late responses when `tx` moves."""
        left = copy(tx)
        request = tx.request
        left.request = Request(request.method, request.uri, dict(request.headers), request.body)
        left.scheduled_at = None
        if left.state is _TERMINATED:  # nobody answered yet
            left.hold(now + TIMEOUT)
        self._clients[left.key] = left
        self.schedule.update(left)
        return left

    def abandon(self, tx: ClientTransaction, now: float) -> list[Effect]:
        """End a transaction that has nowhere to go."""
        return self._settle(tx, tx.on_transport_error(now))

    # --- responses to our requests --------------------------------------------------------

    def find_client(self, response: Response) -> ClientTransaction | None:
        """The transaction that a response belongs to."""
        return self._clients.get((response.top_via.branch, response.cseq.method))

    def on_response(self, tx: ClientTransaction, response: Response, now: float) -> list[Effect]:
        """A response to `tx`."""
        return self._settle(tx, tx.on_response(response, now))

    def give_up_at(self, tx: ClientTransaction, deadline: float) -> None:
        """Wait for the final response to a request (an INVITE: a cancelled one) no longer than this."""
        tx.give_up_at(deadline)
        self.schedule.update(tx)

    # --- time and transport ---------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `on_time` should be called next."""
        return self.schedule.next_at()

    def on_time(self, now: float) -> list[tuple[Transaction, list[Effect]]]:
        """Fire all timers that are due."""
        return [(tx, self._settle(tx, tx.on_time(now))) for tx in self.schedule.due(now)]

    def on_flow_failed(self, flow: Flow, now: float) -> list[tuple[Transaction, list[Effect]]]:
        """Nothing can be sent there: end the transactions that wait for it."""
        if flow.reliable:
            hit: list[ClientTransaction] = list(self._by_stream.get(flow, ()))
        else:
            hit = [tx for tx in self._clients.values() if tx.flow == flow]
        return [(tx, self._settle(tx, tx.on_transport_error(now))) for tx in hit]

    def _settle(self, tx: Transaction, effects: list[Effect]) -> list[Effect]:
        if tx.state is _TERMINATED:
            if isinstance(tx, ServerTransaction):
                self._servers.pop(tx.key, None)
                if tx.merge_key is not None and self._merged.get(tx.merge_key) is tx:
                    del self._merged[tx.merge_key]
            else:
                self._clients.pop(tx.key, None)
                if tx.flow.reliable:
                    self._leave_stream(tx.flow, tx)
        else:
            self.schedule.update(tx)
        return effects

    def _leave_stream(self, flow: Flow, tx: Transaction) -> None:
        waiting = self._by_stream.get(flow)
        if waiting is not None and isinstance(tx, ClientTransaction):
            waiting.pop(tx, None)
            if not waiting:
                del self._by_stream[flow]


def server_key(request: Request) -> object:
    """What tells the server transactions of requests apart (RFC 3261 17.2.3)."""
    return _server_key(request, "INVITE" if request.method == "ACK" else request.method)


def _server_key(request: Request, method: str) -> object:
    via = request.top_via
    branch = via.branch
    # The bare cookie without anything behind it, as some gateways send it, tells nothing apart.
    if branch and branch.startswith(MAGIC_COOKIE) and len(branch) > len(MAGIC_COOKIE):
        return (branch, via.host, via.port, method)
    return (request.uri, request.from_.tag, request.call_id, request.cseq.number, via.host, via.port, branch, method)


def _merge_key(request: Request) -> object:
    return (request.from_.tag, request.call_id, request.cseq.number, request.method)
