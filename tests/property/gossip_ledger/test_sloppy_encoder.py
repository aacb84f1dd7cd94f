"""Exactly one spelling of each record decodes, and it is the one that `encode` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger import codec
from gossip_ledger.codec import Field, Schema
from gossip_ledger.errors import DecodeError
from gossip_ledger.genesis import GENESES
from gossip_ledger.records import MANIFESTS, RECORDS, SIGNED_RECORDS
from tests.property.gossip_ledger.sloppy import Value, canonical, spellings
from tests.unit.gossip_ledger.build import EXAMPLES, GENESIS, MANIFEST, sign

CASES: tuple[tuple[Schema, Any], ...] = (
    *((RECORDS, record) for record in EXAMPLES),
    *((SIGNED_RECORDS, sign(record)) for record in EXAMPLES),
    (MANIFESTS, MANIFEST),
    (GENESES, GENESIS),
)


@dataclass(frozen=True)
class Flag:
    value: int


def loaded(data: bytes) -> Value:
    value = codec.load(data, 1 << 20)
    assert isinstance(value, list)
    return value


def accepted(schema: Schema, value: Any) -> list[str]:
    """The spellings of a value that decode."""
    found: list[str] = []
    for how, spelled in spellings(loaded(schema.encode(value))):
        try:
            decoded = schema.decode(spelled)
        except DecodeError:
            continue
        found.append(how)
        if decoded == value:
            assert spelled == schema.encode(value), how
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(getattr(case[1], "record", case[1])).__name__)
def test_one_spelling_decodes(case: tuple[Schema, Any]) -> None:
    schema, value = case
    assert canonical(loaded(schema.encode(value))) == schema.encode(value)
    forms = [how for how, _ in spellings(loaded(schema.encode(value)))]
    assert len(forms) > 40
    same = [how for how in accepted(schema, value) if how != "canonical"]
    # A list may be shorter or longer: that is another record, and decodes as such.
    assert all(how.startswith(("one fewer", "one more")) for how in same), same
    assert schema.decode(schema.encode(value)) == value


class EqualToAll(bytes):
    """What a decoder without the canonical check would compare with."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__


def test_the_canonical_check_has_power(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = vars(codec)["_dump"]
    monkeypatch.setattr(codec, "_dump", lambda value: EqualToAll(dump(value)))
    with pytest.raises(AssertionError):
        test_one_spelling_decodes((RECORDS, EXAMPLES[0]))


def test_the_type_check_has_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes `True` for 1 admits a second spelling: what it re-encodes is still `True`."""

    def lenient(value: object) -> Any:
        if value in (0, 1) or type(value) is int:
            return value
        raise DecodeError("not an integer")

    table = codec.Table(1, Flag, (("value", Field(lenient, lenient)),))
    schema = Schema(table, bytes_max=99)
    with pytest.raises(AssertionError):
        accepted(schema, Flag(1))


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    for schema in (SIGNED_RECORDS, MANIFESTS, GENESES):
        with pytest.raises(DecodeError):
            schema.decode(data)


@given(st.integers(0, len(CASES) - 1), st.data())
def test_no_flipped_byte_is_the_same_record(case: int, data: st.DataObject) -> None:
    schema, value = CASES[case]
    encoded = bytearray(schema.encode(value))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = schema.decode(bytes(encoded))
    except DecodeError:
        return
    assert decoded != value
    assert schema.encode(decoded) == bytes(encoded)


@given(st.integers(200, 100_000))
def test_deep_nesting_and_claimed_lengths_are_refused(depth: int) -> None:
    for bomb in (b"\x81" * depth, b"\x9b" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8):
        with pytest.raises(DecodeError):
            MANIFESTS.decode(bomb)
