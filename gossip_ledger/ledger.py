"""The ledger: a growing set of verified records and manifests, and everything that follows from them.

`add` and `add_manifest` are the only ways in; all else reads. What a ledger says depends on what it holds,
never on the order in which that came, and equals `reference.settle` over the same records at any time.

Left out: decoding and signatures (`signing.admit`), storage, and deciding what to acknowledge (`witness.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView
from typing import final

from gossip_ledger import listing
from gossip_ledger.errors import UnsoundError
from gossip_ledger.finality import Finality
from gossip_ledger.genesis import Genesis, network_id
from gossip_ledger.index import RecordIndex
from gossip_ledger.listing import Receipts
from gossip_ledger.records import (
    AccountId,
    Ack,
    Entry,
    Manifest,
    ModelId,
    Open,
    Receipt,
    Record,
    RecordId,
    Signed,
)
from gossip_ledger.root import AccountProof, account_proof, state_root
from gossip_ledger.signing import author_of
from gossip_ledger.soundness import Account, Tab
from gossip_ledger.state import AccountState, Fork, HoldState, HoldView, OpenState, Publication, State
from gossip_ledger.tips import extend_held_account, extend_held_tab, is_released


@final
class Ledger:
    """Not safe for threads. Reads are cheap unless their docstring says otherwise."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.network = network_id(genesis)
        self._index = RecordIndex(genesis)
        self._finality = Finality(self._index, genesis)
        self._tips: dict[AccountId, tuple[Account, Account, frozenset[RecordId]]] = {}
        """What follows an author's final account: the tip, and the entries passed on the way."""
        self._tip_tabs: dict[RecordId, tuple[Tab, Tab]] = {}
        self._opens_of: dict[AccountId, dict[RecordId, None]] = {}
        self._opens_for: dict[AccountId, dict[RecordId, None]] = {}

    # ------------------------------------------------------------ ways in

    def add(self, signed: Signed, record_id: RecordId) -> bool:
        """Puts one verified record in. False where it changes nothing: known, or without a place here.

        What has no place: acks of strangers, and records beyond the bounds on what nobody certified
        (`index.py`); `may_add` says which. The latter may be offered again later.
        """
        record, touched = signed.record, (record_id,)
        is_new = self._index.add(signed, record_id)
        for key, dropped in self._index.take_dropped():
            self._forget_open(key, dropped)
            self._finality.unfinished.discard(key)
        if not is_new:
            return False
        match record:
            case Ack():
                touched = self._index.acknowledge(record)
                for key in record.ids:
                    self._forget_tip(self._index.signed.get(key))
            case Entry(body=Open(worker=worker)):
                self._opens_of.setdefault(record.author, {})[record_id] = None
                self._opens_for.setdefault(worker, {})[record_id] = None
            case _:
                pass
        if not isinstance(record, Ack):
            self._forget_tip(signed)
            self._finality.unfinished.add(record_id)
        self._finality.touch(touched)
        return True

    def add_all(self, batch: Iterable[tuple[RecordId, Signed]]) -> tuple[RecordId, ...]:
        """Puts many in, best order first: acks, then parents before children. Returns what was new.

        In any other order the result is the same, but a record that is certified only by a later ack of the
        batch might be refused by the bounds at first, and have to be offered again.
        """
        ordered = sorted(batch, key=lambda pair: _batch_rank(pair[1]))
        return tuple(key for key, signed in ordered if self.add(signed, key))

    def add_manifest(self, manifest: Manifest) -> ModelId:
        """Puts a manifest in and returns its id. One that the network does not allow is not held."""
        model, waiting = self._index.add_manifest(manifest)
        self._tip_tabs.clear()
        self._finality.touch(waiting)
        return model

    def _forget_tip(self, signed: Signed | None) -> None:
        """Whatever lies beyond the final part of a chain has to be looked at again."""
        match signed.record if signed else None:
            case Entry(author=author):
                self._tips.pop(author, None)
            case Receipt(bill=bill):
                self._tip_tabs.pop(bill.open, None)
            case _:
                pass

    def _forget_open(self, key: RecordId, dropped: Signed) -> None:
        self._forget_tip(dropped)
        match dropped.record:
            case Entry(author=author, body=Open(worker=worker)):
                # What is pushed out at once was never listed.
                self._opens_of.get(author, {}).pop(key, None)
                self._opens_for.get(worker, {}).pop(key, None)
            case _:
                pass

    # ------------------------------------------------------------ the set

    def may_add(self, signed: Signed) -> str:
        """Why a verified record can never have a place here, in words; empty if it may."""
        return self._index.may_add(signed.record)

    def has(self, key: RecordId) -> bool:
        """Whether a record is held."""
        return key in self._index.signed

    def get(self, key: RecordId) -> Signed | None:
        """A record that is held."""
        return self._index.signed.get(key)

    def ids(self) -> KeysView[RecordId]:
        """The ids of all records held."""
        return self._index.signed.keys()

    def ids_latest_first(self) -> Iterator[RecordId]:
        """The same, those that came last at the beginning."""
        return reversed(self._index.signed)

    def manifest(self, model: ModelId) -> Manifest | None:
        """A manifest that is held."""
        return self._index.manifests.get(model)

    def holds_manifest_of(self, record: Record) -> bool:
        """Whether the manifest that a record names, if any, is held."""
        return self._index.manifest_held(record)

    def wanted_manifests(self) -> frozenset[ModelId]:
        """Manifests that records name and that are not held: to be fetched as blobs."""
        return self._index.wanted()

    # ------------------------------------------------------------ finality

    def is_final(self, key: RecordId) -> bool:
        """Whether a record is final: an entry, receipt or release. Never taken back."""
        return key in self._finality.final

    def is_certified(self, key: RecordId) -> bool:
        """Whether a quorum of witnesses acked it. Final also needs its ancestors."""
        return self._index.is_certified(key)

    def ack_count(self, key: RecordId) -> int:
        """How many witnesses acked it."""
        return self._index.ack_count(key)

    def take_finalized(self) -> tuple[RecordId, ...]:
        """What became final since the last call, in the order in which it did here."""
        taken, self._finality.finalized = tuple(self._finality.finalized), []
        return taken

    def alarms(self) -> tuple[str, ...]:
        """Each one proves that more than f witnesses lied. Sorted."""
        return tuple(sorted(self._finality.alarms))

    def equivocators(self) -> frozenset[AccountId]:
        """Authors of two entries at one slot: frozen."""
        return self._index.forked

    def forks(self) -> tuple[Fork, ...]:
        """A proof for each equivocator, sorted by author."""
        return tuple(self._index.forks())

    def unfinished(self) -> frozenset[RecordId]:
        """Entries, receipts and releases that are held and not final: what a witness looks at."""
        return frozenset(self._finality.unfinished)

    # ------------------------------------------------------------ accounts

    def account(self, account: AccountId, epoch: int = 0) -> AccountState:
        """What final records say of an account, at `epoch` or its last final entry's, whichever is later."""
        chain = self._finality.account(account)
        now, frozen = max(chain.epoch, epoch), self._index.is_forked(account)
        money = chain.spendable(self.genesis, now)
        entitled = self._finality.money.entitled().get(account, 0)
        return AccountState(
            account=account,
            seq=chain.seq,
            head=chain.head,
            epoch=now,
            spendable=0 if frozen else money,
            locked=money if frozen else 0,
            unvested=self.genesis.allocated(account) - self.genesis.vested(account, now),
            entitled=entitled,
            collected=chain.collected,
            uncollected=entitled - chain.collected,
            is_frozen=frozen,
        )

    def tip(self, account: AccountId) -> Account:
        """After the longest sound chain held, final or not: what the author's next entry continues.

        Of an equivocator, one branch: at each fork the better acked, then the smaller id.
        """
        return self._tip(account)[0]

    def _tip(self, account: AccountId) -> tuple[Account, frozenset[RecordId]]:
        start = self._finality.account(account)
        known = self._tips.get(account)
        if known is None or known[0] != start:
            tip, passed = extend_held_account(start, self._index, self.genesis)
            known = self._tips[account] = (start, tip, passed)
        return known[1:]

    def _tip_tab(self, start: Tab) -> Tab:
        known = self._tip_tabs.get(start.open)
        if known is None or known[0].head != start.head:
            known = self._tip_tabs[start.open] = (start, extend_held_tab(start, self._index))
        return known[1]

    def pending(self, account: AccountId) -> tuple[Signed, ...]:
        """The account's entries beyond its final head, in chain order."""
        reached = self._finality.account(account).seq
        slots = self._index.entries.get(account, {})
        keys = [key for seq in sorted(slots) if seq > reached for key in sorted(slots[seq])]
        return tuple(self._index.signed[key] for key in keys)

    def entries_at(self, author: AccountId, seq: int) -> tuple[tuple[RecordId, Entry], ...]:
        """The entries held at one slot, best acked first; two or more only of an equivocator."""
        return tuple(listing.entries_at(self._index, author, seq))

    def is_frozen(self, account: AccountId) -> bool:
        """Whether two entries at one of its slots are held."""
        return self._index.is_forked(account)

    # ------------------------------------------------------------ holds

    def open_state(self, open_id: RecordId) -> OpenState:
        """An open that is held, final or not. Raises `UnsoundError` where no open has that id."""
        signed = self._index.signed.get(open_id)
        entry = signed.record if signed is not None else None
        if not isinstance(entry, Entry) or not isinstance(entry.body, Open):
            raise UnsoundError("no open with that id is known")
        is_final = open_id in self._finality.final
        tab = self._finality.tabs[open_id] if is_final else Tab.of(open_id, entry)
        limit = self._finality.limits[open_id] if is_final else entry.body.limit
        return OpenState(
            id=open_id,
            entry=entry,
            is_final=is_final,
            is_sound=is_final or open_id in self._tip(entry.author)[1],
            is_released=is_released(open_id, entry, self._index),
            limit=limit,
            reserve=limit - tab.cumulative if is_final else 0,
            tab=tab,
            tip_tab=self._tip_tab(tab),
        )

    def opens_of(self, payer: AccountId) -> tuple[OpenState, ...]:
        """The opens of a payer, in chain order."""
        return self._open_states(self._opens_of.get(payer, {}))

    def opens_for(self, worker: AccountId) -> tuple[OpenState, ...]:
        """The opens to a worker, by payer and in chain order."""
        return self._open_states(self._opens_for.get(worker, {}))

    def _open_states(self, keys: Iterable[RecordId]) -> tuple[OpenState, ...]:
        states = [self.open_state(key) for key in keys if key in self._index.signed]
        return tuple(sorted(states, key=lambda state: (state.entry.author, state.entry.seq, state.id)))

    def holds(self) -> tuple[HoldView, ...]:
        """All final opens and bonds, by author and in chain order."""
        limits = self._finality.limits
        views = [HoldView(id=key, entry=e, limit=limits[key]) for key, e in self._finality.holds.items()]
        return tuple(sorted(views, key=lambda view: (view.entry.author, view.entry.seq)))

    def hold(self, key: RecordId) -> Entry | None:
        """The entry of a final open or bond."""
        return self._finality.holds.get(key)

    # ------------------------------------------------------------ receipts and publishes

    def receipts_at(self, open_id: RecordId, n: int) -> tuple[tuple[RecordId, Receipt], ...]:
        """The receipts held at one slot, best acked first."""
        return tuple(listing.receipts_at(self._index, open_id, n))

    def receipts(self) -> Receipts:
        """All receipts held, final and pending, by the bill's epoch, open and number. Reads all."""
        return listing.all_receipts(self._index)

    def receipts_of(self, account: AccountId) -> Receipts:
        """Receipts that an account paid for, served, or has a part in other than the network's."""
        return listing.receipts_of(account, self._index, self._finality, self.genesis)

    def receipts_under(self, open_id: RecordId) -> Receipts:
        """The receipts held under one open, final and pending, by number."""
        return listing.receipts_under(open_id, self._index)

    def publishes(self) -> tuple[Publication, ...]:
        """Publish entries, final or on their author's longest sound chain; by author, in chain order."""
        authors = {author_of(self._index.record(key)) for key in self._finality.unfinished}
        passed = {key for author in authors for key in self._tip(author)[1]}
        return listing.publishes(self._index, self._finality, passed)

    # ------------------------------------------------------------ the whole

    def state(self) -> State:
        """Everything that the final records say, each account at its own last final epoch. Reads all."""
        finality = self._finality
        names = {*self.genesis.allocations_of, *finality.accounts, *finality.money.entitled()}
        accounts = [self.account(name) for name in names | self._index.forked]
        return State(
            accounts={account.account: account for account in accounts if not account.is_blank},
            holds={key: self._hold_state(key, entry) for key, entry in finality.holds.items()},
            funds=finality.money.funds(),
            final=frozenset(finality.final),
            alarms=self.alarms(),
        )

    def _hold_state(self, key: RecordId, entry: Entry) -> HoldState:
        tab = self._finality.tabs.get(key)
        return HoldState(
            hold=key,
            author=entry.author,
            is_bond=tab is None,
            limit=self._finality.limits[key],
            fees=tab.cumulative if tab else 0,
            receipts=tab.n if tab else 0,
            head=tab.head if tab else key,
            is_frozen=self._index.is_forked(entry.author),
        )

    def supply_conserved(self) -> bool:
        """Whether all buckets add up to the supply, as they must on every set. Reads all."""
        return self.state().total() == self.genesis.supply

    def root(self) -> bytes:
        """The state root, 32 bytes: equal sets give equal roots. Reads all."""
        return state_root(self.state(), self.network)

    def account_proof(self, account: AccountId) -> AccountProof | None:
        """Proves what the root says of an account; None for one that nothing is said of. Reads all."""
        return account_proof(self.state(), account)


def _batch_rank(signed: Signed) -> tuple[int, int]:
    match signed.record:
        case Ack():
            return 0, 0
        case Entry(seq=seq):
            return 1, seq
        case Receipt(n=n):
            return 2, n
        case _:
            return 3, 0
