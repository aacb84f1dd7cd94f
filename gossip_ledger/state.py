"""The state that a set of records leads to, as values. How it is computed: `reference.py` plainly,
`ledger.py` step by step; both must give the same.

All amounts come from final records. Every micro-unit of the supply is in exactly one bucket, on every set:
spendable, locked, unvested, uncollected, a reserve, a bond, burned, or a fund.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gossip_ledger.records import AccountId, Entry, MicroUnits, ModelId, RecordId
from gossip_ledger.soundness import Tab


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """One account, read at its own last final epoch."""

    account: AccountId
    seq: int
    """Of the last final entry; 0 for none."""
    head: RecordId
    epoch: int
    spendable: MicroUnits
    """What the next entry may spend. 0 when frozen."""
    locked: MicroUnits
    """The same money of a frozen account."""
    unvested: MicroUnits
    entitled: MicroUnits
    """Everything ever earned; it only grows."""
    collected: MicroUnits
    uncollected: MicroUnits
    """`entitled - collected`: what a collect may add. Negative only while records are missing."""
    is_frozen: bool
    """Two entries at one of its slots are known."""

    @property
    def is_blank(self) -> bool:
        """Whether the account is as if nobody had ever named it."""
        return not (self.seq or self.spendable or self.unvested or self.entitled or self.is_frozen)

    @property
    def total(self) -> MicroUnits:
        """What it contributes to the supply."""
        return self.spendable + self.locked + self.unvested + self.uncollected


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HoldState:
    """A final open or bond."""

    hold: RecordId
    author: AccountId
    is_bond: bool
    limit: MicroUnits
    """After final releases."""
    fees: MicroUnits
    """Of its final receipts."""
    receipts: int
    head: RecordId
    """The last final receipt; the hold itself before the first."""
    is_frozen: bool

    @property
    def reserve(self) -> MicroUnits:
        """Still held for an open's worker. Negative only if more than f witnesses lied."""
        return 0 if self.is_bond else self.limit - self.fees

    @property
    def bond(self) -> MicroUnits:
        """Held as a stake."""
        return self.limit if self.is_bond and not self.is_frozen else 0

    @property
    def burned(self) -> MicroUnits:
        """The stake of an equivocator: gone."""
        return self.limit if self.is_bond and self.is_frozen else 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a set of records says."""

    accounts: Mapping[AccountId, AccountState]
    """Those that are not blank."""
    holds: Mapping[RecordId, HoldState]
    funds: Mapping[ModelId, MicroUnits]
    """Upkeep that nobody has drawn yet, by model."""
    final: frozenset[RecordId]
    """Final entries, receipts and releases."""
    alarms: tuple[str, ...]
    """Sorted. Each one proves that more than f witnesses lied."""

    def total(self) -> MicroUnits:
        """The sum over all buckets: the supply, on every set."""
        holds = sum(hold.reserve + hold.bond + hold.burned for hold in self.holds.values())
        return sum(account.total for account in self.accounts.values()) + holds + sum(self.funds.values())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HoldView:
    """A final open or bond."""

    id: RecordId
    entry: Entry
    limit: MicroUnits
    """After final releases."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenState:
    """An open that is held, final or not, with the receipts under it."""

    id: RecordId
    entry: Entry
    is_final: bool
    is_sound: bool
    """Final, or on its author's longest sound chain. An unsound one can never become final."""
    is_released: bool
    """A sound release is held, final or not: nothing more is to be served under this open."""
    limit: MicroUnits
    """After final releases."""
    reserve: MicroUnits
    """`limit` less the fees of final receipts; 0 while the open is not final."""
    tab: Tab
    """After the final receipts."""
    tip_tab: Tab
    """After the longest sound chain of receipts held, final or not."""

    @property
    def final_fees(self) -> MicroUnits:
        """What the final receipts add up to."""
        return self.tab.cumulative


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A `publish` entry that is held, final or on its author's longest sound chain."""

    id: RecordId
    author: AccountId
    seq: int
    model: ModelId
    successor_of: ModelId
    """Empty for none."""
    is_final: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """The proof that an author equivocated: two entries at its lowest forked slot, smallest ids first."""

    author: AccountId
    seq: int
    ids: tuple[RecordId, RecordId]
