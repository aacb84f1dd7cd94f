"""A smoke test on the real default base: it loads in every quantization and speaks English."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from gpu_worker.base import cache_folder, default_base
from gpu_worker.tokenizer import Message, Tokenizer
from tests.support.engines import answers, ask, make_engine, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    is_there = any((cache_folder() / "bases").glob("smollm2-135m-instruct-*/config.json"))
    if not is_there and os.environ.get("UPKEEP_NET_TESTS") != "1":
        pytest.skip("the default base is not fetched; run `python -m gpu_worker.base --fetch`")
    return default_base(cache_folder())


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def test_the_tokenizer_is_the_one_it_was_trained_with(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.render_chat([Message(role="user", content="hi 2026")])
    assert prompt[:6] == (1, 9690, 198, 2683, 359, 253)
    assert tokenizer.decode(prompt).endswith("user\nhi 2026\nassistant\n")
    assert [tokenizer.decode([n]) for n in tokenizer.encode("2026")] == ["2", "0", "2", "6"]
    assert tokenizer.stop_ids == (2,)


@pytest.mark.parametrize("quantization", ["bf16", "nf4", "int8", "fp32"])
def test_it_answers(folder: Path, tokenizer: Tokenizer, quantization: str) -> None:
    if quantization in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
    engine = make_engine(folder, quantization=quantization)
    questions = ("Explain what a peer-to-peer network is in two sentences.", "What is photosynthesis?")
    for number, question in enumerate(questions):
        prompt = tokenizer.render_chat([Message(role="user", content=question)])
        engine.submit(ask(number, prompt, max_tokens=12, stop_ids=tokenizer.stop_ids))
    found = {number: tokenizer.decode(ids) for number, ids in answers(run(engine)).items()}
    assert found[0].startswith("A peer-to-peer")
    assert found[1].startswith("Photosynthesis")
