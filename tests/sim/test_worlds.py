"""Worlds that must end well, and that would not if the nodes were wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio

from gossip_ledger.genesis import Genesis
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import RecordId
from gossip_ledger.witness import WitnessMemory, WitnessPolicy, WitnessStep
from peer.spreading import Spreader
from peer.store import MemoryStore
from tests.sim.checkers import Broken
from tests.sim.world import simulate

SEEDS = [int(line.split()[0]) for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()]

WORLDS_MAX = 40
"""Worlds tried until one of them notices a planted fault."""

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_world_ends_well(seed: int) -> None:
    outcome = simulate(seed)
    assert outcome.entries, "a world in which nothing is written proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1100, 10))
def test_many_worlds_end_well(first: int) -> None:
    for seed in range(first, first + 10):
        try:
            simulate(seed)
        except BaseException as error:
            error.add_note(f"again: scripts/simulate --seed {seed}")
            raise


def test_a_seed_decides_everything() -> None:
    assert simulate(5) == simulate(5)
    assert simulate(5).trace != simulate(6).trace


async def _nothing(*_: object, **__: object) -> None:
    await trio.lowlevel.checkpoint()


def _no_reconciliation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spreader, "_sync_with", _nothing)


def _a_disk_that_forgets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "_add_records", lambda _store, _rows: None)


def _one_ack_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Genesis, "quorum", property(lambda _: 1))


def _witnesses_that_ack_everything(patch: pytest.MonkeyPatch) -> None:
    def step(
        _: WitnessPolicy, ledger: Ledger, memory: WitnessMemory, epoch: int, candidates: Iterable[RecordId]
    ) -> WitnessStep:
        return WitnessStep(batch=tuple(sorted(candidates)), promises=(), waiting={})

    patch.setattr(WitnessPolicy, "step", step)


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (_no_reconciliation, "no agreement"),
        (_a_disk_that_forgets, "not final any more"),
        (_one_ack_is_enough, "alarm|two records are final"),
        (_witnesses_that_ack_everything, "alarm"),
    ],
)
def test_a_wrong_node_is_noticed(plant: Plant, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every world gives a fault its chance; one of a few does."""
    plant(monkeypatch)
    for seed in range(WORLDS_MAX):
        try:
            simulate(seed)
        except Broken as broken:
            if re.search(complaint, str(broken)):
                return
            raise
    pytest.fail(f"{WORLDS_MAX} worlds noticed nothing")
