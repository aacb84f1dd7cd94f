"""What the ledger says, as JSON: every amount with its standing, every zero explained.

Pure functions of the projection. Ids and accounts are hex; amounts are micro-units. Standings:

- `final`: certified by a quorum of witnesses; never shrinks.
- `pending`: recorded and sound, not yet certified.
- `reserved`: held for a worker under an open, or as a bond, until released.
- `unvested`: allocated in the genesis, not yet vested.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, final

from gossip_ledger.ledger import Ledger
from gossip_ledger.payout import Share, shares
from gossip_ledger.records import AccountId, Bond, Manifest, ModelId, Open, Receipt, RecordId
from peer.api import Json, Split
from peer.models import Published, published

RECENT_RECEIPTS = 20
_EARNINGS: Final = ("final", "pending", "receipts", "answers", "tokens_in", "tokens_out", "fees")


@final
class Names:
    """What to call accounts: labels of clusters and roles of the genesis, for display only."""

    def __init__(self, ledger: Ledger, models: tuple[Published, ...]) -> None:
        self._names: dict[AccountId, str] = {}
        for entry in models:
            for cluster in entry.manifest.clusters:
                self._names.setdefault(cluster.owner, cluster.label)
        genesis = ledger.genesis
        for allocation in genesis.allocations:
            self._names.setdefault(allocation.account, allocation.purpose)
        for index, witness in enumerate(genesis.witnesses, 1):
            self._names[witness] = f"witness {index}" if len(genesis.witnesses) > 1 else "witness"
        self._names[genesis.treasury] = "treasury"

    def of(self, account: bytes) -> str:
        return self._names.get(AccountId(account), account.hex()[:8])


def split_view(part: Share, manifest: Manifest, names: Names) -> Split:
    """One part of one fee."""
    labels = {cluster.name: cluster.label for cluster in manifest.clusters}
    if part.role == "upkeep":
        name = f"upkeep fund of {manifest.name}"
    elif part.cluster is not None:
        name = labels[part.cluster]
    elif part.role == "creator":
        name = f"creator of {manifest.name}"
    else:
        name = names.of(part.account)
    return {
        "account": part.account.hex(),
        "name": name,
        "role": part.role,
        "cluster": None if part.cluster is None else part.cluster.hex(),
        "amount": part.amount,
    }


def receipt_shares(ledger: Ledger, ident: RecordId, receipt: Receipt) -> tuple[Share, ...]:
    """The parts of one receipt's fee; empty while its manifest is not held."""
    manifest = ledger.manifest(receipt.bill.model)
    return () if manifest is None else shares(receipt, ident, manifest, ledger.genesis)


def receipt_view(ledger: Ledger, ident: RecordId, receipt: Receipt, names: Names) -> Json:
    """A receipt with its split and standing."""
    bill = receipt.bill
    manifest = ledger.manifest(bill.model)
    parts = receipt_shares(ledger, ident, receipt)
    return {
        "id": ident.hex(),
        "standing": "final" if ledger.is_final(ident) else "pending",
        "acks": ledger.ack_count(ident),
        "quorum": ledger.genesis.quorum,
        "worker": receipt.worker.hex(),
        "payer": bill.payer.hex(),
        "model": manifest.name if manifest else bill.model.hex(),
        "model_id": bill.model.hex(),
        "open": bill.open.hex(),
        "n": receipt.n,
        "ask": bill.ask,
        "epoch": bill.epoch,
        "answers": bill.answers,
        "tokens_in": bill.tokens_in,
        "tokens_out": bill.tokens_out,
        "fee": bill.fee,
        "evidence": [{"cluster": pair.cluster.hex(), "weight": pair.weight} for pair in receipt.evidence],
        "evidence_blob": receipt.sketch.hex(),
        "attribution": "overlap" if receipt.evidence else "prior",
        "shares": [split_view(part, manifest, names) for part in parts] if manifest else [],
    }


