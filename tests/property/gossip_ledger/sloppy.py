"""Says a CBOR value in every way but the canonical one.

`spellings(value)` yields the canonical bytes first, then forms that a lenient decoder would read as the same
value, or as one that compares equal to it in Python (`True == 1 == 1.0`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | bytes | str | list["Value"]

_MAJOR = {int: 0, bytes: 2, str: 3, list: 4}


def head(major: int, number: int, width: int | None = None) -> bytes:
    """A CBOR head; `width` forces so many bytes for the number."""
    if width is None:
        width = next(
            w
            for w, limit in ((0, 24), (1, 1 << 8), (2, 1 << 16), (4, 1 << 32), (8, 1 << 64))
            if number < limit
        )
    if width == 0:
        return bytes([major << 5 | number])
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width]]) + number.to_bytes(width, "big")


def canonical(value: Value) -> bytes:
    """The one right spelling."""
    match value:
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(canonical, value))


def spellings(value: Value) -> Iterator[tuple[str, bytes]]:
    """The canonical form, then every wrong one: at the top, and at every place inside."""
    yield "canonical", canonical(value)
    yield "trailing byte", canonical(value) + b"\0"
    yield "self-described", b"\xd9\xd9\xf7" + canonical(value)
    yield "cut short", canonical(value)[:-1]
    yield from _inside(value)


def _inside(value: Value) -> Iterator[tuple[str, bytes]]:
    yield from _wrong(value)
    if isinstance(value, list):
        for place, item in enumerate(value):
            before = head(4, len(value)) + b"".join(map(canonical, value[:place]))
            after = b"".join(map(canonical, value[place + 1 :]))
            for how, spelled in _inside(item):
                yield f"{how} at {place}", before + spelled + after


def _wrong(value: Value) -> Iterator[tuple[str, bytes]]:
    """Wrong forms of one item, its contents spelled right."""
    number = value if isinstance(value, int) else len(value.encode() if isinstance(value, str) else value)
    body = canonical(value)[len(head(_MAJOR[type(value)], number)) :]
    for width in (1, 2, 4, 8):
        wide = head(_MAJOR[type(value)], number, width) if number < 1 << 8 * width else b""
        if wide and wide + body != canonical(value):
            yield f"head of {width} bytes", wide + body
    yield "tagged", b"\xd8\x63" + canonical(value)
    match value:
        case int():
            yield from _wrong_integers(value)
        case bytes() | str():
            yield "chunked", bytes([_MAJOR[type(value)] << 5 | 31]) + canonical(value) + b"\xff"
            yield "as the other kind of string", head(5 - _MAJOR[type(value)], number) + body
        case list():
            yield "indefinite", b"\x9f" + body + b"\xff"
            yield "one more", head(4, number + 1) + body + b"\0"
            yield "null appended", head(4, number + 1) + body + b"\xf6"
            if value:
                yield "one fewer", head(4, number - 1) + b"".join(map(canonical, value[:-1]))
                yield "as a set", b"\xd9\x01\x02" + canonical(value)


def _wrong_integers(value: int) -> Iterator[tuple[str, bytes]]:
    if value in (0, 1):
        yield "boolean", b"\xf5" if value else b"\xf4"
        yield "half float", b"\xf9" + struct.pack(">e", value)
    if float(value) == value:
        yield "float", b"\xfb" + struct.pack(">d", value)
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    yield "bignum", b"\xc2" + head(2, len(digits)) + digits
    yield "negative", head(1, value)
    yield "null", b"\xf6"
    yield "undefined", b"\xf7"
    yield "simple value", b"\xe0"
