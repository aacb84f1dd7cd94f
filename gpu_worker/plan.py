"""What a worker on a base will need, computed from the base's settings alone. Free of torch.

The sums follow what the engine keeps: matrices in the chosen form, embedding and norms beside them, keys and
values per token and row, adapters up to their cap. `selftest.py` measures what this estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from gpu_worker.limits import ACTIVE_RANK_MAX, ADAPTERS_RESIDENT_BYTES
from gpu_worker.settings import TARGETS, ModelSettings

PLAN_RANK: Final = 16
"""Rank of the adapters that a plan counts, on all seven matrices: the larger end of what people publish."""
RUNTIME_BYTES: Final = 450 << 20
"""Python, torch and its scratch memory, before any weight."""
_NF4_BLOCK: Final = 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Memory of one worker, bytes."""

    weights: int
    """All of the base as it is held: matrices, embedding, output matrix."""
    runtime: int
    kv_per_token: int
    kv_full: int
    """All slots at their full context; rows grow with use, so this is the most."""
    adapter: int
    """One adapter of rank `PLAN_RANK` on all matrices."""
    adapters_cap: int
    """Most that adapters take."""

    @property
    def least(self) -> int:
        """To run at all: one answer of no length, one adapter."""
        return self.weights + self.runtime + self.adapter

    @property
    def most(self) -> int:
        """With every slot full and as many adapters as are kept."""
        return self.weights + self.runtime + self.kv_full + self.adapters_cap

    def adapters_within(self, available: int) -> int:
        """Adapters that stay in memory beside full slots, where `available` bytes are free."""
        room = min(self.adapters_cap, available - self.weights - self.runtime - self.kv_full)
        return max(0, room // self.adapter)


def compute_needs(settings: ModelSettings, quantization: str, *, slots: int, context: int) -> Needs:
    """What a worker needs that holds the base in this form."""
    width = 4 if quantization == "fp32" else 2
    kv = 2 * settings.layers * settings.kv_heads * settings.head_dim * width
    return Needs(
        weights=_matrices(settings, quantization) + _embedding(settings, quantization),
        runtime=RUNTIME_BYTES,
        kv_per_token=kv,
        kv_full=kv * slots * context,
        adapter=settings.layers * PLAN_RANK * sum(sum(settings.shape(t)) for t in TARGETS) * width,
        adapters_cap=ADAPTERS_RESIDENT_BYTES,
    )


def adapters_in_batch(slots: int) -> int:
    """Different adapters of rank `PLAN_RANK` that one step can mix."""
    return min(slots, ACTIVE_RANK_MAX // PLAN_RANK)


def _matrices(settings: ModelSettings, quantization: str) -> int:
    shapes = [settings.shape(target) for target in TARGETS]
    weights = settings.layers * sum(rows * columns for rows, columns in shapes)
    match quantization:
        case "fp32":
            return 4 * weights
        case "bf16":
            return 2 * weights
        case "nf4":
            return weights // 2 + 4 * weights // _NF4_BLOCK
        case _:
            assert quantization == "int8"
            return weights + 4 * settings.layers * sum(rows for rows, _ in shapes)


def _embedding(settings: ModelSettings, quantization: str) -> int:
    """Embedding and output matrix; the latter is kept twice in bf16, once as it is and once laid out for
    the CPU's kernels."""
    one = settings.vocabulary * settings.hidden * (4 if quantization == "fp32" else 2)
    copies = (1 if settings.is_tied else 2) + (0 if quantization == "fp32" else 1)
    return one * copies
