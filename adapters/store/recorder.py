"""The event recorder: every log event into PostgreSQL, whatever happens to PostgreSQL.

`record` costs a list append; the rest happens in batches:

1. In the next turn of the loop the new events are encoded and appended to the
   journal (one write for all of them). From then on a killed engine loses nothing.
2. At most `window_s` later they go to the database, events and interactions
   in one statement, hence one transaction and one round trip.
3. When all is committed and the journal is large enough to be worth it, it is emptied.

While the database is away, the journal keeps the events; when it is back they
are replayed in order, in pieces. Inserts are idempotent by event id, so a
repeated piece changes nothing. Nothing here polls: an idle recorder sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import asyncpg

from adapters.store import schema, statements
from adapters.store.journal import Entry, Journal, JournalError, line
from adapters.store.wire import encode, identity
from casebridge.interactions import Interaction, InteractionBuilder
from engine.events import CallId, LogEvent
from engine.operations import ComponentHealth

log = logging.getLogger("murima.store")

_AWAY = (OSError, TimeoutError, EOFError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, schema.SchemaError)
# What is wrong with the data itself, and will be again.
_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    UnicodeError,
    TypeError,
)
_CLEAR_ABOVE = 1_000_000  # bytes: less than this is quicker replayed than often emptied
_MOST_HELD = 5_000  # events in memory; beyond, the journal alone has them
_MOST_REJECTED = 10_000_000  # bytes
_SYNC_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    window_s: float = 0.2  # events wait at most this long for company
    connect_s: float = 5.0
    statement_s: float = 10.0
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 10.0
    journal_bytes: int = 256_000_000


class _Held(NamedTuple):
    """An event in memory. `journaled`: the journal has it too."""

    entry: Entry
    call_id: CallId | None
    journaled: bool


class EventRecorder:
    """Keeps the event log and the interactions. Give `record` to the bus as a listener.

    All methods are for the loop's thread. The recorder never raises for what
    the database or the disk does: `health` and `counters` tell.
    """

    def __init__(
        self, url: str, journal_dir: Path, *, limits: Limits | None = None, builder: InteractionBuilder | None = None
    ) -> None:
        self._url = url
        self._folder = journal_dir
        self._limits = limits or Limits()
        self._builder = builder or InteractionBuilder()
        self._journal: Journal | None = None
        self._journal_fault = ""
        self._incoming: list[LogEvent] = []
        self._held: list[_Held] = []  # journaled or not, in order; not yet committed
        self._interactions: dict[CallId, Interaction] = {}
        self._incomplete: dict[CallId, None] = {}
        self._behind = False  # the journal has events from `_done` on that `_held` has not
        self._done = 0  # the journal is committed up to here
        self._connected = False
        self._fault = "not connected yet"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._closed = False
        self._drain_due = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._recorded = self._lost = self._rejected = self._flushes = self._replayed = self._failures = 0

    # --- in: from the bus ---

    def record(self, event: LogEvent) -> None:
        """Take an event in. Never blocks, never raises."""
        if self._closed:
            self._lost += 1
            return
        self._incoming.append(event)
        self._settled.clear()
        if not self._drain_due and self._loop is not None:
            self._drain_due = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Encode what came in, write it to the journal, and see that it reaches the database."""
        self._drain_due = False
        events, self._incoming = self._incoming, []
        now = time.monotonic()
        taken: list[tuple[Entry, CallId | None]] = []
        lines: list[bytes] = []
        for event in events:
            try:
                body = encode(event)
                entry = Entry(event.name, body.decode())
                self._builder.add(event, now)
            except Exception:  # whatever one event holds, the others must be kept
                self._lost += 1
                log.exception("store.event_unreadable", extra={"event": event.name})
                continue
            taken.append((entry, event.call_id))
            lines.append(line(event.name, body))
        if not taken:
            return
        journaled = self._append(b"".join(lines))
        if self._behind:
            self._builder.forget_due()  # the replay rebuilds these calls from the log
        if not (self._behind and journaled):
            self._held += [_Held(entry, call_id, journaled) for entry, call_id in taken]
        if self._behind and not journaled:
            self._incomplete.update((call_id, None) for _, call_id in taken if call_id is not None)
        if len(self._held) > _MOST_HELD:
            self._spill()
        if not self._connected:
            self._sync_soon()
        elif len(self._held) > _MOST_HELD // 5:
            self._wake.set()
        elif self._flush_timer is None and self._loop is not None:
            self._flush_timer = self._loop.call_later(self._limits.window_s, self._wake.set)

    def _append(self, data: bytes) -> bool:
        if self._journal is None:
            return False
        if self._journal.append(data):
            if self._journal_fault:
                self._journal_fault = ""
                log.info("store.journal_writable")
            return True
        if not self._journal_fault:
            self._journal_fault = "the journal is full or its disk is; new events are held in memory only"
            log.error("store.journal_full", extra={"bytes": self._journal.size})
        return False

    def _spill(self) -> None:
        """Let go of what the journal has anyway; it will be replayed from there."""
        kept = [h for h in self._held if not h.journaled]
        self._behind = self._behind or len(kept) < len(self._held)
        self._lost += max(0, len(kept) - _MOST_HELD)
        self._held = kept[-_MOST_HELD:]
        self._builder.forget_due()
        self._interactions.clear()
        self._incomplete = {h.call_id: None for h in self._held if h.call_id is not None}

    def _sync_soon(self) -> None:
        if self._sync_timer is None and self._loop is not None and self._journal is not None:
            self._sync_timer = self._loop.call_later(_SYNC_S, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        if self._journal is not None and self._loop is not None and not self._closed:
            self._syncing = self._loop.run_in_executor(None, self._sync_journal, self._journal)

    @staticmethod
    def _sync_journal(journal: Journal) -> None:
        try:
            journal.sync()
        except OSError:
            log.warning("store.journal_not_synced")

    # --- life ---

    async def start(self) -> None:
        """Open the journal and begin to connect; does not wait for the database."""
        self._loop = asyncio.get_running_loop()
        try:
            self._journal = Journal.open(self._folder / "events.journal", self._limits.journal_bytes)
            self._behind = self._journal.size > 0
            if self._behind:
                self._settled.clear()
        except JournalError as exc:
            self._journal_fault = str(exc)
            log.error("store.no_journal", extra={"reason": str(exc)})
        if self._incoming:
            self._drain()
        self._task = asyncio.create_task(self._run(), name="event-recorder")

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - the bound is the point of it
        """Commit the rest within `timeout` seconds, or leave it in the journal for the next start."""
        if self._closed or self._loop is None:
            self._closed = True
            return
        self._drain()
        self._closed = True
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)
            self._task.cancel()
            await asyncio.wait({self._task})
        for timer in (self._flush_timer, self._sync_timer):
            if timer is not None:
                timer.cancel()
        left = [h for h in self._held if not h.journaled]
        self._lost += len(left)
        if left:
            log.error("store.events_lost", extra={"events": len(left)})
        if self._journal is not None:
            if not self._held and not self._behind:
                self._journal.clear()
            elif self._journal.size:
                await asyncio.to_thread(self._sync_journal, self._journal)
            self._journal.close()
            self._journal = None

    async def settled(self) -> None:
        """Wait until the database has all that was recorded so far, without waiting for a batch to fill."""
        if self._incoming:
            self._drain()
        self._wake.set()
        await self._settled.wait()

    def health(self) -> ComponentHealth:
        """The database as an operator should see it. Never critical: calls go on without it."""
        waiting = self._journal.size - self._done if self._journal is not None else 0
        if not self._connected:
            detail = f"{self._fault}; {waiting} bytes of events wait in the journal"
        elif self._behind:
            detail = f"replaying the journal, {waiting} bytes to go"
        else:
            detail = self._journal_fault
        return ComponentHealth("database", ok=self._connected and not detail, critical=False, detail=detail)

    def counters(self) -> Mapping[str, float]:
        """For /metrics."""
        journal = self._journal
        return {
            "events_recorded_total": self._recorded,
            "events_replayed_total": self._replayed,
            "events_lost_total": self._lost,
            "events_rejected_total": self._rejected,
            "events_waiting": len(self._held) + len(self._incoming),
            "database_connected": float(self._connected),
            "database_flushes_total": self._flushes,
            "database_failures_total": self._failures,
            "journal_bytes": journal.size if journal else 0,
            "journal_waiting_bytes": journal.size - self._done if journal else 0,
            "journal_damaged_total": journal.damaged if journal else 0,
            "interactions_open": len(self._builder),
            "interactions_dropped_total": self._builder.dropped,
        }

    async def _run(self) -> None:
        backoff = self._limits.first_backoff_s
        while True:
            committed = self._flushes
            try:
                await self._connect_and_serve()
            except _AWAY as exc:
                self._on_away(exc)
            except Exception as exc:  # a fault of ours must not end the recording for good
                log.exception("store.recorder_failed")
                self._on_away(exc)
            if self._closing.is_set():
                return
            if self._flushes > committed:
                backoff = self._limits.first_backoff_s
            try:
                await asyncio.wait_for(self._closing.wait(), backoff)
            except TimeoutError:
                backoff = min(backoff * 2, self._limits.longest_backoff_s)

    def _on_away(self, exc: Exception) -> None:
        self._failures += 1
        reason = str(exc) or type(exc).__name__
        if self._connected or reason != self._fault:  # once per change, not once per attempt
            log.warning("store.database_away", extra={"reason": reason})
        self._connected = False
        self._fault = reason
        if self._journal is not None and self._journal.size > self._done:
            self._sync_soon()

    async def _connect_and_serve(self) -> None:
        connection = await connect(self._url, self._limits.connect_s)
        try:
            async with asyncio.timeout(self._limits.connect_s):
                current = await schema.version(connection)
            if current != schema.HEAD:
                await schema.ensure(connection, self._url)
            connection.add_termination_listener(lambda _: self._wake.set())
            if not self._connected:
                self._connected = True
                self._fault = ""
                log.info("store.database_connected", extra={"journal_bytes": self._journal_waiting()})
            await self._serve(connection)
        finally:
            connection.terminate()  # close() would wait for a server that may be gone

    def _journal_waiting(self) -> int:
        return self._journal.size - self._done if self._journal is not None else 0

    async def _serve(self, connection: asyncpg.Connection) -> None:
        while True:
            while self._behind:
                await self._replay(connection)
            self._wake.clear()
            if self._held or self._incomplete:
                await self._flush(connection)
            if not (self._incoming or self._held or self._behind):
                self._settled.set()
            if not self._closing.is_set():
                await self._wake.wait()
            elif not (self._held or self._behind):
                return
            if connection.is_closed():
                raise ConnectionResetError("the database closed the connection")

    # --- out: to the database ---

    async def _flush(self, connection: asyncpg.Connection) -> None:
        """Commit what is held, with the interactions that became due."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        due = self._builder.take()
        self._interactions.update((i.call_id, i) for i in due.interactions)
        self._incomplete.update((c, None) for c in due.incomplete)
        batch, self._held = self._held, []
        interactions, self._interactions = self._interactions, {}
        incomplete, self._incomplete = self._incomplete, {}
        end = self._journal.size if self._journal is not None else 0
        try:
            await self._commit(connection, [h.entry for h in batch], list(interactions.values()), list(incomplete))
        except BaseException:
            self._held = batch + self._held
            self._interactions = interactions | self._interactions
            self._incomplete = incomplete | self._incomplete
            if self._behind or len(self._held) > _MOST_HELD:
                self._spill()
            raise
        if not self._behind:  # else spilled meanwhile: the replay goes on from where the journal was committed last
            self._done = end
            self._clear_journal(_CLEAR_ABOVE)

    async def _replay(self, connection: asyncpg.Connection) -> None:
        """Commit the next piece of the journal; at its end, go on with what is held."""
        journal = self._journal
        if journal is None:
            self._behind = False
            return
        try:
            entries, following = journal.read(self._done)
        except OSError as exc:
            log.exception("store.journal_unreadable")
            self._journal_fault = f"the journal cannot be read: {exc.strerror}"
            entries, following = [], journal.size
        calls = {call_id: None for e in entries if (call_id := identity(e.body)) is not None}
        await self._commit(connection, entries, [], list(calls))
        self._replayed += len(entries)
        self._done = following
        if following >= journal.size:
            self._behind = False
            log.info("store.journal_replayed", extra={"damaged": journal.damaged})
            self._clear_journal(0)

    def _clear_journal(self, above: int) -> None:
        journal = self._journal
        if journal is not None and journal.size > above and self._done == journal.size:
            try:
                journal.clear()
                self._done = 0
            except OSError:
                log.warning("store.journal_not_cleared")

    async def _commit(
        self,
        connection: asyncpg.Connection,
        entries: list[Entry],
        interactions: list[Interaction],
        incomplete: list[CallId],
    ) -> None:
        """Write all of it in one transaction; what the database refuses for what it is, is set aside."""
        try:
            async with asyncio.timeout(self._limits.statement_s):
                if incomplete:
                    async with connection.transaction():
                        await statements.write(connection, entries, interactions)
                        await _rebuild(connection, incomplete)
                else:
                    await statements.write(connection, entries, interactions)
        except _REFUSED as exc:
            await self._commit_parts(connection, entries, interactions, incomplete, exc)
            return
        self._recorded += len(entries)
        self._flushes += 1

    async def _commit_parts(
        self,
        connection: asyncpg.Connection,
        entries: list[Entry],
        interactions: list[Interaction],
        incomplete: list[CallId],
        exc: Exception,
    ) -> None:
        """One of these cannot be stored, ever: find it, so that it does not hold up the rest."""
        if len(entries) + len(interactions) + len(incomplete) == 1:
            self._rejected += 1
            log.error("store.rejected", extra={"reason": type(exc).__name__, "calls": incomplete})
            if entries:
                await asyncio.to_thread(self._set_aside, entries[0])
        elif entries and not interactions and not incomplete:
            middle = len(entries) // 2
            await self._commit(connection, entries[:middle], [], [])
            await self._commit(connection, entries[middle:], [], [])
        else:
            if entries:
                await self._commit(connection, entries, [], [])
            for interaction in interactions:
                await self._commit(connection, [], [interaction], [])
            for call_id in incomplete:
                await self._commit(connection, [], [], [call_id])

    def _set_aside(self, entry: Entry) -> None:
        try:
            with (self._folder / "rejected.journal").open("ab") as file:
                if file.tell() < _MOST_REJECTED:
                    file.write(line(entry.name, entry.body.encode()))
        except OSError:
            log.warning("store.rejected_not_kept")


async def connect(url: str, timeout_s: float) -> asyncpg.Connection:
    """A connection set up as the store needs it. Raises OSError, TimeoutError or asyncpg's errors."""
    async with asyncio.timeout(timeout_s):
        return await asyncpg.connect(
            url, timeout=timeout_s, server_settings={"application_name": "murima", "timezone": "UTC"}
        )


async def _rebuild(connection: asyncpg.Connection, call_ids: list[CallId]) -> None:
    """Fold the calls that have ended from the log again."""
    ended = [i for i in await statements.folded(connection, call_ids) if i.ended_at is not None]
    await statements.upsert(connection, ended)
