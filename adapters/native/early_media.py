"""Audio before the answer: what a called phone or carrier plays while it rings reaches the caller.

The called side's early media (a provisional response with a description) is
told to call control; at its word the caller gets 183 with our answer, and both
legs are bridged at once. The 200 holds the same answer later.
"""

from __future__ import annotations

from adapters.native.exchange import Exchange
from adapters.native.legs import Leg
from adapters.sip.errors import PeerError
from engine.events import EndCause, LegEarlyMedia, LegId
from media import client as media


class EarlyMedia:
    """See the module."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def on_description(self, leg: Leg, body: bytes) -> bool:
        """A provisional response to our INVITE holds a description; False: it is of no use.

        Of the branches of a fork the latest is heard.
        """
        exchange = self._exchange
        try:
            leg.audio.read(body)
        except PeerError:
            exchange.counters["early_media_unusable_total"] += 1
            return False
        exchange.send_to(leg.call.worker, leg.audio.remote(leg.leg_id))
        if not leg.early:
            leg.early = True
            exchange.emit(LegEarlyMedia(leg.leg_id))
        return True

    def progress(self, leg_id: LegId, peer: LegId) -> bool:
        """As `Telephony.progress`; False: the caller can only be told that it rings."""
        leg, other = self._exchange.legs.get(leg_id), self._exchange.legs.get(peer)
        if leg is None or other is None:
            return True
        if leg.answered and leg.call.worker is other.call.worker:
            self._exchange.send_to(leg.call.worker, media.Bridge(leg_id, peer))
        if leg.answering or leg.answered or leg.request is not None:
            return True
        if leg.offer is None:
            return False
        leg.early_peer = peer
        if leg.port is not None:
            self.on_opened(leg, leg.port)
        elif not self._exchange.open(leg):
            self._exchange.drop(leg, EndCause.OVERLOADED, "no media worker")
        return True

    def on_opened(self, leg: Leg, port: int) -> None:
        """The caller's leg has its RTP port: tell the caller, and let it hear."""
        exchange, session, worker = self._exchange, leg.session, leg.call.worker
        peer, leg.early_peer = leg.early_peer, None
        other = None if peer is None else exchange.legs.get(peer)
        if other is None or session is None or worker is None or leg.offer is None:
            return
        if not leg.early_answer:
            try:
                body = leg.audio.answer(leg.offer, worker.address, port, other.audio.codec or leg.preferred)
            except PeerError:
                return  # the answer will fail for the same reason, and say so
            exchange.send_to(worker, leg.audio.remote(leg.leg_id))
            leg.early_answer = body
            now = exchange.carrier.clock()
            exchange.run(exchange.endpoint.progress(session, body, now, exchange.call_header(leg)))
        exchange.send_to(worker, media.Bridge(leg.leg_id, other.leg_id))
