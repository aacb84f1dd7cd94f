"""A worker's advert: signed, gossiped every few seconds and at once when what it offers changed.

A worker that takes nothing on says so once, by an advert without models, and is silent from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import structlog
import trio

from gossip_ledger.records import ModelId, NetworkId
from gossip_ledger.signing import Signer
from p2p.adverts import SIGNED_ADVERTS, Advert, AdvertBook, sign_advert
from p2p.protocols.limits import ADVERT_ADDRESSES_MAX, RESIDENT_MODELS_MAX
from p2p.transport import Transport
from peer.capabilities import Clock, Entropy
from peer.engine import Engine, EngineDownError
from peer.stock import Stock
from peer.topics import adverts_topic
from peer.trade import Prices, Trade
from peer.version import SOFTWARE

INTERVAL_S: Final = 4.0
LIFE_S: Final = 13
"""An advert outlives three missed ones by a second."""
LOOK_S: Final = 0.5
"""How often a change is looked for."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What makes an advert differ from the last one."""

    models: frozenset[ModelId]
    prices: Prices


_NOTHING: Final = _Offer(models=frozenset(), prices=Prices(tokens_in=0, tokens_out=0))


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
        trade: Trade,
        entropy: Entropy,
        book: AdvertBook,
    ) -> None:
        self._engine = engine
        self._stock = stock
        self._signer = signer
        self._transport = transport
        self._clock = clock
        self._network = network
        self._trade = trade
        self._rng = entropy.generator()
        self._book = book
        self._sequence = 0
        self._log = structlog.get_logger("advert")

    async def run(self) -> None:
        """Advertises for as long as the engine answers; silence lets the advert expire everywhere."""
        last: _Offer = _NOTHING
        next_s = 0.0
        while True:
            now = self._clock.monotonic()
            offered = self._offer()
            if offered != last or (offered.models and now >= next_s):
                try:
                    await self._advertise(offered)
                except EngineDownError as error:
                    self._log.warning("no_advert", reason=str(error))
                last = offered
                next_s = now + INTERVAL_S * self._rng.uniform(0.8, 1.2)
            await trio.sleep(LOOK_S)

    def _offer(self) -> _Offer:
        """What the worker would serve now, and for how much."""
        models = frozenset(self._stock.resident) if self._trade.is_open else frozenset[ModelId]()
        return _Offer(models=models, prices=self._trade.prices) if models else _NOTHING

    async def _advertise(self, offered: _Offer) -> None:
        info, stats = self._engine.info, await self._engine.stats()
        now_s = self._clock.now_s()
        self._sequence = max(self._sequence + 1, now_s * 1000)
        advert = Advert(
            worker=self._signer.account,
            base=info.base,
            quantization=info.quantization,
            kernels=info.kernels[:32],
            max_context=info.max_context,
            resident=tuple(sorted(offered.models)[:RESIDENT_MODELS_MAX]),
            loadable=(),
            running=stats.running,
            waiting=stats.waiting,
            slots=info.slots,
            tokens_per_s=stats.tokens_per_s,
            price_in=self._trade.prices.tokens_in,
            price_out=self._trade.prices.tokens_out,
            addresses=self._transport.addresses[:ADVERT_ADDRESSES_MAX],
            sequence=self._sequence,
            expiry_s=now_s + LIFE_S,
            software=SOFTWARE,
        )
        signed = sign_advert(advert, self._signer, self._network)
        self._book.offer(signed, now_s)
        await self._transport.publish(adverts_topic(self._network), SIGNED_ADVERTS.encode(signed))
