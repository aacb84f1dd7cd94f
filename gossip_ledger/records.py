"""The records of the ledger, as frozen values, and their field tables.

A record is immutable and names its author; signatures travel beside it (`Signed`) and are no part of its
id. What a record may say in view of others is in `soundness.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NewType, final

from gossip_ledger.codec import Schema, Table, many, nested, octets, one_of, text, uint
from gossip_ledger.limits import (
    ACK_IDS_MAX,
    BASIS_POINTS,
    CHUNKS_MAX,
    CLUSTERS_MAX,
    EVIDENCE_PAIRS_MAX,
    FILES_MAX,
    MANIFEST_BYTES_MAX,
    RECORD_BYTES_MAX,
)

AccountId = NewType("AccountId", bytes)
"""An Ed25519 public key, 32 bytes. It is also the key of the node that owns the account."""
RecordId = NewType("RecordId", bytes)
"""SHA-256 over kind, network and canonical contents without signatures, 32 bytes."""
ModelId = NewType("ModelId", bytes)
"""The id of a manifest, 32 bytes."""
BlobId = NewType("BlobId", bytes)
"""Plain SHA-256 of a blob's bytes, 32 bytes."""
NetworkId = NewType("NetworkId", bytes)
"""The id of a genesis, 32 bytes."""
Signature = NewType("Signature", bytes)
"""An Ed25519 signature, 64 bytes."""
ClusterId = NewType("ClusterId", bytes)
"""The name of a cluster of near-duplicate shards, 32 bytes."""
MicroUnits = int
"""Money: an integer number of millionths of the genesis' unit, 0 .. 2^63-1."""

NO_RECORD = RecordId(b"")
"""Where a chain begins: the `prev` of an account's first entry."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Reserves `limit` of the author's balance for one worker until `expiry`."""

    worker: AccountId
    limit: MicroUnits
    expiry: int
    """Epoch after which (plus grace) the rest may be released."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bond:
    """A stake of the author, held until `expiry` and burned if the author equivocates."""

    limit: MicroUnits
    expiry: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Moves `amount` to the entitlement of `to`."""

    to: AccountId
    amount: MicroUnits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Makes entitlement up to `cumulative` (all collected so far, this one included) spendable."""

    cumulative: MicroUnits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Registers a manifest and pays the fee for it."""

    manifest: ModelId
    successor_of: ModelId
    """The model this one follows; empty for none."""
    fee: MicroUnits


Body = Open | Bond | Transfer | Collect | Publish


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One link of its author's chain. Its slot is (author, seq)."""

    author: AccountId
    seq: int
    """From 1."""
    prev: RecordId
    """The id of seq - 1; empty for the first."""
    epoch: int
    """Declared by the author; never falls along a chain."""
    body: Body


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What the payer agrees to owe for one tab so far; it rises while answers stream. Signed by the payer."""

    payer: AccountId
    open: RecordId
    ask: int
    """Random 63-bit number of the tab, used once under its open."""
    model: ModelId
    quote: RecordId
    """The signed quote that fixes the prices."""
    answers: int
    """How many answers share this bill, >= 1."""
    tokens_in: int
    tokens_out: int
    fee: MicroUnits
    epoch: int
    prompt_commit: bytes
    """SHA-256 over salt and prompt tokens, 32 bytes."""
    output_commit: bytes
    """SHA-256 over salt and the output tokens so far, 32 bytes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How much one cluster shaped an answer, relative to the other pairs of the receipt."""

    cluster: ClusterId
    weight: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A bill countersigned by the worker. Its slot is (open, n); receipts chain under their open."""

    worker: AccountId
    n: int
    """From 1, under its open."""
    prev: RecordId
    """The id of n - 1; the open's id for the first."""
    cumulative: MicroUnits
    """All fees of this open, this receipt included."""
    bill: Bill
    evidence: tuple[Weight, ...]
    """Empty: the manifest's priors decide."""
    sketch: bytes
    """The id of the evidence blob, or empty. Touches no money."""

    def __post_init__(self) -> None:
        names = [pair.cluster for pair in self.evidence]
        if len(set(names)) != len(names):
            raise ValueError("evidence names a cluster twice")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The author of a hold lowers its limit to `spent`. In no chain."""

    author: AccountId
    hold: RecordId
    spent: MicroUnits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A witness holds these records and found them sound."""

    witness: AccountId
    ids: tuple[RecordId, ...]


