"""Adapters in memory, and those of one batch side by side.

`Bank` knows adapters by folder, keeps the most recently used ones in memory up to a number of bytes and
reads the others again when they are wanted. `ActiveSet` holds the factors of the adapters in one batch,
concatenated along the rank, so that any mixture costs two matrix products and a mask per matrix: row i of
the batch sees only the ranks that its own adapter owns. Adapters of different rank and different targets
mix freely.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from gossip_ledger.records import ModelId
from gpu_worker.adapter_file import AdapterError, AdapterFile, read_adapter
from gpu_worker.limits import ADAPTERS_REGISTERED_MAX, RESIDENT_NAMED_MAX
from gpu_worker.settings import TARGETS, ModelSettings

_RANK_STEP: Final = 8
"""Ranks are padded with zeros to a multiple of this."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """The factors of one adapter, stacked over layers, per target."""

    model: ModelId
    rank: int
    """Rows in a batch: the highest rank of its factors, rounded up."""
    down: Mapping[str, Tensor]
    """Target -> [layers, rank, inputs]."""
    up: Mapping[str, Tensor]
    """Target -> [layers, rank, outputs], the scale multiplied in."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for side in (self.down, self.up) for tensor in side.values())


def make_adapter(
    model: ModelId, file: AdapterFile, settings: ModelSettings, dtype: torch.dtype, device: str
) -> Adapter:
    """The adapter of a checked file; matrices that it leaves alone get zeros."""
    rank = -(-file.rank // _RANK_STEP) * _RANK_STEP
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for target in {factor.target for factor in file.factors}:
        outputs, inputs = settings.shape(target)
        down[target] = torch.zeros(settings.layers, rank, inputs, dtype=dtype)
        up[target] = torch.zeros(settings.layers, rank, outputs, dtype=dtype)
    for factor in file.factors:
        own = factor.down.shape[0]
        down[factor.target][factor.layer, :own] = torch.tensor(factor.down)
        up[factor.target][factor.layer, :own] = torch.tensor(factor.up.T)
    return Adapter(
        model=model,
        rank=rank,
        down={target: tensor.to(device) for target, tensor in down.items()},
        up={target: tensor.to(device) for target, tensor in up.items()},
    )


@final
class Bank:
    """The adapters that a worker may use."""

    def __init__(self, settings: ModelSettings, dtype: torch.dtype, device: str, bytes_max: int) -> None:
        self._settings = settings
        self._dtype = dtype
        self._device = device
        self._bytes_max = bytes_max
        self._known: dict[ModelId, tuple[Path, bytes, int]] = {}
        self._resident: OrderedDict[ModelId, Adapter] = OrderedDict()
        self._bytes = 0

    def load(self, model: ModelId, folder: Path) -> Adapter:
        """Checks the files in `folder` and makes them known as `model`. Raises `AdapterError`."""
        if model not in self._known and len(self._known) >= ADAPTERS_REGISTERED_MAX:
            raise AdapterError(f"{ADAPTERS_REGISTERED_MAX} adapters are loaded already")
        file = read_adapter(folder, self._settings)
        known = self._known.get(model)
        if known is not None and known[1] != file.digest:
            raise AdapterError("another adapter is loaded under this id")
        adapter = self._keep(make_adapter(model, file, self._settings, self._dtype, self._device))
        self._known[model] = (folder, file.digest, adapter.rank)
        return adapter

    def unload(self, model: ModelId) -> None:
        """Forgets an adapter; whoever holds it may go on using it."""
        self._known.pop(model, None)
        adapter = self._resident.pop(model, None)
        self._bytes -= adapter.bytes if adapter else 0

    def rank(self, model: ModelId) -> int | None:
        """The rows that an adapter takes in a batch; None where it is not known."""
        known = self._known.get(model)
        return known[2] if known else None

    def get(self, model: ModelId) -> Adapter:
        """A known adapter, read again from its folder if need be. Raises `AdapterError`."""
        if model in self._resident:
            self._resident.move_to_end(model)
            return self._resident[model]
        folder, digest, _ = self._known[model]
        file = read_adapter(folder, self._settings)
        if file.digest != digest:
            raise AdapterError("the adapter's files have changed since it was loaded")
        return self._keep(make_adapter(model, file, self._settings, self._dtype, self._device))

    @property
    def count(self) -> int:
        """Adapters known."""
        return len(self._known)

    def resident(self) -> tuple[ModelId, ...]:
        """Adapters in memory, most recently used first, as many as one report names."""
        return tuple(reversed(self._resident))[:RESIDENT_NAMED_MAX]

    def _keep(self, adapter: Adapter) -> Adapter:
        old = self._resident.pop(adapter.model, None)
        self._bytes += adapter.bytes - (old.bytes if old else 0)
        self._resident[adapter.model] = adapter
        while self._bytes > self._bytes_max and len(self._resident) > 1:
            _, evicted = self._resident.popitem(last=False)
            self._bytes -= evicted.bytes
        return adapter


@final
class ActiveSet:
    """The factors of all adapters in a batch, side by side."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        """`adapters` are not empty and differ."""
        assert adapters
        self.adapters = tuple(adapters)
        self.models = tuple(adapter.model for adapter in adapters)
        owners = [n for n, adapter in enumerate(adapters) for _ in range(adapter.rank)]
        some = next(iter(adapters[0].down.values()))
        self._owners = torch.tensor(owners, device=some.device)
        self._down: dict[str, Tensor] = {}
        self._up: dict[str, Tensor] = {}
        for target in TARGETS:
            if any(target in adapter.down for adapter in adapters):
                self._down[target] = _stacked([adapter.down.get(target) for adapter in adapters], adapters)
                self._up[target] = _stacked([adapter.up.get(target) for adapter in adapters], adapters)

    def mask(self, who: Tensor, dtype: torch.dtype) -> Tensor:
        """[rows, ranks]: 1 where the rank belongs to the adapter of the row. `who` is -1 for the bare
        base."""
        return (self._owners[None, :] == who[:, None]).to(dtype)

    def has(self, target: str) -> bool:
        """Whether any adapter changes this matrix."""
        return target in self._down

    def add(self, target: str, layer: int, x: Tensor, y: Tensor, mask: Tensor) -> None:
        """Adds to `y` [rows, outputs] what the adapters make of `x` [rows, inputs]."""
        if target in self._down:
            hidden = torch.mm(x, self._down[target][layer].t())
            y.addmm_(hidden.mul_(mask), self._up[target][layer])


def _stacked(tensors: Sequence[Tensor | None], adapters: Sequence[Adapter]) -> Tensor:
    some = next(tensor for tensor in tensors if tensor is not None)
    return torch.cat(
        [
            some.new_zeros(some.shape[0], adapter.rank, some.shape[2]) if tensor is None else tensor
            for tensor, adapter in zip(tensors, adapters, strict=True)
        ],
        dim=1,
    )
