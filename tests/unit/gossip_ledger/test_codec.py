"""Fields and tables: what each accepts, both ways, and that a drifting table does not import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from gossip_ledger.codec import Field, Schema, Table, many, nested, octets, octets_up_to, one_of, text, uint
from gossip_ledger.errors import DecodeError
from gossip_ledger.records import MANIFESTS, RECORDS
from tests.unit.gossip_ledger.build import EXAMPLES, MANIFEST, cluster


@dataclass(frozen=True)
class Box:
    value: Any

    def __post_init__(self) -> None:
        if self.value == 13:
            raise ValueError("unlucky")


@dataclass(frozen=True)
class Crate:
    box: Any


def schema(field: Field) -> Schema:
    return Schema(Table(1, Box, (("value", field),)), bytes_max=1000)


FIELDS: dict[str, tuple[Field, list[Any], list[Any]]] = {
    "uint": (uint(), [0, 23, 24, 2**63 - 1], [-1, 2**63, True, 1.0, "1", None]),
    "bounded": (uint(9, minimum=2), [2, 9], [1, 10]),
    "octets": (octets(3), [b"abc"], [b"", b"ab", b"abcd", "abc", bytearray(b"abc")]),
    "octets or none": (octets(3, or_empty=True), [b"abc", b""], [b"ab"]),
    "octets up to": (octets_up_to(3), [b"", b"abc"], [b"abcd", "abc"]),
    "text": (
        text(6),
        ["", "a\tb\nc", "h\u00e9\u4e16"],
        ["toolong", "\u4e16\u754c!", "\x00", "\x7f", "\x85", "\ud800", b"a"],
    ),
    "many": (many(uint(), 3, minimum=1), [(1,), (1, 2, 3)], [(), (1, 2, 3, 4), (1, "2")]),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    field, right, wrong = FIELDS[name]
    for value in right:
        box = Box(value)
        assert schema(field).decode(schema(field).encode(box)) == box
    for value in wrong:
        with pytest.raises(DecodeError, match=r"Box\.value: "):
            schema(field).encode(Box(value))


def test_lists_must_be_lists() -> None:
    with pytest.raises(DecodeError, match=r"Box\.value: expected 0\.\.3 items"):
        schema(many(uint(), 3)).decode(b"\x82\x01\x05")


def test_errors_name_the_way_down() -> None:
    box = Table(1, Box, (("value", uint(5)),))
    crates = Schema(Table(2, Crate, (("box", nested(box)),)), bytes_max=100)
    with pytest.raises(DecodeError, match=r"Crate\.box: Box\.value: expected an integer in 0\.\.5"):
        crates.decode(b"\x82\x02\x82\x01\x06")
    with pytest.raises(DecodeError, match=r"Crate\.box: Box\.value: expected an integer in 0\.\.5"):
        crates.encode(Crate(Box(6)))
    with pytest.raises(DecodeError, match=r"Crate\.box: expected a Box of 1 fields"):
        crates.decode(b"\x82\x02\x82\x02\x05")


def test_a_records_own_rules_become_decode_errors() -> None:
    with pytest.raises(DecodeError, match="Box: unlucky"):
        schema(uint()).decode(b"\x82\x01\x0d")


def test_what_is_too_long_is_neither_written_nor_read() -> None:
    short = Schema(Table(1, Box, (("value", octets_up_to(99)),)), bytes_max=20)
    assert short.decode(short.encode(Box(bytes(17)))) == Box(bytes(17))
    with pytest.raises(DecodeError, match="21 bytes exceed 20"):
        short.encode(Box(bytes(18)))
    with pytest.raises(DecodeError, match="21 bytes exceed 20"):
        short.decode(bytes(21))


def test_our_own_mistakes_are_assertions() -> None:
    with pytest.raises(AssertionError):
        Table(1, Box, (("other", uint()),))
    with pytest.raises(AssertionError):
        schema(uint()).encode(Crate(1))
    box = Table(1, Box, (("value", uint()),))
    with pytest.raises(AssertionError):
        nested(box).pack(Crate(1))
    with pytest.raises(AssertionError):
        one_of(box, Table(1, Crate, (("box", uint()),)))


def test_a_record_with_many_ids_fits_and_one_more_does_not_exist() -> None:
    ack = EXAMPLES[-1]
    with pytest.raises(DecodeError, match=r"Ack\.ids"):
        RECORDS.encode(replace(ack, ids=(bytes(32),) * 101))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clusters": (cluster("one"), cluster("one"))}, "named twice"),
        ({"clusters": (cluster("one", prior=0),)}, "positive prior"),
        ({"clusters": ()}, "positive prior"),
        ({"kind": "toy"}, "base or adapter"),
        ({"split": None}, "add up"),
    ],
)
def test_what_no_manifest_says(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        if changes == {"split": None}:
            replace(MANIFEST.split, worker=1)
        replace(MANIFEST, **changes)


def test_a_manifest_without_a_data_share_needs_no_clusters() -> None:
    bare = replace(MANIFEST, split=replace(MANIFEST.split, worker=7500, data=0), clusters=(), kind="base")
    assert MANIFESTS.decode(MANIFESTS.encode(bare)) == bare
    assert (dict(bare.owners), dict(bare.priors)) == ({}, {})
