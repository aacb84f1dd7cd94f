"""The ledger of a running node: one way in, durable before it counts, and a bell when it changed.

`ingest` is the only door for records, whoever they come from. A record is decoded, verified, stored, and
only then added to the projection; so what this node tells others about, it can still tell after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import structlog
import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.genesis import Genesis, network_id
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    MANIFESTS,
    SIGNED_RECORDS,
    AccountId,
    BlobId,
    Manifest,
    ModelId,
    NetworkId,
    RecordId,
    Signed,
)
from gossip_ledger.signing import blob_id, record_id, record_kind, verify_signed
from peer.bell import Bell
from peer.store import Put, Store

VERIFY_BATCH = 32
"""Records verified between two chances for other tasks to run: about 3 ms."""


_Fresh = tuple[RecordId, Signed, bytes]
"""A verified record that is not held yet: its id, itself and how it travels."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What became of a batch."""

    new: tuple[RecordId, ...]
    known: int
    refused: tuple[str, ...]
    """A reason for each record that broke a rule."""


@final
class LedgerService:
    """Owns the projection and its storage. `on_own` hears of records this node wrote itself."""

    def __init__(self, *, genesis: Genesis, store: Store, on_own: Callable[[bytes], None]) -> None:
        self.genesis = genesis
        self.network: NetworkId = network_id(genesis)
        self.ledger = Ledger(genesis)
        self.changed = Bell()
        self._store = store
        self._on_own = on_own
        self._arriving: set[RecordId] = set()
        self._log = structlog.get_logger("ledger")

    async def load(self) -> int:
        """Rebuilds the projection from records verified on arrival; returns their number."""
        held: list[tuple[RecordId, Signed]] = []
        async for ident, _kind, data in self._store.load_records():
            held.append((RecordId(ident), SIGNED_RECORDS.decode(data)))
            if len(held) % VERIFY_BATCH == 0:
                await trio.lowlevel.checkpoint()
        self.ledger.add_all(held)  # acks first, so that nothing certified falls to the bounds on the rest
        for wanted in tuple(self.ledger.wanted_manifests()):
            data = await self._store.get_blob(manifest_blob(wanted))
            if data is not None:
                self.ledger.add_manifest(MANIFESTS.decode(data))
        self.ledger.take_finalized()
        self.changed.ring()
        return len(held)

    async def ingest(self, items: Sequence[bytes], source: AccountId | None) -> Ingested:
        """Takes in signed records. Broken ones are refused with a reason, the others durable on return."""
        fresh: list[_Fresh] = []
        refused: list[str] = []
        known = 0
        try:
            for index, data in enumerate(items, 1):
                try:
                    found = self._judge(data)
                except RemoteError as error:
                    refused.append(str(error))
                else:
                    if found is None:
                        known += 1
                    else:
                        fresh.append((*found, data))
                        self._arriving.add(found[0])
                if index % VERIFY_BATCH == 0:
                    await trio.lowlevel.checkpoint()
            new = await self._keep(fresh)
        finally:
            self._arriving.difference_update(ident for ident, _, _ in fresh)
        if refused:
            self._log.warning("records_refused", count=len(refused), first=refused[0], source=_short(source))
        return Ingested(new=new, known=known, refused=tuple(refused))

    def _judge(self, data: bytes) -> tuple[RecordId, Signed] | None:
        signed = SIGNED_RECORDS.decode(data)
        ident = record_id(signed.record, self.network)
        if ident in self._arriving or self.ledger.has(ident):
            return None
        reason = self.ledger.may_add(signed)
        if reason:
            raise RemoteError(reason)
        verify_signed(signed, self.network)
        return ident, signed

    async def _keep(self, fresh: Sequence[_Fresh], puts: Sequence[Put] = ()) -> tuple[RecordId, ...]:
        """Stores, then shows. Cancelling cannot part the two: an author whose entry is on disk and not in
        the projection would sign another one at its place.
        """
        if not fresh:
            return ()
        rows = [(ident, record_kind(signed.record), data) for ident, signed, data in fresh]
        with trio.CancelScope(shield=True):
            await self._store.transact(puts, rows)
        added = tuple(ident for ident, signed, _ in fresh if self.ledger.add(signed, ident))
        self.changed.ring()
        return added

    async def append_own(self, *records: Signed, puts: Sequence[Put] = ()) -> tuple[RecordId, ...]:
        """Stores records that this node signed, all or none, then hands them to gossip.

        Durable before anybody sees them, and with them `puts`: what the books say because of them.
        """
        fresh = [
            (record_id(signed.record, self.network), signed, SIGNED_RECORDS.encode(signed))
            for signed in records
        ]
        await self._keep(fresh, puts)
        for _, _, data in fresh:
            self._on_own(data)
        return tuple(ident for ident, _, _ in fresh)

    async def add_manifest(self, data: bytes) -> Manifest:
        """Takes in a manifest's canonical bytes. Raises `DecodeError`."""
        manifest: Manifest = MANIFESTS.decode(data)
        await self._store.put_blobs([(blob_id(data), data)])
        self.ledger.add_manifest(manifest)
        self.changed.ring()
        return manifest

    def record_bytes(self, ident: RecordId) -> bytes | None:
        """The signed record as it travels."""
        signed = self.ledger.get(ident)
        return None if signed is None else SIGNED_RECORDS.encode(signed)

    def epoch(self, now_s: int) -> int:
        return self.genesis.epoch_at(now_s)

    async def wait_final(self, ident: RecordId) -> None:
        """Returns once the record is final. The caller sets the deadline."""
        await self.wait_until(lambda: self.ledger.is_final(ident))

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds; it is looked at after every change."""
        seen = self.changed.count
        while not condition():
            seen = await self.changed.wait(seen)


def manifest_blob(model: ModelId) -> BlobId:
    """A model id is the id of its manifest's blob."""
    return BlobId(model)


def _short(account: AccountId | None) -> str:
    return "self" if account is None else account.hex()[:8]
