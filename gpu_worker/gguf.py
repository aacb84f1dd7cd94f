"""Reading a GGUF file: its metadata and its tensors as float32. Free of torch.

Only what the default base needs: version 3, little-endian, tensors in F32, F16, Q8_0, Q4_0 and Q4_1. The
caller has checked the file's digest; a malformed file still ends in `LocalError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from gossip_ledger.errors import LocalError

_SCALARS: Final[Mapping[int, str]] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING: Final = 8
_ARRAY: Final = 9
_BLOCK: Final = 32
"""Elements per quantised block."""


def _q4_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8)) * scale


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    offset = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return _nibbles(blocks[:, 4:]).astype(np.float32) * scale + offset


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].copy().view(np.int8).astype(np.float32) * scale


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


_QUANTISED: Final[Mapping[int, tuple[int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]]] = {
    2: (18, _q4_0),
    3: (20, _q4_1),
    8: (34, _q8_0),
}
"""Type -> (bytes per block of 32 elements, how to read it)."""
_PLAIN: Final[Mapping[int, type[np.float32] | type[np.float16]]] = {0: np.float32, 1: np.float16}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    shape: tuple[int, ...]
    """Outermost first, as numpy has it; the file has it the other way round."""
    kind: int
    offset: int


@final
class GgufFile:
    """One GGUF file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Reads the metadata and the list of tensors. Raises `LocalError` where the file is no such thing."""
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        self._path = path
        try:
            self.metadata, self._tensors, self._base = self._read_head()
        except (struct.error, KeyError, UnicodeDecodeError, IndexError) as error:
            raise LocalError(
                f"{path}: not a readable GGUF file ({error}); delete it and fetch it again"
            ) from error

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32. Raises `LocalError` for an encoding that is not supported."""
        entry = self._tensors[name]
        count = int(np.prod(entry.shape))
        start = self._base + entry.offset
        if entry.kind in _PLAIN:
            dtype = np.dtype(_PLAIN[entry.kind])
            raw = self._data[start : start + count * dtype.itemsize]
            return raw.view(dtype).astype(np.float32).reshape(entry.shape)
        if entry.kind not in _QUANTISED:
            raise LocalError(f"{self._path}: {name} has GGUF type {entry.kind}, which is not supported")
        size, read = _QUANTISED[entry.kind]
        blocks = self._data[start : start + count // _BLOCK * size].reshape(-1, size)
        return read(np.asarray(blocks)).reshape(entry.shape)

    def _read_head(self) -> tuple[dict[str, Any], dict[str, _Tensor], int]:
        if bytes(self._data[:4]) != b"GGUF":
            raise LocalError(f"{self._path}: not a GGUF file; delete it and fetch it again")
        self._at = 4
        version, tensor_count, pair_count = self._take("<IQQ")
        if version != 3:
            raise LocalError(f"{self._path}: GGUF version {version} is not supported, only 3")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string()
            metadata[key] = self._value(self._take("<I")[0])
        tensors: dict[str, _Tensor] = {}
        for _ in range(tensor_count):
            name = self._string()
            (dimensions,) = self._take("<I")
            shape = self._take(f"<{dimensions}Q")
            kind, offset = self._take("<IQ")
            tensors[name] = _Tensor(shape=tuple(reversed(shape)), kind=kind, offset=offset)
        align = metadata.get("general.alignment", 32)
        return metadata, tensors, -(-self._at // align) * align

    def _take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        values = struct.unpack(form, self._data[self._at : self._at + size].tobytes())
        self._at += size
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        raw = self._data[self._at : self._at + length].tobytes()
        self._at += length
        return raw.decode("utf-8")

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._take("<IQ")
            if item in _SCALARS:
                return list(self._take(f"<{count}{_SCALARS[item]}"))
            return [self._value(item) for _ in range(count)]
        return self._take(f"<{_SCALARS[kind]}")[0]