def earned(ledger: Ledger, account: AccountId) -> tuple[Counter[tuple[str, str]], dict[str, int]]:
    """By (model, role) what final receipts pay an account, and by standing the sums."""
    by_source: Counter[tuple[str, str]] = Counter()
    sums = {"final": 0, "pending": 0}
    for ident, receipt in ledger.receipts():
        manifest = ledger.manifest(receipt.bill.model)
        standing = "final" if ledger.is_final(ident) else "pending"
        for part in receipt_shares(ledger, ident, receipt):
            if part.role == "upkeep" or part.account != account:
                continue
            sums[standing] += part.amount
            if standing == "final" and manifest is not None:
                by_source[manifest.name, part.role] += part.amount
    return by_source, sums


def balance_view(ledger: Ledger, account: AccountId, names: Names) -> Json:
    """Every amount of an account, each with its standing."""
    state = ledger.account(account)
    tip = ledger.tip(account)
    reserved = sum(hold.reserve for hold in ledger.opens_of(account) if hold.is_final)
    bonds = sum(
        hold.limit
        for hold in ledger.holds()
        if hold.entry.author == account and isinstance(hold.entry.body, Bond)
    )
    pending = sum(
        part.amount
        for ident, receipt in ledger.receipts()
        if not ledger.is_final(ident)
        for part in receipt_shares(ledger, ident, receipt)
        if part.role != "upkeep" and part.account == account
    )
    return {
        "account": account.hex(),
        "name": names.of(account),
        "unit": ledger.genesis.unit,
        "is_frozen": state.is_frozen,
        "amounts": [
            {"what": "spendable", "amount": state.spendable, "standing": "final"},
            {"what": "earned, not yet collected", "amount": state.uncollected, "standing": "final"},
            {"what": "locked", "amount": state.locked, "standing": "final"},
            {"what": "held under opens", "amount": reserved, "standing": "reserved"},
            {"what": "bonds", "amount": bonds, "standing": "reserved"},
            {"what": "earned by uncertified receipts", "amount": pending, "standing": "pending"},
            {"what": "allocation still vesting", "amount": state.unvested, "standing": "unvested"},
        ],
        "spendable": state.spendable,
        "earned": state.entitled,
        "collected": state.collected,
        "reserved": reserved,
        "pending": pending,
        "unvested": state.unvested,
        "chain": {"final_seq": state.seq, "seq": tip.seq},
    }


def payouts_view(ledger: Ledger, names: Names) -> Json:
    """What final receipts pay whom: sums to their fees. Funds stand apart, by model."""
    accounts: Counter[bytes] = Counter()
    funds: Counter[bytes] = Counter()
    fees = 0
    count = 0
    for ident, receipt in ledger.receipts():
        if not ledger.is_final(ident):
            continue
        count += 1
        fees += receipt.bill.fee
        for part in receipt_shares(ledger, ident, receipt):
            (funds if part.role == "upkeep" else accounts)[part.account] += part.amount
    return {
        "fees": fees,
        "receipts": count,
        "accounts": {account.hex(): amount for account, amount in sorted(accounts.items()) if amount},
        "funds": {model.hex(): amount for model, amount in sorted(funds.items()) if amount},
        "names": {account.hex(): names.of(account) for account in sorted(accounts)},
        "sums_to_fees": sum(accounts.values()) + sum(funds.values()) == fees,
    }


