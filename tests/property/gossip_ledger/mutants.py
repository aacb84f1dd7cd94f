"""The rules, broken one at a time. A suite that misses one of these proves nothing about that rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gossip_ledger import finality, funds, genesis, index, money, payout, reference, soundness, witness
from gossip_ledger.errors import UnsoundError
from gossip_ledger.records import NO_RECORD, Entry, ModelId, Open, RecordId
from gossip_ledger.soundness import Account, Tab, extend_account
from gossip_ledger.witness import ReceiptPromise
from tests.property.gossip_ledger.claims import check_liveness, check_world
from tests.property.gossip_ledger.worlds import World

Patch = tuple[Any, str, Any]


def nothing(*_: object) -> None:
    """A check that lets everything pass."""


def acks_every_rival(self: Any, open_id: RecordId) -> None:
    """judge_tab, but one slot may get several acks."""
    opened = self.ledger.hold(open_id)
    if opened is None or not isinstance(opened.body, Open):
        return
    tabs = [Tab.of(open_id, opened)]
    while tabs:
        tab = tabs.pop()
        for key, receipt in self.ledger.receipts_at(open_id, tab.n + 1):
            with contextlib.suppress(UnsoundError):
                self.check_receipt(receipt)
                tabs.append(self.extend_tab(tab, receipt, key))
                if key not in self.memory.promised:
                    self.promises.append(
                        ReceiptPromise(
                            id=key, open=open_id, n=receipt.n, cumulative=receipt.cumulative, ask=0, fee=0
                        )
                    )


def refuses_late(original: Callable[[Any, Entry], None]) -> Callable[[Any, Entry], None]:
    def check_entry(self: Any, entry: Entry) -> None:
        if entry.epoch < self.clock - 1:
            raise UnsoundError("late")
        original(self, entry)

    return check_entry


def promises_anything(self: Any, author: bytes) -> None:
    """judge_account, but a witness acks a slot again when a rival shows up."""
    for signed in tuple(self.ledger.pending(author)):
        key = next(
            k for k, _ in self.ledger.entries_at(author, signed.record.seq) if self.ledger.get(k) is signed
        )
        if key in self.memory.promised:
            continue
        before = Account(author)
        chain, link = [signed.record], signed.record.prev
        while link != NO_RECORD and self.ledger.get(link) is not None:
            chain.insert(0, self.ledger.get(link).record)
            link = chain[0].prev
        with contextlib.suppress(UnsoundError):
            for place, entry in enumerate(chain):
                nxt = chain[place + 1].prev if place + 1 < len(chain) else key
                before = extend_account(before, entry, nxt, self.genesis)
            self.promises.append(
                witness.EntryPromise(id=key, account=author, seq=before.seq, epoch=0, collected=0, debited=0)
            )


def loses_remainders(amount: int, weights: Mapping[bytes, int], salt: bytes) -> dict[bytes, int]:
    total = sum(weights.values())
    return {key: amount * weight // total for key, weight in weights.items()}


def last_successor(model: ModelId, chains: Any, manifests: Any) -> Any:
    backwards = {author: chain[::-1] for author, chain in chains.items()}
    return ORIGINAL_SUCCESSOR(model, backwards, manifests)


def anyones_successor(model: ModelId, chains: Any, manifests: Any) -> Any:
    everyone = [entry for author in sorted(chains) for entry in chains[author]]
    return ORIGINAL_SUCCESSOR(model, {manifests[model].creator: everyone}, manifests)


def no_lineage(self: Any, heir: ModelId, creator: bytes) -> frozenset[ModelId]:
    return frozenset((heir,))


def priors_alone(receipt: Any, upkeep: int, network: int) -> dict[bytes, int]:
    return {pair.cluster: 10**9 for pair in receipt.evidence}


def uncertified(self: Any, key: RecordId) -> bool:
    return self._index.manifest_held(self._index.record(key))


def returned_twice(self: Any, author: Any, amount: int) -> None:
    self._entitled[author] += 2 * amount


def unfrozen(self: Any, author: Any) -> bool:
    return False


ORIGINAL_SUCCESSOR = reference.successor
DRAFT = witness._Draft  # pyright: ignore[reportPrivateUsage]

MUTANTS: dict[str, tuple[Patch, ...]] = {
    "overdraft allowed": ((soundness, "_check_affordable", nothing),),
    "limit not checked": ((soundness, "_check_limit", nothing),),
    "an ask paid twice": ((soundness, "_check_ask", nothing),),
    "evidence may name unknown clusters": ((soundness, "_check_evidence", nothing),),
    "a witness acks rival receipts": ((DRAFT, "judge_tab", acks_every_rival),),
    "a witness acks rival entries": (
        (DRAFT, "judge_account", promises_anything),
        (DRAFT, "check_entry", nothing),
    ),
    "collect not checked": ((DRAFT, "check_earned", nothing),),
    "release before expiry and grace": ((DRAFT, "check_expired", nothing),),
    "release ignores acked receipts": ((DRAFT, "check_covered", nothing),),
    "receipts ignore acked releases": ((DRAFT, "check_receipt", nothing),),
    "entries from the future acked": ((witness, "AHEAD_EPOCHS_MAX", 99),),
    "late entries refused": ((DRAFT, "check_entry", refuses_late(DRAFT.check_entry)),),
    "quorum one too small": (
        (genesis.Genesis, "quorum", property(lambda g: (len(g.witnesses) + g.faulty) // 2)),
    ),
    "remainders lost": ((payout, "apportion", loses_remainders),),
    "fund by priors alone": ((money, "tolls", priors_alone), (reference, "tolls", priors_alone)),
    "last successor takes the fund": ((reference, "successor", last_successor),),
    "anyone's successor takes the fund": ((reference, "successor", anyones_successor),),
    "later versions do not count": ((funds.Funds, "_lineage", no_lineage),),
    "final without a quorum": ((finality.Finality, "_qualifies", uncertified),),
    "a release pays twice": ((money.Money, "returned", returned_twice),),
    "equivocators go free": ((index.RecordIndex, "is_forked", unfrozen),),
    "f + 1 lying witnesses": (),
}


@contextlib.contextmanager
def planted(patches: tuple[Patch, ...]) -> Iterator[None]:
    """The mutant, for a while."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def first_noticed(name: str, worlds: int) -> str:
    """What the claims say of a mutant, in the first world that shows it; empty if none does."""
    with planted(MUTANTS[name]):
        for seed in range(worlds):
            try:
                world = World(seed, too_many_liars=name.startswith("f + 1"))
                world.run()
                check_world(world)
                if not name.startswith("f + 1"):
                    check_liveness(world)
            except (AssertionError, LookupError) as found:
                return f"world {seed}: {type(found).__name__}: {found}"
    return ""
