"""Receipts and publishes as lists, in an order that depends on the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gossip_ledger.finality import Finality
from gossip_ledger.genesis import Genesis
from gossip_ledger.index import RecordIndex
from gossip_ledger.payout import shares
from gossip_ledger.records import AccountId, Entry, Publish, Receipt, RecordId
from gossip_ledger.state import Publication

Receipts = tuple[tuple[RecordId, Receipt], ...]


def all_receipts(index: RecordIndex) -> Receipts:
    """All receipts held, final and pending."""
    return _in_order(_receipts(index))


def receipts_of(account: AccountId, index: RecordIndex, finality: Finality, genesis: Genesis) -> Receipts:
    """Receipts that an account paid for, served, or has a part in other than the network's.

    Final ones by index; pending ones are read through.
    """
    found = dict[RecordId, Receipt]()
    for key in finality.money.receipts_of(account):
        record = index.record(key)
        assert isinstance(record, Receipt)
        found[key] = record
    for key in finality.unfinished:
        record = index.record(key)
        if isinstance(record, Receipt) and _takes_part(account, key, record, index, genesis):
            found[key] = record
    return _in_order(found.items())


def receipts_under(open_id: RecordId, index: RecordIndex) -> Receipts:
    """The receipts held under one open, by number and id."""
    slots = index.receipts.get(open_id, {})
    found = list[tuple[RecordId, Receipt]]()
    for n in sorted(slots):
        for key in sorted(slots[n]):
            record = index.record(key)
            assert isinstance(record, Receipt)
            found.append((key, record))
    return tuple(found)


def publishes(index: RecordIndex, finality: Finality, passed: Iterable[RecordId]) -> tuple[Publication, ...]:
    """Publish entries that are final or among `passed`, by author and in chain order."""
    found = list[Publication]()
    for key in {*finality.publishes, *passed}:
        record = index.record(key)
        if isinstance(record, Entry) and isinstance(record.body, Publish):
            found.append(
                Publication(
                    id=key,
                    author=record.author,
                    seq=record.seq,
                    model=record.body.manifest,
                    successor_of=record.body.successor_of,
                    is_final=key in finality.final,
                )
            )
    return tuple(sorted(found, key=lambda publication: (publication.author, publication.seq)))


def entries_at(index: RecordIndex, author: AccountId, seq: int) -> Iterator[tuple[RecordId, Entry]]:
    """The entries held at one slot, best acked first, then by id."""
    for key in index.by_acks(index.entries.get(author, {}).get(seq, ())):
        record = index.record(key)
        assert isinstance(record, Entry)
        yield key, record


def receipts_at(index: RecordIndex, open_id: RecordId, n: int) -> Iterator[tuple[RecordId, Receipt]]:
    """The receipts held at one slot, best acked first, then by id."""
    for key in index.by_acks(index.receipts.get(open_id, {}).get(n, ())):
        record = index.record(key)
        assert isinstance(record, Receipt)
        yield key, record


def _receipts(index: RecordIndex) -> Iterator[tuple[RecordId, Receipt]]:
    for slots in index.receipts.values():
        for keys in slots.values():
            for key in keys:
                record = index.record(key)
                assert isinstance(record, Receipt)
                yield key, record


def _takes_part(
    account: AccountId, key: RecordId, receipt: Receipt, index: RecordIndex, genesis: Genesis
) -> bool:
    if account in (receipt.worker, receipt.bill.payer):
        return True
    manifest = index.manifests.get(receipt.bill.model)
    if manifest is None or any(pair.cluster not in manifest.owners for pair in receipt.evidence):
        return False
    parts = shares(receipt, key, manifest, genesis)
    return any(part.account == account and part.role in ("creator", "data") for part in parts)


def _in_order(found: Iterable[tuple[RecordId, Receipt]]) -> Receipts:
    """By the bill's epoch, then open and number."""

    def place(pair: tuple[RecordId, Receipt]) -> tuple[int, bytes, int, bytes]:
        key, receipt = pair
        return receipt.bill.epoch, receipt.bill.open, receipt.n, key

    return tuple(sorted(found, key=place))
