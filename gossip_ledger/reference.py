"""The state of a set of records, computed plainly from scratch: the rules to read, the oracle of `Ledger`.

Nothing here is kept between calls, so nothing can depend on the order in which records came. It shares with
the fast ledger only what judges one record or divides one fee (`soundness.py`, `payout.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Genesis
from gossip_ledger.payout import divide, shares, tolls
from gossip_ledger.records import (
    AccountId,
    Ack,
    Bond,
    ClusterId,
    Entry,
    Manifest,
    ModelId,
    Open,
    Publish,
    Receipt,
    RecordId,
    Release,
    Signed,
    Transfer,
)
from gossip_ledger.soundness import Account, Tab, check_release, extend_account, extend_tab
from gossip_ledger.state import AccountState, HoldState, State

Chains = Mapping[AccountId, list[Entry]]


def settle(
    records: Mapping[RecordId, Signed], manifests: Mapping[ModelId, Manifest], genesis: Genesis
) -> State:
    """The state of a set. `manifests` are those held, already within the bounds of the network."""
    return _Settlement(View(records, manifests, genesis)).state()


@final
class View:
    """A set of records, indexed."""

    def __init__(
        self, records: Mapping[RecordId, Signed], manifests: Mapping[ModelId, Manifest], genesis: Genesis
    ) -> None:
        self.genesis, self.manifests = genesis, manifests
        self.entries: dict[tuple[AccountId, int], dict[RecordId, Entry]] = defaultdict(dict)
        self.receipts: dict[tuple[RecordId, int], dict[RecordId, Receipt]] = defaultdict(dict)
        self.releases: dict[RecordId, Release] = {}
        self.acked_by: dict[RecordId, set[AccountId]] = defaultdict(set)
        for key, signed in records.items():
            match signed.record:
                case Entry() as entry:
                    self.entries[entry.author, entry.seq][key] = entry
                case Receipt() as receipt:
                    self.receipts[receipt.bill.open, receipt.n][key] = receipt
                case Release() as release:
                    self.releases[key] = release
                case Ack(witness=witness, ids=ids):
                    for acked in ids if witness in genesis.witnesses else ():
                        self.acked_by[acked].add(witness)
        self.equivocators = {author for (author, _), found in self.entries.items() if len(found) > 1}

    def is_certified(self, key: RecordId) -> bool:
        return len(self.acked_by.get(key, ())) >= self.genesis.quorum

    def next_entries(self, account: Account) -> list[tuple[RecordId, Entry]]:
        """The certified entries that continue a chain, with the manifests they publish held."""
        found = self.entries.get((account.account, account.seq + 1), {})
        return [
            (key, entry)
            for key, entry in found.items()
            if entry.prev == account.head
            and self.is_certified(key)
            and (not isinstance(entry.body, Publish) or entry.body.manifest in self.manifests)
        ]

    def next_receipts(self, tab: Tab) -> list[tuple[RecordId, Receipt]]:
        """The certified receipts that continue a tab, with their manifests held."""
        found = self.receipts.get((tab.open, tab.n + 1), {})
        return [
            (key, receipt)
            for key, receipt in found.items()
            if receipt.prev == tab.head and self.is_certified(key) and receipt.bill.model in self.manifests
        ]


def walk_account(view: View, author: AccountId) -> tuple[Account, list[tuple[RecordId, Entry]], str]:
    """An account's final chain, and an alarm if more than one entry, or an unsound one, would continue it."""
    account, chain = Account(author), list[tuple[RecordId, Entry]]()
    while found := view.next_entries(account):
        key, entry = found[0]
        alarm = f"more than f faulty witnesses: entry {account.seq + 1} of {author.hex()}"
        if len(found) > 1:
            return account, chain, alarm
        try:
            account = extend_account(account, entry, key, view.genesis)
        except UnsoundError:
            return account, chain, alarm
        chain.append((key, entry))
    return account, chain, ""


def walk_tab(view: View, open_id: RecordId, opened: Entry) -> tuple[Tab, list[tuple[RecordId, Receipt]], str]:
    """The same walk over the receipts of one final open."""
    tab, chain = Tab.of(open_id, opened), list[tuple[RecordId, Receipt]]()
    while found := view.next_receipts(tab):
        key, receipt = found[0]
        alarm = f"more than f faulty witnesses: receipt {tab.n + 1} of {open_id.hex()}"
        if len(found) > 1:
            return tab, chain, alarm
        try:
            tab = extend_tab(tab, receipt, key, view.manifests[receipt.bill.model])
        except UnsoundError:
            return tab, chain, alarm
        chain.append((key, receipt))
    return tab, chain, ""


@final
class Fresh(NamedTuple):
    """A cluster that a successor has and its model lacks."""

    name: ClusterId
    owner: AccountId
    prior: int


def successor(
    model: ModelId, chains: Chains, manifests: Mapping[ModelId, Manifest]
) -> tuple[ModelId, list[Fresh]]:
    """The first successor with something new that the model's own creator published, and what is new."""
    mine = manifests[model]
    known = {cluster.name for cluster in mine.clusters}
    for entry in chains.get(mine.creator, ()):
        if isinstance(entry.body, Publish) and entry.body.successor_of == model:
            fresh = [
                Fresh(cluster.name, cluster.owner, cluster.prior)
                for cluster in manifests[entry.body.manifest].clusters
                if cluster.name not in known and cluster.prior > 0
            ]
            if fresh:
                return entry.body.manifest, fresh
    return ModelId(b""), []


def lineage(heir: ModelId, chain: Iterable[Entry]) -> set[ModelId]:
    """A model and all that one creator published after it, as its successors or theirs."""
    published = [entry.body for entry in chain if isinstance(entry.body, Publish)]
    line, grown = {heir}, True
    while grown:
        after = {body.manifest for body in published if body.successor_of in line}
        grown = not after <= line
        line |= after
    return line


