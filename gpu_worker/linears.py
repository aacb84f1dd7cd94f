"""Matrices of a base in the forms that a worker holds them in: bf16, nf4, int8, fp32.

A linear is made once, for serving, and never changes afterwards. The form is chosen at load and not, as the
quantization library would do on some CPUs, in the middle of a forward pass (`forbid_lazy_packing`). None of
them is differentiable: training uses other instances, and a forward pass that would need a gradient is our
bug.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional

from gpu_worker.nf4 import NF4_BLOCK, quantize_nf4

Linear = Callable[[Tensor], Tensor]
"""[rows, inputs] -> [rows, outputs]."""

_PACK_ROWS: Final = 32
"""Outputs must divide by this for the fused nf4 kernel of CPUs."""
_PACK_BATCH: Final = 8
"""Rows that packed bf16 matrices are laid out for."""


def make_linear(weight: Tensor, bias: Tensor | None, quantization: str, device: str) -> Linear:
    """The linear of `weight` [outputs, inputs] in the given form on `device`."""
    match quantization:
        case "fp32":
            return PlainLinear(weight.float().to(device), _moved(bias, torch.float32, device))
        case "bf16":
            weight, bias = weight.bfloat16(), _moved(bias, torch.bfloat16, device)
            if device == "cpu" and has_packed_bf16():
                return PackedLinear(weight, bias)
            return PlainLinear(weight.to(device), bias)
        case "nf4":
            return Nf4Linear(weight.bfloat16().to(device), _moved(bias, torch.bfloat16, device))
        case _:
            assert quantization == "int8"
            return Int8Linear(weight.to(device), _moved(bias, torch.bfloat16, device))


@final
class PlainLinear:
    """A matrix as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)


@final
class PackedLinear:
    """A bf16 matrix laid out for the CPU's kernels ahead of time: the same bits as `PlainLinear`, a third
    faster."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_BATCH)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


@final
class Nf4Linear:
    """Four bits a weight, one scale per 64 of them, multiplied in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._library = load_bitsandbytes()
        self._bias = bias
        self._outputs, self._inputs = weight.shape
        data, scales = quantize_nf4(weight)
        state: Any = self._library.functional.QuantState(
            absmax=scales,
            shape=weight.shape,
            code=self._library.functional.get_4bit_type("nf4", device=weight.device),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=torch.bfloat16,
        )
        self.is_packed = (
            weight.device.type == "cpu"
            and has_packed_nf4()
            and self._outputs % _PACK_ROWS == 0
            and self._inputs % NF4_BLOCK == 0
        )
        if self.is_packed:
            data, state = self._library.functional._convert_weight_packed_for_cpu(data, state)
        self._data: Tensor = data
        self._state = state

    def __call__(self, x: Tensor) -> Tensor:
        assert not x.requires_grad, "the packed nf4 kernel has no gradient"
        if not self.is_packed:
            return self._library.matmul_4bit(x, self._data, quant_state=self._state, bias=self._bias)
        # The library's own way to this kernel loads torch's compiler first, 2 s and 100 MB.
        x = x.contiguous()
        y = torch.empty(x.shape[0], self._outputs, dtype=torch.bfloat16)
        numbers = [ctypes.c_int64(n) for n in (x.shape[0], self._outputs, self._inputs)]
        tensors = [ctypes.c_void_p(t.data_ptr()) for t in (x, self._data, self._state.absmax, y)]
        strides = [ctypes.c_int64(n) for n in (NF4_BLOCK, x.stride(0), y.stride(0))]
        self._library.functional.lib.gemv_4bit_inference_cpu_nf4_bf16(*numbers, *tensors, *strides)
        return y if self._bias is None else y.add_(self._bias)


@final
class Int8Linear:
    """Eight bits a weight with a scale per output; inputs are rounded to eight bits row by row."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._functional = load_bitsandbytes().functional
        self._weight, self._scale, _ = self._functional.int8_vectorwise_quant(weight.half())
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale, _ = self._functional.int8_vectorwise_quant(x.half())
        return torch.ops.bitsandbytes.int8_scaled_mm.default(
            rows, self._weight, scale, self._scale, bias=self._bias, dtype=x.dtype
        )


def has_packed_bf16() -> bool:
    """Whether this CPU multiplies bf16 and torch can lay matrices out for it."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_packed_nf4() -> bool:
    """Whether bitsandbytes has a fused nf4 kernel for this CPU."""
    return bool(load_bitsandbytes().functional.has_avx512bf16())


def load_bitsandbytes() -> Any:
    """The bitsandbytes module, imported at first need and kept from reaching for a network.

    It decorates functions with `torch.compile` while it is imported, which loads torch's whole compiler;
    nothing here is compiled, so for that moment the decorator does nothing. That saves two seconds and 120
    MB.
    """
    if "bitsandbytes" not in sys.modules:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        with _replaced(sys.modules, "kernels", None), _replaced(torch.__dict__, "compile", _uncompiled):
            importlib.import_module("bitsandbytes")
    return sys.modules["bitsandbytes"]


def forbid_lazy_packing() -> None:
    """Keeps bitsandbytes' own modules from repacking nf4 weights in the first evaluation on some CPUs.

    After that repacking, gradients through the base, merging and saving are silently wrong. Whoever trains
    on an nf4 base calls this before any model is built.
    """
    load_bitsandbytes().nn.modules.has_avx512bf16 = lambda: False


def _uncompiled(model: Any = None, **options: Any) -> Any:
    del options
    return model if model is not None else _uncompiled


@contextmanager
def _replaced(table: dict[str, Any], name: str, value: object) -> Iterator[None]:
    missing = object()
    before = table.get(name, missing)
    table[name] = value
    try:
        yield
    finally:
        if before is missing:
            del table[name]
        else:
            table[name] = before


def _moved(bias: Tensor | None, dtype: torch.dtype, device: str) -> Tensor | None:
    return None if bias is None else bias.to(device=device, dtype=dtype)
