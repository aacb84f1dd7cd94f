"""One peer: every service, wired together, in the one nursery that a newcomer reads first.

A node is built from capabilities (clock, entropy, store, transport, engine) and knows none of their makers,
so the same node runs over sockets and SQLite or in a simulation. `daemon.py` builds the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import structlog
import trio

from gossip_ledger.genesis import Genesis
from gossip_ledger.records import AccountId
from gossip_ledger.signing import Signer
from p2p.transport import Transport
from peer.advertising import Advertiser
from peer.answers import AnswerBook
from peer.asking import Asker
from peer.attempt import ASK_PROTOCOL, Payer
from peer.attributing import Attributor
from peer.author import Author
from peer.capabilities import Clock, Entropy
from peer.engine import Engine
from peer.grants import GrantSweep
from peer.ledger_service import LedgerService
from peer.library import Library
from peer.observations import Observations
from peer.publishing import Publisher
from peer.serving import AskServer
from peer.spreading import Spreader, Surroundings
from peer.stock import Stock
from peer.store import Store
from peer.till import Till
from peer.trade import Trade
from peer.wallet import Wallet
from peer.witnessing import WitnessService


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What makes a node a worker."""

    engine: Engine
    trade: Trade
    folder: Path
    """Where adapters are kept."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Everything a node is given."""

    genesis: Genesis
    signer: Signer
    store: Store
    transport: Transport
    clock: Clock
    entropy: Entropy
    bootstrap: tuple[str, ...] = ()
    """Addresses to dial first."""
    grant: Signer | None = None
    """The funded key of the invite that this home was made from."""
    worker: Worker | None = None
    is_witness: bool = True
    """Acknowledge records, where the genesis names this account."""


@final
class Node:
    """The services of one peer. `start` brings them up in a nursery; cancelling that ends them."""

    def __init__(self, given: Capabilities) -> None:
        self.given = given
        self.account: AccountId = given.signer.account
        self.started_s = given.clock.now_s()
        self.spreader = Spreader(
            Surroundings(
                genesis=given.genesis,
                account=self.account,
                store=given.store,
                transport=given.transport,
                clock=given.clock,
                entropy=given.entropy,
                bootstrap=given.bootstrap,
            )
        )
        self.service = LedgerService(
            genesis=given.genesis, store=given.store, on_own=self.spreader.queue_record
        )
        self.library = Library(
            service=self.service,
            store=given.store,
            fetch=self.spreader.fetch_blobs,
            sources=self._sources,
        )
        self.author = Author(service=self.service, signer=given.signer, clock=given.clock)
        self.wallet = Wallet(
            service=self.service,
            author=self.author,
            account=self.account,
            store=given.store,
            clock=given.clock,
            entropy=given.entropy,
        )
        self.answers = AnswerBook(service=self.service, store=given.store)
        self.observations = Observations(given.clock)
        self.attributor = Attributor(service=self.service, library=self.library)
        self.publisher = Publisher(
            service=self.service, store=given.store, author=self.author, account=self.account
        )
        self.witness = WitnessService(
            service=self.service, signer=given.signer, store=given.store, clock=given.clock
        )
        self.asker: Asker | None = None
        self.stock: Stock | None = None
        self.till: Till | None = None
        self.server: AskServer | None = None
        self._log = structlog.get_logger("node")

    def _sources(self) -> Sequence[AccountId]:
        """Whom to ask for blobs: linked peers, then the workers, which hold what they serve."""
        linked = [link.peer for link in self.given.transport.links()]
        workers = [advert.worker for advert in self.spreader.adverts.live(self.given.clock.now_s())]
        return [peer for peer in dict.fromkeys((*linked, *workers)) if peer != self.account]

    async def start(self, nursery: trio.Nursery) -> None:
        """Loads what is on disk, then starts every service in `nursery`. Raises `LocalError`."""
        records = await self.service.load()
        await self.wallet.load()
        await self.answers.load()
        await self.spreader.book.load()
        self._log.info("loaded", records=records, account=self.account.hex()[:8])
        self.asker = Asker(
            payer=Payer(
                service=self.service,
                wallet=self.wallet,
                observations=self.observations,
                transport=self.given.transport,
                signer=self.given.signer,
                clock=self.given.clock,
                entropy=self.given.entropy,
                hold=self.spreader.links.hold,
            ),
            library=self.library,
            answers=self.answers,
            adverts=self.spreader.adverts,
            nursery=nursery,
        )
        self.spreader.attach(self.service)
        self.spreader.start(nursery)
        nursery.start_soon(self.library.keep_manifests)
        nursery.start_soon(self.wallet.run)
        if self.given.is_witness and self.witness.is_named:
            nursery.start_soon(self.witness.run)
        if self.given.grant is not None:
            sweep = GrantSweep(
                service=self.service, grant=self.given.grant, account=self.account, clock=self.given.clock
            )
            nursery.start_soon(sweep.run, self.spreader.synced)
        if self.given.worker is not None:
            await self._start_worker(nursery, self.given.worker)

    async def _start_worker(self, nursery: trio.Nursery, worker: Worker) -> None:
        given = self.given
        self.stock = Stock(
            service=self.service, library=self.library, engine=worker.engine, folder=worker.folder
        )
        self.till = Till(
            service=self.service,
            signer=given.signer,
            store=given.store,
            clock=given.clock,
            attribute=self.attributor.attribute,
            exposure=worker.trade.prices.exposure,
        )
        await self.till.load()
        self.server = AskServer(
            service=self.service,
            till=self.till,
            stock=self.stock,
            engine=worker.engine,
            signer=given.signer,
            clock=given.clock,
            entropy=given.entropy,
            trade=worker.trade,
            hold=self.spreader.links.hold,
        )
        advertiser = Advertiser(
            engine=worker.engine,
            stock=self.stock,
            signer=given.signer,
            transport=given.transport,
            clock=given.clock,
            network=self.service.network,
            trade=worker.trade,
            entropy=given.entropy,
            book=self.spreader.adverts,
        )
        given.transport.serve(ASK_PROTOCOL, self.server.serve)
        nursery.start_soon(self.stock.run)
        nursery.start_soon(self.till.run)
        nursery.start_soon(advertiser.run)
