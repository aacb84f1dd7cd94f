"""The state diagrams in the pages are the tables that the machines run by, and the tables are total."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from p2p.protocols import ask_payer_state, ask_worker_state, blob, hello, sync
from p2p.protocols.session import Lost, Timeout, mermaid

ROOT = Path(__file__).resolve().parents[4]
MACHINES = (ask_payer_state, ask_worker_state, hello, blob, sync)


def test_the_diagrams_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "protocol_diagrams", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_each_machine_has_its_diagram(machine: ModuleType) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "protocol").glob("*.md")]
    assert any(f"<!-- states of: {machine.__name__}," in page for page in pages)


def test_one_arrow_for_each_pair_of_phases() -> None:
    phase = hello.Phase
    table = {(phase.GREETED, Lost): (phase.ABORTED,), (phase.GREETED, Timeout): (phase.ABORTED, phase.DONE)}
    assert mermaid(table, phase.GREETED, (phase.DONE,)).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> GREETED",
        "    GREETED --> ABORTED: Lost, Timeout",
        "    GREETED --> DONE: Timeout",
        "    DONE --> [*]",
    ]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_every_phase_can_be_lost_and_every_waiting_one_times_out(machine: ModuleType) -> None:
    for phase in machine.Phase:
        if phase.name in ("DONE", "ABORTED"):
            assert not [row for row in machine.NEXT if row[0] is phase]
            continue
        assert (phase, Lost) in machine.NEXT
        assert (phase, Timeout) in machine.NEXT or phase.name == "IDLE"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_the_table_names_every_event(machine: ModuleType) -> None:
    def kinds(union: object) -> set[object]:
        parts = get_args(union)
        return set().union(*(kinds(part) for part in parts)) if parts else {union}

    assert {event for _, event in machine.NEXT} == kinds(machine.Event)
