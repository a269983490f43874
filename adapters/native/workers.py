"""Keeps the provider connected to a media worker that may restart."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from adapters.native.legs import Link
from media.client import Event, MediaClient, MediaError, Welcome, WorkerRefused

log = logging.getLogger("murima.telephony")

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0


class WorkerUser(Protocol):
    """Whoever uses workers; `NativeTelephony` is one."""

    def attach_worker(self, name: str, address: str, link: Link, welcome: Welcome) -> None: ...
    def on_worker_event(self, name: str, event: Event) -> None: ...
    def on_worker_lost(self, name: str) -> None: ...


async def keep_connected(user: WorkerUser, *, name: str, path: str, address: str, engine_name: str) -> None:
    """Connect to a worker, and again whenever it was lost; runs until cancelled, then disconnects.

    Args:
        user: told of the worker's coming, events and going.
        name: of the worker, for `user`.
        path: its Unix socket.
        address: IP address that its legs are offered at.
        engine_name: for the worker's log.
    """
    retry_s = FIRST_RETRY_S
    while True:
        lost = asyncio.Event()
        client = MediaClient(path, lambda event: user.on_worker_event(name, event), engine_name, lost.set)
        try:
            welcome = await client.connect()
        except MediaError as exc:
            if isinstance(exc, WorkerRefused):
                log.error("worker.refused", extra={"worker": name, "reason": str(exc)})
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)
            continue
        retry_s = FIRST_RETRY_S
        try:
            user.attach_worker(name, address, client, welcome)
            log.info("worker.connected", extra={"worker": name, "pid": welcome.pid})
            await lost.wait()
        except Exception:  # a fault of ours must not leave the worker alone for good
            log.exception("worker.failed", extra={"worker": name})
        finally:
            client.close()
        user.on_worker_lost(name)
        await asyncio.sleep(retry_s)  # nor may two engines take a worker from each other without a pause