Record = Entry | Receipt | Release | Ack


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A record and its signatures: the author's; a receipt has its payer's (over the bill) first."""

    record: Record
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        if len(self.signatures) != (2 if isinstance(self.record, Receipt) else 1):
            raise ValueError("wrong number of signatures")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a fee is divided, in basis points that add up to 10,000."""

    worker: int
    creator: int
    data: int
    upkeep: int
    network: int

    def __post_init__(self) -> None:
        if self.worker + self.creator + self.data + self.upkeep + self.network != BASIS_POINTS:
            raise ValueError("the split must add up to 10000 basis points")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Near-duplicate shards as one payee."""

    name: ClusterId
    owner: AccountId
    prior: int
    """Relative weight where an answer shows no signal."""
    label: str
    """For people only."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as a list of blobs; concatenated they are the file."""

    name: str
    size: int
    chunks: tuple[BlobId, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A model's terms and contents. Unsigned: its id is its authority.

    No slots: the two tables that every receipt is read with are made once and kept.
    """

    creator: AccountId
    name: str
    version: int
    kind: str
    """`base` or `adapter`."""
    base: bytes
    """The base identity that it runs on, 32 bytes."""
    split: Split
    clusters: tuple[Cluster, ...]
    files: tuple[File, ...]
    """Adapter: weights and configuration. Base: tokenizer, template, configuration, no weights."""
    tables: tuple[File, ...]
    """Attribution tables, in the order of their signals; may be empty."""
    datanet: bytes
    """The id of the datanet it was trained on, or empty."""
    licence: str
    about: str
    """For people and auditors: recipe, sources, authors. JSON."""

    def __post_init__(self) -> None:
        names = [cluster.name for cluster in self.clusters]
        if len(set(names)) != len(names):
            raise ValueError("a cluster is named twice")
        if self.split.data and not sum(cluster.prior for cluster in self.clusters):
            raise ValueError("a data share needs a positive prior")
        if self.kind not in ("base", "adapter"):
            raise ValueError("kind must be base or adapter")

    @cached_property
    def owners(self) -> Mapping[ClusterId, AccountId]:
        """Who is paid for each cluster."""
        return {cluster.name: cluster.owner for cluster in self.clusters}

    @cached_property
    def priors(self) -> Mapping[ClusterId, int]:
        """The weight of each cluster where an answer shows no signal."""
        return {cluster.name: cluster.prior for cluster in self.clusters}


_account = octets(32)
_id = octets(32)
_id_or_none = octets(32, or_empty=True)
_amount = uint()

OPEN = Table(1, Open, (("worker", _account), ("limit", _amount), ("expiry", uint())))
BOND = Table(2, Bond, (("limit", _amount), ("expiry", uint())))
TRANSFER = Table(3, Transfer, (("to", _account), ("amount", _amount)))
COLLECT = Table(4, Collect, (("cumulative", _amount),))
PUBLISH = Table(5, Publish, (("manifest", _id), ("successor_of", _id_or_none), ("fee", _amount)))
ENTRY = Table(
    10,
    Entry,
    (
        ("author", _account),
        ("seq", uint(minimum=1)),
        ("prev", _id_or_none),
        ("epoch", uint()),
        ("body", one_of(OPEN, BOND, TRANSFER, COLLECT, PUBLISH)),
    ),
)
BILL = Table(
    11,
    Bill,
    (
        ("payer", _account),
        ("open", _id),
        ("ask", uint()),
        ("model", _id),
        ("quote", _id),
        ("answers", uint(minimum=1)),
        ("tokens_in", uint()),
        ("tokens_out", uint()),
        ("fee", _amount),
        ("epoch", uint()),
        ("prompt_commit", octets(32)),
        ("output_commit", octets(32)),
    ),
)
WEIGHT = Table(12, Weight, (("cluster", _id), ("weight", uint(minimum=1))))
RECEIPT = Table(
    13,
    Receipt,
    (
        ("worker", _account),
        ("n", uint(minimum=1)),
        ("prev", _id),
        ("cumulative", _amount),
        ("bill", nested(BILL)),
        ("evidence", many(nested(WEIGHT), EVIDENCE_PAIRS_MAX)),
        ("sketch", _id_or_none),
    ),
)
RELEASE = Table(14, Release, (("author", _account), ("hold", _id), ("spent", _amount)))
ACK = Table(15, Ack, (("witness", _account), ("ids", many(_id, ACK_IDS_MAX, minimum=1))))
SIGNED = Table(
    20,
    Signed,
    (
        ("record", one_of(ENTRY, RECEIPT, RELEASE, ACK)),
        ("signatures", many(octets(64), 2, minimum=1)),
    ),
)
_basis_points = uint(BASIS_POINTS)
SPLIT = Table(
    30,
    Split,
    tuple((name, _basis_points) for name in ("worker", "creator", "data", "upkeep", "network")),
)
CLUSTER = Table(31, Cluster, (("name", _id), ("owner", _account), ("prior", uint()), ("label", text(96))))
FILE = Table(32, File, (("name", text(96)), ("size", uint()), ("chunks", many(_id, CHUNKS_MAX))))
MANIFEST = Table(
    33,
    Manifest,
    (
        ("creator", _account),
        ("name", text(64)),
        ("version", uint()),
        ("kind", text(16)),
        ("base", _id),
        ("split", nested(SPLIT)),
        ("clusters", many(nested(CLUSTER), CLUSTERS_MAX)),
        ("files", many(nested(FILE), FILES_MAX)),
        ("tables", many(nested(FILE), FILES_MAX)),
        ("datanet", _id_or_none),
        ("licence", text(256)),
        ("about", text(16384)),
    ),
)

RECORDS = Schema(ENTRY, RECEIPT, RELEASE, ACK, bytes_max=RECORD_BYTES_MAX)
"""Record bodies without signatures: what ids and signatures are taken over."""
BILLS = Schema(BILL, bytes_max=RECORD_BYTES_MAX)
"""Bills on their own: what the payer signs."""
SIGNED_RECORDS = Schema(SIGNED, bytes_max=RECORD_BYTES_MAX)
"""Signed records: what travels and is stored."""
MANIFESTS = Schema(MANIFEST, bytes_max=MANIFEST_BYTES_MAX)
"""Manifests: blobs. A model id is the plain SHA-256 of these bytes, so it is fetched like any blob."""
