"""What an honest witness acknowledges: a policy over the records it holds and what it promised before.

`step` decides and changes nothing. Whoever runs a witness writes the promises down durably, then calls
`WitnessMemory.keep`, and only then signs acks for the batch. A witness that forgot a promise could break one.

The rules, beside soundness: parents first; one id per slot, for ever; entries not from the future, collects
only what is seen earned; receipts only under a final open and within every release promised; releases only
after expiry and grace, and only where they cover every receipt promised. Every refusal of an honest entry is
for now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, final

from gossip_ledger.codec import Schema, Table, octets, uint
from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.ledger import Ledger
from gossip_ledger.limits import ACK_IDS_MAX, AHEAD_EPOCHS_MAX, MAX_AMOUNT, RECORD_BYTES_MAX
from gossip_ledger.records import (
    AccountId,
    Ack,
    Bond,
    Collect,
    Entry,
    MicroUnits,
    Open,
    Receipt,
    RecordId,
    Release,
)
from gossip_ledger.soundness import Account, Tab, check_release, extend_account, extend_tab


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPromise:
    """This entry and no other at its slot; with what the account's chain says there."""

    id: RecordId
    account: AccountId
    seq: int
    epoch: int
    collected: MicroUnits
    debited: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPromise:
    """This receipt and no other at its slot; with what its tab says there."""

    id: RecordId
    open: RecordId
    n: int
    cumulative: MicroUnits
    ask: int
    fee: MicroUnits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePromise:
    """No receipt beyond `spent` under this hold from now on."""

    id: RecordId
    hold: RecordId
    spent: MicroUnits


Promise = EntryPromise | ReceiptPromise | ReleasePromise

_id = octets(32)

PROMISES: Final = Schema(
    Table(
        50,
        EntryPromise,
        (
            ("id", _id),
            ("account", _id),
            ("seq", uint(minimum=1)),
            ("epoch", uint()),
            ("collected", uint()),
            ("debited", uint(2 * MAX_AMOUNT)),  # at most what vested and what was collected
        ),
    ),
    Table(
        51,
        ReceiptPromise,
        (
            ("id", _id),
            ("open", _id),
            ("n", uint(minimum=1)),
            ("cumulative", uint()),
            ("ask", uint()),
            ("fee", uint()),
        ),
    ),
    Table(52, ReleasePromise, (("id", _id), ("hold", _id), ("spent", uint()))),
    bytes_max=RECORD_BYTES_MAX,
)
"""Promises as they are stored. They never travel."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessStep:
    """What may be acked now. Nothing has changed yet."""

    batch: tuple[RecordId, ...]
    promises: tuple[Promise, ...]
    """One for each id of the batch: to be durable before any ack of it is signed."""
    waiting: Mapping[RecordId, str]
    """Why the other candidates are not acked, for now or for good."""


@final
class WitnessMemory:
    """Everything a witness ever promised. Rebuilt from its stored promises, in any order."""

    def __init__(self, promises: Iterable[Promise] = ()) -> None:
        self.promised: set[RecordId] = set()
        self._accounts: dict[AccountId, Account] = {}
        self._tabs: dict[RecordId, list[ReceiptPromise]] = {}
        self._ceilings: dict[RecordId, MicroUnits] = {}
        self.keep(promises)

    def keep(self, promises: Iterable[Promise]) -> None:
        """Remembers promises that are durable by now."""
        for promise in promises:
            self.promised.add(promise.id)
            match promise:
                case EntryPromise(account=account, seq=seq):
                    if seq > self.account(account).seq:
                        self._accounts[account] = _account_of(promise)
                case ReceiptPromise():
                    self._tabs.setdefault(promise.open, []).append(promise)
                case ReleasePromise(hold=hold, spent=spent):
                    self._ceilings[hold] = min(spent, self.ceiling(hold))

    def account(self, account: AccountId) -> Account:
        """After the last entry promised."""
        return self._accounts.get(account) or Account(account)

    def tab(self, start: Tab) -> Tab:
        """`start`, a tab without receipts, after the last receipt promised."""
        for promise in sorted(self._tabs.get(start.open, ()), key=lambda promise: promise.n):
            start = replace(
                start,
                n=promise.n,
                head=promise.id,
                cumulative=promise.cumulative,
                fees=start.fees.add(promise.ask, promise.fee),
            )
        return start

    def served(self, hold: RecordId) -> MicroUnits:
        """The highest cumulative amount promised under an open."""
        return max((promise.cumulative for promise in self._tabs.get(hold, ())), default=0)

    def ceiling(self, hold: RecordId) -> MicroUnits:
        """The lowest release promised of a hold."""
        return self._ceilings.get(hold, MAX_AMOUNT)


@final
class WitnessPolicy:
    """The rules of one network's witnesses."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis

    def step(
        self, ledger: Ledger, memory: WitnessMemory, clock_epoch: int, candidates: Iterable[RecordId]
    ) -> WitnessStep:
        """What may be acked now, of `candidates` and of what precedes them in their chains."""
        draft = _Draft(ledger, memory, self._genesis, clock_epoch)
        authors, opens, releases = set[AccountId](), set[RecordId](), set[RecordId]()
        candidates = tuple(candidates)
        for key in candidates:
            signed = ledger.get(key)
            match signed.record if signed else None:
                case Entry(author=author):
                    authors.add(author)
                case Receipt(bill=bill):
                    opens.add(bill.open)
                case Release() if key not in memory.promised:
                    releases.add(key)
                case _:
                    pass
        for author in sorted(authors):
            draft.judge_account(author)
        for open_id in sorted(opens):
            draft.judge_tab(open_id)
        for key in sorted(releases):
            draft.judge_release(key)
        batch = tuple(promise.id for promise in draft.promises)
        done = set(batch)
        waiting = {
            key: draft.reasons.get(key, "another record at its place, or its predecessor, comes first")
            for key in candidates
            if key not in done and key not in memory.promised and ledger.has(key)
        }
        return WitnessStep(batch=batch, promises=tuple(draft.promises), waiting=waiting)


