"""Bases: found, converted, named by their contents, and fetched once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip_ledger.errors import LocalError
from gpu_worker import base as base_module
from gpu_worker.base import default_base, find_base, quiet
from gpu_worker.convert import convert, to_bfloat16
from gpu_worker.gguf import GgufFile
from gpu_worker.identity import base_id, identify, light_files
from gpu_worker.safetensors_file import read_header
from tests.support.tiny_base import write_tiny_base


def test_a_base_is_named_by_what_it_computes(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "a")
    known = base_id(identify(tmp_path / "a", tmp_path / "cache"))
    assert base_id(identify(tmp_path / "a", tmp_path / "cache")) == known
    assert base_id(identify(tmp_path / "a")) == known
    write_tiny_base(tmp_path / "b", transformers_version="9.9", architectures=["Other"])
    assert base_id(identify(tmp_path / "b")) == known
    for number, changes in enumerate(({"seed": 2}, {"rms_norm_eps": 1e-6}, {"bos_token_id": 5})):
        write_tiny_base(tmp_path / f"c{number}", **changes)  # pyright: ignore[reportArgumentType]
        assert base_id(identify(tmp_path / f"c{number}")) != known
    (tmp_path / "a" / "chat_template.jinja").write_text("x")
    assert base_id(identify(tmp_path / "a", tmp_path / "cache")) != known


def test_the_name_does_not_depend_on_how_tensors_are_spread(tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    known = base_id(identify(tmp_path))
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    (tmp_path / "model.safetensors").unlink()
    for number, (name, entry) in enumerate(reversed(header.items())):
        start, end = entry["data_offsets"]
        head = json.dumps({name: {**entry, "data_offsets": [0, end - start]}}).encode()
        data = len(head).to_bytes(8, "little") + head + raw[8 + length + start : 8 + length + end]
        (tmp_path / f"part-{number}.safetensors").write_bytes(data)
    assert base_id(identify(tmp_path)) == known


def test_light_files_take_stop_ids_from_both_files(tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    assert json.loads(light_files(tmp_path)["config.json"])["eos_token_id"] == [256, 258]
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "hello"}')
    assert light_files(tmp_path)["chat_template.jinja"] == b"hello"


def test_a_folder_that_is_no_base_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"config\.json"):
        find_base(str(tmp_path), tmp_path)
    write_tiny_base(tmp_path)
    assert find_base(str(tmp_path), tmp_path / "cache") == tmp_path
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(LocalError, match="other weight formats"):
        identify(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(LocalError, match="fetch the base model again"):
        identify(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(LocalError, match=r"tokenizer\.json"):
        light_files(tmp_path)


def write_gguf(path: Path, seed: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """A one-layer Llama in GGUF, with tensors in three encodings; returns what they hold."""
    rng = np.random.default_rng(seed)
    hidden, ffn, heads, kv_heads = 64, 96, 4, 2
    head = hidden // heads
    shapes = {
        "token_embd.weight": (32, hidden),
        "output_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (heads * head, hidden),
        "blk.0.attn_k.weight": (kv_heads * head, hidden),
        "blk.0.attn_v.weight": (kv_heads * head, hidden),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (ffn, hidden),
        "blk.0.ffn_up.weight": (ffn, hidden),
        "blk.0.ffn_down.weight": (hidden, ffn),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ffn_norm.weight": (hidden,),
    }
    pairs = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head,
        "llama.vocab_size": 32,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<s>", "</s>", *(chr(97 + n) for n in range(26)), "ab", "cd", "é", "x"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * 30],
        "tokenizer.ggml.merges": ["a b", "c d"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    values: dict[str, np.ndarray[Any, Any]] = {}
    table, data = b"", b""
    for number, (name, shape) in enumerate(shapes.items()):
        weight = rng.standard_normal(shape).astype(np.float32)
        kind = 0 if len(shape) == 1 else (8, 3, 2, 1)[number % 4]
        raw, values[name] = _quantised(weight, kind)
        table += (
            _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        )
        table += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    body = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs))
    body += b"".join(_text(key) + _pair(value) for key, value in pairs.items()) + table
    path.write_bytes(body + b"\0" * (-len(body) % 32) + data)
    return values


def test_every_encoding_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    assert set(file.names()) == set(values)
    for name, expected in values.items():
        assert np.array_equal(file.tensor(name), expected), name
    gguf = pytest.importorskip("gguf")
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        other = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values[tensor.name].shape)
        assert np.array_equal(file.tensor(tensor.name), other), tensor.name


def test_converting_gives_a_folder_that_loads(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out", quiet)
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    entries = {e.name: e for e in read_header(raw, len(raw), header_bytes_max=1 << 20, tensors_max=99)}
    assert len(entries) == len(values)
    embedding = entries["model.embed_tokens.weight"]
    assert raw[embedding.start : embedding.end] == to_bfloat16(values["token_embd.weight"]).tobytes()
    query = entries["model.layers.0.self_attn.q_proj.weight"]
    found = np.frombuffer(raw[query.start : query.end], "<u2").reshape(query.shape)
    rows = to_bfloat16(values["blk.0.attn_q.weight"])
    # Rotary pairs lie side by side in GGUF and half a head apart here.
    assert np.array_equal(found[0], rows[0])
    assert np.array_equal(found[8], rows[1])
    assert np.array_equal(found[1], rows[2])
    identify(tmp_path / "out")
    assert light_files(tmp_path / "out")["chat_template.jinja"] == b"{{ messages[0].content }}"


@pytest.mark.parametrize("cut", [0, 3, 20, 200, 900])
def test_a_gguf_file_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()[:cut]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises((LocalError, ValueError)):
        GgufFile(tmp_path / "m.gguf")


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], dtype=np.uint32)
    assert [hex(n) for n in to_bfloat16(bits.view(np.float32))] == [
        "0x3f80",
        "0x3f80",
        "0x3f82",
        "0x3f81",
        "0xbf80",
    ]


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the package index: a wheel is on disk, and the digests are those of a tiny file."""
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "made").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "made", quiet)

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(base_module, "GGUF_SHA256", digest(tmp_path / "m.gguf"))
    monkeypatch.setattr(base_module, "WEIGHTS_SHA256", digest(tmp_path / "made" / "model.safetensors"))
    monkeypatch.setattr(base_module, "_installed_gguf", lambda: tmp_path / "m.gguf")
    return tmp_path


