"""The executable rules (`ledger_model.py`), where they lie beside the checkout, and their records as ours."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gossip_ledger.amounts import apportion
from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.records import (
    NO_RECORD,
    AccountId,
    Ack,
    Bill,
    Body,
    Bond,
    Cluster,
    ClusterId,
    Collect,
    Entry,
    Manifest,
    ModelId,
    Open,
    Publish,
    Receipt,
    Record,
    RecordId,
    Release,
    Split,
    Transfer,
    Weight,
)
from gossip_ledger.signing import model_id, record_id

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "reference"
PARTS = ("worker", "creator", "data", "upkeep", "network")


def load(name: str) -> ModuleType:
    """A module of the reference folder; the folder is put on the path, for its modules import each other."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            spec.loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = written
    return sys.modules[name]


def name_bytes(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def account(name: str) -> AccountId:
    return AccountId(name_bytes(name))


class Translation:
    """One world's records as ours, and our names for its ids."""

    def __init__(self, model: ModuleType, genesis: Any) -> None:
        self.model = model
        self.genesis = Genesis(
            name="translated",
            unit="OPEN",
            start_s=0,
            epoch_s=600,
            grace_epochs=model.GRACE,
            allocations=tuple(
                Allocation(
                    account=account(name),
                    amount=vesting.amount,
                    start=vesting.start,
                    cliff=vesting.cliff,
                    duration=vesting.duration,
                    purpose="",
                )
                for name, vesting in genesis.allocations.items()
            ),
            witnesses=tuple(map(account, genesis.witnesses)),
            faulty=genesis.faulty,
            treasury=account(genesis.treasury),
            publish_fee=genesis.publish_fee,
        )
        self.network = network_id(self.genesis)
        self.ids: dict[str, bytes] = {"": NO_RECORD}
        self.records: dict[str, Record | Manifest] = {}

    def id(self, key: str) -> RecordId:
        """Our id of the model's; of one that was never seen, any 32 bytes."""
        return RecordId(self.ids.get(key, name_bytes(key)))

    def add(self, record: Any) -> Record | Manifest | None:
        """The record as ours, under our own id. None where it is malformed: it cannot even be said."""
        if not record.is_well_formed:
            return None
        if record.id not in self.records:
            ours = self.translate(record)
            key = model_id(ours) if isinstance(ours, Manifest) else record_id(ours, self.network)
            self.ids[record.id] = key
            self.records[record.id] = ours
        return self.records[record.id]

    def translate(self, record: Any) -> Record | Manifest:
        match type(record).__name__:
            case "Manifest":
                return self.manifest(record)
            case "Entry":
                return Entry(
                    author=account(record.author),
                    seq=record.seq,
                    prev=self.id(record.prev),
                    epoch=record.epoch,
                    body=self.body(record.body),
                )
            case "Receipt":
                return self.receipt(record)
            case "Release":
                return Release(author=account(record.payer), hold=self.id(record.hold), spent=record.spent)
            case _:
                ids = tuple(map(self.id, record.ids)) or (RecordId(name_bytes("nothing")),)
                return Ack(witness=account(record.witness), ids=ids)

    def manifest(self, record: Any) -> Manifest:
        return Manifest(
            creator=account(record.creator),
            name="m",
            version=0,
            kind="adapter",
            base=bytes(32),
            split=Split(**dict(zip(PARTS, record.split, strict=True))),
            clusters=tuple(
                Cluster(name=ClusterId(name_bytes(name)), owner=account(owner), prior=prior, label=name)
                for name, owner, prior in record.clusters
            ),
            files=(),
            tables=(),
            datanet=b"",
            licence="",
            about="",
        )

    def body(self, body: Any) -> Body:
        match type(body).__name__:
            case "Open":
                return Open(worker=account(body.worker), limit=body.limit, expiry=body.expiry)
            case "Bond":
                return Bond(limit=body.limit, expiry=body.expiry)
            case "Transfer":
                return Transfer(to=account(body.to), amount=body.amount)
            case "Collect":
                return Collect(cumulative=body.cumulative)
            case _:
                return Publish(
                    manifest=ModelId(self.id(body.manifest)),
                    successor_of=ModelId(self.id(body.successor_of)),
                    fee=body.fee,
                )

    def receipt(self, record: Any) -> Receipt:
        bill = Bill(
            payer=account(record.bill.payer),
            open=self.id(record.bill.open),
            ask=record.bill.ask,
            model=ModelId(self.id(record.bill.model)),
            quote=RecordId(bytes(32)),
            answers=1,
            tokens_in=0,
            tokens_out=0,
            fee=record.bill.fee,
            epoch=0,
            prompt_commit=bytes(32),
            output_commit=bytes(32),
        )
        return Receipt(
            worker=account(record.worker),
            n=record.n,
            prev=self.id(record.prev),
            cumulative=record.cumulative,
            bill=bill,
            evidence=tuple(
                Weight(cluster=ClusterId(name_bytes(name)), weight=weight) for name, weight in record.evidence
            ),
            sketch=b"",
        )

    def apportion(self, amount: int, weights: Mapping[str, int], salt: str) -> dict[str, int]:
        """The model's `apportion` with our order of ties, which hangs on our ids."""
        ours = {self.key(name): weight for name, weight in weights.items()}
        shares = apportion(amount, ours, self.id(salt))
        return {name: shares[self.key(name)] for name in weights}

    @staticmethod
    def key(name: str) -> bytes:
        return name.encode() if name in PARTS else name_bytes(name)
