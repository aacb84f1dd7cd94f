"""Reading an adapter that somebody else made: the load policy, fail closed. Free of torch.

In this order: sizes before any read; safetensors only, never pickle; a configuration of which every key is
either known and within bounds or switched off; exactly the tensors that the configuration promises, of the
right dtype and shape, finite and of bounded norm. Each file is opened once; what is checked, hashed and
used are the same bytes. Nothing named in a file is ever opened or fetched.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from gossip_ledger.errors import RemoteError
from gpu_worker.limits import (
    ADAPTER_BYTES_MAX,
    ADAPTER_CONFIG_BYTES_MAX,
    ADAPTER_NORM_MAX,
    ADAPTER_RANK_MAX,
    ADAPTER_SCALE_MAX,
    SAFETENSORS_HEADER_BYTES_MAX,
    TENSORS_MAX,
)
from gpu_worker.safetensors_file import SafetensorsError, TensorEntry, read_header
from gpu_worker.settings import MODULE, TARGETS, ModelSettings

WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_FILE: Final = "adapter_config.json"

_READ: Final = frozenset(
    {
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Keys whose values are checked one by one."""
_IGNORED: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    }
)
"""Keys that change nothing here. A base's name is a hint for people and never leads anywhere."""
_PLAIN_INIT: Final = (True, False, "gaussian")
"""Ways of starting that leave the base as it is. Others (PiSSA, OLoRA ...) adapt another base."""
_NAME: Final = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z_]+\.[a-z_]+)\.lora_([AB])\.weight"
)
_PATTERN_NAME: Final = re.compile(r"[A-Za-z0-9_.]{1,128}")


class AdapterError(RemoteError):
    """An adapter that breaks the load policy. Says which rule."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """What an adapter adds to one matrix of one layer: `scale x up x down`."""

    layer: int
    target: str
    down: NDArray[np.float32]
    """[rank, inputs], `lora_A`."""
    up: NDArray[np.float32]
    """[outputs, rank], `lora_B`, with the scale multiplied in."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """An adapter that passed every check."""

    digest: bytes
    """SHA-256 over the digests of configuration and weights, 32 bytes."""
    rank: int
    """Highest rank of any factor."""
    factors: tuple[Factor, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    rank: int
    alpha: float
    is_rank_stabilised: bool
    targets: frozenset[str]
    layers: frozenset[int]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, path: str) -> int:
        return next((value for name, value in self.ranks.items() if _names(name, path)), self.rank)

    def scale_of(self, path: str) -> float:
        alpha = next((value for name, value in self.alphas.items() if _names(name, path)), self.alpha)
        rank = self.rank_of(path)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def read_adapter(folder: Path, settings: ModelSettings) -> AdapterFile:
    """The adapter in `folder`, for a base of these settings. Raises `AdapterError`."""
    raw_config = _read(folder / CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)
    config = _parse_config(raw_config, settings)
    raw = _read(folder / WEIGHTS_FILE, ADAPTER_BYTES_MAX)
    try:
        entries = read_header(
            raw[: 8 + SAFETENSORS_HEADER_BYTES_MAX],
            len(raw),
            header_bytes_max=SAFETENSORS_HEADER_BYTES_MAX,
            tensors_max=TENSORS_MAX,
        )
    except SafetensorsError as error:
        raise AdapterError(f"{WEIGHTS_FILE}: {error}") from error
    factors = _factors(raw, entries, config, settings)
    digest = hashlib.sha256(hashlib.sha256(raw_config).digest() + hashlib.sha256(raw).digest()).digest()
    return AdapterFile(digest=digest, rank=max(f.down.shape[0] for f in factors), factors=factors)


def _read(path: Path, bytes_max: int) -> bytes:
    """A whole file through one descriptor, its size judged before the read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > bytes_max:
                raise AdapterError(f"{path.name} has {size} bytes, at most {bytes_max} are allowed")
            file.seek(0)
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise AdapterError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise AdapterError(f"{path.name} changed while it was read")
    return data


def _parse_config(raw: bytes, settings: ModelSettings) -> _Config:
    try:
        config: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_FILE} is not JSON") from error
    if type(config) is not dict:
        raise AdapterError(f"{CONFIG_FILE} is not a JSON object")
    for key, value in config.items():
        if key not in _READ and key not in _IGNORED and value not in (None, False, "", [], {}):
            raise AdapterError(f"{CONFIG_FILE}: {key[:64]} is not supported")
    _require(config.get("peft_type") == "LORA", "peft_type must be LORA")
    _require(config.get("task_type") in ("CAUSAL_LM", None), "task_type must be CAUSAL_LM")
    _require(config.get("bias", "none") == "none", "bias must be none")
    start = config.get("init_lora_weights", True)
    _require(start in _PLAIN_INIT and type(start) in (bool, str), "init_lora_weights changes the base")
    rank: Any = config.get("r")
    _require(_is_rank(rank), f"r must be in 1..{ADAPTER_RANK_MAX}")
    alpha: Any = config.get("lora_alpha")
    _require(_is_alpha(alpha), "lora_alpha must be a positive number")
    _require(type(config.get("use_rslora", False)) is bool, "use_rslora must be true or false")
    return _Config(
        rank=rank,
        alpha=float(alpha),
        is_rank_stabilised=config.get("use_rslora", False),
        targets=_targets(config.get("target_modules")),
        layers=_layers(config.get("layers_to_transform"), settings),
        ranks=_pattern(config, "rank_pattern", _is_rank),
        alphas=_pattern(config, "alpha_pattern", _is_alpha),
    )


