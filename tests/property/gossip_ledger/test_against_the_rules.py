"""The ledger against the executable rules, in their random worlds; skipped where these are not at hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip_ledger.ledger import Ledger
from gossip_ledger.records import Manifest, RecordId
from gossip_ledger.signing import model_id
from tests.property.gossip_ledger.translation import FOLDER, Translation, account, load
from tests.property.gossip_ledger.worlds import signed

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the executable rules are not at hand")

BUCKETS = ("spendable", "locked", "unvested", "uncollected")


@given(st.integers(min_value=1, max_value=2**32), st.booleans())
@settings(max_examples=20)
def test_the_same_state_after_every_few_records(seed: int, too_many_liars: bool) -> None:
    model, worlds = load("ledger_model"), load("ledger_worlds")
    world = worlds.World(seed, too_many_liars)
    try:
        world.run()
    except worlds.Broken:
        assert too_many_liars, "the rules themselves broke"
    translation, ledger = Translation(model, world.genesis), Ledger(Translation(model, world.genesis).genesis)
    pool = list(world.pool.values())
    before, model.apportion = model.apportion, translation.apportion
    try:
        for place, record in enumerate(pool, 1):
            add(ledger, translation, record)
            if place % 40 == 0 or place == len(pool):
                compare(ledger, translation, model.state(pool[:place], world.genesis))
    finally:
        model.apportion = before


def add(ledger: Ledger, translation: Translation, record: Any) -> None:
    ours = translation.add(record)
    if isinstance(ours, Manifest):
        ledger.add_manifest(ours)
    elif ours is not None:
        ledger.add(signed(ours), RecordId(translation.ids[record.id]))


def compare(ledger: Ledger, translation: Translation, theirs: Any) -> None:
    ours = ledger.state()
    assert ours.final == {translation.id(key) for key in theirs.final}
    assert bool(ours.alarms) == bool(theirs.alarms)
    for bucket in (*BUCKETS, "entitled"):
        expected = {account(name): amount for name, amount in getattr(theirs, bucket).items() if amount}
        assert {key: getattr(a, bucket) for key, a in ours.accounts.items() if getattr(a, bucket)} == expected
    frozen = {account(name) for name in theirs.frozen}
    assert {key for key, a in ours.accounts.items() if a.is_frozen} == frozen == ledger.equivocators()
    holds = {key: hold.reserve for key, hold in ours.holds.items() if not hold.is_bond}
    assert holds == {translation.id(key): amount for key, amount in theirs.reserves.items()}
    assert {k: h.bond for k, h in ours.holds.items() if h.bond} == nonzero(translation, theirs.bonds)
    assert {k: h.burned for k, h in ours.holds.items() if h.burned} == nonzero(translation, theirs.burned)
    assert dict(ours.funds) == {translation.id(key): amount for key, amount in theirs.funds.items()}
    assert ours.total() == theirs.total() == ledger.genesis.supply


def nonzero(translation: Translation, amounts: dict[str, int]) -> dict[RecordId, int]:
    return {translation.id(key): amount for key, amount in amounts.items() if amount}


def test_model_ids_are_blob_ids() -> None:
    model = load("ledger_model")
    translation = Translation(model, model.Genesis({}, ("w",), 0, "t", 0))
    manifest = translation.add(model.Manifest("c", (10_000, 0, 0, 0, 0), ()))
    assert isinstance(manifest, Manifest)
    assert translation.ids[next(iter(translation.records))] == model_id(manifest)
