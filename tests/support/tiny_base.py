"""A tiny seeded Llama with a byte tokenizer, and adapters for it: files of a few hundred kilobytes, made at
once.

The words mean nothing; the code that runs on them is all of the real one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_worker import safetensors_file
from gpu_worker.convert import to_bfloat16
from gpu_worker.settings import MODULE, ModelSettings, parse_settings

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 3, 4, 2, 16, 128
SPECIAL = ("<|end|>", "<|start|>", "<|stop|>")
VOCABULARY = 320
"""256 bytes, three special tokens and some ids without text."""
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|stop|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The `config.json` of the tiny base."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": VOCABULARY,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 258,
    }
    return {**config, **changes}


def write_tiny_base(folder: Path, *, seed: int = 1, **changes: Any) -> ModelSettings:
    """Writes the tiny base into `folder`; `changes` alter its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**changes)
    settings = parse_settings(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {
        "model.embed_tokens.weight": _normal(rng, (settings.vocabulary, settings.hidden), 1.0),
        "model.norm.weight": 1 + _normal(rng, (settings.hidden,), 0.1),
    }
    if not settings.is_tied:
        tensors["lm_head.weight"] = _normal(rng, (settings.vocabulary, settings.hidden), 0.3)
    for layer in range(settings.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + _normal(rng, (settings.hidden,), 0.1)
        for target, module in MODULE.items():
            rows, columns = settings.shape(target)
            tensors[f"{prefix}{module}.weight"] = _normal(rng, (rows, columns), 1.2 * columns**-0.5)
            if settings.has_qkv_bias and target in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{prefix}{module}.bias"] = _normal(rng, (rows,), 0.1)
    names = sorted(tensors)
    with (folder / "model.safetensors").open("wb") as file:
        safetensors_file.write(
            file,
            [(name, "BF16", tensors[name].shape) for name in names],
            (to_bfloat16(tensors[name]).tobytes() for name in names),
        )
    return settings


def write_tiny_adapter(
    folder: Path,
    settings: ModelSettings,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    strength: float = 1.0,
    **changes: Any,
) -> None:
    """Writes an adapter in PEFT's format; `changes` alter its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(settings.layers):
        for target in targets:
            rows, columns = settings.shape(target)
            name = f"base_model.model.model.layers.{layer}.{MODULE[target]}"
            tensors[f"{name}.lora_A.weight"] = _normal(rng, (rank, columns), columns**-0.5)
            tensors[f"{name}.lora_B.weight"] = _normal(rng, (rows, rank), strength * rank**-0.5)
    write_tensors(folder / "adapter_model.safetensors", tensors)


def write_tensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Writes fp32 tensors as a safetensors file."""
    with path.open("wb") as file:
        safetensors_file.write(
            file,
            [(name, "F32", tensor.shape) for name, tensor in tensors.items()],
            (tensor.astype("<f4").tobytes() for tensor in tensors.values()),
        )


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def _tokenizer() -> dict[str, Any]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    alphabet = {byte: chr(byte) for byte in visible} | {b: chr(256 + n) for n, b in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + n, "content": name, **flags} for n, name in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {alphabet[byte]: byte for byte in range(256)}
            | {name: 256 + n for n, name in enumerate(SPECIAL)},
            "merges": [],
        },
    }
