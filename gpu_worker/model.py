"""A Llama-style model for serving: weights from safetensors, one forward pass over a ragged batch.

A pass takes a flat list of tokens: first one token of each answering sequence, then pieces of prompts.
Matrices see them all at once; attention treats the answering sequences together and each piece on its own.
Attention is plain matrix products and a softmax in fp32, keys padded to a fixed step: in bf16, nf4 and int8
a row's bits depend neither on its neighbours, nor on how its prompt was cut, nor on whether a token was
generated or read (tested). Single rows are padded to `ROWS_MIN`, because matrix-vector products sum in
another order.

Not differentiable and not meant to be: training has its own instance.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional

from gossip_ledger.errors import LocalError
from gpu_worker.bank import ActiveSet
from gpu_worker.identity import base_tensors, weight_files
from gpu_worker.kv_cache import KvCache, aligned
from gpu_worker.linears import Linear, make_linear
from gpu_worker.safetensors_file import TensorEntry
from gpu_worker.settings import MODULE, ModelSettings, RopeScaling

ROWS_MIN: Final = {"bf16": 2, "nf4": 2, "int8": 2, "fp32": 4}
"""Fewest rows of a matrix product, per quantization, for results that do not depend on the batch."""
_REFINED: Final = 32
"""Likeliest tokens whose logits are computed in full precision."""
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive tokens of one sequence in a pass."""

    row: int
    """Of the cache."""
    start: int
    """Position of the first token in its sequence."""
    tokens: tuple[int, ...]
    adapter: int
    """Index in the active set; -1 for the bare base."""


@final
@dataclass(frozen=True, slots=True)
class _Layer:
    norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@final
@dataclass(frozen=True, slots=True)
class _Pass:
    """What all layers of one pass share."""

    count: int
    """Real tokens; rows beyond are padding."""
    singles: int
    """How many leading tokens are the only one of their sequence."""
    rows: list[int]
    """Cache rows of the singles."""
    places: Tensor
    """For the singles: flat places of their keys in the cache."""
    is_hidden: Tensor
    """[singles, 1, 1, width]: keys not to be seen."""
    pieces: tuple[tuple[int, Piece, Tensor], ...]
    """(first token in the flat list, piece, mask [1, tokens, width])."""
    cos: Tensor
    sin: Tensor
    active: ActiveSet | None
    mask: Tensor | None


