"""Words and n-grams come from bytes alone."""

from __future__ import annotations

import pytest

from attribution.fixed_point import log2_q8
from attribution.text import hash_ngram, ngrams, shingles, words, words_with_places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", ()),
        (b"  ...!? ", ()),
        (b"To be, or NOT to be", (b"to", b"be", b"or", b"not", b"to", b"be")),
        (b"'Tis heav'n's--will''", (b"tis", b"heav'n's", b"will")),
        (b"CWE-79: 2x", (b"cwe", b"79", b"2x")),
        (b"a ' b", (b"a", b"b")),
        ("Straße ÉTÉ".encode(), ("straße".encode(), "ÉtÉ".encode())),
        (b"\xff\xfe ok", (b"\xff\xfe", b"ok")),
    ],
)
def test_words(text: bytes, expected: tuple[bytes, ...]) -> None:
    assert words(text) == expected


def test_places_are_those_of_the_words() -> None:
    text = b"Say 'heaven', then: \xc3\xa9t\xc3\xa9!"
    assert [text[start:end].lower() for _, start, end in words_with_places(text)] == list(words(text))


def test_a_very_long_word_counts_as_its_first_bytes() -> None:
    assert words(b"a" * 1000) == (b"a" * 64,)
    assert next(iter(words_with_places(b"a" * 1000)))[1:] == (0, 1000)


def test_ngrams_are_all_runs_of_two_to_five_words() -> None:
    run = words(b"one two three four five six")
    expected = [hash_ngram(run[i : i + n]) for i in range(6) for n in range(2, 6) if i + n <= 6]
    assert list(ngrams(run)) == expected
    assert len(expected) == 5 + 4 + 3 + 2
    assert list(ngrams(words(b"alone"))) == []


def test_word_borders_matter() -> None:
    assert hash_ngram((b"ab", b"c")) != hash_ngram((b"a", b"bc"))


def test_the_name_of_an_ngram_is_fixed_for_ever() -> None:
    """`printf "to be" | sha256sum` begins with it."""
    assert hash_ngram((b"to", b"be")) == 0x0AF1207EEABD1586


def test_a_short_text_is_one_shingle() -> None:
    assert shingles(b"To be") == {hash_ngram((b"to", b"be"))}
    assert shingles(b"?") == frozenset()
    assert len(shingles(b"a b c d e f")) == 2


def test_logarithms() -> None:
    assert [log2_q8(n) for n in (1, 2, 3, 4, 6, 8, 1 << 61)] == [0, 256, 405, 512, 661, 768, 61 * 256]
    assert all(log2_q8(n) <= log2_q8(n + 1) for n in range(1, 3000))


def test_logarithms_agree_with_exact_powers() -> None:
    """floor(256 log2 n) = k means 2^k <= n^256 < 2^(k+1)."""
    for number in (3, 5, 7, 10, 100, 1000, 4095, 4096, 123_456_789):
        assert 1 << log2_q8(number) <= number**256 < 1 << (log2_q8(number) + 1)
