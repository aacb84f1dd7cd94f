"""Tables: what is in them, that they are canonical, and that hostile ones are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attribution.fixed_point import log2_q8
from attribution.limits import POSTING_CLUSTERS_MAX
from attribution.tables import (
    KEY_BYTES,
    KEY_SHIFT,
    TABLES,
    Group,
    TableFile,
    Tables,
    build_tables,
    decode_tables,
    place_width,
)
from attribution.text import hash_ngram, ngrams, words
from gossip_ledger.errors import DecodeError

LAND = b"the grain of the valley is good"
SEA = b"the ships of the harbour are good"
BOTH = b"bread and salt"


def sample() -> TableFile:
    return build_tables([[LAND, BOTH], [SEA, BOTH], [b"nothing in common here"]])


def test_each_ngram_names_its_clusters() -> None:
    tables = Tables(sample())
    places = tables.places_of(
        [hash_ngram(words(part)) for part in (b"the grain", b"the ships", b"bread and salt")]
    )
    assert [tables.groups[place] for place in places] == [(0,), (1,), (0, 1)]
    assert tables.places_of([hash_ngram(words(b"of nowhere"))]) == [-1]


def test_every_key_is_there_once_and_no_other() -> None:
    expected = {
        name >> KEY_SHIFT
        for text in (LAND, SEA, BOTH, b"nothing in common here")
        for name in ngrams(words(text))
    }
    assert sample().key_array().tolist() == sorted(expected)


def test_what_all_clusters_hold_says_nothing_and_is_left_out() -> None:
    tables = Tables(build_tables([[b"of the people", b"a b"], [b"of the people", b"c d"]]))
    assert tables.places_of([hash_ngram(words(b"of the people"))]) == [-1]
    assert tables.places_of([hash_ngram(words(b"a b"))]) != [-1]


def test_one_cluster_alone_has_empty_tables() -> None:
    tables = decode_tables(TABLES.encode(build_tables([[LAND, SEA]])))
    assert tables.masses == (0,)
    assert tables.places_of([hash_ngram(words(b"the grain"))]) == [-1]


def test_what_too_many_clusters_hold_is_left_out() -> None:
    shared = [[b"common words"] for _ in range(POSTING_CLUSTERS_MAX + 1)]
    assert build_tables([*shared, [b"own words"], [b"my words"]]).groups == (
        Group(clusters=(65,)),
        Group(clusters=(66,)),
    )
    fewer = build_tables([*shared[1:], [b"own words"], [b"my words"]])
    assert len(fewer.groups[0].clusters) == POSTING_CLUSTERS_MAX


def test_the_worth_of_an_ngram_is_its_information_shared_among_its_holders() -> None:
    tables = Tables(build_tables([[b"x y", b"a b"], [b"x y", b"c d"], [b"e f"], [b"g h"]]))
    assert dict(zip(tables.groups, tables.worth, strict=True)) == {
        (0,): log2_q8(4) << 16,
        (0, 1): ((log2_q8(4) - log2_q8(2)) << 16) // 2,
        (1,): log2_q8(4) << 16,
        (2,): log2_q8(4) << 16,
        (3,): log2_q8(4) << 16,
    }
    assert tables.masses == (640 << 16, 640 << 16, 512 << 16, 512 << 16)


def test_counts_take_each_ngram_once() -> None:
    tables = Tables(build_tables([[b"a b"], [b"c d"]]))
    name = hash_ngram((b"a", b"b"))
    assert tables.counts([name, name, name ^ 1]) == [1, 0]


def test_order_inside_a_cluster_and_repetition_do_not_matter() -> None:
    assert build_tables([[LAND, BOTH, LAND], [SEA, BOTH], [b"x y"]]) == build_tables(
        [[BOTH, LAND], [BOTH, SEA], [b"x y"]]
    )


def test_round_trip() -> None:
    data = TABLES.encode(sample())
    assert TABLES.decode(data) == sample()
    assert decode_tables(data).masses == Tables(sample()).masses


def test_places_take_the_least_bytes() -> None:
    assert [place_width(count) for count in (0, 1, 256, 257, 65536, 65537)] == [1, 1, 1, 2, 2, 4]


def test_many_groups_take_wider_places() -> None:
    texts = [[b"p%d q%d" % (low, high) for high in range(40) if high != low] for low in range(40)]
    for low in range(40):
        texts[low] += [b"p%d q%d" % (high, low) for high in range(40) if high != low]
    file = build_tables(texts)
    assert len(file.groups) == 40 * 39 // 2
    assert len(file.places) == 2 * len(file.keys) // KEY_BYTES
    assert TABLES.decode(TABLES.encode(file)) == file


def _broken() -> dict[str, dict[str, object]]:
    good = sample()
    first, second = good.keys[:KEY_BYTES], good.keys[KEY_BYTES : 2 * KEY_BYTES]
    rest = good.keys[2 * KEY_BYTES :]
    return {
        "keys out of order": {"keys": second + first + rest},
        "a key twice": {"keys": first + first + rest},
        "half a key": {"keys": good.keys + b"\xff"},
        "half a key less": {"keys": good.keys[:-1]},
        "a place too few": {"places": good.places[:-1]},
        "a place too many": {"places": good.places + b"\0"},
        "a place of no group": {"places": bytes([len(good.groups)]) + good.places[1:]},
        "a group that is not used": {"clusters": 4, "groups": (*good.groups, Group(clusters=(3,)))},
        "groups out of order": {"groups": (good.groups[1], good.groups[0], *good.groups[2:])},
        "a group twice": {"groups": (good.groups[0], good.groups[0], *good.groups[2:])},
        "a cluster that is not there": {"groups": (*good.groups[:-1], Group(clusters=(3,)))},
        "fewer clusters than in its groups": {"clusters": 2},
        "a group of all clusters": {"groups": (*good.groups[:-1], Group(clusters=(0, 1, 2)))},
        "a group of all clusters, first": {
            "groups": (good.groups[0], Group(clusters=(0, 1, 2)), *good.groups[2:])
        },
        "too wide places": {"places": good.places.replace(b"", b"\0")[:-1]},
    }


@pytest.mark.parametrize("name", list(_broken()))
def test_a_malformed_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must|smaller"):
        replace(sample(), **_broken()[name])


def test_a_group_must_ascend() -> None:
    for clusters in ((1, 0), (1, 1)):
        with pytest.raises(ValueError, match="ascend"):
            Group(clusters=clusters)


@pytest.mark.parametrize("cut", [1, 10, 1000])
def test_cut_and_padded_files_are_refused(cut: int) -> None:
    data = TABLES.encode(sample())
    with pytest.raises(DecodeError):
        decode_tables(data[:-cut])
    with pytest.raises(DecodeError):
        decode_tables(data + b"\0" * cut)


def test_a_file_that_only_claims_to_be_huge_is_refused_at_once() -> None:
    with pytest.raises(DecodeError):
        decode_tables(b"\x85\x18\x51\x03\x9b\x00\x00\x00\xff\xff\xff\xff\xff")
