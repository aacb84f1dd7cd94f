"""A Llama-style GGUF file as an ordinary Hugging Face folder. Free of torch, byte for byte reproducible.

Weights are dequantised to float32 and rounded to bfloat16 (nearest, ties to even). The tokenizer is written
from the file's own vocabulary and merges. Every byte is produced here, by no library that may change its
mind between versions, so a folder has the same digests on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossip_ledger.errors import LocalError
from gpu_worker import safetensors_file
from gpu_worker.gguf import GgufFile

Progress = Callable[[str, int, int], None]
"""Told about long work: (what is done, units done, units in all)."""

_GLOBAL_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_CONTROL: Final = 3
"""The GGUF token type of special tokens."""
_SPLIT_DIGITS: Final = frozenset({"smollm"})
"""GGUF pre-tokenizers that make every digit a token and otherwise split as GPT-2 does."""


def convert(source: Path, folder: Path, progress: Progress) -> None:
    """Writes `config.json`, `model.safetensors`, tokenizer and template files into `folder`, which exists.

    Raises `LocalError` where the file is of a kind that is not supported.
    """
    gguf = GgufFile(source)
    if gguf.metadata.get("general.architecture") != "llama":
        raise LocalError(f"{source}: only Llama-style GGUF files can be converted")
    config = _config(gguf)
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", _tokenizer(gguf.metadata))
    template = gguf.metadata.get("tokenizer.chat_template", "")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf.metadata))
    _write_json(
        folder / "generation_config.json",
        {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_weights(gguf, folder / "model.safetensors", config, progress)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of `values` rounded to bfloat16, nearest with ties to even. Values are finite."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def _write_weights(gguf: GgufFile, path: Path, config: dict[str, Any], progress: Progress) -> None:
    names = {_new_name(name): name for name in gguf.names()}
    order = sorted(names)
    shapes = [(name, "BF16", gguf.shape(names[name])) for name in order]

    def data() -> Iterator[bytes]:
        for done, name in enumerate(order):
            progress("converting the base model", done, len(order))
            values = gguf.tensor(names[name])
            if name.endswith("q_proj.weight"):
                values = _unpermute(values, config["num_attention_heads"])
            elif name.endswith("k_proj.weight"):
                values = _unpermute(values, config["num_key_value_heads"])
            yield to_bfloat16(np.ascontiguousarray(values)).tobytes()
        progress("converting the base model", len(order), len(order))

    with path.open("wb") as file:
        safetensors_file.write(file, shapes, data())


def _new_name(name: str) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise LocalError(f"GGUF tensor {name} has no place in a Llama model")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.weight"


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undoes the interleaving of rotary halves that GGUF uses."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _config(gguf: GgufFile) -> dict[str, Any]:
    def get(key: str) -> Any:
        return gguf.metadata[f"llama.{key}"]

    tokens = gguf.metadata
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": tokens["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": tokens["tokenizer.ggml.eos_token_id"],
        "head_dim": get("rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": get("attention.head_count"),
        "num_hidden_layers": get("block_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "pad_token_id": tokens["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_theta": get("rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in gguf.names(),
        "vocab_size": get("vocab_size"),
    }


def _tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLIT_DIGITS:
        raise LocalError("the GGUF file's tokenizer is of a kind that is not supported")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]

    def token(kind: str) -> str:
        return tokens[metadata[f"tokenizer.ggml.{kind}_token_id"]]

    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": token("bos"),
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": metadata["llama.context_length"],
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
