"""Who gets what of one fee, to the last micro-unit.

The split divides the fee among worker, creator, data, upkeep and network; the data part is divided again by
the evidence of the receipt, or by the priors of the manifest where there is none. One function pays in the
state, explains on the command line and shows at the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, final

from gossip_ledger.amounts import apportion
from gossip_ledger.genesis import Genesis
from gossip_ledger.records import (
    AccountId,
    ClusterId,
    Manifest,
    MicroUnits,
    ModelId,
    Receipt,
    RecordId,
    Split,
)

Role = Literal["worker", "creator", "data", "upkeep", "network"]

_PARTS: Final = (b"worker", b"creator", b"data", b"upkeep", b"network")


@final
class Parts(NamedTuple):
    """A fee, divided by a split."""

    worker: MicroUnits
    creator: MicroUnits
    data: MicroUnits
    upkeep: MicroUnits
    network: MicroUnits


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One payee's part of one fee."""

    account: AccountId | ModelId
    """Who gets it; for `upkeep` the model whose fund it goes to."""
    role: Role
    cluster: ClusterId | None
    """The cluster that a `data` share is for."""
    amount: MicroUnits


def divide(fee: MicroUnits, split: Split, receipt_id: RecordId) -> Parts:
    """The fee in its five parts, by largest remainder."""
    basis = (split.worker, split.creator, split.data, split.upkeep, split.network)
    parts = apportion(fee, dict(zip(_PARTS, basis, strict=True)), receipt_id)
    return Parts(*(parts[name] for name in _PARTS))


def data_shares(
    amount: MicroUnits, receipt: Receipt, receipt_id: RecordId, manifest: Manifest
) -> dict[ClusterId, MicroUnits]:
    """The data part by cluster. Empty where there is nothing to divide."""
    if not amount:
        return {}
    evidence = {pair.cluster: pair.weight for pair in receipt.evidence}
    return apportion(amount, evidence or manifest.priors, receipt_id)


def shares(receipt: Receipt, receipt_id: RecordId, manifest: Manifest, genesis: Genesis) -> tuple[Share, ...]:
    """Every part of a sound receipt's fee; they add up to it. Data shares of nothing are left out."""
    parts = divide(receipt.bill.fee, manifest.split, receipt_id)
    data = data_shares(parts.data, receipt, receipt_id, manifest)
    return (
        Share(account=receipt.worker, role="worker", cluster=None, amount=parts.worker),
        Share(account=manifest.creator, role="creator", cluster=None, amount=parts.creator),
        *(
            Share(account=manifest.owners[cluster], role="data", cluster=cluster, amount=amount)
            for cluster, amount in data.items()
            if amount
        ),
        Share(account=receipt.bill.model, role="upkeep", cluster=None, amount=parts.upkeep),
        Share(account=genesis.treasury, role="network", cluster=None, amount=parts.network),
    )


def tolls(receipt: Receipt, upkeep: MicroUnits, network: MicroUnits) -> Mapping[ClusterId, MicroUnits]:
    """What the use of each cluster that the evidence names cost: its weight's part of upkeep and network.

    Rounded down; this is a bound for funds, not a payment.
    """
    total = sum(pair.weight for pair in receipt.evidence)
    return {pair.cluster: (upkeep + network) * pair.weight // total for pair in receipt.evidence}