def earnings_view(ledger: Ledger, account: AccountId) -> Json:
    """What an account earned by serving, by model: its part as the worker of its own receipts.

    `fees` are what the payers paid for the same answers; the others' parts are the difference.
    """
    rows: dict[ModelId, dict[str, int]] = {}
    for ident, receipt in ledger.receipts_of(account):
        if receipt.worker != account:
            continue
        row = rows.setdefault(receipt.bill.model, dict.fromkeys(_EARNINGS, 0))
        standing = "final" if ledger.is_final(ident) else "pending"
        parts = receipt_shares(ledger, ident, receipt)
        row[standing] += sum(part.amount for part in parts if part.role == "worker")
        for name, count in (
            ("receipts", 1),
            ("answers", receipt.bill.answers),
            ("tokens_in", receipt.bill.tokens_in),
            ("tokens_out", receipt.bill.tokens_out),
            ("fees", receipt.bill.fee),
        ):
            row[name] += count
    state = ledger.account(account)
    return {
        "account": account.hex(),
        "unit": ledger.genesis.unit,
        "models": [
            {"model": _model_name(ledger, model), "model_id": model.hex(), **row}
            for model, row in sorted(rows.items(), key=lambda item: (-item[1]["final"], item[0]))
        ],
        "total": {name: sum(row[name] for row in rows.values()) for name in _EARNINGS},
        "collected": state.collected,
        "uncollected": state.uncollected,
    }


def _model_name(ledger: Ledger, model: ModelId) -> str:
    manifest = ledger.manifest(model)
    return manifest.name if manifest else model.hex()


def models_view(ledger: Ledger, holders: dict[ModelId, list[AccountId]]) -> list[Json]:
    """The published models and who answers for them now."""
    rows: list[Json] = []
    for entry in published(ledger):
        manifest = entry.manifest
        split = manifest.split
        rows.append(
            {
                "name": manifest.name,
                "version": manifest.version,
                "id": entry.model.hex(),
                "kind": manifest.kind,
                "base": manifest.base.hex(),
                "creator": manifest.creator.hex(),
                "standing": "final" if entry.is_final else "pending",
                "licence": manifest.licence,
                "about": manifest.about,
                "split": {
                    "worker": split.worker,
                    "creator": split.creator,
                    "data": split.data,
                    "upkeep": split.upkeep,
                    "network": split.network,
                },
                "clusters": [
                    {"id": c.name.hex(), "owner": c.owner.hex(), "prior": c.prior, "label": c.label}
                    for c in manifest.clusters
                ],
                "holders": [worker.hex() for worker in holders.get(entry.model, [])],
            }
        )
    return rows


def explain_account(ledger: Ledger, account: AccountId, names: Names) -> Json:
    """An account walked down to receipts. A zero says what would have to happen first."""
    by_source, sums = earned(ledger, account)
    models = published(ledger)
    owns = [
        f"{cluster.label} in {entry.manifest.name}"
        for entry in models
        for cluster in entry.manifest.clusters
        if cluster.owner == account
    ]
    created = [entry.manifest.name for entry in models if entry.manifest.creator == account]
    recent = [
        receipt_view(ledger, ident, receipt, names)
        for ident, receipt in ledger.receipts_of(account)[-RECENT_RECEIPTS:]
    ]
    return {
        **balance_view(ledger, account, names),
        "kind": "account",
        "earned_from": [
            {"model": model, "role": role, "amount": amount}
            for (model, role), amount in sorted(by_source.items())
        ],
        "contributes": owns,
        "creates": created,
        "opens": [
            {
                "id": hold.id.hex(),
                "worker": hold.entry.body.worker.hex(),
                "limit": hold.limit,
                "spent": hold.final_fees,
                "reserve": hold.reserve,
                "expiry": hold.entry.body.expiry,
                "standing": "final" if hold.is_final else "pending",
            }
            for hold in ledger.opens_of(account)
            if isinstance(hold.entry.body, Open)
        ],
        "receipts": recent,
        "why": _why(sums, owns, created, bool(recent)),
    }


def _why(sums: dict[str, int], owns: list[str], created: list[str], has_receipts: bool) -> str:
    if sums["final"]:
        return "earned from the final receipts listed"
    if sums["pending"]:
        return "nothing final yet: the receipts listed wait for the witnesses' acknowledgement"
    if has_receipts:
        return "nothing earned: this account paid for the receipts listed and has no part in their split"
    if owns or created:
        return "nothing earned: no recorded answer has drawn on what this account contributed or created yet"
    return (
        "nothing earned: this account has served, created and contributed nothing that this ledger knows of"
    )
