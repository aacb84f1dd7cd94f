"""How a node and its peers come to hold the same: links, greetings, gossip, reconciliation and blobs.

Gossip is for speed and may lose anything; reconciliation after each new link and on a jittered timer is for
truth. Whatever arrives goes through `LedgerService.ingest`, whoever it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import structlog
import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.genesis import Genesis, network_id
from gossip_ledger.reconcile import IdSet
from gossip_ledger.records import AccountId, BlobId, NetworkId, RecordId
from p2p.adverts import AdvertBook
from p2p.channel import FrameChannel
from p2p.exchange import (
    BLOB_PROTOCOL,
    HELLO_PROTOCOL,
    SYNC_PROTOCOL,
    DeniedError,
    ExchangeError,
    fetch_blobs,
    greet,
    serve_blobs,
    serve_hello,
    serve_sync,
    sync_with,
)
from p2p.gossip import RecordGossip
from p2p.links import Greeting, Links, LinkUp
from p2p.messages import Hello
from p2p.protocols.limits import (
    BLOB_FRAME_BYTES_MAX,
    HELLO_ADDRESSES_MAX,
    HELLO_FRAME_BYTES_MAX,
    SYNC_FRAME_BYTES_MAX,
)
from p2p.transport import Stream, Transport
from peer.address_book import StoredAddressBook
from peer.capabilities import Clock, Entropy
from peer.holdings import Holdings
from peer.ledger_service import LedgerService
from peer.reaching import reach
from peer.store import Store
from peer.topics import adverts_topic, records_topic
from peer.version import SOFTWARE

RULES_VERSION: Final = 1
SYNC_INTERVAL_S: Final = 15.0
"""Mean time between two reconciliations with a random peer."""
SYNC_S_MAX: Final = 120.0
SYNC_SESSIONS_MAX: Final = 64
"""Sessions in a row with one peer: how a newcomer learns more records than fit into one."""
UNANSWERED_MAX: Final = 64
"""Records that a peer may claim and not give beyond those it gave: it may have dropped some meanwhile."""
SALT_BYTES: Final = 16
ALONE_S: Final = 5.0
"""A node that met nobody by then counts as synced: there is nobody to hear from."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What spreading needs of a node's capabilities."""

    genesis: Genesis
    account: AccountId
    store: Store
    transport: Transport
    clock: Clock
    entropy: Entropy
    bootstrap: tuple[str, ...]


