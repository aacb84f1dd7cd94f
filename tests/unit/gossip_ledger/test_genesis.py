"""The genesis: vesting, quorum, epochs, and what no genesis may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip_ledger.errors import DecodeError
from gossip_ledger.genesis import GENESES, NO_LESS, Genesis, SplitBound, network_id
from gossip_ledger.records import Split
from tests.unit.gossip_ledger.build import CREATOR, GENESIS, NETWORK, PAYER, SPLIT, WITNESSES, grant


def test_the_id_is_the_hash_of_every_field() -> None:
    assert GENESES.decode(GENESES.encode(GENESIS)) == GENESIS
    changed = (
        replace(GENESIS, name="x"),
        replace(GENESIS, epoch_s=601),
        replace(GENESIS, publish_fee=6),
        replace(GENESIS, faulty=0),
        replace(GENESIS, allocations=GENESIS.allocations[1:]),
        replace(GENESIS, split_min=replace(NO_LESS, upkeep=1)),
    )
    assert len({NETWORK, *map(network_id, changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    ("n", "f", "quorum"), [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (7, 2, 5), (10, 3, 7)]
)
def test_two_quorums_share_an_honest_witness(n: int, f: int, quorum: int) -> None:
    witnesses = tuple(grant(PAYER.account, 0).account for _ in range(0)) + tuple(
        (WITNESSES[0].account[:-1] + bytes([i])) for i in range(n)
    )
    genesis = replace(GENESIS, witnesses=witnesses, faulty=f)
    assert genesis.quorum == quorum
    assert 2 * quorum - n > f
    assert quorum <= n - f


def test_vesting_is_linear_after_a_cliff() -> None:
    part = grant(PAYER.account, 100, start=10, cliff=4, duration=8)
    assert [part.at(epoch) for epoch in (0, 10, 13, 14, 15, 17, 18, 10**9)] == [0, 0, 0, 50, 62, 87, 100, 100]
    assert grant(PAYER.account, 7).at(0) == 7
    assert grant(PAYER.account, 7, cliff=5).at(4) == 0
    assert grant(PAYER.account, 7, cliff=5).at(5) == 7


def test_allocations_of_one_account_add_up() -> None:
    parts = (grant(PAYER.account, 5), grant(CREATOR.account, 1), grant(PAYER.account, 10, duration=10))
    genesis = replace(GENESIS, allocations=parts)
    assert [genesis.vested(PAYER.account, epoch) for epoch in (0, 5, 10)] == [5, 10, 15]
    assert genesis.allocated(PAYER.account) == 15
    assert genesis.supply == 16
    assert genesis.vested(WITNESSES[0].account, 99) == 0


def test_epochs() -> None:
    start = GENESIS.start_s
    assert [GENESIS.epoch_at(start + s) for s in (-1000, 0, 599, 600, 6000)] == [0, 0, 0, 1, 10]


def test_bounds_on_splits() -> None:
    low = SplitBound(worker=1000, creator=0, data=0, upkeep=500, network=100)
    genesis = replace(GENESIS, split_min=low)
    assert genesis.allows(SPLIT)
    assert not genesis.allows(Split(worker=9500, creator=0, data=0, upkeep=499, network=1))
    assert GENESIS.allows(Split(worker=10_000, creator=0, data=0, upkeep=0, network=0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"faulty": 2}, "3f"),
        ({"witnesses": GENESIS.witnesses[:1] * 4}, "twice"),
        ({"allocations": (grant(PAYER.account, 2**63 - 1), grant(PAYER.account, 1))}, "largest amount"),
        ({"split_min": SplitBound(worker=9000, creator=0, data=0, upkeep=1001, network=0)}, "bounds"),
        ({"split_max": SplitBound(worker=100, creator=0, data=0, upkeep=0, network=0)}, "bounds"),
    ],
)
def test_what_no_genesis_says(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(GENESIS, **changes)  # pyright: ignore[reportArgumentType]


def test_other_rules_are_refused() -> None:
    foreign = bytearray(GENESES.encode(GENESIS))
    assert foreign[:4] == b"\x8e\x18\x28\x01"
    foreign[3] = 2
    with pytest.raises(DecodeError, match=r"Genesis\.rules"):
        GENESES.decode(bytes(foreign))


@pytest.mark.parametrize(
    "changes", [{"epoch_s": 0}, {"witnesses": (), "faulty": 0}, {"name": "x" * 65}, {"start_s": -1}]
)
def test_ranges_are_checked_on_the_way_out_too(changes: dict[str, object]) -> None:
    try:
        genesis: Genesis = replace(GENESIS, **changes)  # pyright: ignore[reportArgumentType]
    except ValueError:
        return
    with pytest.raises(DecodeError):
        GENESES.encode(genesis)
