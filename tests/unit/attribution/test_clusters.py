"""Near-duplicates: a copy is paid through its original, whatever is done around it."""

from __future__ import annotations

import random

from attribution.clusters import Verdict, judge_shards

WORDS = [b"w%d" % number for number in range(4000)]


def document(rng: random.Random, length: int = 80) -> bytes:
    return b" ".join(rng.choices(WORDS, k=length))


def shard(seed: int, documents: int = 12) -> list[bytes]:
    rng = random.Random(seed)
    return [document(rng) for _ in range(documents)]


def reworded(text: bytes, part: float, rng: random.Random) -> bytes:
    return b" ".join(rng.choice(WORDS) if rng.random() < part else word for word in text.split())


OWN = frozenset[int]()


def test_different_shards_found_their_own_clusters() -> None:
    assert judge_shards([shard(1), shard(2), shard(3)]) == tuple(
        Verdict(original=n, copied=OWN) for n in range(3)
    )


def test_the_same_text_twice_is_the_first_ones() -> None:
    verdicts = judge_shards([shard(1), shard(2), shard(1)])
    assert verdicts[2] == Verdict(original=0, copied=frozenset(range(12)))
    assert [verdict.original for verdict in verdicts[:2]] == [0, 1]


def test_order_of_admission_decides_and_nothing_else() -> None:
    assert [verdict.original for verdict in judge_shards([shard(1), shard(1)])] == [0, 0]
    assert judge_shards([list(reversed(shard(1))), shard(1)])[1].original == 0


def test_a_copy_of_a_copy_is_the_originals() -> None:
    rng = random.Random(5)
    first = shard(1)
    second = [reworded(text, 0.1, rng) for text in first]
    third = [reworded(text, 0.1, rng) for text in second]
    assert [verdict.original for verdict in judge_shards([first, shard(9), second, third])] == [0, 1, 0, 0]


def test_small_changes_do_not_make_it_new() -> None:
    rng = random.Random(7)
    for part in (0.05, 0.1, 0.15):
        verdict = judge_shards([shard(1), [reworded(text, part, rng) for text in shard(1)]])[1]
        assert verdict.original == 0, part


def test_case_and_punctuation_do_not_make_it_new() -> None:
    shouted = [text.upper().replace(b" ", b", ") for text in shard(1)]
    assert judge_shards([shard(1), shouted])[1].original == 0


def test_padding_a_copy_leaves_the_copied_documents_out() -> None:
    verdict = judge_shards([shard(1), [*shard(1), *shard(2, documents=30)]])[1]
    assert verdict == Verdict(original=1, copied=frozenset(range(12)))


def test_a_small_early_shard_does_not_capture_large_ones_that_quote_it() -> None:
    quoted = shard(1)[0]
    verdict = judge_shards([[quoted], [quoted, *shard(2)]])[1]
    assert verdict == Verdict(original=1, copied=frozenset({0}))


def test_what_everybody_says_convicts_nobody() -> None:
    """Half of each document is boilerplate that ten shards share: the eleventh is still its own."""
    rng = random.Random(3)
    boilerplate = document(rng, 40)
    shards = [[boilerplate + b" " + document(rng, 40) for _ in range(4)] for _ in range(12)]
    assert judge_shards(shards)[11].original == 11


def test_later_admissions_change_no_earlier_verdict() -> None:
    shards = [shard(1), shard(2), shard(1), shard(3), [*shard(2), *shard(4)]]
    whole = judge_shards(shards)
    for count in range(len(shards)):
        assert judge_shards(shards[:count]) == whole[:count]


def test_copies_from_several_sources_go_where_most_comes_from() -> None:
    mixed = [*shard(1)[:4], *shard(2)[:6]]
    assert judge_shards([shard(1), shard(2), mixed])[2] == Verdict(original=1, copied=frozenset(range(10)))


def test_empty_texts_are_no_copies() -> None:
    assert judge_shards([[b""], [b"", b"..."], []]) == tuple(
        Verdict(original=n, copied=OWN) for n in range(3)
    )
