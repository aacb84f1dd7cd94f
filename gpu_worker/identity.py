"""What a base model is: its identity, which every peer can compute and compare. Free of torch.

The identity names the weights tensor by tensor (however they are spread over files), the architecture
settings, the tokenizer, the chat template and the compute dtype. How a worker quantises them is no part of
it: that is said in its advert. A peer without the weights holds the **light files** (tokenizer, settings,
template), which are enough to count tokens and to check the rest of an identity that somebody else states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NewType, final

from gossip_ledger.codec import Schema, Table, octets, text, uint
from gossip_ledger.errors import LocalError, RemoteError
from gpu_worker.limits import (
    BASE_HEADER_BYTES_MAX,
    CONFIG_BYTES_MAX,
    SHARDS_MAX,
    TEMPLATE_BYTES_MAX,
    TOKENIZER_BYTES_MAX,
)
from gpu_worker.safetensors_file import TensorEntry, header_length, read_header

BaseId = NewType("BaseId", bytes)
"""SHA-256 of the canonical `BaseIdentity`, 32 bytes."""

LIGHT_FILES: Final[Mapping[str, int]] = {
    "chat_template.jinja": TEMPLATE_BYTES_MAX,
    "config.json": CONFIG_BYTES_MAX,
    "tokenizer.json": TOKENIZER_BYTES_MAX,
}
"""Name -> largest size in bytes of the files that a peer without the weights needs."""

_TENSORS_MAX: Final = 1 << 17
_SETTINGS: Final = (
    "attention_bias",
    "bos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
"""The settings that change what a model computes. Everything else in a `config.json` is left out."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BaseIdentity:
    """Everything that two workers must agree on to serve the same base."""

    architecture: str
    """`llama`, `mistral` or `qwen2`."""
    weights: bytes
    """Digest over names, dtypes, shapes and contents of all tensors, 32 bytes."""
    weights_bytes: int
    settings: bytes
    """SHA-256 of the light `config.json`."""
    tokenizer: bytes
    """SHA-256 of the light `tokenizer.json`."""
    template: bytes
    """SHA-256 of the light `chat_template.jinja`."""
    compute: str
    """The dtype that matrices are multiplied in, `bfloat16`."""


BASE_IDENTITY: Final = Table(
    60,
    BaseIdentity,
    (
        ("architecture", text(32)),
        ("weights", octets(32)),
        ("weights_bytes", uint()),
        ("settings", octets(32)),
        ("tokenizer", octets(32)),
        ("template", octets(32)),
        ("compute", text(16)),
    ),
)
BASE_IDENTITIES: Final = Schema(BASE_IDENTITY, bytes_max=512)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _TensorDigest:
    name: str
    dtype: str
    shape: str
    digest: bytes


_TENSOR_DIGESTS: Final = Schema(
    Table(
        61,
        _TensorDigest,
        (("name", text(256)), ("dtype", text(8)), ("shape", text(128)), ("digest", octets(32))),
    ),
    bytes_max=1024,
)


def base_id(identity: BaseIdentity) -> BaseId:
    """The id that manifests and adverts name."""
    return BaseId(hashlib.sha256(BASE_IDENTITIES.encode(identity)).digest())


def identify(folder: Path, cache: Path | None = None) -> BaseIdentity:
    """The identity of the base in `folder`; reads all weights once (about 1 s per GB).

    With `cache`, the weights' digest is kept there and used again while names, sizes and times of the files
    stay the same. Raises `LocalError` where the folder is no base that can be served.
    """
    files = light_files(folder)
    settings = json.loads(files["config.json"])
    paths = weight_files(folder)
    tensors = [(entry, path) for path in paths for entry in base_tensors(path)]
    tensors.sort(key=lambda pair: pair[0].name)
    return BaseIdentity(
        architecture=str(settings.get("model_type", "")),
        weights=_weights_digest(paths, tensors, cache),
        weights_bytes=sum(entry.end - entry.start for entry, _ in tensors),
        settings=hashlib.sha256(files["config.json"]).digest(),
        tokenizer=hashlib.sha256(files["tokenizer.json"]).digest(),
        template=hashlib.sha256(files["chat_template.jinja"]).digest(),
        compute="bfloat16",
    )


