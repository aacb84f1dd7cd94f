"""Choosing the next token. The draw is a pure function of seed and position, so an answer can be repeated."""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import Tensor

_EVERYTHING: Final = 1000
"""A `top_p_milli` that leaves nothing out."""
_FEW: Final = 256
"""How many of the likeliest tokens are looked at first; nearly always they reach top-p."""
_BITS: Final = 53


def choose(logits: Tensor, *, temperature_milli: int, top_p_milli: int, seed: int, position: int) -> int:
    """The next token of one answer from its fp32 logits [vocabulary].

    At temperature 0 the likeliest (the lowest id among equals). Else a draw from the most probable tokens
    that together reach `top_p_milli` thousandths. `position` counts the answer's tokens from 0.
    """
    if temperature_milli == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits * (1000 / temperature_milli), dim=-1)
    where = uniform(seed, position)
    if top_p_milli >= _EVERYTHING:
        return _draw(probabilities.double().cumsum(dim=-1), where)
    limit = top_p_milli / _EVERYTHING
    best = torch.topk(probabilities, min(_FEW, len(probabilities)))
    values, ids = best.values, best.indices
    if float(values.double().sum()) < limit:
        values, ids = torch.sort(probabilities, descending=True, stable=True)
    sums = values.double().cumsum(dim=-1)
    kept = min(int(torch.searchsorted(sums, limit)) + 1, len(sums))
    return int(ids[_draw(sums[:kept], where)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that any machine derives alike."""
    digest = hashlib.sha256(b"upkeep/1/draw" + seed.to_bytes(8, "big") + position.to_bytes(8, "big")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / (1 << _BITS)


def _draw(sums: Tensor, where: float) -> int:
    """The index whose share of the running sums holds the point `where` of their total."""
    target = torch.tensor(where * float(sums[-1]), dtype=sums.dtype, device=sums.device)
    return min(int(torch.searchsorted(sums, target, right=True)), len(sums) - 1)