@final
@dataclass(slots=True)
class _Draft:
    """One step in the making: promises so far, and the reasons against the rest."""

    ledger: Ledger
    memory: WitnessMemory
    genesis: Genesis
    clock: int
    promises: list[Promise] = field(default_factory=list[Promise])
    reasons: dict[RecordId, str] = field(default_factory=dict[RecordId, str])
    served: dict[RecordId, MicroUnits] = field(default_factory=dict[RecordId, MicroUnits])
    """Highest cumulative amounts promised in this step."""

    def judge_account(self, author: AccountId) -> None:
        """Promises an author's entries, from the last one promised on, as far as the rules allow."""
        account = self.memory.account(author)
        while True:
            for key, entry in self.ledger.entries_at(author, account.seq + 1):
                try:
                    self.check_entry(entry)
                    account = extend_account(account, entry, key, self.genesis)
                except UnsoundError as error:
                    self.reasons[key] = str(error)
                    continue
                self.promises.append(_entry_promise(account))
                break
            else:
                return

    def check_entry(self, entry: Entry) -> None:
        if self.ledger.is_frozen(entry.author):
            raise UnsoundError("its author signed two entries at one place")
        if entry.epoch > self.clock + AHEAD_EPOCHS_MAX:
            raise UnsoundError("it lies in the future")
        if not self.ledger.holds_manifest_of(entry):
            raise UnsoundError("its manifest is not here yet")
        if isinstance(entry.body, Collect):
            self.check_earned(entry.author, entry.body)

    def check_earned(self, author: AccountId, body: Collect) -> None:
        if body.cumulative > self.ledger.account(author).entitled:
            raise UnsoundError("it collects more than what is seen final")

    def judge_tab(self, open_id: RecordId) -> None:
        """Promises the receipts under an open, from the last one promised on."""
        opened = self.ledger.hold(open_id)
        if opened is None or not isinstance(opened.body, Open):
            for key, _ in self.ledger.receipts_under(open_id):
                self.reasons[key] = "its open is not final here yet"
            return
        tab = self.memory.tab(Tab.of(open_id, opened))
        while True:
            for key, receipt in self.ledger.receipts_at(open_id, tab.n + 1):
                try:
                    self.check_receipt(receipt)
                    tab = self.extend_tab(tab, receipt, key)
                except UnsoundError as error:
                    self.reasons[key] = str(error)
                    continue
                self.promises.append(_receipt_promise(receipt, key))
                self.served[open_id] = receipt.cumulative
                break
            else:
                return

    def check_receipt(self, receipt: Receipt) -> None:
        if receipt.cumulative > self.memory.ceiling(receipt.bill.open):
            raise UnsoundError("its open was released below that")

    def extend_tab(self, tab: Tab, receipt: Receipt, key: RecordId) -> Tab:
        manifest = self.ledger.manifest(receipt.bill.model)
        if manifest is None:
            raise UnsoundError("its manifest is not here yet")
        return extend_tab(tab, receipt, key, manifest)

    def judge_release(self, key: RecordId) -> None:
        """Promises one release, if it is due and covers every receipt promised."""
        signed = self.ledger.get(key)
        assert signed is not None
        release = signed.record
        assert isinstance(release, Release)
        try:
            self.check_release(release)
        except UnsoundError as error:
            self.reasons[key] = str(error)
            return
        self.promises.append(ReleasePromise(id=key, hold=release.hold, spent=release.spent))

    def check_release(self, release: Release) -> None:
        hold = self.ledger.hold(release.hold)
        if hold is None:
            raise UnsoundError("its hold is not final here yet")
        check_release(release, hold)
        if self.ledger.is_frozen(hold.author):
            raise UnsoundError("its author signed two entries at one place")
        assert isinstance(hold.body, Open | Bond)
        self.check_expired(hold.body)
        self.check_covered(release)

    def check_expired(self, body: Open | Bond) -> None:
        if self.clock <= body.expiry + self.genesis.grace_epochs:
            raise UnsoundError("its hold has not expired, with grace")

    def check_covered(self, release: Release) -> None:
        served = max(self.memory.served(release.hold), self.served.get(release.hold, 0))
        if release.spent < served:
            raise UnsoundError("it says less than the receipts acked under its hold")


def acks(witness: AccountId, batch: tuple[RecordId, ...]) -> tuple[Ack, ...]:
    """A batch as acks, each small enough to be a record."""
    starts = range(0, len(batch), ACK_IDS_MAX)
    return tuple(Ack(witness=witness, ids=batch[start : start + ACK_IDS_MAX]) for start in starts)


def _account_of(promise: EntryPromise) -> Account:
    return Account(
        promise.account, promise.seq, promise.id, promise.epoch, promise.collected, promise.debited
    )


def _entry_promise(after: Account) -> EntryPromise:
    return EntryPromise(
        id=after.head,
        account=after.account,
        seq=after.seq,
        epoch=after.epoch,
        collected=after.collected,
        debited=after.debited,
    )


def _receipt_promise(receipt: Receipt, key: RecordId) -> ReceiptPromise:
    return ReceiptPromise(
        id=key,
        open=receipt.bill.open,
        n=receipt.n,
        cumulative=receipt.cumulative,
        ask=receipt.bill.ask,
        fee=receipt.bill.fee,
    )
