"""Chains as far as they are sound, final or not: what an author continues, what a worker may rely on."""

from __future__ import annotations

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.index import RecordIndex
from gossip_ledger.listing import entries_at, receipts_at
from gossip_ledger.records import Entry, RecordId, Release
from gossip_ledger.soundness import Account, Tab, check_release, extend_account, extend_tab


def extend_held_account(
    account: Account, index: RecordIndex, genesis: Genesis
) -> tuple[Account, frozenset[RecordId]]:
    """The account after the sound entries held, and the ids of those; at a fork the better acked branch."""
    passed = set[RecordId]()
    while after := _next_account(account, index, genesis):
        account = after
        passed.add(account.head)
    return account, frozenset(passed)


def extend_held_tab(tab: Tab, index: RecordIndex) -> Tab:
    """The tab after the sound receipts held whose manifests are held too."""
    while after := _next_tab(tab, index):
        tab = after
    return tab


def is_released(hold_id: RecordId, hold: Entry, index: RecordIndex) -> bool:
    """Whether a sound release of the hold is held, final or not."""
    for key in index.releases.get(hold_id, ()):
        release = index.record(key)
        assert isinstance(release, Release)
        try:
            check_release(release, hold)
        except UnsoundError:
            continue
        return True
    return False


def _next_account(account: Account, index: RecordIndex, genesis: Genesis) -> Account | None:
    for key, entry in entries_at(index, account.account, account.seq + 1):
        try:
            return extend_account(account, entry, key, genesis)
        except UnsoundError:
            continue
    return None


def _next_tab(tab: Tab, index: RecordIndex) -> Tab | None:
    for key, receipt in receipts_at(index, tab.open, tab.n + 1):
        manifest = index.manifests.get(receipt.bill.model)
        try:
            if manifest is not None:
                return extend_tab(tab, receipt, key, manifest)
        except UnsoundError:
            continue
    return None
