"""Keys and values of the running sequences: one row each, as wide as the longest needs.

The width grows and shrinks in steps of `ATTENTION_ALIGN` tokens, so memory follows use, and attention reads
the first rows whole: contiguous, at a width that is always a multiple of the step.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gpu_worker.limits import ATTENTION_ALIGN
from gpu_worker.settings import ModelSettings


@final
class KvCache:
    """For each layer keys and values of shape [rows, kv_heads, width, head_dim]."""

    def __init__(self, settings: ModelSettings, rows: int, dtype: torch.dtype, device: str) -> None:
        self._settings = settings
        self._rows = rows
        self._dtype = dtype
        self._device = device
        self.width = 0
        self.keys = [self._new(0) for _ in range(settings.layers)]
        self.values = [self._new(0) for _ in range(settings.layers)]

    def fit(self, used: int, tokens: int) -> None:
        """Makes room for sequences of at most `tokens` tokens; the first `used` rows are kept.

        The width shrinks only when less than half of it is needed, so that it does not follow every step.
        """
        width = aligned(tokens)
        if width <= self.width <= 2 * width:
            return
        kept = min(width, self.width)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = new = self._new(width)
                new[:used, :, :kept] = old[:used, :, :kept]
        self.width = width

    def move(self, source: int, target: int) -> None:
        """Copies the row `source` over the row `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def bytes(self) -> int:
        """Address space held now; rows that were never used take no memory."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def _new(self, width: int) -> Tensor:
        shape = (self._rows, self._settings.kv_heads, width, self._settings.head_dim)
        # Zeros, not whatever memory holds: a weight of nought times a stray NaN would still be NaN.
        return torch.zeros(shape, dtype=self._dtype, device=self._device)


def aligned(tokens: int) -> int:
    """`tokens` rounded up to a whole number of steps."""
    return -(-tokens // ATTENTION_ALIGN) * ATTENTION_ALIGN
