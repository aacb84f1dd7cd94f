"""The set of records held, indexed: by slot, by hold, by what was acked, by the manifests they name.

It knows which records are certified, and keeps what nobody certified within bounds. What records mean
together is in `finality.py` and `money.py`.

**Bounds.** Of one author's records that no quorum acked, only the first `UNCERTIFIED_*_MAX` are kept, in the
order of (place in the chain, acked or not, id). That order depends on the set alone, so two peers who hold
the same records keep the same ones; and dropping what is not certified changes nothing that is final. A
dropped record may be offered again, and stays once enough before it is certified.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, final

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.limits import (
    UNCERTIFIED_ENTRIES_MAX,
    UNCERTIFIED_RECEIPTS_MAX,
    UNCERTIFIED_RELEASES_MAX,
)
from gossip_ledger.records import (
    AccountId,
    Ack,
    Entry,
    Manifest,
    ModelId,
    Publish,
    Receipt,
    Record,
    RecordId,
    Release,
    Signed,
)
from gossip_ledger.signing import author_of, model_id
from gossip_ledger.soundness import check_manifest
from gossip_ledger.state import Fork

_UNCERTIFIED_MAX: Final[dict[type, int]] = {
    Entry: UNCERTIFIED_ENTRIES_MAX,
    Receipt: UNCERTIFIED_RECEIPTS_MAX,
    Release: UNCERTIFIED_RELEASES_MAX,
}

Ids = tuple[RecordId, ...]
Slots = dict[int, Ids]


@final
class RecordIndex:
    """A grow-only set, save for the bounds above. Records come verified; ids come with them."""

    def __init__(self, genesis: Genesis) -> None:
        self._quorum = genesis.quorum
        self._genesis = genesis
        self._bit = {witness: 1 << place for place, witness in enumerate(genesis.witnesses)}
        self.signed: dict[RecordId, Signed] = {}
        self.manifests: dict[ModelId, Manifest] = {}
        self.entries: dict[AccountId, Slots] = {}
        self.receipts: dict[RecordId, Slots] = {}
        """By open."""
        self.releases: dict[RecordId, Ids] = {}
        """By hold."""
        self._acked_by: dict[RecordId, int] = {}
        """One bit for each witness; also for records that are not held."""
        self._forked: dict[AccountId, set[int]] = {}
        self._naming: dict[ModelId, set[RecordId]] = defaultdict(set)
        """Records that wait for a manifest."""
        self._foreign: set[ModelId] = set()
        """Manifests that this network does not allow: held by nobody, wanted by nobody."""
        self._uncertified: dict[tuple[AccountId, type], set[RecordId]] = defaultdict(set)
        self._dropped: list[tuple[RecordId, Signed]] = []

    def record(self, key: RecordId) -> Record:
        """A record that is held."""
        return self.signed[key].record

    def is_certified(self, key: RecordId) -> bool:
        """Whether a quorum acked it. Also asked of records that are not held."""
        return self._acked_by.get(key, 0).bit_count() >= self._quorum

    def ack_count(self, key: RecordId) -> int:
        """How many witnesses acked it."""
        return self._acked_by.get(key, 0).bit_count()

    def by_acks(self, keys: Ids) -> Ids:
        """The better acked first, then the smaller id."""
        if len(keys) < 2:
            return keys
        return tuple(sorted(keys, key=lambda key: (-self.ack_count(key), key)))

    def manifest_held(self, record: Record) -> bool:
        """Whether the manifest that a record names, if any, is held."""
        model = model_named(record)
        return model is None or model in self.manifests

    @property
    def forked(self) -> frozenset[AccountId]:
        """The equivocators."""
        return frozenset(self._forked)

    def is_forked(self, author: AccountId) -> bool:
        """Whether two entries at one of the author's slots are held."""
        return author in self._forked

    def forks(self) -> Iterator[Fork]:
        """A proof for each equivocator."""
        for author in sorted(self._forked):
            seq = min(self._forked[author])
            first, second, *_ = sorted(self.entries[author][seq])
            yield Fork(author=author, seq=seq, ids=(first, second))

    def wanted(self) -> frozenset[ModelId]:
        """Manifests that held records name and that are not held."""
        return frozenset(model for model, keys in self._naming.items() if keys and model not in self._foreign)

    def may_add(self, record: Record) -> str:
        """Why a record has no place here, or nothing."""
        if isinstance(record, Ack) and record.witness not in self._bit:
            return "an ack by an account that is no witness of this network"
        return ""

    def add(self, signed: Signed, key: RecordId) -> bool:
        """Puts one verified record in. False if it was there, or has no place."""
        record = signed.record
        if key in self.signed or self.may_add(record):
            return False
        self.signed[key] = signed
        match record:
            case Entry():
                self._put_entry(record, key)
            case Receipt():
                _put(self.receipts.setdefault(record.bill.open, {}), record.n, key)
            case Release():
                self.releases[record.hold] = (*self.releases.get(record.hold, ()), key)
            case Ack():
                return True
        model = model_named(record)
        if model is not None and model not in self.manifests:
            self._naming[model].add(key)
        if not self.is_certified(key):
            self._bound(author_of(record), type(record), key)
        return key in self.signed

    def _put_entry(self, entry: Entry, key: RecordId) -> None:
        slots = self.entries.setdefault(entry.author, {})
        if len(_put(slots, entry.seq, key)) > 1:
            self._forked.setdefault(entry.author, set()).add(entry.seq)

    def acknowledge(self, ack: Ack) -> tuple[RecordId, ...]:
        """Counts an ack. Returns the records, held or not, that became certified by it."""
        bit, certified = self._bit[ack.witness], list[RecordId]()
        for key in ack.ids:
            before = self._acked_by.get(key, 0)
            after = self._acked_by[key] = before | bit
            if before.bit_count() < self._quorum <= after.bit_count():
                certified.append(key)
                if key in self.signed:
                    record = self.record(key)
                    self._uncertified[author_of(record), type(record)].discard(key)
        return tuple(certified)

    def add_manifest(self, manifest: Manifest) -> tuple[ModelId, tuple[RecordId, ...]]:
        """Puts a manifest in. Returns its id and the records that waited for it."""
        model = model_id(manifest)
        if model in self.manifests:
            return model, ()
        try:
            check_manifest(manifest, self._genesis)
        except UnsoundError:
            if model in self._naming:
                self._foreign.add(model)
            return model, ()
        self.manifests[model] = manifest
        return model, tuple(self._naming.pop(model, ()))

    def take_dropped(self) -> list[tuple[RecordId, Signed]]:
        """What the bounds pushed out since the last call."""
        taken, self._dropped = self._dropped, []
        return taken

    def _bound(self, author: AccountId, kind: type, key: RecordId) -> None:
        """Counts an uncertified record, and drops the last one if there are too many."""
        keys = self._uncertified[author, kind]
        keys.add(key)
        if len(keys) > _UNCERTIFIED_MAX[kind]:
            self._drop(max(keys, key=self._rank))

    def _rank(self, key: RecordId) -> tuple[int, bool, RecordId]:
        record = self.record(key)
        place = record.seq if isinstance(record, Entry) else record.n if isinstance(record, Receipt) else 0
        return place, key not in self._acked_by, key

    def _drop(self, key: RecordId) -> None:
        signed = self.signed.pop(key)
        self._dropped.append((key, signed))
        record = signed.record
        self._uncertified[author_of(record), type(record)].discard(key)
        model = model_named(record)
        if model is not None and model in self._naming:
            self._naming[model].discard(key)
        match record:
            case Entry(author=author, seq=seq):
                if len(_take(self.entries[author], seq, key)) == 1 and author in self._forked:
                    self._forked[author].discard(seq)
                    if not self._forked[author]:
                        del self._forked[author]
            case Receipt():
                _take(self.receipts[record.bill.open], record.n, key)
            case Release(hold=hold):
                self.releases[hold] = tuple(other for other in self.releases[hold] if other != key)
            case Ack():
                raise AssertionError("acks are never dropped")


def model_named(record: Record) -> ModelId | None:
    """The manifest that must be held before the record can be final, if any."""
    match record:
        case Receipt(bill=bill):
            return bill.model
        case Entry(body=Publish(manifest=model)):
            return model
        case _:
            return None


def _put(slots: Slots, place: int, key: RecordId) -> Ids:
    slots[place] = (*slots.get(place, ()), key)
    return slots[place]


def _take(slots: Slots, place: int, key: RecordId) -> Ids:
    left = tuple(other for other in slots[place] if other != key)
    if left:
        slots[place] = left
    else:
        del slots[place]
    return left
