"""The shape of a Llama-style model, read from its `config.json`. Free of torch.

Supported: `llama` (with default or `llama3` rotary scaling), `mistral` without a sliding window, `qwen2`.
Anything that would be computed wrongly is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from gossip_ledger.errors import LocalError

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a layer, which an adapter may change."""
MODULE: Final[Mapping[str, str]] = {
    name: ("self_attn." if name in TARGETS[:4] else "mlp.") + name for name in TARGETS
}
"""The path of each matrix inside its layer."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """The `llama3` way of stretching rotary frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Sizes and constants of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    is_tied: bool
    """Whether the output matrix is the embedding."""
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    positions: int
    """Longest context that the model was made for, tokens."""

    def shape(self, target: str) -> tuple[int, int]:
        """(rows, columns) of a matrix of `TARGETS`: outputs and inputs."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden),
            "k_proj": (key, self.hidden),
            "v_proj": (key, self.hidden),
            "o_proj": (self.hidden, query),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }[target]


def read_settings(folder: Path) -> ModelSettings:
    """The settings of the base in `folder`. Raises `LocalError` where it is of a kind that is not
    supported."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        return parse_settings(config)
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}; give the folder of a Hugging Face model") from error
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise LocalError(f"{path}: not the configuration of a supported model ({error!r})") from error


def parse_settings(config: dict[str, Any]) -> ModelSettings:
    """As `read_settings`, of the parsed file; a missing or malformed setting raises what Python raises."""
    kind = config["model_type"]
    if kind not in ("llama", "mistral", "qwen2"):
        raise LocalError(f"models of type {kind} are not supported; use llama, mistral or qwen2")
    if config.get("hidden_act", "silu") != "silu":
        raise LocalError(f"activation {config['hidden_act']} is not supported, only silu")
    if config.get("sliding_window") is not None and config.get("use_sliding_window", kind == "mistral"):
        raise LocalError("models with a sliding attention window are not supported")
    if "quantization_config" in config:
        raise LocalError("give the original weights; the worker quantizes them itself")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    theta, scaling = _rope(config)
    settings = ModelSettings(
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        eps=float(config["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        has_qkv_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
        has_o_bias=kind != "qwen2" and bool(config.get("attention_bias", False)),
        has_mlp_bias=bool(config.get("mlp_bias", False)),
        positions=int(config["max_position_embeddings"]),
    )
    counts = (hidden, settings.layers, heads, settings.kv_heads, settings.head_dim, settings.ffn)
    if min(*counts, settings.vocabulary, settings.positions) < 1 or heads % settings.kv_heads:
        raise ValueError("sizes must be positive and heads divide evenly")
    if settings.head_dim % 2 or not math.isfinite(settings.eps) or not math.isfinite(theta):
        raise ValueError("head size must be even and constants finite")
    return settings


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Both the older (`rope_theta`, `rope_scaling`) and the newer (`rope_parameters`) spelling."""
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise LocalError(f"rotary scaling of type {kind} is not supported; use a model without, or llama3")
    return theta, RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
    )