def test_the_default_base_is_made_once(fake_package: Path) -> None:
    cache = fake_package / "cache"
    stale = cache / "bases" / ".making-old"
    stale.mkdir(parents=True)
    seen: list[tuple[str, int, int]] = []
    folder = default_base(cache, lambda *what: seen.append(what))
    assert seen[-1] == ("converting the base model", 11, 11)
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "NOTICE",
    }
    assert not stale.exists()
    assert [p.name for p in (cache / "bases").iterdir() if p.name.startswith(".making")] == []
    seen.clear()
    assert default_base(cache, lambda *what: seen.append(what)) == folder
    assert seen == []
    assert find_base("", cache) == folder


def test_unexpected_bytes_are_not_kept(fake_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fake_package / "cache"
    monkeypatch.setattr(base_module, "WEIGHTS_SHA256", "00")
    with pytest.raises(LocalError, match="unexpected bytes"):
        default_base(cache)
    monkeypatch.setattr(base_module, "GGUF_SHA256", "00")
    with pytest.raises(LocalError, match="not the expected model file"):
        default_base(cache)
    assert [p.name for p in (cache / "bases").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LocalError, match="UPKEEP_CACHE"):
        default_base(tmp_path / "cache")


def test_two_processes_make_it_once(fake_package: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        folders = pool.map(default_base, [fake_package / "cache"] * 2)
    assert folders[0] == folders[1]


def test_no_torch_on_the_way(tmp_path: Path) -> None:
    """A peer without torch can do all of this."""
    code = (
        "import sys, gpu_worker.base, gpu_worker.tokenizer, gpu_worker.identity, gpu_worker.protocol\n"
        "import gpu_worker.scheduler, gpu_worker.adapter_file, peer.engine, peer.supervisor\n"
        "found = {'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)}
    )


@pytest.mark.net
@pytest.mark.slow
def test_the_real_default_base(tmp_path: Path) -> None:
    folder = default_base(tmp_path)
    assert identify(folder).weights.hex().startswith("68610b9e09627338")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _pair(value: object) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _text(value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
        case list():
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
        case _:
            raise AssertionError(value)


def _quantised(weight: np.ndarray[Any, Any], kind: int) -> tuple[bytes, np.ndarray[Any, Any]]:
    """(bytes, the values they stand for) of a matrix in a GGUF encoding."""
    if kind in (0, 1):
        stored = weight.astype(np.float32 if kind == 0 else np.float16)
        return stored.tobytes(), stored.astype(np.float32)
    blocks = weight.reshape(-1, 32)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    span = {
        2: np.abs(blocks).max(axis=1, keepdims=True) / 7,
        3: (high - low) / 15,
        8: np.abs(blocks).max(axis=1, keepdims=True) / 127,
    }
    scale = span[kind].astype(np.float16)
    wide = scale.astype(np.float32)
    if kind == 8:
        codes = np.clip(np.round(blocks / wide), -127, 127).astype(np.int8)
        rows = [s.tobytes() + c.tobytes() for s, c in zip(scale, codes, strict=True)]
        return b"".join(rows), (codes.astype(np.float32) * wide).reshape(weight.shape)
    offset = low.astype(np.float16) if kind == 3 else np.zeros_like(scale)
    shift = offset.astype(np.float32) if kind == 3 else -8 * wide
    codes = np.clip(np.round((blocks - shift) / wide), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | (codes[:, 16:] << 4)
    heads = [s.tobytes() + (o.tobytes() if kind == 3 else b"") for s, o in zip(scale, offset, strict=True)]
    values = codes.astype(np.float32) * wide + shift if kind == 3 else (codes.astype(np.float32) - 8) * wide
    return b"".join(h + p.tobytes() for h, p in zip(heads, packed, strict=True)), values.reshape(weight.shape)