def _targets(value: Any) -> frozenset[str]:
    _require(
        type(value) is list and 1 <= len(value) <= len(TARGETS), "target_modules must be a list of names"
    )
    for name in value:
        _require(type(name) is str and name in TARGETS, f"target_modules must be among {', '.join(TARGETS)}")
    return frozenset(value)


def _layers(value: Any, settings: ModelSettings) -> frozenset[int]:
    everything = frozenset(range(settings.layers))
    if value is None:
        return everything
    numbers = value if type(value) is list else [value]
    _require(
        all(type(n) is int and n in everything for n in numbers), "layers_to_transform names no such layer"
    )
    _require(len(numbers) > 0, "layers_to_transform is empty")
    return frozenset(numbers)


def _pattern(config: dict[str, Any], key: str, is_valid: Any) -> dict[str, Any]:
    """Per-module values. PEFT reads the names as regular expressions; only plain ones are accepted here."""
    value: Any = config.get(key) or {}
    _require(type(value) is dict and len(value) <= TENSORS_MAX, f"{key} must be an object")
    for name, number in value.items():
        _require(_PATTERN_NAME.fullmatch(str(name)) is not None, f"{key} must name modules plainly")
        _require(is_valid(number), f"{key} has a value out of range")
    return value


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith("." + name)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= ADAPTER_RANK_MAX


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= ADAPTER_SCALE_MAX * ADAPTER_RANK_MAX


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AdapterError(f"{CONFIG_FILE}: {rule}")


def _factors(
    raw: bytes, entries: tuple[TensorEntry, ...], config: _Config, settings: ModelSettings
) -> tuple[Factor, ...]:
    found: dict[tuple[int, str, str], TensorEntry] = {}
    modules = {MODULE[target]: target for target in config.targets}
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        target = modules.get(match[2]) if match else None
        if match is None or target is None or int(match[1]) not in config.layers:
            raise AdapterError(f"{WEIGHTS_FILE}: unexpected tensor {entry.name[:128]}")
        key = (int(match[1]), target, match[3])
        if key in found:
            raise AdapterError(f"{WEIGHTS_FILE}: {entry.name[:128]} occurs twice")
        found[key] = entry
    missing = len(config.layers) * len(config.targets) * 2 - len(found)
    if missing:
        raise AdapterError(f"{WEIGHTS_FILE}: {missing} tensors are missing")
    return tuple(
        _factor(raw, layer, target, found, config, settings)
        for layer in sorted(config.layers)
        for target in TARGETS
        if target in config.targets
    )


def _factor(
    raw: bytes,
    layer: int,
    target: str,
    found: Mapping[tuple[int, str, str], TensorEntry],
    config: _Config,
    settings: ModelSettings,
) -> Factor:
    path = f"model.layers.{layer}.{MODULE[target]}"
    rank, scale = config.rank_of(path), config.scale_of(path)
    if scale > ADAPTER_SCALE_MAX:
        raise AdapterError(f"{CONFIG_FILE}: alpha / rank of {path} is above {ADAPTER_SCALE_MAX}")
    outputs, inputs = settings.shape(target)
    down = _tensor(raw, found[layer, target, "A"], (rank, inputs))
    up = _tensor(raw, found[layer, target, "B"], (outputs, rank))
    norm = scale * _norm(down) * _norm(up)
    if not norm <= ADAPTER_NORM_MAX:
        raise AdapterError(
            f"{WEIGHTS_FILE}: {path} has norm {norm:.3g}, at most {ADAPTER_NORM_MAX} is allowed"
        )
    with np.errstate(over="ignore"):
        scaled = up * np.float32(scale)
    if not np.isfinite(scaled).all():
        raise AdapterError(f"{WEIGHTS_FILE}: {path} overflows when scaled")
    return Factor(layer=layer, target=target, down=down, up=scaled)


def _norm(values: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _tensor(raw: bytes, entry: TensorEntry, shape: tuple[int, int]) -> NDArray[np.float32]:
    if entry.shape != shape:
        raise AdapterError(f"{WEIGHTS_FILE}: {entry.name[:128]} has shape {entry.shape}, expected {shape}")
    data = memoryview(raw)[entry.start : entry.end]
    match entry.dtype:
        case "F32":
            values = np.frombuffer(data, dtype="<f4").astype(np.float32)
        case "F16":
            values = np.frombuffer(data, dtype="<f2").astype(np.float32)
        case "BF16":
            values = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        case _:
            raise AdapterError(f"{WEIGHTS_FILE}: {entry.name[:128]} has dtype {entry.dtype}")
    if not np.isfinite(values).all():
        raise AdapterError(f"{WEIGHTS_FILE}: {entry.name[:128]} has values that are not finite")
    return values.reshape(shape)
