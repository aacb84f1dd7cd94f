"""What must hold of every world, whatever its liars did. `Broken` names the claim that does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from gossip_ledger.ledger import Ledger
from gossip_ledger.payout import shares
from gossip_ledger.records import (
    AccountId,
    Bond,
    Entry,
    Manifest,
    ModelId,
    Open,
    Publish,
    Receipt,
    RecordId,
    Release,
    Signed,
)
from gossip_ledger.reference import settle
from gossip_ledger.root import state_root
from gossip_ledger.signing import model_id
from gossip_ledger.state import State
from tests.property.gossip_ledger.worlds import GRACE, HONEST, PAYER, World


class Broken(AssertionError):
    """A claim does not hold."""


def claim(holds: bool, text: str) -> None:
    if not holds:
        raise Broken(text)


def held(manifests: Iterable[Manifest]) -> dict[ModelId, Manifest]:
    return {model_id(manifest): manifest for manifest in manifests}


def ledger_of(world: World, records: Mapping[RecordId, Signed]) -> Ledger:
    ledger = Ledger(world.genesis)
    for manifest in world.manifests:
        ledger.add_manifest(manifest)
    for key, record in records.items():
        ledger.add(record, key)
    return ledger


def check_set(world: World, records: Mapping[RecordId, Signed]) -> State:
    """Claims about one set of records."""
    ledger = ledger_of(world, records)
    state = ledger.state()
    claim(
        state == settle(records, held(world.manifests), world.genesis),
        "the ledger differs from the reference",
    )
    claim(not state.alarms, "an alarm, though at most f witnesses lie")
    claim(state.total() == world.genesis.supply, "the supply is not conserved")
    accounts = state.accounts.values()
    claim(all(a.spendable >= 0 and a.locked >= 0 for a in accounts), "a negative balance")
    claim(all(hold.reserve >= 0 for hold in state.holds.values()), "a release took what a receipt is owed")
    claim(min(state.funds.values(), default=0) >= 0, "a fund is overdrawn")
    claim(not any(a.is_frozen for a in accounts if a.account in HONEST), "an honest account is frozen")
    claim(state_root(state, ledger.network) == ledger.root(), "roots differ")
    check_final(world, state)
    return state


def check_final(world: World, state: State) -> None:
    """Claims about single final records."""
    slots, asks = set[tuple[bytes, int]](), set[tuple[bytes, int]]()
    for key in state.final:
        match world.records[key].record:
            case Entry() as entry:
                claim((entry.author, entry.seq) not in slots, "two final entries at one slot")
                claim(entry.epoch <= world.now + 3, "an entry from the future is final")
                slots.add((entry.author, entry.seq))
            case Receipt(bill=bill) as receipt:
                claim((bill.open, receipt.n) not in slots, "two final receipts at one slot")
                claim((bill.open, bill.ask) not in asks, "an ask was paid twice")
                slots.add((bill.open, receipt.n))
                asks.add((bill.open, bill.ask))
                if bill.payer == PAYER:
                    claim(bill.fee <= world.billed[bill.open, bill.ask].fee, "paid above the last bill")
            case Release(hold=hold):
                body = world.records[hold].record
                assert isinstance(body, Entry)
                assert isinstance(body.body, Open | Bond)
                claim(body.body.expiry + GRACE < world.now + 1, "a hold was released before its time")
            case _:
                raise Broken("an ack is final")


def check_growth(before: State, after: State) -> None:
    """Claims about a set and a larger one."""
    claim(before.final <= after.final, "something final stopped being final")
    for name, account in before.accounts.items():
        claim(after.accounts[name].entitled >= account.entitled, "an entitlement shrank")


def check_complete(world: World, state: State) -> None:
    """Claims about everything there is."""
    claim(all(a.uncollected >= 0 for a in state.accounts.values()), "collected more than was earned")
    check_funds(world, state)


def check_funds(world: World, state: State) -> None:
    """No fund pays more than the upkeep and network parts of the answers of its creator's later versions."""
    upkeep, parts = Counter[ModelId](), Counter[ModelId]()
    manifests = held(world.manifests)
    followers: dict[tuple[AccountId, ModelId], set[ModelId]] = {}
    for key in state.final:
        match world.records[key].record:
            case Entry(author=author, body=Publish(manifest=heir, successor_of=model)):
                followers.setdefault((author, model), set()).add(heir)
            case Receipt(bill=bill) as receipt:
                for share in shares(receipt, key, manifests[bill.model], world.genesis):
                    upkeep[bill.model] += share.amount if share.role == "upkeep" else 0
                    if share.role in ("upkeep", "network") and receipt.evidence:
                        parts[bill.model] += share.amount
            case _:
                pass
    claim(set(state.funds) == set(upkeep), "funds of other models than were used")
    for model, left in state.funds.items():
        creator, line, todo = manifests[model].creator, set[ModelId](), [model]
        while todo:
            fresh = followers.get((creator, todo.pop()), set()) - line
            line |= fresh
            todo += fresh
        claim(upkeep[model] - left <= sum(parts[heir] for heir in line), "a fund paid for unused work")


def check_world(world: World) -> None:
    """Every claim, for one world: parts of it, all of it, and what comes of it when the liars fall silent."""
    rng = world.rng
    prefixes = sorted(rng.sample(range(len(world.records) + 1), min(4, len(world.records))))
    before: State | None = None
    for size in prefixes:
        after = check_set(world, dict(list(world.records.items())[:size]))
        if before:
            check_growth(before, after)
        before = after
    part = {key: record for key, record in world.records.items() if rng.random() < 0.9}
    check_growth(check_set(world, part), check_set(world, world.records))
    check_complete(world, check_set(world, world.records))


def check_liveness(world: World) -> None:
    """With the liars silent, what honest accounts wrote becomes final."""
    world.settle_down()
    world.now += 9
    world.settle_down()
    state = check_set(world, world.records)
    check_complete(world, state)
    for key in world.mine:
        record = world.records[key].record
        lost = isinstance(record, Receipt) and record.bill.payer != PAYER
        claim(lost or key in state.final, f"an honest {type(record).__name__} never became final")
