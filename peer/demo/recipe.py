"""How the demo's adapters were trained: arguments of `python -m gpu_worker.train`, the same for all three."""

from __future__ import annotations

from typing import Final

RECIPE: Final = (
    *("--steps", "120"),
    *("--batch", "6"),
    *("--tokens-max", "224"),
    *("--rank", "8"),
    *("--alpha", "16"),
    *("--learning-rate", "0.002"),
    *("--seed", "1"),
)
