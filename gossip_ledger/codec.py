"""Values as canonical bytes and back. The only module that imports cbor2.

A value is a frozen dataclass with a **field table**; its encoding is the CBOR array `[tag, field, ...]`.
Arrays, not maps, so no question of key order arises. `decode` accepts exactly one encoding of each value:
it limits the size, decodes, checks every field against the table, encodes again and compares. Maps, tags,
floats, booleans and null never occur.

Left out: what the values mean. Ranges that need more than one field are checked by the record itself
(`__post_init__` may raise `ValueError`, which becomes `DecodeError` here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, NoReturn, cast, final

import cbor2

from gossip_ledger.errors import DecodeError
from gossip_ledger.limits import MAX_AMOUNT

DEPTH_MAX: Final = 12
"""Deepest nesting of arrays in any value."""


@final
@dataclass(frozen=True, slots=True)
class Field:
    """How one field is written (`pack`) and read (`parse`). Both raise `DecodeError`.

    `parse` must accept exactly what `pack` can give, and no second spelling of it: `decode` relies on that.
    """

    pack: Callable[[Any], object]
    parse: Callable[[object], Any]


def uint(maximum: int = MAX_AMOUNT, *, minimum: int = 0) -> Field:
    """An integer in `minimum .. maximum`. `True` is not 1."""

    def parse(value: object) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise DecodeError(f"expected an integer in {minimum}..{maximum}")
        return value

    return Field(parse, parse)


def octets(length: int, *, or_empty: bool = False) -> Field:
    """Exactly `length` bytes, or none at all where `or_empty`."""

    def parse(value: object) -> bytes:
        if type(value) is not bytes or not (len(value) == length or (or_empty and not value)):
            raise DecodeError(f"expected {length} bytes")
        return value

    return Field(parse, parse)


def octets_up_to(maximum: int) -> Field:
    """Between 0 and `maximum` bytes."""

    def parse(value: object) -> bytes:
        if type(value) is not bytes or len(value) > maximum:
            raise DecodeError(f"expected at most {maximum} bytes")
        return value

    return Field(parse, parse)


def text(maximum: int) -> Field:
    """Printable text of at most `maximum` UTF-8 bytes: newline and tab, but no other control characters."""

    def parse(value: object) -> str:
        if type(value) is not str:
            raise DecodeError("expected text")
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise DecodeError("expected valid Unicode") from error
        if size > maximum:
            raise DecodeError(f"expected text of at most {maximum} bytes")
        if any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in value):
            raise DecodeError("expected text without control characters")
        return value

    return Field(parse, parse)


def many(item: Field, maximum: int, *, minimum: int = 0) -> Field:
    """A tuple of `minimum .. maximum` items."""

    def pack(value: tuple[Any, ...]) -> object:
        if not minimum <= len(value) <= maximum:
            raise DecodeError(f"expected {minimum}..{maximum} items")
        return [item.pack(element) for element in value]

    def parse(value: object) -> tuple[Any, ...]:
        elements = _elements(value)
        if elements is None or not minimum <= len(elements) <= maximum:
            raise DecodeError(f"expected {minimum}..{maximum} items")
        return tuple(item.parse(element) for element in elements)

    return Field(pack, parse)


@final
@dataclass(frozen=True, slots=True)
class Table:
    """The wire form of one dataclass. A table that drifts from its dataclass does not import."""

    tag: int
    record: type
    columns: tuple[tuple[str, Field], ...]

    def __post_init__(self) -> None:
        assert [name for name, _ in self.columns] == [f.name for f in fields(self.record)], self.record

    def pack(self, value: Any) -> list[object]:
        """The array form of `value`. Raises `DecodeError` where a field is out of its range."""
        assert type(value) is self.record, f"expected a {self.record.__name__}, not a {type(value).__name__}"
        packed: list[object] = [self.tag]
        for name, column in self.columns:
            try:
                packed.append(column.pack(getattr(value, name)))
            except DecodeError as error:
                raise DecodeError(f"{self.record.__name__}.{name}: {error}") from error
        return packed

    def parse(self, value: object) -> Any:
        """The record that the array form stands for. Raises `DecodeError`."""
        elements = _elements(value)
        if elements is None or len(elements) != len(self.columns) + 1 or not _is_tag(elements[0], self.tag):
            raise DecodeError(f"expected a {self.record.__name__} of {len(self.columns)} fields")
        parsed: dict[str, object] = {}
        for (name, column), element in zip(self.columns, elements[1:], strict=True):
            try:
                parsed[name] = column.parse(element)
            except DecodeError as error:
                raise DecodeError(f"{self.record.__name__}.{name}: {error}") from error
        try:
            return self.record(**parsed)
        except ValueError as error:
            raise DecodeError(f"{self.record.__name__}: {error}") from error


def nested(table: Table) -> Field:
    """A value of one known table, inside another."""
    return Field(table.pack, table.parse)


def one_of(*tables: Table) -> Field:
    """A value of any of `tables`, told apart by its tag."""
    by_type = {table.record: table for table in tables}
    by_tag = {table.tag: table for table in tables}
    assert len(by_tag) == len(by_type) == len(tables), "tags and types must differ"

    def pack(value: Any) -> object:
        assert type(value) in by_type, f"{type(value).__name__} has no place here"
        return by_type[type(value)].pack(value)

    def parse(value: object) -> Any:
        elements = _elements(value)
        tag = elements[0] if elements else None
        if type(tag) is not int or tag not in by_tag:
            raise DecodeError(f"expected one of {', '.join(t.record.__name__ for t in tables)}")
        return by_tag[tag].parse(elements)

    return Field(pack, parse)


@final
class Schema:
    """A closed set of tables with one size limit: what may stand at one place of a protocol or a file."""

    def __init__(self, *tables: Table, bytes_max: int) -> None:
        self._field = one_of(*tables)
        self.bytes_max = bytes_max

    def encode(self, value: Any) -> bytes:
        """The canonical bytes of `value`. Raises `DecodeError` where a field is out of its range.

        Rules across fields are not checked again: a record that exists has passed its `__post_init__`.
        """
        data = _dump(self._field.pack(value))
        if len(data) > self.bytes_max:
            raise DecodeError(f"{type(value).__name__}: {len(data)} bytes exceed {self.bytes_max}")
        return data

    def decode(self, data: bytes) -> Any:
        """The value that `data` is the canonical encoding of. Raises `DecodeError` and nothing else."""
        loaded = load(data, self.bytes_max)
        value = self._field.parse(loaded)
        # `parse` admits exact types only, so `loaded` is what `pack(value)` would give again.
        if _dump(loaded) != data:
            raise DecodeError("not the canonical encoding")
        return value


class _NoTags(dict[int, Any]):
    """Decoders for semantic tags: every tag is refused before its contents are interpreted."""

    def __missing__(self, tag: int) -> Any:
        return _refuse_tag


def _refuse_tag(*_: object) -> NoReturn:
    raise cbor2.CBORDecodeError("tags have no place here")


_NO_TAGS: Final = _NoTags()


def load(data: bytes, bytes_max: int) -> object:
    """CBOR of definite lengths without tags, bounded in size and depth; not yet known to be canonical.

    Raises `DecodeError`. Without tags no decoder of dates, expressions or bignums ever runs on foreign bytes.
    """
    if len(data) > bytes_max:
        raise DecodeError(f"{len(data)} bytes exceed {bytes_max}")
    try:
        return cbor2.loads(
            data,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            tag_hook=_refuse_tag,
            semantic_decoders=_NO_TAGS,
        )
    except (
        cbor2.CBORDecodeError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise DecodeError(f"not CBOR: {type(error).__name__}") from error


def _elements(value: object) -> list[object] | None:
    return cast("list[object]", value) if type(value) is list else None


def _is_tag(value: object, tag: int) -> bool:
    return type(value) is int and value == tag  # `True` is not 1


def _dump(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)
