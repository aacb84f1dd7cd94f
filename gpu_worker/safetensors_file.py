"""The safetensors format: a strict reader of its header and a plain writer. Free of torch.

A file is 8 bytes of header length (little-endian), a JSON header `name -> {dtype, shape, data_offsets}`, then
the tensors back to back. The reader accepts only tensors that tile the data exactly, so no byte of a file is
unaccounted for and none is read twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, final

from gossip_ledger.errors import RemoteError

ITEM_BYTES: Final[Mapping[str, int]] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element of each dtype that is understood."""

_DIMENSIONS_MAX: Final = 8


class SafetensorsError(RemoteError):
    """A file that is not well-formed safetensors."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies. `start` and `end` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(
    head: bytes, file_bytes: int, *, header_bytes_max: int, tensors_max: int
) -> tuple[TensorEntry, ...]:
    """The tensors of a file of `file_bytes` bytes, by offset. `head` holds at least the header.

    Raises `SafetensorsError` for anything irregular: gaps, overlaps, unknown dtypes, wrong sizes.
    """
    length = header_length(head, file_bytes, header_bytes_max)
    try:
        table = json.loads(head[8 : 8 + length].decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SafetensorsError(f"header is not JSON: {error}") from error
    if type(table) is not dict:
        raise SafetensorsError("header is not a JSON object")
    table.pop("__metadata__", None)
    if len(table) > tensors_max:
        raise SafetensorsError(f"{len(table)} tensors, at most {tensors_max} are allowed")
    entries = sorted(
        (_entry(name, value, 8 + length) for name, value in table.items()), key=lambda e: e.start
    )
    at = 8 + length
    for entry in entries:
        if entry.start != at:
            raise SafetensorsError(f"{entry.name}: tensors leave a gap or overlap")
        at = entry.end
    if at != file_bytes:
        raise SafetensorsError(f"the tensors end at byte {at}, the file at {file_bytes}")
    return tuple(entries)


def header_length(head: bytes, file_bytes: int, header_bytes_max: int) -> int:
    """The length of the JSON header. Raises `SafetensorsError` where it is out of bounds."""
    if len(head) < 8:
        raise SafetensorsError("shorter than 8 bytes")
    length = int.from_bytes(head[:8], "little")
    if length > header_bytes_max:
        raise SafetensorsError(f"header of {length} bytes, at most {header_bytes_max} are allowed")
    if 8 + length > file_bytes:
        raise SafetensorsError("the header is longer than the file")
    return length


def write(file: BinaryIO, tensors: Iterable[tuple[str, str, tuple[int, ...]]], data: Iterator[bytes]) -> None:
    """Writes a file: `tensors` are (name, dtype, shape) in order, `data` gives the bytes of each in turn."""
    table: dict[str, object] = {}
    sizes: list[int] = []
    at = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        sizes.append(size)
        at += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **table}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for size, raw in zip(sizes, data, strict=True):
        assert len(raw) == size
        file.write(raw)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(name: str, value: Any, data_start: int) -> TensorEntry:
    if type(value) is not dict or set(value) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"{name[:80]}: malformed entry")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in ITEM_BYTES:
        raise SafetensorsError(f"{name[:80]}: unknown dtype")
    if type(shape) is not list or len(shape) > _DIMENSIONS_MAX or not all(_is_count(n) for n in shape):
        raise SafetensorsError(f"{name[:80]}: malformed shape")
    if type(offsets) is not list or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise SafetensorsError(f"{name[:80]}: malformed offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise SafetensorsError(f"{name[:80]}: size does not match its shape")
    return TensorEntry(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + offsets[0],
        end=data_start + offsets[1],
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48
