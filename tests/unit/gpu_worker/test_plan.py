"""What a plan counts is what an engine holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpu_worker.bank import Bank
from gpu_worker.kv_cache import KvCache
from gpu_worker.limits import ACTIVE_RANK_MAX, ADAPTERS_RESIDENT_BYTES
from gpu_worker.plan import PLAN_RANK, adapters_in_batch, compute_needs
from gpu_worker.settings import TARGETS, ModelSettings
from tests.support.tiny_base import write_tiny_adapter, write_tiny_base


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    return write_tiny_base(tmp_path / "base")


@pytest.mark.parametrize(("quantization", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_cache_and_adapters(
    settings: ModelSettings, tmp_path: Path, quantization: str, dtype: torch.dtype
) -> None:
    needs = compute_needs(settings, quantization, slots=3, context=128)
    cache = KvCache(settings, 3, dtype, "cpu")
    cache.fit(0, 128)
    assert needs.kv_full == cache.bytes() == 3 * 128 * needs.kv_per_token
    write_tiny_adapter(tmp_path / "a", settings, seed=1, rank=PLAN_RANK, targets=TARGETS)
    adapter = Bank(settings, dtype, "cpu", 1 << 30).load(b"a" * 32, tmp_path / "a")  # type: ignore[arg-type]
    assert needs.adapter == adapter.bytes


def test_weights_by_form(settings: ModelSettings) -> None:
    matrices = settings.layers * sum(a * b for a, b in map(settings.shape, TARGETS))
    embedding = settings.vocabulary * settings.hidden
    sizes = {
        quantization: compute_needs(settings, quantization, slots=1, context=64).weights
        for quantization in ("fp32", "bf16", "nf4", "int8")
    }
    assert sizes["fp32"] == 4 * (matrices + embedding)
    assert sizes["bf16"] == 2 * (matrices + 2 * embedding)
    assert sizes["nf4"] == matrices // 2 + matrices // 16 + 4 * embedding
    assert sizes["nf4"] < sizes["int8"] < sizes["bf16"] < sizes["fp32"]
    untied = compute_needs(replace(settings, is_tied=False), "bf16", slots=1, context=64)
    assert untied.weights == sizes["bf16"] + 2 * embedding


def test_what_fits(settings: ModelSettings) -> None:
    needs = compute_needs(settings, "bf16", slots=2, context=64)
    full = needs.weights + needs.runtime + needs.kv_full
    assert needs.adapters_within(0) == 0
    assert needs.adapters_within(full + 3 * needs.adapter + 1) == 3
    assert needs.adapters_within(1 << 40) == ADAPTERS_RESIDENT_BYTES // needs.adapter
    assert needs.least < needs.most
    assert adapters_in_batch(2) == 2
    assert adapters_in_batch(10_000) == ACTIVE_RANK_MAX // PLAN_RANK
