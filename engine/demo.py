"""`murima demo`: the sample configuration with synthetic callers and agents, in a live table.

The callers and agents are real SIP phones on our own stack: they dial, ring,
answer, talk with recorded speech and hang up, on loopback addresses of their
own. Everything shown comes from the HTTP API, as any operator would see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from config.schema import Document, ToQueue
from engine import events as ev
from engine.events import AgentId, CallId, LegId, Party, PlayId
from engine.identity import new_id
from engine.python import child_environment, module
from engine.telephony import Originate, Telephony

DEMO_USER = "demo"
_READY_S = 60.0
CALLER_SPEECH = "caller-speech"
AGENT_SPEECH = "agent-speech"

_CALLERS = [
    ("+254700100200", "Amina Yusuf"),
    ("+254711300400", "Brian Otieno"),
    ("+33140205050", "Chloé Martin"),
    ("+12025550148", "Derek Lowe"),
    ("+255754600700", "Esther Mushi"),
    ("+442079460123", "Farah Khan"),
    ("+254733800900", "George Kamau"),
    ("+33467001122", "Hélène Roux"),
]


@dataclass(frozen=True, slots=True)
class Pace:
    """How lively the demo is. Times in seconds, as (least, most)."""

    between_calls_s: tuple[float, float] = (1.0, 4.0)
    answer_after_s: tuple[float, float] = (1.0, 4.0)
    talk_s: tuple[float, float] = (8.0, 25.0)
    patience_s: tuple[float, float] = (15.0, 45.0)
    missed_offers: float = 0.05  # share of offers that nobody answers
    most_calls: int = 8


# --- the configuration it serves ----------------------------------------------------------


def demo_document(path: Path, document: Document, address: str, port: int, password: str) -> str:
    """Derive the document that the demo serves from the one given, as YAML text.

    Every agent gets a phone at `address:port`, callers from `address` need no
    password, and a user of ours may watch. Nothing leaves this machine, so it
    needs no certificates.
    """
    yaml = YAML(typ="safe", pure=True)
    data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"))
    data["prompts"] = {name: str(file) for name, file in document.prompts.items()}
    for agent in data.get("agents", []):
        agent["contact"] = f"sip:{agent['id']}@{address}:{port}"
        agent["auto_ready"] = True
    sip = data["sip"]
    sip["trunks"] = [*sip.get("trunks", []), {"name": "demo", "match": [address]}]
    sip["listen"] = [listener for listener in sip["listen"] if not listener.startswith("tls:")]
    sip.pop("tls", None)
    data["http"].pop("tls", None)
    data["users"] = [
        *(user for user in data.get("users", []) if user["username"] != DEMO_USER),
        {"username": DEMO_USER, "password": password, "role": "administrator"},
    ]
    out = StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def queue_numbers(document: Document) -> list[str]:
    """Numbers that lead into a queue, at once or after prompts."""

    def leads(action: object) -> bool:
        return isinstance(action, ToQueue) or leads_on(action)

    def leads_on(action: object) -> bool:
        then = getattr(action, "then", None)
        return then is not None and not isinstance(then, str) and leads(then)

    return [number for number, action in document.numbers.items() if not number.startswith("~") and leads(action)]


# --- the server it shows ------------------------------------------------------------------


class ServerError(Exception):
    """The served murima did not come up; `str()` says why."""


class Server:
    """`murima serve` as a child, its log in the folder; an async context, ready when entered.

    Raises:
        ServerError: it ended, or was not ready in time; with the end of its log.
    """

    def __init__(self, config: Path, folder: Path, base_url: str) -> None:
        self._config = config
        self._folder = folder
        self._base_url = base_url
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        arguments = ("serve", "--config", str(self._config), "--data", str(self._folder / "data"))
        with self._log.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *module("engine.cli", *arguments),
                env=child_environment(),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            await self._ready(self._process)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "murima.log"

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(_READY_S), aiohttp.ClientSession(self._base_url) as http:
                while process.returncode is None:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.get("/readyz") as answer:
                            if answer.status == 200:
                                return
                    await asyncio.sleep(0.1)  # readiness can only be asked for
        except TimeoutError:
            pass
        tail = "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-10:])
        raise ServerError(f"the server did not become ready:\n{tail}")


# --- the people ---------------------------------------------------------------------------


class People:
    """Synthetic callers and agents on one Telephony provider."""

    def __init__(self, numbers: Sequence[str], pace: Pace, chance: random.Random) -> None:
        self._numbers = numbers
        self._pace = pace
        self._chance = chance
        self._phones: Telephony | None = None
        self._timers: dict[LegId, asyncio.TimerHandle] = {}
        self._callers: set[LegId] = set()
        self._calls: dict[LegId, CallId] = {}
        self.outcomes: Counter[str] = Counter()

    def begin(self, phones: Telephony) -> None:
        """Let the first caller dial; the next follow by themselves."""
        self._phones = phones
        self._next_call()

    def targets(self) -> Mapping[str, str]:
        """What phones call: number by the id under which we originate."""
        return {f"number-{number}": number for number in self._numbers}

    def hang_up_all(self) -> None:
        """Let everybody hang up."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._numbers = ()
        if self._phones is not None:
            for leg_id in tuple(self._calls):
                self._phones.hang_up(leg_id)

    def on_event(self, event: ev.LegEvent) -> None:
        """React as a person would."""
        phones = self._phones
        if phones is None:
            return
        match event:
            case ev.LegIncoming(leg_id=leg_id, call_id=call_id):
                self._calls[leg_id] = call_id
                phones.ring(leg_id)
                if self._chance.random() >= self._pace.missed_offers:
                    self._after(leg_id, self._pace.answer_after_s, lambda: phones.answer(leg_id))
            case ev.LegAnswered(leg_id=leg_id) if leg_id in self._callers:
                self.outcomes["answered"] += 1
                phones.play(leg_id, PlayId("p"), CALLER_SPEECH, loop=True)
                self._after(leg_id, self._pace.patience_s, lambda: phones.hang_up(leg_id))
            case ev.LegAnswered(leg_id=leg_id):
                phones.play(leg_id, PlayId("p"), AGENT_SPEECH, loop=True)
                self._after(leg_id, self._pace.talk_s, lambda: phones.hang_up(leg_id))
            case ev.LegEnded(leg_id=leg_id):
                self._on_ended(event, phones)
            case _:
                pass

    def _on_ended(self, event: ev.LegEnded, phones: Telephony) -> None:
        timer = self._timers.pop(event.leg_id, None)
        if timer is not None:
            timer.cancel()
        if event.leg_id in self._callers:
            self._callers.discard(event.leg_id)
            self.outcomes["ended " + event.cause] += 1
        call_id = self._calls.pop(event.leg_id, None)
        if call_id is not None:
            phones.release_call(call_id)

    def _next_call(self) -> None:
        if not self._numbers or self._phones is None:
            return
        if len(self._callers) < self._pace.most_calls:
            leg_id, call_id = LegId(new_id()), CallId(new_id())
            self._callers.add(leg_id)
            self._calls[leg_id] = call_id
            number, name = self._chance.choice(_CALLERS)
            callee = AgentId(f"number-{self._chance.choice(self._numbers)}")
            self._phones.originate(
                leg_id, Originate(call_id, callee, Party(number, name), peer=None, ring_timeout_s=60.0)
            )
        self._after(LegId("dialling"), self._pace.between_calls_s, self._next_call)

    def _after(self, key: LegId, between_s: tuple[float, float], action: Callable[[], None]) -> None:
        def act() -> None:
            self._timers.pop(key, None)
            action()

        old = self._timers.get(key)
        if old is not None:
            old.cancel()
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(self._chance.uniform(*between_s), act)