@final
@dataclass
class _Settlement:
    """One computation of a state; its fields fill up in the order of the methods of `state`."""

    view: View
    accounts: dict[AccountId, Account] = field(default_factory=dict[AccountId, Account])
    chains: dict[AccountId, list[Entry]] = field(default_factory=dict[AccountId, list[Entry]])
    opened: dict[RecordId, Entry] = field(default_factory=dict[RecordId, Entry])
    limits: dict[RecordId, int] = field(default_factory=dict[RecordId, int])
    holds: dict[RecordId, HoldState] = field(default_factory=dict[RecordId, HoldState])
    entitled: Counter[AccountId] = field(default_factory=Counter[AccountId])
    upkeep: Counter[ModelId] = field(default_factory=Counter[ModelId])
    tolls: Counter[tuple[ModelId, ClusterId]] = field(default_factory=Counter[tuple[ModelId, ClusterId]])
    funds: dict[ModelId, int] = field(default_factory=dict[ModelId, int])
    final: set[RecordId] = field(default_factory=set[RecordId])
    alarms: set[str] = field(default_factory=set[str])

    def state(self) -> State:
        self.settle_entries()
        self.settle_releases()
        self.settle_receipts()
        self.settle_funds()
        states = [self.account_state(name) for name in self.names()]
        return State(
            accounts={state.account: state for state in states if not state.is_blank},
            holds=self.holds,
            funds=self.funds,
            final=frozenset(self.final),
            alarms=tuple(sorted(self.alarms)),
        )

    def names(self) -> set[AccountId]:
        return {*self.view.genesis.allocations_of, *self.accounts, *self.entitled}

    def settle_entries(self) -> None:
        for author in {author for author, _ in self.view.entries}:
            self.accounts[author], chain, alarm = walk_account(self.view, author)
            self.chains[author] = [entry for _, entry in chain]
            self.alarms |= {alarm} if alarm else set()
            for key, entry in chain:
                self.final.add(key)
                match entry.body:
                    case Transfer(to=to, amount=amount):
                        self.entitled[to] += amount
                    case Publish(fee=fee):
                        self.entitled[self.view.genesis.treasury] += fee
                    case Open(limit=limit) | Bond(limit=limit):
                        self.opened[key], self.limits[key] = entry, limit
                    case _:
                        pass

    def settle_releases(self) -> None:
        for key, release in self.view.releases.items():
            hold = self.opened.get(release.hold)
            if hold is None or not self.view.is_certified(key):
                continue
            try:
                check_release(release, hold)
            except UnsoundError:
                continue
            self.limits[release.hold] = min(self.limits[release.hold], release.spent)
            self.final.add(key)

    def settle_receipts(self) -> None:
        for key, hold in self.opened.items():
            is_bond, given = not isinstance(hold.body, Open), hold.body
            assert isinstance(given, Open | Bond)
            self.entitled[hold.author] += given.limit - self.limits[key]
            chain = list[tuple[RecordId, Receipt]]()
            if not is_bond:
                _, chain, alarm = walk_tab(self.view, key, hold)
                self.alarms |= {alarm} if alarm else set()
            for receipt_id, receipt in chain:
                self.final.add(receipt_id)
                self.pay(receipt_id, receipt)
            self.holds[key] = HoldState(
                hold=key,
                author=hold.author,
                is_bond=is_bond,
                limit=self.limits[key],
                fees=sum(receipt.bill.fee for _, receipt in chain),
                receipts=len(chain),
                head=chain[-1][0] if chain else key,
                is_frozen=hold.author in self.view.equivocators,
            )
            if self.holds[key].reserve < 0:
                self.alarms.add(f"more than f faulty witnesses: release of {key.hex()}")

    def pay(self, receipt_id: RecordId, receipt: Receipt) -> None:
        manifest, model = self.view.manifests[receipt.bill.model], receipt.bill.model
        for share in shares(receipt, receipt_id, manifest, self.view.genesis):
            if share.role == "upkeep":
                self.upkeep[model] += share.amount
            else:
                self.entitled[AccountId(share.account)] += share.amount
        parts = divide(receipt.bill.fee, manifest.split, receipt_id)
        for cluster, toll in tolls(receipt, parts.upkeep, parts.network).items():
            self.tolls[model, cluster] += toll

    def settle_funds(self) -> None:
        """Usage releases upkeep: each fresh cluster draws what its use cost, up to its part of the fund."""
        for model, fund in self.upkeep.items():
            heir, fresh = successor(model, self.chains, self.view.manifests)
            line = lineage(heir, self.chains[self.view.manifests[model].creator]) if heir else set[ModelId]()
            total, drawn = sum(cluster.prior for cluster in fresh), 0
            for cluster in fresh:
                toll = sum(self.tolls[after, cluster.name] for after in line)
                share = min(toll, fund * cluster.prior // total)
                self.entitled[cluster.owner] += share
                drawn += share
            self.funds[model] = fund - drawn

    def account_state(self, name: AccountId) -> AccountState:
        genesis, account = self.view.genesis, self.accounts.get(name, Account(name))
        frozen, money = name in self.view.equivocators, account.spendable(genesis)
        return AccountState(
            account=name,
            seq=account.seq,
            head=account.head,
            epoch=account.epoch,
            spendable=0 if frozen else money,
            locked=money if frozen else 0,
            unvested=genesis.allocated(name) - genesis.vested(name, account.epoch),
            entitled=self.entitled[name],
            collected=account.collected,
            uncollected=self.entitled[name] - account.collected,
            is_frozen=frozen,
        )
