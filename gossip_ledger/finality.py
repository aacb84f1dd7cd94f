"""Which records are final, found step by step: every new fact moves a chain on as far as it now reaches.

The final part of each chain only grows, unless more than f witnesses lied: a second certified record at a
place already passed is proof of that, and only then is everything walked again from the start.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.index import RecordIndex
from gossip_ledger.money import Money
from gossip_ledger.records import (
    AccountId,
    Bond,
    Entry,
    MicroUnits,
    Open,
    Publish,
    Receipt,
    RecordId,
    Release,
)
from gossip_ledger.soundness import Account, Tab, check_release, extend_account, extend_tab


@final
class Finality:
    """The final chains of a record index, and the money that follows from them."""

    def __init__(self, index: RecordIndex, genesis: Genesis) -> None:
        self._index = index
        self._genesis = genesis
        self.finalized: list[RecordId] = []
        """Newly final since the reader last emptied it."""
        self.unfinished: set[RecordId] = set()
        """Entries, receipts and releases that are held and not final."""
        self._reset()

    def _reset(self) -> None:
        self.money = Money(self._genesis, self._index.manifests)
        self.accounts: dict[AccountId, Account] = {}
        """After the last final entry of each author."""
        self.tabs: dict[RecordId, Tab] = {}
        """After the last final receipt of each final open."""
        self.holds: dict[RecordId, Entry] = {}
        self.limits: dict[RecordId, MicroUnits] = {}
        """Of final holds, after final releases."""
        self.publishes: list[RecordId] = []
        self.final: set[RecordId] = set()
        self.alarms: set[str] = set()

    def account(self, author: AccountId) -> Account:
        """The account after its last final entry."""
        return self.accounts.get(author) or Account(author)

    def touch(self, keys: Iterable[RecordId]) -> None:
        """Looks again at records that may have become final: new, newly certified, or with a new manifest."""
        for key in keys:
            signed = self._index.signed.get(key)
            if signed is None or not self._qualifies(key):
                continue
            match signed.record:
                case Entry() as entry:
                    self._touch_entry(key, entry)
                case Receipt() as receipt:
                    self._touch_receipt(key, receipt)
                case Release() as release:
                    self._touch_release(key, release)
                case _:
                    pass

    def _qualifies(self, key: RecordId) -> bool:
        return self._index.is_certified(key) and self._index.manifest_held(self._index.record(key))

    def _touch_entry(self, key: RecordId, entry: Entry) -> None:
        reached = self.account(entry.author).seq
        if entry.seq == reached + 1:
            self._advance_account(entry.author)
        elif entry.seq <= reached and key not in self.final:
            self._rebuild()

    def _touch_receipt(self, key: RecordId, receipt: Receipt) -> None:
        tab = self.tabs.get(receipt.bill.open)
        if tab is None:
            return
        if receipt.n == tab.n + 1:
            self._advance_tab(tab.open)
        elif receipt.n <= tab.n and key not in self.final:
            self._rebuild()

    def _touch_release(self, key: RecordId, release: Release) -> None:
        hold = self.holds.get(release.hold)
        if hold is None or key in self.final:
            return
        try:
            check_release(release, hold)
        except UnsoundError:
            return
        self._finalize(key)
        limit = self.limits[release.hold]
        if release.spent < limit:
            self.limits[release.hold] = release.spent
            self.money.returned(hold.author, limit - release.spent)
            self._check_reserve(release.hold)

    def _advance_account(self, author: AccountId) -> None:
        account, slots = self.account(author), self._index.entries[author]
        while found := self._followers(slots.get(account.seq + 1, ()), account.head):
            key = found[0]
            entry = self._index.record(key)
            assert isinstance(entry, Entry)
            try:
                after = extend_account(account, entry, key, self._genesis) if len(found) == 1 else None
            except UnsoundError:
                after = None
            if after is None:
                self._alarm(f"entry {account.seq + 1} of {author.hex()}")
                return
            account = self.accounts[author] = after
            self._finalize(key)
            self.money.entry(entry)
            if isinstance(entry.body, Open | Bond):
                self._begin_hold(key, entry, entry.body)
            elif isinstance(entry.body, Publish):
                self.publishes.append(key)

    def _begin_hold(self, key: RecordId, entry: Entry, body: Open | Bond) -> None:
        self.holds[key], self.limits[key] = entry, body.limit
        if isinstance(body, Open):
            self.tabs[key] = Tab.of(key, entry)
            self._advance_tab(key)
        self.touch(self._index.releases.get(key, ()))

    def _advance_tab(self, open_id: RecordId) -> None:
        tab, slots = self.tabs[open_id], self._index.receipts.get(open_id, {})
        while found := self._followers(slots.get(tab.n + 1, ()), tab.head):
            key = found[0]
            receipt = self._index.record(key)
            assert isinstance(receipt, Receipt)
            manifest = self._index.manifests[receipt.bill.model]
            try:
                after = extend_tab(tab, receipt, key, manifest) if len(found) == 1 else None
            except UnsoundError:
                after = None
            if after is None:
                self._alarm(f"receipt {tab.n + 1} of {open_id.hex()}")
                return
            tab = self.tabs[open_id] = after
            self._finalize(key)
            self.money.receipt(receipt, key)
            self._check_reserve(open_id)

    def _followers(self, keys: Iterable[RecordId], head: RecordId) -> list[RecordId]:
        """Those of the records at one slot that may become final there."""
        return [key for key in keys if self._link(key) == head and self._qualifies(key)]

    def _link(self, key: RecordId) -> RecordId:
        record = self._index.record(key)
        assert isinstance(record, Entry | Receipt)
        return record.prev

    def _finalize(self, key: RecordId) -> None:
        self.final.add(key)
        self.unfinished.discard(key)
        self.finalized.append(key)

    def _check_reserve(self, hold: RecordId) -> None:
        if hold in self.tabs and self.limits[hold] < self.tabs[hold].cumulative:
            self._alarm(f"release of {hold.hex()}")

    def _alarm(self, what: str) -> None:
        self.alarms.add(f"more than f faulty witnesses: {what}")

    def _rebuild(self) -> None:
        """Walks everything again. What stays final is not announced twice."""
        before, announced = self.final, self.finalized
        self.unfinished |= before
        self._reset()
        self.finalized = []
        for author in self._index.entries:
            self._advance_account(author)
        self.finalized = announced + [key for key in self.finalized if key not in before]