# --- the table ----------------------------------------------------------------------------

_STATE_STYLE = {
    "ready": "green",
    "ringing": "yellow",
    "talking": "cyan",
    "wrap_up": "magenta",
    "break": "red",
    "offline": "dim",
    "waiting": "yellow",
    "held": "magenta",
}


class Board:
    """What the API says, as a table for a terminal."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._recent: deque[Text] = deque(maxlen=8)
        self._counts: Counter[str] = Counter()
        self._abandoned = 0
        self.queues: list[dict[str, Any]] = []
        self.agents: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []

    @property
    def counts(self) -> Mapping[str, int]:
        """Events seen so far, by name."""
        return self._counts

    def on_log_event(self, event: Mapping[str, Any]) -> None:
        """Take one message of the event stream."""
        name = event.get("name", "")
        self._counts[name] += 1
        if name == "queue.left" and event["data"]["outcome"] == "abandoned":
            self._abandoned += 1
        if name.startswith(("call.", "queue.", "offer.", "talk.", "recording.")):
            who = " ".join(str(event[key]) for key in ("queue_id", "agent_id") if event.get(key))
            self._recent.append(Text(f"{str(event.get('at', ''))[11:19]}  {name:<20} {who}", style="dim"))

    def render(self) -> Group:
        """The whole picture."""
        placed, talked = self._counts["call.started"], self._counts["talk.started"]
        head = Text.assemble(
            ("murima demo  ", "bold"),
            f"{placed} calls placed, {talked} talked to an agent, {self._abandoned} gave up waiting",
            f"\nwatch it in a browser: {self._base_url}/   stop: Ctrl-C",
        )
        return Group(
            head,
            self._queue_table(),
            self._agent_table(),
            self._call_table(),
            Panel(Group(*self._recent) if self._recent else Text("no events yet", style="dim"), title="events"),
        )

    def _queue_table(self) -> Table:
        table = Table(title="queues", expand=True, title_justify="left")
        for heading in ("queue", "strategy", "waiting", "ringing", "talking", "longest wait", "ready", "busy"):
            table.add_column(heading, justify="left" if heading in {"queue", "strategy"} else "right")
        for q in self.queues:
            table.add_row(
                q["queue_id"],
                q["strategy"],
                str(q["waiting"]),
                str(q["ringing"]),
                str(q["talking"]),
                f"{q['longest_wait_s']:.0f} s",
                str(q["agents_ready"]),
                str(q["agents_busy"]),
            )
        return table

    def _agent_table(self) -> Table:
        table = Table(title="agents", expand=True, title_justify="left")
        for heading in ("agent", "name", "state", "reason"):
            table.add_column(heading)
        for a in self.agents:
            state = Text(a["state"], style=_STATE_STYLE.get(a["state"], ""))
            table.add_row(a["agent_id"], a["name"], state, a["reason"])
        return table

    def _call_table(self) -> Table:
        table = Table(title="calls", expand=True, title_justify="left")
        for heading in ("caller", "dialled", "state", "queue", "agent", "recording"):
            table.add_column(heading)
        for c in self.calls:
            state = Text(c["state"], style=_STATE_STYLE.get(c["state"], ""))
            who = f"{c['caller']} {c['caller_name']}".strip()
            recording = "●" if c["recording"] else ""
            table.add_row(who, c["dialled"], state, c["queue_id"] or "", c["agent_id"] or "", recording)
        if not self.calls:
            table.add_row("no calls at the moment", "", "", "", "", "", style="dim")
        return table


class _TokenExpiredError(Exception):
    """Log in again."""


class Watcher:
    """Keeps a Board up to date over the HTTP API."""

    def __init__(self, base_url: str, password: str, board: Board) -> None:
        self._base_url = base_url
        self._password = password
        self._board = board

    async def follow(self, changed: Callable[[], None]) -> None:
        """Log in, follow the event stream, refresh the tables; for ever, or until the server is gone."""
        async with aiohttp.ClientSession(self._base_url) as http:
            while True:
                headers = await self._log_in(http)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._stream(http, headers))
                        tasks.create_task(self._refresh(http, headers, changed))
                except* _TokenExpiredError:
                    pass  # log in again

    async def _log_in(self, http: aiohttp.ClientSession) -> dict[str, str]:
        login = {"username": DEMO_USER, "password": self._password}
        async with http.post("/api/v1/auth/login", json=login) as answer:
            answer.raise_for_status()
            return {"Authorization": f"Bearer {(await answer.json())['data']['access_token']}"}

    async def _stream(self, http: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        async with http.ws_connect("/api/v1/events", headers=headers) as stream:
            async for message in stream:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._board.on_log_event(message.json())
        raise _TokenExpiredError  # the server ends a stream whose token has expired

    async def _refresh(
        self, http: aiohttp.ClientSession, headers: Mapping[str, str], changed: Callable[[], None]
    ) -> None:
        while True:
            self._board.queues = await self._list(http, headers, "queues")
            self._board.agents = await self._list(http, headers, "agents")
            self._board.calls = await self._list(http, headers, "calls")
            changed()
            await asyncio.sleep(0.5)

    async def _list(self, http: aiohttp.ClientSession, headers: Mapping[str, str], what: str) -> list[dict[str, Any]]:
        async with http.get(f"/api/v1/{what}?limit=100", headers=headers) as answer:
            if answer.status == 401:
                raise _TokenExpiredError
            answer.raise_for_status()
            rows: list[dict[str, Any]] = (await answer.json())["data"]
            return rows


async def show(board: Board, watcher: Watcher, duration_s: float | None) -> None:
    """Show the live table on a terminal, or print it now and then elsewhere."""
    console = Console()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            if console.is_terminal:
                with Live(board.render(), console=console, auto_refresh=False, screen=True) as live:
                    await watcher.follow(lambda: live.update(board.render(), refresh=True))
            else:
                rounds = 0

                def changed() -> None:
                    nonlocal rounds
                    if rounds % 10 == 0:
                        console.print(board.render())
                        sys.stdout.flush()
                    rounds += 1

                await watcher.follow(changed)
    console.print(board.render())


def new_password() -> str:
    """A password for the demo's own user, good for this run only."""
    return secrets.token_urlsafe(18)
