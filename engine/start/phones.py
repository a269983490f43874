"""Phones on our own stack: the test call and the demo."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

from adapters.native.settings import AgentSettings as PhoneSettings
from adapters.native.settings import NativeSettings, TrunkSettings
from adapters.native.telephony import NativeTelephony
from adapters.native.workers import keep_connected
from adapters.sip.endpoint import Endpoint
from adapters.sip.protection.access import AccessPolicy
from adapters.sip.protection.digest import DigestVerifier
from adapters.sip.transports.transport import SipTransport
from config.loader import load
from config.problems import ConfigurationError
from config.schema import Transport
from engine import log as logs
from engine.demo import (
    AGENT_SPEECH,
    CALLER_SPEECH,
    Board,
    Pace,
    People,
    Server,
    ServerError,
    Watcher,
    demo_document,
    new_password,
    queue_numbers,
    show,
)
from engine.identity import new_id
from engine.python import child_environment, module
from engine.telephony import EventSink, Telephony
from engine.testphone import CALLEE, PROMPT, CallPlan, TestPhone

DEMO_ADDRESS = "127.0.0.6"
"""Where the demo's callers and agents live: an address of the loopback network that nobody else uses."""

_PHONE_PORTS = 400  # RTP and RTCP for a hundred calls at least
_PHONE_PORT_RANGE = (40_000, 60_000)
_WORKER_READY_S = 10.0
_GOODBYE_S = 3.0


