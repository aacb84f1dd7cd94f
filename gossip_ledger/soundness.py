"""What a record may say, given its ancestors and nothing else.

**Nothing is skipped or counted as zero: a chain ends before its first unsound record.** Each function returns
what the chain says after one more record, or raises `UnsoundError` with the reason; neither depends on time,
on order of arrival, or on any record outside the chain (save the manifest that a receipt names).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.records import (
    NO_RECORD,
    AccountId,
    Body,
    Bond,
    Collect,
    Entry,
    Manifest,
    MicroUnits,
    Open,
    Publish,
    Receipt,
    RecordId,
    Release,
    Transfer,
)


@final
@dataclass(frozen=True, slots=True)
class Account:
    """What an account's chain says up to and including `head`."""

    account: AccountId
    seq: int = 0
    head: RecordId = NO_RECORD
    epoch: int = 0
    collected: MicroUnits = 0
    debited: MicroUnits = 0

    def spendable(self, genesis: Genesis, epoch: int = 0) -> MicroUnits:
        """What the next entry may spend if it declares `epoch` (at least the chain's own)."""
        return genesis.vested(self.account, max(self.epoch, epoch)) + self.collected - self.debited


@final
@dataclass(frozen=True, slots=True)
class Fees:
    """The fee of every ask number settled so far: a growing table whose every version stays cheap to keep.

    Blocks of falling size, merged like the digits of a binary counter: adding to a table of n copies O(log n)
    rows on average, where copying all of it each time would make a long tab quadratic.
    """

    blocks: tuple[Mapping[int, MicroUnits], ...] = ()

    def __contains__(self, ask: int) -> bool:
        return any(ask in block for block in self.blocks)

    def __getitem__(self, ask: int) -> MicroUnits:
        for block in self.blocks:
            if ask in block:
                return block[ask]
        raise KeyError(ask)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def add(self, ask: int, fee: MicroUnits) -> Fees:
        """The table with one more `ask`, which is not in it yet."""
        blocks: tuple[Mapping[int, MicroUnits], ...] = self.blocks
        last: Mapping[int, MicroUnits] = {ask: fee}
        while blocks and len(blocks[-1]) <= len(last):
            blocks, last = blocks[:-1], {**blocks[-1], **last}
        return Fees((*blocks, last))


@final
@dataclass(frozen=True, slots=True)
class Tab:
    """What the receipts under one open say up to and including `head`."""

    open: RecordId
    payer: AccountId
    worker: AccountId
    limit: MicroUnits
    n: int
    head: RecordId
    """The open's own id before the first receipt."""
    cumulative: MicroUnits = 0
    fees: Fees = Fees()

    @staticmethod
    def of(open_id: RecordId, entry: Entry) -> Tab:
        """The tab before its first receipt; `entry` is an open."""
        assert isinstance(entry.body, Open), "only an open has a tab"
        return Tab(open_id, entry.author, entry.body.worker, entry.body.limit, 0, open_id)


def debit(body: Body) -> MicroUnits:
    """What an entry takes from its author's spendable balance."""
    match body:
        case Open(limit=amount) | Bond(limit=amount) | Transfer(amount=amount) | Publish(fee=amount):
            return amount
        case Collect():
            return 0


def extend_account(account: Account, entry: Entry, entry_id: RecordId, genesis: Genesis) -> Account:
    """The account after `entry`. Raises `UnsoundError`."""
    body = entry.body
    if entry.author != account.account or entry.seq != account.seq + 1 or entry.prev != account.head:
        raise UnsoundError("the entry does not continue the chain")
    if entry.epoch < account.epoch:
        raise UnsoundError("the epoch falls")
    if isinstance(body, Publish) and body.fee < genesis.publish_fee:
        raise UnsoundError("the publish fee is too low")
    collected = account.collected
    if isinstance(body, Collect):
        if body.cumulative <= collected:
            raise UnsoundError("the collect does not rise")
        collected = body.cumulative
    after = Account(
        account.account, entry.seq, entry_id, entry.epoch, collected, account.debited + debit(body)
    )
    _check_affordable(after, genesis)
    return after


def _check_affordable(after: Account, genesis: Genesis) -> None:
    if after.spendable(genesis) < 0:
        raise UnsoundError("the entry spends more than the account has")


def extend_tab(tab: Tab, receipt: Receipt, receipt_id: RecordId, manifest: Manifest) -> Tab:
    """The tab after `receipt`, whose bill names `manifest`. Raises `UnsoundError`."""
    bill = receipt.bill
    if bill.open != tab.open or receipt.n != tab.n + 1 or receipt.prev != tab.head:
        raise UnsoundError("the receipt does not continue the tab")
    if receipt.worker != tab.worker or bill.payer != tab.payer:
        raise UnsoundError("the receipt is not between the payer and the worker of its open")
    if receipt.cumulative != tab.cumulative + bill.fee:
        raise UnsoundError("the cumulative amount is not the sum of the fees")
    _check_limit(tab, receipt)
    _check_ask(tab, receipt)
    _check_evidence(receipt, manifest)
    fees = tab.fees.add(bill.ask, bill.fee)
    return Tab(tab.open, tab.payer, tab.worker, tab.limit, receipt.n, receipt_id, receipt.cumulative, fees)


def _check_limit(tab: Tab, receipt: Receipt) -> None:
    if receipt.cumulative > tab.limit:
        raise UnsoundError("the receipts exceed the limit of their open")


def _check_ask(tab: Tab, receipt: Receipt) -> None:
    if receipt.bill.ask in tab.fees:
        raise UnsoundError("the ask number was used before under this open")


def _check_evidence(receipt: Receipt, manifest: Manifest) -> None:
    if any(pair.cluster not in manifest.owners for pair in receipt.evidence):
        raise UnsoundError("the evidence names a cluster that the model lacks")


def check_release(release: Release, hold: Entry) -> None:
    """Raises `UnsoundError` unless `release` may lower the limit of `hold`."""
    match hold.body:
        case Open(limit=limit):
            most = limit
        case Bond():
            most = 0
        case _:
            raise UnsoundError("only an open or a bond can be released")
    if release.author != hold.author:
        raise UnsoundError("only the author of a hold may release it")
    if release.spent > most:
        raise UnsoundError("the release says more than the hold allows")


def check_manifest(manifest: Manifest, genesis: Genesis) -> None:
    """Raises `UnsoundError` where the manifest's terms lie outside what the network allows.

    To this network such a manifest does not exist: no publish or receipt that names it becomes final.
    """
    if not genesis.allows(manifest.split):
        raise UnsoundError("the split lies outside the bounds of this network")
