"""Upkeep funds, kept up to date: what each model's fund holds, who draws on it, and how much.

**Usage releases upkeep.** The successor of a model is the first that its own creator published with something
new; the lineage is that successor and everything the creator published after it. Each fresh cluster draws the
lesser of its toll (what answers of the lineage that drew on it paid in upkeep and network parts) and its part
of the fund by prior. Both bounds only grow, so no share ever shrinks; what is not drawn stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple, final

from gossip_ledger.records import AccountId, Cluster, ClusterId, Manifest, MicroUnits, ModelId, Publish


@final
class _Claim(NamedTuple):
    """Who may draw on a model's fund, and by whose use."""

    fresh: tuple[Cluster, ...]
    lineage: frozenset[ModelId]


_NOBODY = _Claim((), frozenset())


@final
class Funds:
    """Updated per publish and receipt, divided when asked: `settle` looks only at funds that changed."""

    def __init__(self, manifests: Mapping[ModelId, Manifest]) -> None:
        self._manifests = manifests
        self._published: dict[AccountId, list[Publish]] = defaultdict(list)
        """The final publishes of each creator, in chain order."""
        self._upkeep: Counter[ModelId] = Counter()
        self._tolls: dict[ModelId, Counter[ClusterId]] = defaultdict(Counter[ClusterId])
        self._models_of: dict[AccountId, set[ModelId]] = defaultdict(set)
        """Models with a fund, by creator."""
        self._claims: dict[ModelId, _Claim] = {}
        self._drawn_by: dict[ModelId, set[ModelId]] = defaultdict(set)
        """Which funds the use of a model releases."""
        self._paid: dict[ModelId, Counter[AccountId]] = {}
        self._stale: set[ModelId] = set()

    def publish(self, creator: AccountId, body: Publish) -> None:
        """One more final publish, the next in its creator's chain."""
        self._published[creator].append(body)
        for model in self._models_of.get(creator, ()):
            self._claims.pop(model, None)
            self._stale.add(model)

    def receipt(self, model: ModelId, upkeep: MicroUnits, tolls: Mapping[ClusterId, MicroUnits]) -> None:
        """The upkeep part of one more final receipt, and what the use of each cluster cost."""
        self._models_of[self._manifests[model].creator].add(model)
        self._upkeep[model] += upkeep
        self._stale.add(model)
        if tolls:
            self._tolls[model].update(tolls)
            self._stale |= self._drawn_by.get(model, set())

    def settle(self, entitled: Counter[AccountId]) -> None:
        """Brings `entitled` up to date with what the funds pay."""
        for model in self._stale:
            now, before = self._shares(model), self._paid.get(model, Counter[AccountId]())
            for owner, amount in now.items():
                entitled[owner] += amount - before[owner]
            self._paid[model] = now
        self._stale.clear()

    def left(self) -> dict[ModelId, MicroUnits]:
        """What nobody has drawn yet, as of the last `settle`."""
        return {model: fund - self._paid[model].total() for model, fund in self._upkeep.items()}

    def _shares(self, model: ModelId) -> Counter[AccountId]:
        if model not in self._claims:
            self._claims[model] = self._claim(model)
            for heir in self._claims[model].lineage:
                self._drawn_by[heir].add(model)
        claim, fund, shares = self._claims[model], self._upkeep[model], Counter[AccountId]()
        total = sum(cluster.prior for cluster in claim.fresh)
        for cluster in claim.fresh:
            toll = sum(self._tolls[heir][cluster.name] for heir in claim.lineage if heir in self._tolls)
            shares[cluster.owner] += min(toll, fund * cluster.prior // total)
        return shares

    def _claim(self, model: ModelId) -> _Claim:
        mine = self._manifests[model]
        published = self._published.get(mine.creator, ())
        for body in published:
            if body.successor_of == model:
                fresh = tuple(
                    cluster
                    for cluster in self._manifests[body.manifest].clusters
                    if cluster.prior and cluster.name not in mine.owners
                )
                if fresh:
                    return _Claim(fresh, self._lineage(body.manifest, mine.creator))
        return _NOBODY

    def _lineage(self, heir: ModelId, creator: AccountId) -> frozenset[ModelId]:
        after: dict[ModelId, set[ModelId]] = defaultdict(set)
        for body in self._published[creator]:
            after[body.successor_of].add(body.manifest)
        line, todo = {heir}, [heir]
        while todo:
            fresh = after.get(todo.pop(), set()) - line
            line |= fresh
            todo += fresh
        return frozenset(line)
