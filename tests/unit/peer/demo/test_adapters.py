"""The adapters that ship with the demo: one for each corpus, small, loadable, and better than the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_worker.adapter_file import read_adapter
from gpu_worker.settings import ModelSettings
from peer.demo.corpora import CORPORA
from peer.demo.recipe import RECIPE

ADAPTERS = Path(__file__).parents[4] / "peer" / "demo" / "adapters"
SMOLLM2 = ModelSettings(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocabulary=49152,
    eps=1e-5,
    rope_theta=100_000.0,
    rope_scaling=None,
    is_tied=True,
    has_qkv_bias=False,
    has_o_bias=False,
    has_mlp_bias=False,
    positions=8192,
)


def test_there_is_one_for_each_corpus_and_they_are_small() -> None:
    assert {path.name for path in ADAPTERS.iterdir() if path.is_dir()} == set(CORPORA)
    assert sum(path.stat().st_size for path in ADAPTERS.rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.parametrize("name", list(CORPORA))
def test_an_adapter_passes_the_load_policy(name: str) -> None:
    read_adapter(ADAPTERS / name, SMOLLM2)
    assert {path.name for path in (ADAPTERS / name).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    }


@pytest.mark.parametrize("name", list(CORPORA))
def test_an_adapter_was_made_by_the_recipe_and_helped(name: str) -> None:
    report = json.loads((ADAPTERS / name / "training.json").read_text())
    assert report["after"] < report["before"] * 0.7
    given = dict(zip(RECIPE[::2], map(float, RECIPE[1::2]), strict=True))
    assert {flag: report["recipe"][flag[2:].replace("-", "_")] for flag in given} == given