@final
class LlamaModel:
    """One loaded base."""

    def __init__(
        self,
        folder: Path,
        settings: ModelSettings,
        *,
        quantization: str,
        device: str,
        max_context: int,
    ) -> None:
        """Loads the weights in `folder`. Raises `LocalError` where they do not fit the settings."""
        self.settings = settings
        self.device = device
        self.dtype = torch.float32 if quantization == "fp32" else torch.bfloat16
        self.rows_min = ROWS_MIN[quantization]
        weights = _Weights(folder)
        self._embedding = weights.take("model.embed_tokens.weight", self.dtype, device)
        head = self._embedding if settings.is_tied else weights.take("lm_head.weight", self.dtype, device)
        self._head_rows = head
        self._head = make_linear(head, None, "fp32" if quantization == "fp32" else "bf16", device)
        self._norm = weights.take("model.norm.weight", torch.float32, device)
        self._layers = [
            _load_layer(weights, layer, settings, quantization, device) for layer in range(settings.layers)
        ]
        cos, sin = _rotary(settings, max_context)
        self._cos, self._sin = cos.to(device, self.dtype), sin.to(device, self.dtype)
        weights.release()

    def forward(
        self, pieces: Sequence[Piece], cache: KvCache, active: ActiveSet | None, wanted: Sequence[int]
    ) -> Tensor:
        """Reads `pieces` into `cache` and returns fp32 logits [wanted, vocabulary].

        Pieces of one token come first. `wanted` are indices of pieces whose last token's logits are asked
        for.
        """
        with torch.inference_mode():
            flat = [token for piece in pieces for token in piece.tokens]
            shared = self._prepare(pieces, cache, active, len(flat))
            flat += [flat[0]] * (self.rows_min - len(flat))
            x = self._embedding[torch.tensor(flat, device=self.device)].float()
            for number, layer in enumerate(self._layers):
                x = self._attend(x, number, layer, cache, shared)
                x = self._feed_forward(x, number, layer, shared)
            ends = _ends(pieces)
            chosen = x[torch.tensor([ends[n] for n in wanted], dtype=torch.long, device=self.device)]
            if len(wanted) < self.rows_min:
                chosen = chosen[[min(n, len(wanted) - 1) for n in range(self.rows_min)]] if wanted else chosen
            return self._logits(chosen)[: len(wanted)]

    def _logits(self, x: Tensor) -> Tensor:
        """fp32 logits; the likeliest are computed again in fp32, as bf16 would leave them tied."""
        h = functional.rms_norm(x, (self.settings.hidden,), self._norm, self.settings.eps).to(self.dtype)
        logits = self._head(h).float()
        best = logits.topk(min(_REFINED, self.settings.vocabulary), dim=-1).indices
        exact = torch.bmm(self._head_rows[best].float(), h.float()[:, :, None])
        return logits.scatter_(1, best, exact[:, :, 0])

    def _prepare(
        self, pieces: Sequence[Piece], cache: KvCache, active: ActiveSet | None, count: int
    ) -> _Pass:
        singles = sum(len(piece.tokens) == 1 for piece in pieces)
        assert all(len(piece.tokens) == 1 for piece in pieces[:singles])
        rows = [piece.row for piece in pieces[:singles]]
        starts = [piece.start for piece in pieces[:singles]]
        positions = [piece.start + n for piece in pieces for n in range(len(piece.tokens))]
        padding = max(0, self.rows_min - count)
        where = torch.tensor(positions + [positions[0]] * padding, device=self.device)
        keys = torch.arange(cache.width, device=self.device)
        last = torch.tensor(starts, dtype=torch.long, device=self.device)
        heads = torch.arange(self.settings.kv_heads, device=self.device)
        row_numbers = torch.tensor(rows, dtype=torch.long, device=self.device)
        places = (row_numbers[:, None] * self.settings.kv_heads + heads) * cache.width + last[:, None]
        mask = None
        if active is not None:
            who = [piece.adapter for piece in pieces for _ in piece.tokens] + [-1] * padding
            mask = active.mask(torch.tensor(who, device=self.device), self.dtype)
        return _Pass(
            count=count,
            singles=singles,
            rows=rows,
            places=places.reshape(-1),
            is_hidden=(keys[None, :] > last[:, None])[:, None, None, :],
            pieces=tuple(self._masked(pieces[singles:], singles)),
            cos=self._cos[where][:, None, :],
            sin=self._sin[where][:, None, :],
            active=active,
            mask=mask,
        )

    def _masked(self, pieces: Sequence[Piece], at: int) -> Iterator[tuple[int, Piece, Tensor]]:
        for piece in pieces:
            length = len(piece.tokens)
            keys = torch.arange(aligned(piece.start + length), device=self.device)
            queries = torch.arange(piece.start, piece.start + length, device=self.device)
            yield at, piece, (keys[None, :] > queries[:, None])[None]
            at += length

    def _attend(self, x: Tensor, number: int, layer: _Layer, cache: KvCache, shared: _Pass) -> Tensor:
        settings = self.settings
        h = functional.rms_norm(x, (settings.hidden,), layer.norm, settings.eps).to(self.dtype)
        qkv = layer.qkv(h)
        query_width = settings.heads * settings.head_dim
        key_width = settings.kv_heads * settings.head_dim
        if shared.active is not None and shared.mask is not None:
            start = 0
            for target, width in (("q_proj", query_width), ("k_proj", key_width), ("v_proj", key_width)):
                shared.active.add(target, number, h, qkv[:, start : start + width], shared.mask)
                start += width
        rotated = _rotate(
            qkv[:, : query_width + key_width].view(x.shape[0], -1, settings.head_dim), shared.cos, shared.sin
        )
        query, key = rotated[:, : settings.heads], rotated[:, settings.heads :]
        value = qkv[:, query_width + key_width :].view(x.shape[0], -1, settings.head_dim)
        result = torch.empty(x.shape[0], query_width, dtype=self.dtype, device=x.device)
        if shared.singles:
            n = shared.singles
            result[:n] = self._attend_singles(query[:n], key[:n], value[:n], number, cache, shared)
        for at, piece, is_hidden in shared.pieces:
            end = at + len(piece.tokens)
            result[at:end] = self._attend_piece(
                query[at:end],
                key[at:end],
                value[at:end],
                (cache.keys[number], cache.values[number]),
                piece,
                is_hidden,
            )
        result[shared.count :] = result[0]
        y = layer.output(result)
        if shared.active is not None and shared.mask is not None:
            shared.active.add("o_proj", number, result, y, shared.mask)
        return x + y

    def _attend_singles(
        self, query: Tensor, key: Tensor, value: Tensor, number: int, cache: KvCache, shared: _Pass
    ) -> Tensor:
        n, settings = shared.singles, self.settings
        all_keys, all_values = cache.keys[number], cache.values[number]
        all_keys.view(-1, settings.head_dim).index_copy_(0, shared.places, key.reshape(-1, settings.head_dim))
        all_values.view(-1, settings.head_dim).index_copy_(
            0, shared.places, value.reshape(-1, settings.head_dim)
        )
        if shared.rows == list(range(n)):
            keys, values = all_keys[:n], all_values[:n]
        else:
            keys, values = all_keys[shared.rows], all_values[shared.rows]
        groups = query.reshape(n, settings.kv_heads, -1, settings.head_dim)
        return _attention(groups, keys, values, shared.is_hidden).reshape(n, -1)

    def _attend_piece(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kept: tuple[Tensor, Tensor],
        piece: Piece,
        is_hidden: Tensor,
    ) -> Tensor:
        settings, length = self.settings, len(piece.tokens)
        width = is_hidden.shape[-1]
        for tensor, new in zip(kept, (key, value), strict=True):
            tensor[piece.row, :, piece.start : piece.start + length] = new.transpose(0, 1)
        keys, values = (tensor[piece.row, :, :width] for tensor in kept)
        groups = query.reshape(length, settings.kv_heads, -1, settings.head_dim).permute(1, 2, 0, 3)
        shape = groups.shape
        mask = is_hidden.expand(shape[1], length, width).reshape(1, -1, width)
        mixed = _attention(groups.reshape(shape[0], -1, settings.head_dim), keys, values, mask)
        return mixed.view(shape).permute(2, 0, 1, 3).reshape(length, -1)

    def _feed_forward(self, x: Tensor, number: int, layer: _Layer, shared: _Pass) -> Tensor:
        ffn = self.settings.ffn
        h = functional.rms_norm(x, (self.settings.hidden,), layer.mlp_norm, self.settings.eps).to(self.dtype)
        both = layer.gate_up(h)
        if shared.active is not None and shared.mask is not None:
            shared.active.add("gate_proj", number, h, both[:, :ffn], shared.mask)
            shared.active.add("up_proj", number, h, both[:, ffn:], shared.mask)
        inner = functional.silu(both[:, :ffn]).mul_(both[:, ffn:])
        y = layer.down(inner)
        if shared.active is not None and shared.mask is not None:
            shared.active.add("down_proj", number, inner, y, shared.mask)
        return x + y


