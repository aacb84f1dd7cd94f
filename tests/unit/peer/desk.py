"""Books over a real ledger, with a witness on call, a clock that is moved by hand, and a disk that fails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any, final

import trio

from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.records import (
    MANIFESTS,
    SIGNED_RECORDS,
    Ack,
    BlobId,
    Cluster,
    ClusterId,
    Entry,
    Manifest,
    ModelId,
    RecordId,
    Release,
    Signed,
    Split,
    Weight,
)
from gossip_ledger.signing import sign_record
from gossip_ledger.witness import WitnessMemory, WitnessPolicy, acks
from peer.author import Author
from peer.capabilities import SeededEntropy
from peer.keys import SeedSigner
from peer.ledger_service import LedgerService
from peer.rows import TabRow
from peer.store import MemoryStore, Put, RecordRow
from peer.till import Till
from peer.wallet import Wallet

START_S = 1_700_000_000
EPOCH_S = 600
GRACE_EPOCHS = 2
FUNDS = 10_000
EXPOSURE = 500


def person(name: str) -> SeedSigner:
    """A signer made from a name."""
    return SeedSigner(hashlib.sha256(name.encode()).digest())


PAYER, WORKER, OTHER, CREATOR, WITNESS = map(person, ("payer", "worker", "other", "creator", "witness"))


def make_genesis(**changes: Any) -> Genesis:
    """One witness, and money for payer and creator."""
    fields: dict[str, Any] = {
        "name": "desk",
        "unit": "OPEN",
        "start_s": START_S,
        "epoch_s": EPOCH_S,
        "grace_epochs": GRACE_EPOCHS,
        "allocations": tuple(
            Allocation(account=holder.account, amount=FUNDS, start=0, cliff=0, duration=0, purpose="test")
            for holder in (PAYER, CREATOR)
        ),
        "witnesses": (WITNESS.account,),
        "faulty": 0,
        "treasury": person("treasury").account,
        "publish_fee": 0,
    }
    return Genesis(**(fields | changes))


GENESIS = make_genesis()
NETWORK = network_id(GENESIS)
MANIFEST = Manifest(
    creator=CREATOR.account,
    name="speeches",
    version=1,
    kind="adapter",
    base=b"b" * 32,
    split=Split(worker=6000, creator=1000, data=1500, upkeep=1000, network=500),
    clusters=(Cluster(name=ClusterId(b"c" * 32), owner=OTHER.account, prior=1, label="one"),),
    files=(),
    tables=(),
    datanet=b"",
    licence="CC0-1.0",
    about="{}",
)
MANIFEST_BYTES = MANIFESTS.encode(MANIFEST)
MODEL = ModelId(hashlib.sha256(MANIFEST_BYTES).digest())


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0

    def monotonic(self) -> float:
        return float(self.seconds)

    def now_s(self) -> int:
        return START_S + self.seconds

    def pass_epochs(self, count: int) -> None:
        self.seconds += count * EPOCH_S


class Crash(BaseException):
    """The power fails. Nothing in the node may catch it."""


@final
class FragileStore:
    """A memory store at whose writes the power may fail, or the caller be cancelled: before one, or after."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.writes_left: int | None = None
        """Writes until it happens; None: it does not."""
        self.is_after = False
        self.scope: trio.CancelScope | None = None
        """Cancelled instead of a crash."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def fail_at(self, write: int, *, is_after: bool, scope: trio.CancelScope | None = None) -> None:
        self.writes_left, self.is_after, self.scope = write, is_after, scope

    async def transact(self, puts: Sequence[Put], records: Sequence[RecordRow] = ()) -> None:
        is_now = self.writes_left == 0
        if self.writes_left is not None:
            self.writes_left = None if is_now else self.writes_left - 1
        if is_now and not self.is_after:
            self._fail()
        await self.inner.transact(puts, records)
        if is_now and self.is_after:
            self._fail()
        await trio.lowlevel.checkpoint()

    def _fail(self) -> None:
        if self.scope is None:
            raise Crash
        self.scope.cancel()


async def attribute(row: TabRow) -> tuple[tuple[Weight, ...], BlobId, bytes]:
    """No evidence: payment by priors."""
    await trio.lowlevel.checkpoint()
    blob = repr(row.output).encode()
    return (), BlobId(hashlib.sha256(blob).digest()), blob


@final
class Desk:
    """A payer's and a worker's books over one ledger and one store. `Desk(store=old.store)` is a restart."""

    def __init__(self, *, store: Any = None, clock: HandClock | None = None, seed: int = 1) -> None:
        self.store: Any = MemoryStore() if store is None else store
        self.clock = HandClock() if clock is None else clock
        self.gossiped: list[bytes] = []
        self.service = LedgerService(genesis=GENESIS, store=self.store, on_own=self.gossiped.append)
        self.author = Author(service=self.service, signer=PAYER, clock=self.clock)
        self.wallet = Wallet(
            service=self.service,
            author=self.author,
            account=PAYER.account,
            store=self.store,
            clock=self.clock,
            entropy=SeededEntropy(Random(seed)),
        )
        self.till = Till(
            service=self.service,
            signer=WORKER,
            store=self.store,
            clock=self.clock,
            attribute=attribute,
            exposure=EXPOSURE,
        )
        self._memory = WitnessMemory()

    async def load(self) -> Desk:
        await self.service.load()
        await self.service.add_manifest(MANIFEST_BYTES)
        await self.wallet.load()
        await self.till.load()
        return self

    async def witness(self) -> int:
        """Everything that an honest witness would acknowledge now becomes final. Returns how many records."""
        count = 0
        while True:
            ledger = self.service.ledger
            step = WitnessPolicy(GENESIS).step(
                ledger, self._memory, self.service.epoch(self.clock.now_s()), ledger.unfinished()
            )
            if not step.batch:
                return count
            self._memory.keep(step.promises)
            await self.take(*acks(WITNESS.account, step.batch), by=WITNESS)
            count += len(step.batch)

    async def take(self, *records: Entry | Release | Ack, by: SeedSigner) -> tuple[RecordId, ...]:
        """Records of somebody else arrive."""
        signed = [SIGNED_RECORDS.encode(sign_record(record, by, NETWORK)) for record in records]
        found = await self.service.ingest(signed, by.account)
        assert not found.refused, found.refused
        return found.new

    def records(self) -> list[Signed]:
        """All that was ever stored."""
        return [SIGNED_RECORDS.decode(data) for _, _, data in self.store.read_records()]
