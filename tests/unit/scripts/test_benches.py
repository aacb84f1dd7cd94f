"""The benchmarks of the worker run and say what they promise, on bases that take no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_base import write_tiny_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MACHINE = {"device", "cpu", "cores", "load", "threads", "dtype", "torch", "transformers", "peft"}


def bench(area: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The object that `--json` prints, and what it prints for people."""
    command = [sys.executable, str(ROOT / "scripts" / f"bench_{area}"), "--rounds", "1", *arguments]
    texts = [
        subprocess.run([*command, *more], check=True, capture_output=True, text=True, timeout=120).stdout
        for more in (["--json"], [])
    ]
    return json.loads(texts[0]), texts[1]


def test_lora() -> None:
    found, text = bench("lora", "--shapes", "tiny")
    assert set(found["machine"]) == MACHINE
    assert found["tiny"]["rounds"] == 1
    decoding = ("mixed_over_base", "mixed32_over_base", "one_over_base", "one1_over_base1", "idle_over_base")
    against_peft = ("mixed_over_peft", "mixed32_over_peft")
    reading = ("prefill_over_base", "prefill_mixed_over_base")
    names = (*decoding, *against_peft, *reading)
    assert set(found["ratios"]) == {f"tiny.{name}" for name in names} | {
        "swap.from_memory_ms",
        "swap.from_disk_ms",
    }
    for ratio in found["ratios"].values():
        sign, limit = ratio["target"].split()
        assert ratio["is_met"] == (
            ratio["value"] >= float(limit) if sign == ">=" else ratio["value"] <= float(limit)
        )
    assert all(f"{name} " in text for name in found["ratios"])
    assert ("NOT met" in text) or (": met" in text)


def test_engine(tmp_path: Path) -> None:
    write_tiny_base(tmp_path, max_position_embeddings=1024)
    found, text = bench("engine", "--base", str(tmp_path))
    assert set(found["machine"]) == MACHINE
    assert found["rounds"] == 1
    assert set(found["ratios"]) == {
        "batched_over_generate",
        "batched_over_sequential",
        "prefill_over_transformers",
    }
    assert found["bound_8_tokens_per_s"] == pytest.approx(8 * found["bound_1_tokens_per_s"], rel=1e-3)
    assert "batched_over_sequential" in text
