"""The load policy for adapters: each rule refuses what breaks it, and nothing but an adapter gets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker import adapter_file, limits
from gpu_worker.adapter_file import CONFIG_FILE, WEIGHTS_FILE, AdapterError, read_adapter
from gpu_worker.settings import ModelSettings, parse_settings
from tests.support.tiny_base import HIDDEN, tiny_config, write_tensors, write_tiny_adapter

SETTINGS: ModelSettings = parse_settings(tiny_config())
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_sound_adapter_is_read(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1, rank=4, alpha=8)
    found = read_adapter(tmp_path, SETTINGS)
    assert found.rank == 4
    assert [(f.layer, f.target) for f in found.factors[:3]] == [(0, "q_proj"), (0, "v_proj"), (1, "q_proj")]
    raw = _tensors(tmp_path)
    assert np.array_equal(found.factors[0].down, raw[A0])
    assert np.array_equal(found.factors[0].up, raw[A0.replace("lora_A", "lora_B")] * 2)


def test_the_digest_names_both_files(tmp_path: Path) -> None:
    digests: set[bytes] = set()
    for seed, alpha in ((1, 8), (2, 8), (1, 4)):
        write_tiny_adapter(tmp_path, SETTINGS, seed=seed, alpha=alpha)
        digests.add(read_adapter(tmp_path, SETTINGS).digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 12}}, 3.0),
        ({"alpha_pattern": {"model.layers.0.self_attn.q_proj": 12}}, 3.0),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 12}}, 2.0),
        ({"alpha_pattern": {"proj": 12}}, 2.0),
        ({"lora_bias": False, "modules_to_save": None, "loftq_config": {}, "megatron_core": "x"}, 2.0),
        ({"base_model_name_or_path": "https://example.org/x", "lora_dropout": 0.1}, 2.0),
    ],
)
def test_scales_are_those_of_the_format(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1, rank=4, alpha=8, **changes)
    up = read_adapter(tmp_path, SETTINGS).factors[0].up
    raw = _tensors(tmp_path)[A0.replace("lora_A", "lora_B")]
    assert np.allclose(up, raw * np.float32(scale))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read(tmp_path: Path, dtype: str) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    before = read_adapter(tmp_path, SETTINGS).factors[0].down
    _rewrite(tmp_path, lambda header, data: _narrowed(header, data, dtype))
    after = read_adapter(tmp_path, SETTINGS).factors[0].down
    assert np.allclose(before, after, rtol=0.01)


CONFIGS: list[dict[str, Any]] = [
    {"peft_type": "IA3"},
    {"task_type": "SEQ_CLS"},
    {"r": 0},
    {"r": 129},
    {"r": True},
    {"r": "4"},
    {"lora_alpha": 0},
    {"lora_alpha": -1},
    {"lora_alpha": float("nan")},
    {"lora_alpha": float("inf")},
    {"lora_alpha": 4 * 65},
    {"lora_alpha": None},
    {"use_dora": True},
    {"use_rslora": 1},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"lora_bias": True},
    {"modules_to_save": ["lm_head"]},
    {"layer_replication": [[0, 2]]},
    {"fan_in_fan_out": True},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": 1},
    {"loftq_config": {"loftq_bits": 4}},
    {"auto_map": {"AutoModel": "evil.py"}},
    {"trainable_token_indices": [1]},
    {"some_future_switch": True},
    {"target_modules": "all-linear"},
    {"target_modules": r".*(a+)+$"},
    {"target_modules": []},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["q_proj", 1]},
    {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "v_proj", "k_proj"]},
    {"layers_to_transform": [0]},
    {"layers_to_transform": [0, 1, 2, 3]},
    {"layers_to_transform": []},
    {"layers_to_transform": [True]},
    {"rank_pattern": {"q_proj": 2}},
    {"rank_pattern": {"q_proj": 0}},
    {"rank_pattern": {"(a+)+$": 4}},
    {"rank_pattern": ["q_proj"]},
    {"alpha_pattern": {"q_proj": "8"}},
    {"alpha_pattern": {"q_proj": 1e9}},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda c: json.dumps(c)[:60])
def test_a_configuration_that_is_not_plain_lora_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1, rank=4)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    with pytest.raises(AdapterError):
        read_adapter(tmp_path, SETTINGS)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000, b" " * 65_537])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    (tmp_path / CONFIG_FILE).write_bytes(data)
    with pytest.raises(AdapterError):
        read_adapter(tmp_path, SETTINGS)


Edit = Callable[[dict[str, Any], bytes], tuple[Any, bytes]]


def _with(name: str, **changes: Any) -> Edit:
    return lambda header, data: ({**header, name: {**header[name], **changes}}, data)


def _renamed(name: str, new: str) -> Edit:
    return lambda header, data: ({new if k == name else k: v for k, v in header.items()}, data)


FILES: dict[str, Edit] = {
    "gap": lambda header, data: (_shifted(header, 4), b"\0\0\0\0" + data),
    "trailing": lambda header, data: (header, data + b"\0"),
    "short": lambda header, data: (header, data[:-1]),
    "overlap": lambda header, data: (
        {**header, A0: {**header[A0], "data_offsets": next(reversed(header.values()))["data_offsets"]}},
        data,
    ),
    "no shape": _with(A0, shape=None),
    "negative shape": _with(A0, shape=[-4, -HIDDEN]),
    "boolean shape": _with(A0, shape=[True, 4 * HIDDEN]),
    "float shape": _with(A0, shape=[4.0, HIDDEN]),
    "transposed": _with(A0, shape=[HIDDEN, 4]),
    "flat": _with(A0, shape=[4 * HIDDEN]),
    "huge": _with(A0, shape=[2**40, 2**40]),
    "integers": _with(A0, dtype="I32"),
    "unknown dtype": _with(A0, dtype="F8_E4M3"),
    "dtype list": _with(A0, dtype=["F32"]),
    "extra key": _with(A0, more=1),
    "entry list": lambda header, data: ({**header, A0: [1, 2]}, data),
    "no such layer": _renamed(A0, A0.replace("layers.0", "layers.7")),
    "another layer's name": _renamed(A0, A0.replace("layers.0", "layers.00")),
    "no such module": _renamed(A0, A0.replace("q_proj", "k_proj")),
    "embedding": _renamed(A0, "base_model.model.model.embed_tokens.lora_embedding_A"),
    "dora": _renamed(A0, A0.replace("lora_A.weight", "lora_magnitude_vector")),
    "missing": lambda header, data: _dropped(header, data),
    "list header": lambda header, data: (list(header), data),
    "not finite": lambda header, data: (header, b"\x00\x00\x80\x7f" + data[4:]),
    "not a number": lambda header, data: (header, b"\x00\x00\xc0\x7f" + data[4:]),
    "too strong": lambda header, data: (header, np.float32(3e38).tobytes() + data[4:]),
    "rather strong": lambda header, data: (header, np.float32(1e5).tobytes() + data[4:]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_exactly_the_adapter_is_refused(tmp_path: Path, name: str) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    _rewrite(tmp_path, FILES[name])
    with pytest.raises(AdapterError):
        read_adapter(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        (1 << 20).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"{]",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04\x95" + b"\0" * 100,
        (4).to_bytes(8, "little") + b'{"a"',
    ],
)
def test_bytes_that_are_no_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(AdapterError):
        read_adapter(tmp_path, SETTINGS)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    raw = (tmp_path / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    entry = json.dumps({A0: json.loads(header)[A0]})[1:-1].encode()
    doubled = header[:-1] + b"," + entry + b"}"
    (tmp_path / WEIGHTS_FILE).write_bytes(len(doubled).to_bytes(8, "little") + doubled + raw[8 + length :])
    with pytest.raises(AdapterError, match="twice"):
        read_adapter(tmp_path, SETTINGS)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    raw = (tmp_path / WEIGHTS_FILE).read_bytes()
    for size in range(0, len(raw), 997):
        (tmp_path / WEIGHTS_FILE).write_bytes(raw[:size])
        with pytest.raises(AdapterError):
            read_adapter(tmp_path, SETTINGS)


def test_pickles_are_not_looked_at(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"safetensors cannot be read"):
        read_adapter(tmp_path, SETTINGS)


def test_size_is_judged_before_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    monkeypatch.setattr(adapter_file, "ADAPTER_BYTES_MAX", 1000)
    with pytest.raises(AdapterError, match="at most 1000"):
        read_adapter(tmp_path, SETTINGS)


def test_the_number_of_tensors_is_bounded(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    header = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(9000)}
    raw = json.dumps(header, separators=(",", ":")).encode()
    assert len(raw) < limits.SAFETENSORS_HEADER_BYTES_MAX
    (tmp_path / WEIGHTS_FILE).write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(AdapterError, match="9000 tensors"):
        read_adapter(tmp_path, SETTINGS)


def _tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    raw = (folder / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(raw[8 + length :][slice(*e["data_offsets"])], "<f4").reshape(e["shape"])
        for name, e in header.items()
    }


def _rewrite(folder: Path, edit: Edit) -> None:
    raw = (folder / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    assert next(iter(header)) == A0
    edited, data = edit(header, raw[8 + length :])
    head = json.dumps(edited).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(head).to_bytes(8, "little") + head + data)


def _shifted(header: dict[str, Any], by: int) -> dict[str, Any]:
    return {k: {**v, "data_offsets": [n + by for n in v["data_offsets"]]} for k, v in header.items()}


def _dropped(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Without the first tensor, and without its bytes: a file that is sound in itself."""
    size = header[A0]["data_offsets"][1]
    return _shifted({k: v for k, v in header.items() if k != A0}, -size), data[size:]


def _narrowed(header: dict[str, Any], data: bytes, dtype: str) -> tuple[dict[str, Any], bytes]:
    values = np.frombuffer(data, "<f4")
    if dtype == "F16":
        narrow = values.astype("<f2").tobytes()
    else:
        narrow = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return {
        k: {**v, "dtype": dtype, "data_offsets": [n // 2 for n in v["data_offsets"]]}
        for k, v in header.items()
    }, narrow


def test_the_helpers_write_what_they_read(tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path, SETTINGS, seed=1)
    before = _tensors(tmp_path)
    write_tensors(tmp_path / WEIGHTS_FILE, before)
    assert read_adapter(tmp_path, SETTINGS).rank == 4