def _attention(query: Tensor, keys: Tensor, values: Tensor, is_hidden: Tensor) -> Tensor:
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * (1.0 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores.masked_fill_(is_hidden, -math.inf), dim=-1)
    return torch.matmul(weights.to(query.dtype), values)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _ends(pieces: Sequence[Piece]) -> list[int]:
    ends: list[int] = []
    at = -1
    for piece in pieces:
        at += len(piece.tokens)
        ends.append(at)
    return ends


def _rotary(settings: ModelSettings, length: int) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, settings.head_dim, 2, dtype=torch.float32) / settings.head_dim
    frequencies = 1.0 / settings.rope_theta**exponents
    if settings.rope_scaling is not None:
        frequencies = _stretched(frequencies, settings.rope_scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched by the factor, short ones kept, those between blended."""
    length = scaling.original_max_position_embeddings
    waves = 2 * math.pi / frequencies
    blend = (length / waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _load_layer(
    weights: _Weights, number: int, settings: ModelSettings, quantization: str, device: str
) -> _Layer:
    prefix = f"model.layers.{number}."

    def linear(targets: tuple[str, ...], has_bias: bool) -> Linear:
        parts = [weights.take(f"{prefix}{MODULE[t]}.weight", None, "cpu", settings.shape(t)) for t in targets]
        biases = [weights.take(f"{prefix}{MODULE[t]}.bias", None, "cpu") for t in targets] if has_bias else []
        return make_linear(torch.cat(parts), torch.cat(biases) if biases else None, quantization, device)

    return _Layer(
        norm=weights.take(f"{prefix}input_layernorm.weight", torch.float32, device),
        qkv=linear(("q_proj", "k_proj", "v_proj"), settings.has_qkv_bias),
        output=linear(("o_proj",), settings.has_o_bias),
        mlp_norm=weights.take(f"{prefix}post_attention_layernorm.weight", torch.float32, device),
        gate_up=linear(("gate_proj", "up_proj"), settings.has_mlp_bias),
        down=linear(("down_proj",), settings.has_mlp_bias),
    )


@final
class _Weights:
    """The tensors of a base, mapped from its files: read when used, shared between processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, tuple[mmap.mmap, TensorEntry]] = {}
        for path in weight_files(folder):
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            for entry in base_tensors(path):
                self._entries[entry.name] = (mapped, entry)

    def release(self) -> None:
        """Lets go of the pages read so far; what is still in use is read again at need."""
        for mapped in {id(mapped): mapped for mapped, _ in self._entries.values()}.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def take(
        self, name: str, dtype: torch.dtype | None, device: str, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        if name not in self._entries:
            raise LocalError(f"{self._folder}: tensor {name} is missing; fetch the base model again")
        mapped, entry = self._entries[name]
        if entry.dtype not in _DTYPES or (shape is not None and entry.shape != shape):
            raise LocalError(
                f"{self._folder}: tensor {name} is {entry.dtype} {entry.shape}, not as configured"
            )
        kind = _DTYPES[entry.dtype]
        if entry.start % kind.itemsize:
            tensor = torch.frombuffer(bytearray(mapped[entry.start : entry.end]), dtype=kind)
        else:
            count = math.prod(entry.shape)
            tensor = torch.frombuffer(mapped, dtype=kind, count=count, offset=entry.start)
        return tensor.view(entry.shape).to(device=device, dtype=dtype or tensor.dtype)
