"""What final records entitle whom to, kept up to date record by record. Sums only: no order matters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import final

from gossip_ledger.funds import Funds
from gossip_ledger.genesis import Genesis
from gossip_ledger.payout import data_shares, divide, tolls
from gossip_ledger.records import (
    AccountId,
    Entry,
    Manifest,
    MicroUnits,
    ModelId,
    Publish,
    Receipt,
    RecordId,
    Transfer,
)


@final
class Money:
    """Cumulative entitlements and funds. Every call names something that became final just now."""

    def __init__(self, genesis: Genesis, manifests: Mapping[ModelId, Manifest]) -> None:
        self._genesis = genesis
        self._manifests = manifests
        self._entitled: Counter[AccountId] = Counter()
        self._funds = Funds(manifests)
        self._receipts_of: dict[AccountId, list[RecordId]] = defaultdict(list)

    def entry(self, entry: Entry) -> None:
        """What an entry gives to others than its author."""
        match entry.body:
            case Transfer(to=to, amount=amount):
                self._entitled[to] += amount
            case Publish(fee=fee) as body:
                self._entitled[self._genesis.treasury] += fee
                self._funds.publish(entry.author, body)
            case _:
                pass

    def returned(self, author: AccountId, amount: MicroUnits) -> None:
        """What a release gives back to the author of its hold."""
        self._entitled[author] += amount

    def receipt(self, receipt: Receipt, key: RecordId) -> None:
        """The parts of a fee, as `payout.shares` names them."""
        model = receipt.bill.model
        manifest = self._manifests[model]
        parts = divide(receipt.bill.fee, manifest.split, key)
        payees = {receipt.worker, receipt.bill.payer, manifest.creator}
        self._entitled[receipt.worker] += parts.worker
        self._entitled[manifest.creator] += parts.creator
        self._entitled[self._genesis.treasury] += parts.network
        for cluster, amount in data_shares(parts.data, receipt, key, manifest).items():
            if amount:
                self._entitled[manifest.owners[cluster]] += amount
                payees.add(manifest.owners[cluster])
        self._funds.receipt(model, parts.upkeep, tolls(receipt, parts.upkeep, parts.network))
        for account in payees:
            self._receipts_of[account].append(key)

    def entitled(self) -> Mapping[AccountId, MicroUnits]:
        """Everything each account ever earned, funds included."""
        self._funds.settle(self._entitled)
        return self._entitled

    def funds(self) -> dict[ModelId, MicroUnits]:
        """What is left in each fund."""
        self._funds.settle(self._entitled)
        return self._funds.left()

    def receipts_of(self, account: AccountId) -> list[RecordId]:
        """The final receipts that an account paid for, or has a part in (network parts are not listed)."""
        return self._receipts_of.get(account, [])
