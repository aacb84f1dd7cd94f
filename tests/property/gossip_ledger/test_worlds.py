"""Every claim, over random worlds with liars in them; and the incremental ledger against the plain one."""

from __future__ import annotations

from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossip_ledger.ledger import Ledger
from gossip_ledger.records import Manifest, RecordId, Signed
from gossip_ledger.reference import settle
from gossip_ledger.signing import model_id
from tests.property.gossip_ledger.claims import check_liveness, check_world
from tests.property.gossip_ledger.worlds import World

SEEDS = st.integers(min_value=0, max_value=2**32)


@given(SEEDS)
@settings(max_examples=60)
def test_no_claim_is_broken(seed: int) -> None:
    world = World(seed)
    world.run()
    check_world(world)
    check_liveness(world)


@given(SEEDS, st.booleans())
@example(seed=24, too_many_liars=True)
@settings(max_examples=25)
def test_the_ledger_equals_the_reference_after_every_prefix(seed: int, too_many_liars: bool) -> None:
    """In a random order, manifests among the records; also where so many lie that chains end in alarms."""
    world = World(seed, too_many_liars=too_many_liars)
    world.run(120)
    arrivals: list[Manifest | tuple[RecordId, Signed]] = [*world.manifests, *world.records.items()]
    Random(seed).shuffle(arrivals)
    ledger, records, manifests, final = Ledger(world.genesis), {}, {}, set()
    for arrival in arrivals:
        if isinstance(arrival, Manifest):
            ledger.add_manifest(arrival)
            manifests[model_id(arrival)] = arrival
        else:
            key, signed = arrival
            assert ledger.add(signed, key)
            assert not ledger.add(signed, key)
            records[key] = signed
        state = ledger.state()
        assert state == settle(records, manifests, world.genesis)
        final |= set(ledger.take_finalized())
        assert final >= state.final
        assert final == state.final or state.alarms
        unfinished = {key for key in records if not key_is_ack(records[key])} - state.final
        assert ledger.unfinished() == unfinished


def key_is_ack(signed: Signed) -> bool:
    return type(signed.record).__name__ == "Ack"


@given(SEEDS)
@settings(max_examples=30)
def test_equal_sets_give_equal_roots_and_different_states_different_ones(seed: int) -> None:
    world = World(seed)
    world.run()
    rng, roots = Random(seed), {}
    for _ in range(3):
        records = list(world.records.items())
        rng.shuffle(records)
        cut = rng.randint(len(records) // 2, len(records))
        one, two = Ledger(world.genesis), Ledger(world.genesis)
        for ledger, order in ((one, records[:cut]), (two, records[:cut][::-1])):
            for key, signed in order:
                ledger.add(signed, key)
            for manifest in world.manifests:
                ledger.add_manifest(manifest)
        assert one.root() == two.root()
        state = one.state()
        assert one.supply_conserved()
        parts = (dict(state.accounts), dict(state.holds), dict(state.funds))
        assert roots.setdefault(one.root(), parts) == parts
        known = [known for known in roots.values() if known == parts]
        assert len(known) == 1, "one state, two roots"
