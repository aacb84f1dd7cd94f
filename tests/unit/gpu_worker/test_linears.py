"""Quantized matrices against the library's own, and the guard against its silent repacking."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from torch import Tensor, nn  # noqa: E402

from gpu_worker import linears  # noqa: E402
from gpu_worker.linears import Nf4Linear, forbid_lazy_packing, load_bitsandbytes, make_linear  # noqa: E402
from gpu_worker.nf4 import quantize_nf4  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_nf4_is_rounded_as_the_library_does(scale: float) -> None:
    library = load_bitsandbytes().functional
    weight = (torch.randn(192, 128) * scale).bfloat16()
    weight[0] = 0
    weight[1, :64] = weight[1, 64:].abs()
    weight[2] = torch.tensor(library.get_4bit_type("nf4", device="cpu").tolist() * 8)
    data, scales = quantize_nf4(weight)
    expected, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(data, expected)
    assert torch.equal(scales, state.absmax)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_nf4_multiplies_as_the_library_does(rows: int) -> None:
    library = load_bitsandbytes()
    weight, x = torch.randn(96, 128).bfloat16(), torch.randn(rows, 128).bfloat16()
    bias = torch.randn(96).bfloat16()
    data, state = library.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=False, quant_type="nf4"
    )
    expected = library.matmul_4bit(x, data, quant_state=state, bias=bias).float()
    found = make_linear(weight, bias, "nf4", "cpu")(x).float()
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_nf4_without_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(96, 128).bfloat16(), torch.randn(3, 128).bfloat16()
    fused = Nf4Linear(weight, None)
    monkeypatch.setattr(linears, "has_packed_nf4", lambda: False)
    plain = Nf4Linear(weight, None)
    assert not plain.is_packed
    assert (fused(x).float() - plain(x).float()).norm() < 0.01 * plain(x).float().norm()


def test_a_packed_matrix_never_gives_a_silent_gradient() -> None:
    """The fused kernel has none: asking for one is an error, not a zero."""
    layer = Nf4Linear(torch.randn(96, 128).bfloat16(), None)
    with pytest.raises(AssertionError, match="gradient"):
        layer(torch.randn(3, 128).bfloat16().requires_grad_())


class _Stack(nn.Module):
    """Two of the library's nf4 layers with something to train before them."""

    def __init__(self) -> None:
        super().__init__()
        library = load_bitsandbytes().nn
        torch.manual_seed(5)
        self.before = nn.Linear(128, 128, dtype=torch.bfloat16)
        self.layers = nn.Sequential(
            *(
                library.Linear4bit(
                    128,
                    128,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                for _ in range(2)
            )
        )
        self.to("cpu")
        for layer in self.layers:
            layer.weight = library.Params4bit(
                torch.randn(128, 128).bfloat16(), requires_grad=False, quant_type="nf4"
            ).to("cpu")

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.before(x))


def _gradient(model: _Stack, x: Tensor) -> Tensor:
    model.train().zero_grad()
    model(x).float().pow(2).mean().backward()
    assert model.before.weight.grad is not None
    return model.before.weight.grad.float().clone()


def test_evaluation_does_not_corrupt_training_once_packing_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard: gradients, evaluations and saved weights are the same before and after an evaluation."""
    modules = load_bitsandbytes().nn.modules
    monkeypatch.setattr(modules, "has_avx512bf16", modules.has_avx512bf16)
    forbid_lazy_packing()
    model, x = _Stack(), torch.randn(4, 128).bfloat16()
    before = _gradient(model, x)
    with torch.no_grad():
        evaluated = model.eval()(x)
        trained = model.train()(x)
    assert torch.equal(evaluated, trained)
    assert torch.equal(_gradient(model, x), before)


def test_the_compiler_is_not_loaded_for_serving() -> None:
    """What `load_bitsandbytes` avoids; checked in a process of its own."""
    import subprocess
    import sys

    code = (
        "import sys, torch; from gpu_worker.linears import make_linear\n"
        "layer = make_linear(torch.randn(64, 64), None, 'nf4', 'cpu')\n"
        "if layer.is_packed: layer(torch.randn(2, 64).bfloat16())\n"
        "assert 'torch._inductor.lowering' not in sys.modules\n"
        "assert not layer.is_packed or 'torch._dynamo.symbolic_convert' not in sys.modules\n"
        "assert 'kernels' not in sys.modules and callable(torch.compile)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
