"""A worker's advert: signed, gossiped every few seconds and at once when what it offers changed."""

from __future__ import annotations

from typing import Final, final

import structlog
import trio

from gossip_ledger.records import NetworkId
from gossip_ledger.signing import Signer
from p2p.adverts import SIGNED_ADVERTS, Advert, AdvertBook, sign_advert
from p2p.protocols.limits import ADVERT_ADDRESSES_MAX, RESIDENT_MODELS_MAX
from p2p.transport import Transport
from peer.capabilities import Clock, Entropy
from peer.engine import Engine, EngineDownError
from peer.serving import Prices
from peer.stock import Stock
from peer.topics import adverts_topic
from peer.version import SOFTWARE

INTERVAL_S: Final = 4.0
LIFE_S: Final = 13
"""An advert outlives three missed ones by a second."""
LOOK_S: Final = 0.5
"""How often a change is looked for."""


@final
class Advertiser:
    """Speaks for one worker."""

    def __init__(
        self,
        *,
        engine: Engine,
        stock: Stock,
        signer: Signer,
        transport: Transport,
        clock: Clock,
        network: NetworkId,
        prices: Prices,
        entropy: Entropy,
        book: AdvertBook,
    ) -> None:
        self._engine = engine
        self._stock = stock
        self._signer = signer
        self._transport = transport
        self._clock = clock
        self._network = network
        self._prices = prices
        self._rng = entropy.generator()
        self._book = book
        self._sequence = 0
        self._log = structlog.get_logger("advert")

    async def run(self) -> None:
        """Advertises for as long as the engine answers; silence lets the advert expire everywhere."""
        last: frozenset[bytes] = frozenset()
        next_s = 0.0
        while True:
            now = self._clock.monotonic()
            offered = frozenset(self._stock.resident)
            if offered and (offered != last or now >= next_s):
                try:
                    await self._advertise()
                except EngineDownError as error:
                    self._log.warning("no_advert", reason=str(error))
                last = offered
                next_s = now + INTERVAL_S * self._rng.uniform(0.8, 1.2)
            await trio.sleep(LOOK_S)

    async def _advertise(self) -> None:
        info, stats = self._engine.info, await self._engine.stats()
        now_s = self._clock.now_s()
        self._sequence = max(self._sequence + 1, now_s * 1000)
        advert = Advert(
            worker=self._signer.account,
            base=info.base,
            quantization=info.quantization,
            kernels=info.kernels[:32],
            max_context=info.max_context,
            resident=tuple(sorted(self._stock.resident)[:RESIDENT_MODELS_MAX]),
            loadable=(),
            running=stats.running,
            waiting=stats.waiting,
            slots=info.slots,
            tokens_per_s=stats.tokens_per_s,
            price_in=self._prices.tokens_in,
            price_out=self._prices.tokens_out,
            addresses=self._transport.addresses[:ADVERT_ADDRESSES_MAX],
            sequence=self._sequence,
            expiry_s=now_s + LIFE_S,
            software=SOFTWARE,
        )
        signed = sign_advert(advert, self._signer, self._network)
        self._book.offer(signed, now_s)
        await self._transport.publish(adverts_topic(self._network), SIGNED_ADVERTS.encode(signed))
