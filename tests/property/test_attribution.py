"""Laws of attribution: exact sums, no dependence on order or machine, canonical tables, bounded parsing."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from attribution.clusters import judge_shards
from attribution.evidence import EVIDENCE, collect
from attribution.fixed_point import log2_q8
from attribution.limits import PAYEES_MAX, WEIGHT_TOTAL
from attribution.overlap import SIGNAL_MIN, cluster_scores
from attribution.spans import matching_spans
from attribution.tables import KEY_SHIFT, TABLES, Tables, build_tables, decode_tables
from attribution.text import ngrams, words, words_with_places
from attribution.weights import weigh
from gossip_ledger.amounts import tie
from gossip_ledger.errors import DecodeError
from gossip_ledger.records import ClusterId, ModelId, Weight

VOCABULARY = [b"alpha", b"beta", b"gamma", b"delta", b"eps", b"zeta", b"eta", b"theta", b"iota", b"kappa"]
text = st.lists(st.sampled_from(VOCABULARY), max_size=40).map(b" ".join)
clusters = st.lists(st.lists(text, max_size=3), min_size=1, max_size=6)
salt = st.binary(min_size=32, max_size=32)
score = st.integers(0, 2**48)


def names(count: int) -> list[ClusterId]:
    return [ClusterId(bytes([number]) * 32) for number in range(count)]


@given(st.binary(max_size=400))
@example(b"''a''b")
@example(b"A\xc3\x89'\x80'z")
def test_words_equal_a_plain_scan(data: bytes) -> None:
    """The regular expression against the sentence that defines a word."""
    lowered = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in data)
    inside = bytes(
        byte if byte in b"abcdefghijklmnopqrstuvwxyz0123456789'" or byte >= 128 else 32 for byte in lowered
    )
    assert list(words(data)) == [run.strip(b"'")[:64] for run in inside.split() if run.strip(b"'")]
    for word, start, end in words_with_places(data):
        assert lowered[start:end].startswith(word)


@given(clusters)
def test_tables_have_one_encoding_and_do_not_depend_on_order(texts: list[list[bytes]]) -> None:
    file = build_tables(texts)
    data = TABLES.encode(file)
    assert TABLES.decode(data) == file
    assert TABLES.encode(build_tables([list(reversed(own)) * 2 for own in texts])) == data


@given(clusters, text)
def test_scores_equal_the_plain_definition(texts: list[list[bytes]], answer: bytes) -> None:
    """The sorted arrays against dictionaries of sets."""
    holders: dict[int, set[int]] = {}
    for cluster, own in enumerate(texts):
        for one in own:
            for name in ngrams(words(one)):
                holders.setdefault(name >> KEY_SHIFT, set()).add(cluster)
    expected = [0] * len(texts)
    for key in {name >> KEY_SHIFT for name in ngrams(words(answer))}:
        held = holders.get(key, set())
        for cluster in held:
            expected[cluster] += ((log2_q8(len(texts)) - log2_q8(len(held))) << 16) // len(held)
    if sum(expected) < SIGNAL_MIN:
        expected = [0] * len(texts)
    tables = decode_tables(TABLES.encode(build_tables(texts)))
    assert cluster_scores(tables, ngrams(words(answer))) == tuple(expected)
    assert all(
        type(value) is int for value in (*tables.masses, *cluster_scores(tables, ngrams(words(answer))))
    )


@given(
    st.lists(st.tuples(score, score, st.integers(0, 2**40)), min_size=1, max_size=30),
    salt,
    st.booleans(),
    st.randoms(),
)
def test_weights_are_exact_bounded_and_without_order(
    rows: list[tuple[int, int, int]], salt: bytes, both: bool, rng: random.Random
) -> None:
    def weighed(order: list[int]) -> tuple[Weight, ...]:
        chosen = [rows[place] for place in order]
        return weigh(
            [row[0] for row in chosen],
            [names(len(rows))[place] for place in order],
            salt,
            masses=[row[2] for row in chosen],
            influence=[row[1] for row in chosen] if both else None,
        )

    order = list(range(len(rows)))
    weights = weighed(order)
    rng.shuffle(order)
    assert weighed(order) == weights
    assert len(weights) <= PAYEES_MAX
    assert all(type(pair.weight) is int and pair.weight > 0 for pair in weights)
    assert sum(pair.weight for pair in weights) == (WEIGHT_TOTAL if weights else 0)
    assert [pair.weight for pair in weights] == sorted((pair.weight for pair in weights), reverse=True)


@given(st.lists(st.tuples(score, st.integers(0, 2**40)), min_size=1, max_size=20), salt)
def test_weights_equal_the_formula(rows: list[tuple[int, int]], salt: bytes) -> None:
    """Against the formula written down once more, in one piece."""
    total, whole = sum(row[0] for row in rows), sum(row[1] for row in rows)
    kept = sorted(
        (
            (own * whole - total * mass, cluster)
            for (own, mass), cluster in zip(rows, names(len(rows)), strict=True)
        ),
        key=lambda pair: (-pair[0], tie(salt, pair[1])),
    )
    kept = [pair for pair in kept if pair[0] > 0][:PAYEES_MAX]
    pool = sum(value for value, _ in kept)
    floors = {cluster: WEIGHT_TOTAL * value // pool for value, cluster in kept}
    by_remainder = sorted(kept, key=lambda pair: (-(WEIGHT_TOTAL * pair[0] % pool), tie(salt, pair[1])))
    for _, cluster in by_remainder[: WEIGHT_TOTAL - sum(floors.values())] if kept else ():
        floors[cluster] += 1
    weights = weigh([row[0] for row in rows], names(len(rows)), salt, masses=[row[1] for row in rows])
    assert {pair.cluster: pair.weight for pair in weights} == {
        key: value for key, value in floors.items() if value
    }


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_evidence_round_trips_and_is_what_was_said(prompt: bytes, answer: bytes) -> None:
    evidence = collect(ModelId(b"m" * 32), b"c" * 32, prompt, answer)
    assert EVIDENCE.decode(EVIDENCE.encode(evidence)) == evidence
    assert set(evidence.names()) == {*ngrams(words(prompt)), *ngrams(words(answer))}


@settings(max_examples=60)
@given(clusters, text)
def test_spans_stand_in_the_answer_in_order_and_apart(texts: list[list[bytes]], answer: bytes) -> None:
    end = 0
    for span in matching_spans(Tables(build_tables(texts)), answer):
        assert end <= span.start < span.end <= len(answer)
        end = span.end
        run = words(answer[span.start : span.end])
        assert len(run) >= 3
        if len(run) <= 5:
            for cluster in span.clusters:
                assert any(re.search(rb"\b" + b" ".join(run) + rb"\b", own) for own in texts[cluster])


@settings(max_examples=60)
@given(st.lists(st.lists(text, max_size=3), max_size=6))
def test_verdicts_are_about_the_past_alone(shards: list[list[bytes]]) -> None:
    verdicts = judge_shards(shards)
    assert judge_shards(shards[:-1]) == verdicts[:-1]
    for place, verdict in enumerate(verdicts):
        assert verdict.original <= place
        assert verdicts[verdict.original].original == verdict.original
        assert all(0 <= number < len(shards[place]) for number in verdict.copied)


@given(st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=4))
def test_copies_earn_nothing_and_dilute_nobody(shards: list[list[bytes]]) -> None:
    """Publishing everything again leaves the founders' tables as they are: same clusters, same bytes."""
    again = judge_shards([*shards, *shards])
    once = judge_shards(shards)

    def founders(texts: list[list[bytes]], verdicts: Any) -> list[list[bytes]]:
        return [
            [one for number, one in enumerate(own) if number not in verdict.copied]
            for place, (own, verdict) in enumerate(zip(texts, verdicts, strict=True))
            if verdict.original == place and any(words(one) for one in own)
        ]

    assert TABLES.encode(build_tables(founders([*shards, *shards], again))) == TABLES.encode(
        build_tables(founders(shards, once))
    )


def _mutated(data: bytes, change: Callable[[bytearray], None]) -> bytes:
    changed = bytearray(data)
    change(changed)
    return bytes(changed)


@settings(max_examples=300)
@given(clusters, st.data())
def test_a_damaged_file_is_refused_or_is_another_valid_one(
    texts: list[list[bytes]], data: st.DataObject
) -> None:
    good = TABLES.encode(build_tables(texts))
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    damaged = _mutated(good, lambda changed: changed.__setitem__(place, byte))
    try:
        decoded = TABLES.decode(damaged)
    except DecodeError:
        return
    assert TABLES.encode(decoded) == damaged
