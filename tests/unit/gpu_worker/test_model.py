"""The forward pass against transformers and PEFT, and against itself in every other arrangement."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from gossip_ledger.errors import LocalError  # noqa: E402
from gossip_ledger.records import ModelId  # noqa: E402
from gpu_worker.adapter_file import read_adapter  # noqa: E402
from gpu_worker.bank import ActiveSet, make_adapter  # noqa: E402
from gpu_worker.kv_cache import KvCache  # noqa: E402
from gpu_worker.model import LlamaModel, Piece  # noqa: E402
from gpu_worker.settings import TARGETS  # noqa: E402
from tests.support.tiny_base import VOCABULARY, write_tiny_adapter, write_tiny_base  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "llama3 rope": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"rank": 4, "targets": ("q_proj", "v_proj")},
    {"rank": 8, "targets": TARGETS, "alpha": 4},
    {"rank": 3, "targets": ("down_proj", "o_proj"), "use_rslora": True},
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    rng = Random(seed)
    return tuple(rng.randrange(VOCABULARY) for _ in range(length))


def load(folder: Path, quantization: str) -> LlamaModel:
    settings = write_tiny_base(folder) if not (folder / "config.json").exists() else None
    from gpu_worker.settings import read_settings

    return LlamaModel(
        folder,
        settings or read_settings(folder),
        quantization=quantization,
        device="cpu",
        max_context=256,
    )


def logits(
    model: LlamaModel, pieces: list[Piece], active: ActiveSet | None = None, cache: KvCache | None = None
) -> Tensor:
    cache = cache or KvCache(model.settings, 8, model.dtype, "cpu")
    cache.fit(8, max(piece.start + len(piece.tokens) for piece in pieces))
    return model.forward(pieces, cache, active, list(range(len(pieces))))


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_equals_transformers(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    write_tiny_base(tmp_path, **KINDS[kind])
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = load(tmp_path, "fp32")
    tokens = prompt(1, 100)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
    cache = KvCache(model.settings, 8, model.dtype, "cpu")
    parts = [(0, 40), (40, 41), (41, 99), (99, 100)]
    for start, end in parts:
        piece = Piece(row=2, start=start, tokens=tokens[start:end], adapter=-1)
        found = logits(model, [piece], cache=cache)[0]
        assert (found - expected[end - 1]).norm() < 1e-5 * expected[end - 1].norm()


def make_adapters(folder: Path, model: LlamaModel) -> ActiveSet:
    made = []
    for number, changes in enumerate(ADAPTERS):
        write_tiny_adapter(folder / f"a{number}", model.settings, seed=10 + number, **changes)
        file = read_adapter(folder / f"a{number}", model.settings)
        name = ModelId(bytes([number]) * 32)
        made.append(make_adapter(name, file, model.settings, model.dtype, "cpu"))
    return ActiveSet(made)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft uses what transformers deprecates
def test_a_mixture_of_adapters_equals_peft(tmp_path: Path) -> None:
    """Adapters of other ranks, targets and scales in one batch, each row as PEFT computes it alone."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = load(tmp_path, "fp32")
    active = make_adapters(tmp_path, model)
    rows = [
        Piece(row=row, start=0, tokens=prompt(row, 30 + row), adapter=adapter)
        for row, adapter in enumerate((0, 1, -1, 2, 1))
    ]
    found = logits(model, rows, active)
    for row, piece in enumerate(rows):
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        alone = base(torch.tensor([piece.tokens])).logits[0, -1]
        if piece.adapter >= 0:
            base = peft.PeftModel.from_pretrained(base, str(tmp_path / f"a{piece.adapter}")).eval()
            expected = base(torch.tensor([piece.tokens])).logits[0, -1]
            assert (expected - alone).norm() > 0.05 * alone.norm(), "the adapter must matter"
        else:
            expected = alone
        assert (found[row] - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("quantization", ["bf16", "nf4", "int8"])
def test_a_row_has_the_same_bits_in_any_company(tmp_path: Path, quantization: str) -> None:
    """Alone or in a batch, read at once, in pieces or token by token, with other adapters beside it."""
    if quantization != "bf16":
        pytest.importorskip("bitsandbytes")
    model = load(tmp_path, quantization)
    active = make_adapters(tmp_path, model)
    tokens = prompt(3, 90)
    for adapter in (-1, 0, 1):
        own = ActiveSet([active.adapters[adapter]]) if adapter >= 0 else None
        alone = logits(model, [Piece(row=0, start=0, tokens=tokens, adapter=min(adapter, 0))], own)[0]
        company = [Piece(row=r, start=0, tokens=prompt(r, 20 * r), adapter=r % 3) for r in range(1, 4)]
        mixed = [company[0], Piece(row=5, start=0, tokens=tokens, adapter=adapter), *company[1:]]
        assert torch.equal(logits(model, mixed, active)[1], alone)
        cache = KvCache(model.settings, 8, model.dtype, "cpu")
        for start, end in ((0, 33), (33, 64), (64, 80)):
            logits(
                model, [Piece(row=4, start=start, tokens=tokens[start:end], adapter=adapter)], active, cache
            )
        last = alone
        for at in range(80, 90):
            one = [
                Piece(row=0, start=at, tokens=(7,), adapter=2),
                Piece(row=4, start=at, tokens=tokens[at : at + 1], adapter=adapter),
            ]
            last = logits(model, one, active, cache)[1]
        assert torch.equal(last, alone)


def test_quantizing_stays_near_the_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    expected = logits(load(tmp_path, "fp32"), [Piece(row=0, start=0, tokens=prompt(4, 50), adapter=-1)])[0]
    for quantization, most in (("bf16", 0.02), ("int8", 0.06), ("nf4", 0.4)):
        found = logits(
            load(tmp_path, quantization), [Piece(row=0, start=0, tokens=prompt(4, 50), adapter=-1)]
        )[0]
        assert 0 < (found - expected).norm() < most * expected.norm(), quantization


def test_rows_that_moved_and_a_cache_that_changed_its_width(tmp_path: Path) -> None:
    model = load(tmp_path, "bf16")
    tokens = prompt(5, 60)
    cache = KvCache(model.settings, 4, model.dtype, "cpu")
    expected = logits(model, [Piece(row=0, start=0, tokens=tokens, adapter=-1)])[0]
    cache.fit(0, 50)
    model.forward([Piece(row=3, start=0, tokens=tokens[:59], adapter=-1)], cache, None, [])
    cache.move(3, 1)
    cache.fit(4, 250)
    assert cache.width == 256
    cache.fit(4, 60)
    assert cache.width == 64
    found = model.forward([Piece(row=1, start=59, tokens=tokens[59:], adapter=-1)], cache, None, [0])
    assert torch.equal(found[0], expected)
    cache.fit(0, 0)
    assert cache.bytes() == 0


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(LocalError, match=r"layers\.3"):
        load(tmp_path, "fp32")
    (tmp_path / "config.json").write_text(
        config.replace('"intermediate_size": 128', '"intermediate_size": 96')
    )
    with pytest.raises(LocalError, match="not as configured"):
        load(tmp_path, "fp32")


def test_packed_and_plain_bf16_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_worker import linears

    tokens = prompt(6, 40)
    packed = logits(load(tmp_path, "bf16"), [Piece(row=0, start=0, tokens=tokens, adapter=-1)])
    monkeypatch.setattr(linears, "has_packed_bf16", lambda: False)
    plain = logits(load(tmp_path, "bf16"), [Piece(row=0, start=0, tokens=tokens, adapter=-1)])
    assert torch.equal(packed, plain)
    assert math.isfinite(float(plain.norm()))