def light_files(folder: Path) -> dict[str, bytes]:
    """The files of a base that a peer without its weights needs, by name, in canonical form.

    `config.json` holds only what matters, and as `eos_token_id` the list of all ids that end an answer.
    Raises `LocalError` where one is missing or too large.
    """
    config = _read_json(folder / "config.json")
    settings = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    settings["eos_token_id"] = _stop_ids(folder, config)
    return {
        "chat_template.jinja": _template(folder),
        "config.json": json.dumps(settings, sort_keys=True, separators=(",", ":")).encode(),
        "tokenizer.json": _read(folder / "tokenizer.json", TOKENIZER_BYTES_MAX),
    }


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a base, by name. Raises `LocalError` where there are none."""
    paths = tuple(sorted(folder.glob("*.safetensors")))
    if not paths:
        raise LocalError(f"{folder}: no .safetensors files; other weight formats are not loaded")
    if len(paths) > SHARDS_MAX:
        raise LocalError(f"{folder}: {len(paths)} weight files, at most {SHARDS_MAX} are supported")
    return paths


def base_tensors(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of one weight file of a base. Raises `LocalError` where it is malformed."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(header_length(head, size, BASE_HEADER_BYTES_MAX))
        return read_header(head, size, header_bytes_max=BASE_HEADER_BYTES_MAX, tensors_max=_TENSORS_MAX)
    except RemoteError as error:
        raise LocalError(f"{path}: {error}; fetch the base model again") from error


def _weights_digest(
    paths: tuple[Path, ...], tensors: list[tuple[TensorEntry, Path]], cache: Path | None
) -> bytes:
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    kept = cache / "digests" / key if cache is not None else None
    if kept is not None and kept.is_file() and len(known := kept.read_bytes()) == 32:
        return known
    digest = hashlib.sha256(b"upkeep/1/weights")
    for entry, path in tensors:
        shape = "x".join(str(n) for n in entry.shape)
        contents = _range_digest(path, entry.start, entry.end)
        item = _TensorDigest(name=entry.name, dtype=entry.dtype, shape=shape, digest=contents)
        digest.update(_TENSOR_DIGESTS.encode(item))
    if kept is not None:
        _keep(kept, digest.digest())
    return digest.digest()


def _keep(path: Path, data: bytes) -> None:
    """Best effort: a cache that cannot be written costs a second at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        return


def _range_digest(path: Path, start: int, end: int) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


def _stop_ids(folder: Path, config: dict[str, Any]) -> list[int]:
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.is_file() else {}
    found: set[int] = set()
    for value in (config.get("eos_token_id"), generation.get("eos_token_id")):
        found.update(n for n in (value if isinstance(value, list) else [value]) if type(n) is int)
    return sorted(found)


def _template(folder: Path) -> bytes:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path, TEMPLATE_BYTES_MAX)
    path = folder / "tokenizer_config.json"
    template = _read_json(path).get("chat_template", "") if path.is_file() else ""
    if type(template) is not str or len(template) > TEMPLATE_BYTES_MAX:
        raise LocalError(f"{path}: its chat template is not usable; put it into chat_template.jinja")
    return template.encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path, TOKENIZER_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise LocalError(f"{path}: not JSON; fetch the base model again") from error
    if type(value) is not dict:
        raise LocalError(f"{path}: not a JSON object; fetch the base model again")
    return value


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        if path.stat().st_size > bytes_max:
            raise LocalError(f"{path}: larger than {bytes_max} bytes")
        return path.read_bytes()
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}; give a complete Hugging Face folder") from error
