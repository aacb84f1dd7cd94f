"""`upkeep worker ...`: against a scripted daemon, and a plan with a real self-test on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.cli import planning
from tests.support.tiny_base import write_tiny_base
from tests.unit.peer.test_cli import Run, daemon, upkeep

__all__ = ["upkeep"]


def test_pausing_pricing_and_draining(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path):
        home = ("--home", str(tmp_path))
        assert upkeep("worker", "price", "--out", "9", *home, "--json").document["price_out"] == 9
        done = upkeep("worker", "price", *home)
        assert "1000u" in done.out
        assert "9u" in done.out
        upkeep("worker", "price", "--out", "-1", *home).failed(2, "--out")
        done = upkeep("worker", "pause", *home)
        assert (done.code, "not yet" in done.out) == (0, True)
        assert "open" in upkeep("worker", "resume", *home).out
        drained = upkeep("worker", "drain", *home)
        assert (drained.code, "yes: `upkeep stop`" in drained.out) == (0, True)
        assert upkeep("worker", "drain", *home, "--json").document["is_safe_to_stop"] is True


def test_a_drain_that_does_not_end_in_time(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "working"):
        home = ("--home", str(tmp_path))
        done = upkeep("worker", "drain", "--timeout", "1", *home)
        assert done.code == 1
        assert "not yet" in done.out
        assert "7 questions still run after 1 s" in done.err
        done = upkeep("worker", "drain", "--timeout", "0", *home)
        assert (done.code, "not yet" in done.out) == (0, True)


def test_a_plan_with_a_self_test(upkeep: Run, tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base", max_position_embeddings=1024)
    options = ("--base", str(tmp_path / "base"), "--home", str(tmp_path), "--slots", "2", "--threads", "1")
    found = upkeep("worker", "plan", *options, "--quantization", "bf16", "--json").document
    (plan,) = found["plans"]
    assert (found["advice"], found["slots"], found["context"]) == ("bf16", 2, 1024)
    assert plan["fits"] is True
    assert plan["adapters_in_batch"] == 2
    assert plan["measured"]["tokens_per_s"] > 0
    assert plan["measured"]["batch_tokens_per_s"] > 0
    assert plan["measured"]["memory_bytes"] < plan["weights_bytes"] + (600 << 20)


def test_a_plan_without(upkeep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_base(tmp_path / "base")
    options = ("worker", "plan", "--base", str(tmp_path / "base"), "--home", str(tmp_path), "--no-measure")
    done = upkeep(*options)
    assert done.code == 0
    for word in ("bf16", "nf4", "int8", "fp32", "upkeep up --worker --quantization bf16"):
        assert word in done.out
    monkeypatch.setattr(planning, "_available_memory", lambda: 1 << 20)
    found = upkeep(*options, "--json").document
    assert found["advice"] is None
    assert not any(plan["fits"] or plan["adapters_in_memory"] for plan in found["plans"])
    upkeep(*options, "--quantization", "q4").failed(2, "q4 is none of bf16")


def test_a_self_test_that_fails_is_no_plan_for_that_form(upkeep: Run, tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base", max_position_embeddings=1024)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    options = ("--base", str(tmp_path / "base"), "--home", str(tmp_path), "--quantization", "fp32", "--json")
    found = upkeep("worker", "plan", *options).document
    assert "safetensors" in json.dumps(found["plans"][0]["measured"]["reason"])
    assert found["why"] == "it fits; nothing was measured"
