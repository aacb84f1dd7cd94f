"""The ids of all records that a node holds, sorted for reconciliation, and kept between two of them."""

from __future__ import annotations

from typing import final

from gossip_ledger.ledger import Ledger
from gossip_ledger.reconcile import IdSet
from gossip_ledger.records import Entry, Receipt, RecordId


@final
class Holdings:
    """A view of one ledger. `ids` costs next to nothing where the ledger has not changed, and little where
    it has only grown; where it dropped records, all are sorted again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: set[RecordId] = set()
        self._ids = IdSet.of(())

    def ids(self) -> IdSet:
        """What is held now, each id with its record's epoch. The set returned stays as it is."""
        held = self._ledger.ids()
        fresh: list[RecordId] = []
        for ident in self._ledger.ids_latest_first():
            if ident in self._known:
                break
            fresh.append(ident)
        if len(self._known) + len(fresh) == len(held):
            if fresh:
                self._ids = self._ids.plus(fresh, self._epoch)
                self._known.update(fresh)
        else:
            self._ids = IdSet.of(held, self._epoch)
            self._known = set(held)
        return self._ids

    def _epoch(self, ident: RecordId) -> int:
        """The epoch that a record declares; 0 for acks and releases, which declare none."""
        signed = self._ledger.get(ident)
        match signed.record if signed else None:
            case Entry(epoch=epoch):
                return epoch
            case Receipt(bill=bill):
                return bill.epoch
            case _:
                return 0
