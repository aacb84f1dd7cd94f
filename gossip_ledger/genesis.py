"""The first state of a network, as data. Its hash is the network's id.

Everything that peers of one network must agree on stands here: the supply and its vesting, the witnesses, the
length of an epoch, and the bounds within which a manifest may divide a fee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, final

from gossip_ledger.codec import Schema, Table, many, nested, octets, text, uint
from gossip_ledger.limits import (
    ALLOCATIONS_MAX,
    BASIS_POINTS,
    GENESIS_BYTES_MAX,
    MAX_AMOUNT,
    WITNESSES_MAX,
)
from gossip_ledger.records import AccountId, MicroUnits, NetworkId, Split
from gossip_ledger.signing import digest

RULES_VERSION: Final = 1
"""The rules that this code computes. A genesis that names others is refused."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Part of the supply. All of it is vested at `start + duration`; nothing before `start + cliff`."""

    account: AccountId
    amount: MicroUnits
    start: int
    """Epoch from which it vests, linearly."""
    cliff: int
    """Epochs after `start` before which nothing counts as vested."""
    duration: int
    """Epochs from `start` until all is vested; 0: at once."""
    purpose: str
    """For people only: community, team, ..."""

    def at(self, epoch: int) -> MicroUnits:
        """How much of it has vested."""
        if epoch < self.start + self.cliff:
            return 0
        if epoch >= self.start + self.duration:
            return self.amount
        return self.amount * (epoch - self.start) // self.duration


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBound:
    """A lower or an upper bound on every part of a split, in basis points. It has no fixed sum."""

    worker: int
    creator: int
    data: int
    upkeep: int
    network: int


NO_LESS: Final = SplitBound(worker=0, creator=0, data=0, upkeep=0, network=0)
"""The lower bound that allows every split."""
NO_MORE: Final = SplitBound(**{part.name: BASIS_POINTS for part in fields(SplitBound)})
"""The upper bound that allows every split."""


@final
@dataclass(frozen=True, kw_only=True)
class Genesis:
    """The terms of one network. No slots: the allocations by account are computed once and kept."""

    rules: int = RULES_VERSION
    name: str
    unit: str
    """What a million micro-units are called."""
    start_s: int
    """Unix seconds at which epoch 0 begins."""
    epoch_s: int
    """Seconds in an epoch."""
    grace_epochs: int
    """Epochs after its expiry before a hold may be released: more than finality lag plus twice the skew."""
    allocations: tuple[Allocation, ...]
    witnesses: tuple[AccountId, ...]
    faulty: int
    """Most witnesses that may lie, f: there are at least 3f + 1."""
    treasury: AccountId
    """Receives network shares and publish fees."""
    publish_fee: MicroUnits
    split_min: SplitBound = NO_LESS
    split_max: SplitBound = NO_MORE

    def __post_init__(self) -> None:
        if len(set(self.witnesses)) != len(self.witnesses):
            raise ValueError("a witness is named twice")
        if len(self.witnesses) < 3 * self.faulty + 1:
            raise ValueError("f faulty witnesses need 3f + 1 witnesses or more")
        if self.supply > MAX_AMOUNT:
            raise ValueError("the supply exceeds the largest amount")
        low, high = _parts(self.split_min), _parts(self.split_max)
        if any(a > b for a, b in zip(low, high, strict=True)) or not sum(low) <= BASIS_POINTS <= sum(high):
            raise ValueError("no split lies within the bounds")

    @property
    def quorum(self) -> int:
        """Acks that certify a record, q: any two such sets share an honest witness."""
        return (len(self.witnesses) + self.faulty) // 2 + 1

    @property
    def supply(self) -> MicroUnits:
        """All the money there is and ever will be."""
        return sum(allocation.amount for allocation in self.allocations)

    @cached_property
    def allocations_of(self) -> Mapping[AccountId, tuple[Allocation, ...]]:
        """The allocations by account, in their order."""
        found: dict[AccountId, tuple[Allocation, ...]] = {}
        for allocation in self.allocations:
            found[allocation.account] = (*found.get(allocation.account, ()), allocation)
        return found

    def allocated(self, account: AccountId) -> MicroUnits:
        """What the account will have vested in the end."""
        return sum(allocation.amount for allocation in self.allocations_of.get(account, ()))

    def vested(self, account: AccountId, epoch: int) -> MicroUnits:
        """What the account has vested at `epoch`."""
        return sum(allocation.at(epoch) for allocation in self.allocations_of.get(account, ()))

    def epoch_at(self, unix_s: int) -> int:
        """The epoch of a moment; 0 also before the start."""
        return max(0, (unix_s - self.start_s) // self.epoch_s)

    def allows(self, split: Split) -> bool:
        """Whether a manifest of this network may divide fees like that."""
        bounds = zip(_parts(self.split_min), _parts(split), _parts(self.split_max), strict=True)
        return all(low <= part <= high for low, part, high in bounds)


def network_id(genesis: Genesis) -> NetworkId:
    """The network that a genesis begins."""
    return NetworkId(digest("genesis", NetworkId(b""), GENESES.encode(genesis)))


def _parts(split: Split | SplitBound) -> tuple[int, ...]:
    return (split.worker, split.creator, split.data, split.upkeep, split.network)


_account = octets(32)
_bound = uint(BASIS_POINTS)

ALLOCATION = Table(
    41,
    Allocation,
    (
        ("account", _account),
        ("amount", uint()),
        ("start", uint()),
        ("cliff", uint()),
        ("duration", uint()),
        ("purpose", text(64)),
    ),
)
SPLIT_BOUND = Table(42, SplitBound, tuple((part.name, _bound) for part in fields(SplitBound)))
GENESIS = Table(
    40,
    Genesis,
    (
        ("rules", uint(RULES_VERSION, minimum=RULES_VERSION)),
        ("name", text(64)),
        ("unit", text(16)),
        ("start_s", uint()),
        ("epoch_s", uint(minimum=1)),
        ("grace_epochs", uint()),
        ("allocations", many(nested(ALLOCATION), ALLOCATIONS_MAX)),
        ("witnesses", many(_account, WITNESSES_MAX, minimum=1)),
        ("faulty", uint(WITNESSES_MAX)),
        ("treasury", _account),
        ("publish_fee", uint()),
        ("split_min", nested(SPLIT_BOUND)),
        ("split_max", nested(SPLIT_BOUND)),
    ),
)
GENESES = Schema(GENESIS, bytes_max=GENESIS_BYTES_MAX)
"""Geneses: a file, and the seed of a network's id."""