class Phones:
    """Phones on our own stack, with a media worker and a data folder of their own.

    Everybody may call them; they reach what `targets` names, under the id that
    `Originate.agent_id` gives.

    Raises:
        ValueError: a target is not a SIP address.
    """

    def __init__(self, address: str, folder: Path, targets: Mapping[str, str], prompts: Mapping[str, Path]) -> None:
        self._address = address
        self._folder = folder
        self._settings = NativeSettings(
            domain=address,
            trunks=(TrunkSettings("anybody", ("0.0.0.0/0", "::/0")),),
            agents=tuple(PhoneSettings(name, {}, uri) for name, uri in targets.items()),
            prompts={name: str(path) for name, path in prompts.items()},
            recordings=str(folder),
        )
        self._settings.contacts()  # raises for a target that is no address
        self._stack = contextlib.AsyncExitStack()

    async def start(self, sink: EventSink, sip: socket.socket) -> Telephony:
        """Serve a bound UDP socket; ready to call when this returns. The socket belongs to us from now on.

        Raises:
            TimeoutError: the media worker did not come up; nothing is left running.
        """
        try:
            return await self._start(sink, sip)
        except BaseException:
            sip.close()
            await self._stack.aclose()
            raise

    async def _start(self, sink: EventSink, sip: socket.socket) -> Telephony:
        loop = asyncio.get_running_loop()
        transport = SipTransport()
        verifier = DigestVerifier(self._address, secrets.token_bytes(32), random_bytes=os.urandom)
        endpoint = Endpoint(
            network=transport,
            policy=AccessPolicy((), {}, verifier),
            registrar=None,
            new_token=lambda: secrets.token_hex(8),
        )
        telephony = NativeTelephony(
            self._settings,
            endpoint=endpoint,
            carrier=transport,
            verifier_for=lambda _: verifier,
            sink=sink,
            new_id=new_id,
            loop=loop,
        )
        worker_socket = self._folder / "phones.sock"
        low = _free_media_ports(self._address)
        worker = await asyncio.create_subprocess_exec(
            *module(
                "media.worker",
                *("--socket", str(worker_socket), "--address", self._address),
                *("--ports", f"{low}-{low + _PHONE_PORTS - 1}", "--name", "phones"),
            ),
            env=child_environment(),
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.push_async_callback(_end_worker, worker)
        keeping = loop.create_task(
            keep_connected(
                telephony, name="phones", path=str(worker_socket), address=self._address, engine_name="phones"
            )
        )
        self._stack.push_async_callback(_cancel, keeping)
        self._stack.push_async_callback(transport.close)
        await transport.start(endpoint, telephony.on_sip_event, [sip], [])
        async with asyncio.timeout(_WORKER_READY_S):
            await _until(lambda: telephony.workers_ready() > 0)
        self._telephony = telephony
        return telephony

    async def close(self) -> None:
        """Let the last goodbyes out, then end the worker."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await _until(lambda: not self._telephony.busy)
        await self._stack.aclose()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - at the start and the end only, of what sends no event
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def _demo_folder(data: Path | None) -> Iterator[Path]:
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        yield data.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="murima-demo-") as folder:
            yield Path(folder)


async def _end_worker(worker: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.terminate()
    await worker.wait()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _free_media_ports(address: str) -> int:
    """First of `_PHONE_PORTS` ports that look free: an even one, away from where servers usually are."""
    for low in range(*_PHONE_PORT_RANGE, _PHONE_PORTS):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((address, low))
        except OSError:
            continue
        return low
    raise OSError(f"no free media ports at {address}")


def _bound_udp(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((address, 0))
    except OSError:
        sock.close()
        raise
    return sock


async def make_test_call(plan: CallPlan, address: str) -> int:
    """`murima call`: one call from `address`; returns the exit status."""
    logs.configure("warning")
    try:
        sip = _bound_udp(address)
    except OSError as exc:
        sys.stderr.write(f"murima: cannot call from {address}: {exc.strerror}\n")
        return 2
    phone = TestPhone(plan)
    prompts = {} if plan.play is None else {PROMPT: plan.play.absolute()}
    with tempfile.TemporaryDirectory(prefix="murima-call-") as folder:
        try:
            phones = Phones(address, Path(folder), {CALLEE: plan.uri}, prompts)
        except ValueError as exc:
            sip.close()
            sys.stderr.write(f"murima: {plan.uri!r} is not a SIP address, like sip:500@127.0.0.1:5060: {exc}\n")
            return 2
        try:
            telephony = await phones.start(phone.on_event, sip)
        except (OSError, TimeoutError) as exc:
            sys.stderr.write(f"murima: cannot call: {str(exc) or 'the media worker did not come up'}\n")
            return 2
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, phone.interrupt)
        try:
            return await phone.run(telephony)
        finally:
            await phones.close()


async def run_demo(config: Path | None, data: Path | None, duration_s: float | None, seed: int | None) -> int:
    """`murima demo`: serve the sample, let synthetic people use it, show what happens."""
    logs.configure("warning")
    shipped = Path(str(resources.files("config"))) / "shipped"
    path = config or shipped / "sample.yaml"
    try:
        document = load(path).document
    except ConfigurationError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    numbers = queue_numbers(document)
    if not numbers or not document.agents:
        sys.stderr.write(f"murima: {path} has no number that leads to a queue, or no agents: nothing to show\n")
        return 1
    listener = next(
        (item for item in document.sip.listen if item.transport is Transport.UDP and ":" not in item.host), None
    )
    if listener is None:
        sys.stderr.write(f"murima: {path} listens on no IPv4 address over UDP, which the demo's phones need\n")
        return 1
    sip = _bound_udp(DEMO_ADDRESS)
    password = new_password()
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(_demo_folder(data))
        derived = folder / "demo.yaml"
        derived.touch(0o600)
        derived.chmod(0o600)  # it may be there already
        derived.write_text(demo_document(path, document, DEMO_ADDRESS, sip.getsockname()[1], password), "utf-8")
        base_url = f"http://{document.http.listen}"
        try:
            await stack.enter_async_context(Server(derived, folder, base_url))
        except ServerError as exc:
            sys.stderr.write(f"murima: {exc}\n")
            return 1
        people = People(numbers, Pace(), random.Random(seed))  # noqa: S311 - people, not secrets
        targets = {
            callee: f"sip:{number}@{listener.host}:{listener.port}" for callee, number in people.targets().items()
        }
        speech = shipped / "speech"
        prompts = {CALLER_SPEECH: speech / "caller.flac", AGENT_SPEECH: speech / "agent.flac"}
        phones = Phones(DEMO_ADDRESS, folder, targets, prompts)
        people.begin(await phones.start(people.on_event, sip))
        board = Board(base_url)
        try:
            await show(board, Watcher(base_url, password, board), duration_s)
        finally:
            people.hang_up_all()
            await phones.close()
    return 0