@final
class Spreader:
    """Everything between this node's ledger and its peers."""

    def __init__(self, given: Surroundings) -> None:
        self._given = given
        self._network: NetworkId = network_id(given.genesis)
        self._rng = given.entropy.generator()
        self._gossip = RecordGossip(given.transport, records_topic(self._network))
        self._adverts_in = given.transport.subscribe(adverts_topic(self._network))
        self._service: LedgerService | None = None
        self._holdings: Holdings | None = None
        self._log = structlog.get_logger("spreading")
        self.adverts = AdvertBook(self._network)
        self.synced = trio.Event()
        """Set once a peer told what it holds, or nobody was met."""
        self.book = StoredAddressBook(given.store)
        self.links = Links(
            given.transport,
            self.book,
            self._greet,
            bootstrap=given.bootstrap,
            rng=given.entropy.generator(),
            log=structlog.get_logger("links"),
        )

    def attach(self, service: LedgerService) -> None:
        """The ledger that records go to and come from; before `start`."""
        self._service = service
        self._holdings = Holdings(service.ledger)

    @property
    def service(self) -> LedgerService:
        assert self._service is not None, "attach comes first"
        return self._service

    def start(self, nursery: trio.Nursery) -> None:
        """Serves the protocols and starts the tasks."""
        transport = self._given.transport
        transport.serve(HELLO_PROTOCOL, self._serve_hello)
        transport.serve(SYNC_PROTOCOL, self._serve_sync)
        transport.serve(BLOB_PROTOCOL, self._serve_blobs)
        nursery.start_soon(self._gossip.run)
        nursery.start_soon(self._take_records)
        nursery.start_soon(self._take_adverts)
        nursery.start_soon(self.links.run)
        nursery.start_soon(self._sync_new_links)
        nursery.start_soon(self._sync_by_turns)
        nursery.start_soon(self._give_up_waiting)
        nursery.start_soon(self.book.run)

    def queue_record(self, data: bytes) -> None:
        """Gossips a record that this node wrote."""
        self._gossip.queue(data)

    # Gossip

    async def _take_records(self) -> None:
        async for forwarder, records in self._gossip.frames():
            await self.service.ingest(records, forwarder)

    async def _take_adverts(self) -> None:
        async for frame in self._adverts_in:
            try:
                self.adverts.offer_bytes(frame.data, self._given.clock.now_s())
            except RemoteError as error:
                self._log.info("advert_refused", forwarder=frame.forwarder.hex()[:8], reason=str(error))

    # Hello

    def _hello(self) -> Hello:
        ours = self._given.transport.addresses[:HELLO_ADDRESSES_MAX]
        known = [address for address in self.book.list() if address not in ours]
        return Hello(
            network=self._network,
            rules=RULES_VERSION,
            software=SOFTWARE,
            clock_s=self._given.clock.now_s(),
            listening=ours,
            known=tuple(known[:HELLO_ADDRESSES_MAX]),
        )

    async def _greet(self, peer: AccountId) -> Greeting | None:
        stream = await self._given.transport.open(peer, HELLO_PROTOCOL)
        async with FrameChannel(stream, frame_bytes_max=HELLO_FRAME_BYTES_MAX) as channel:
            try:
                theirs = await greet(channel, self._hello())
            except ExchangeError as error:
                self._log.info("hello_failed", peer=peer.hex()[:8], reason=str(error))
                return None
        return Greeting(addresses=(*theirs.listening, *theirs.known))

    async def _serve_hello(self, stream: Stream) -> None:
        channel = FrameChannel(stream, frame_bytes_max=HELLO_FRAME_BYTES_MAX)
        try:
            async with channel:
                await serve_hello(channel, self._hello())
        except DeniedError as error:
            await self.links.avoid(stream.remote, str(error))

    # Reconciliation

    def _records(self, peer: AccountId) -> _Records:
        assert self._holdings is not None, "attach comes first"
        return _Records(self.service, self._holdings, peer)

    async def _serve_sync(self, stream: Stream) -> None:
        async with FrameChannel(stream, frame_bytes_max=SYNC_FRAME_BYTES_MAX) as channel:
            await serve_sync(channel, self._records(stream.remote))

    async def _sync_with(self, peer: AccountId) -> None:
        """Sessions with one peer until both hold the same, or one of the bounds is reached."""
        try:
            with trio.fail_after(SYNC_S_MAX):
                for _ in range(SYNC_SESSIONS_MAX):
                    if await self._sync_once(peer):
                        break
        except ExchangeError as error:
            self._log.info("sync_failed", peer=peer.hex()[:8], reason=str(error), breach=error.is_breach)
            if error.is_breach:
                await self.links.avoid(peer, str(error))
        except (RemoteError, trio.TooSlowError) as error:
            self._log.info("sync_failed", peer=peer.hex()[:8], reason=str(error))
        else:
            self.synced.set()

    async def _sync_once(self, peer: AccountId) -> bool:
        """One session; False if a bound left more to sync. Raises `ExchangeError` where the peer lied."""
        salt = self._given.entropy.token(SALT_BYTES)
        stream = await self._given.transport.open(peer, SYNC_PROTOCOL)
        async with FrameChannel(stream, frame_bytes_max=SYNC_FRAME_BYTES_MAX) as channel:
            finish = await sync_with(channel, self._records(peer), salt)
        if finish.unanswered > UNANSWERED_MAX + finish.received:
            reason = f"it claimed {finish.unanswered} records that it did not give"
            raise ExchangeError(reason, is_breach=True)
        return finish.is_complete

    async def _sync_new_links(self) -> None:
        async for event in self.links.events():
            if isinstance(event, LinkUp):
                await self._sync_with(event.peer)

    async def _sync_by_turns(self) -> None:
        while True:
            await trio.sleep(SYNC_INTERVAL_S * self._rng.uniform(0.5, 1.5))
            peers = self.links.peers()
            if peers:
                await self._sync_with(self._rng.choice(peers).peer)

    async def _give_up_waiting(self) -> None:
        await trio.sleep(ALONE_S)
        if not self.links.peers():
            self.synced.set()

    # Blobs

    async def _serve_blobs(self, stream: Stream) -> None:
        async with FrameChannel(stream, frame_bytes_max=BLOB_FRAME_BYTES_MAX) as channel:
            await serve_blobs(channel, _Blobs(self._given.store))

    async def fetch_blobs(self, peer: AccountId, ids: Sequence[BlobId]) -> dict[BlobId, bytes]:
        """Those of `ids` that `peer` holds, checked against their hashes. Raises `RemoteError`."""
        found: dict[BlobId, bytes] = {}

        async def keep(ident: BlobId, data: bytes) -> None:
            found[ident] = data

        advert = self.adverts.get(peer, self._given.clock.now_s())
        await reach(self._given.transport, peer, advert.addresses if advert else ())
        stream = await self._given.transport.open(peer, BLOB_PROTOCOL)
        async with FrameChannel(stream, frame_bytes_max=BLOB_FRAME_BYTES_MAX) as channel:
            await fetch_blobs(channel, ids, keep)
        return found


@final
class _Records:
    """The ledger as a source for one reconciliation."""

    def __init__(self, service: LedgerService, holdings: Holdings, peer: AccountId) -> None:
        self._service = service
        self._holdings = holdings
        self._peer = peer

    def ids(self) -> IdSet:
        return self._holdings.ids()

    async def get(self, ids: Sequence[RecordId]) -> tuple[bytes, ...]:
        found = (self._service.record_bytes(ident) for ident in ids)
        return tuple(data for data in found if data is not None)

    async def deliver(self, records: tuple[bytes, ...]) -> None:
        await self._service.ingest(records, self._peer)


@final
class _Blobs:
    """The store as a source of blobs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, ident: BlobId) -> bytes | None:
        return await self._store.get_blob(ident)
