"""Keys, a small network and well-formed records to vary."""

from __future__ import annotations

from dataclasses import replace

from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.ledger import Ledger
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
    Signature,
    Signed,
    Split,
    Transfer,
    Weight,
)
from gossip_ledger.signing import countersign, model_id, record_id, sign_bill, sign_record


class Key:
    """A signer made from a name."""

    def __init__(self, name: str) -> None:
        public, self._secret = crypto_sign_seed_keypair(name.encode().ljust(32, b"."))
        self.account = AccountId(public)

    def sign(self, message: bytes) -> Signature:
        return Signature(crypto_sign(message, self._secret)[:64])


PAYER, WORKER, CREATOR, OWNER, TREASURY = map(Key, ("payer", "worker", "creator", "owner", "treasury"))
WITNESSES = tuple(Key(f"witness {i}") for i in range(4))
KEYS = {key.account: key for key in (PAYER, WORKER, CREATOR, OWNER, TREASURY, *WITNESSES)}


def grant(account: AccountId, amount: int, start: int = 0, cliff: int = 0, duration: int = 0) -> Allocation:
    return Allocation(
        account=account, amount=amount, start=start, cliff=cliff, duration=duration, purpose="test"
    )


GENESIS = Genesis(
    name="test network",
    unit="OPEN",
    start_s=1_700_000_000,
    epoch_s=600,
    grace_epochs=2,
    allocations=(grant(PAYER.account, 10_000), grant(CREATOR.account, 100), grant(WORKER.account, 50)),
    witnesses=tuple(witness.account for witness in WITNESSES),
    faulty=1,
    treasury=TREASURY.account,
    publish_fee=5,
)
NETWORK = network_id(GENESIS)
OTHER_NETWORK = network_id(replace(GENESIS, name="another network"))

SPLIT = Split(worker=6000, creator=1000, data=1500, upkeep=1000, network=500)


def cluster(name: str, owner: AccountId = OWNER.account, prior: int = 1) -> Cluster:
    return Cluster(name=ClusterId(name.encode().ljust(32, b".")), owner=owner, prior=prior, label=name)


MANIFEST = Manifest(
    creator=CREATOR.account,
    name="speeches",
    version=1,
    kind="adapter",
    base=b"base".ljust(32, b"."),
    split=SPLIT,
    clusters=(cluster("one"), cluster("two", PAYER.account, 3)),
    files=(),
    tables=(),
    datanet=b"",
    licence="CC0-1.0",
    about="{}",
)
MODEL = model_id(MANIFEST)


def entry(author: Key, body: Body, seq: int = 1, prev: RecordId = NO_RECORD, epoch: int = 0) -> Entry:
    return Entry(author=author.account, seq=seq, prev=prev, epoch=epoch, body=body)


def open_body(limit: int = 1000, expiry: int = 5) -> Open:
    return Open(worker=WORKER.account, limit=limit, expiry=expiry)


def bill(open_id: RecordId, fee: int = 70, ask: int = 9, model: ModelId = MODEL) -> Bill:
    return Bill(
        payer=PAYER.account,
        open=open_id,
        ask=ask,
        model=model,
        quote=RecordId(b"quote".ljust(32, b".")),
        answers=1,
        tokens_in=12,
        tokens_out=34,
        fee=fee,
        epoch=1,
        prompt_commit=b"p" * 32,
        output_commit=b"o" * 32,
    )


def receipt(open_id: RecordId, fee: int = 70, ask: int = 9, **changes: object) -> Receipt:
    """The first receipt under an open, unless `changes` say otherwise."""
    first = Receipt(
        worker=WORKER.account,
        n=1,
        prev=open_id,
        cumulative=fee,
        bill=bill(open_id, fee, ask),
        evidence=(Weight(cluster=cluster("one").name, weight=2),),
        sketch=b"",
    )
    return replace(first, **changes)  # pyright: ignore[reportArgumentType]


def sign(record: Record) -> Signed:
    """The record signed by whoever it names."""
    if isinstance(record, Receipt):
        payer = sign_bill(record.bill, KEYS[record.bill.payer], NETWORK)
        return countersign(record, payer, KEYS[record.worker], NETWORK)
    author = record.witness if isinstance(record, Ack) else record.author
    return sign_record(record, KEYS[author], NETWORK)


def put(ledger: Ledger, record: Record) -> RecordId:
    """Signs a record and adds it."""
    key = record_id(record, NETWORK)
    ledger.add(sign(record), key)
    return key


def certify(ledger: Ledger, *keys: RecordId, witnesses: int = 3) -> None:
    """As many witnesses ack the ids."""
    for witness in WITNESSES[:witnesses]:
        put(ledger, Ack(witness=witness.account, ids=keys))


def put_final(ledger: Ledger, record: Record) -> RecordId:
    """Adds a record that a quorum acked."""
    key = put(ledger, record)
    certify(ledger, key)
    return key


ID = RecordId(b"some id".ljust(32, b"."))
EXAMPLES: tuple[Record, ...] = (
    entry(PAYER, open_body()),
    entry(PAYER, Bond(limit=3, expiry=2**63 - 1), seq=2, prev=ID, epoch=7),
    entry(PAYER, Transfer(to=OWNER.account, amount=2**63 - 1), seq=24, prev=ID),
    entry(OWNER, Collect(cumulative=23)),
    entry(CREATOR, Publish(manifest=MODEL, successor_of=ModelId(b""), fee=5)),
    entry(CREATOR, Publish(manifest=MODEL, successor_of=ModelId(ID), fee=256)),
    receipt(ID),
    receipt(ID, n=2, evidence=(), sketch=b"s" * 32, cumulative=65536),
    Release(author=PAYER.account, hold=ID, spent=0),
    Ack(witness=WITNESSES[0].account, ids=(ID, RecordId(bytes(32)))),
)
"""A record of every shape."""
