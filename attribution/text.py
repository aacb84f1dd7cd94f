"""Words and n-grams of text, from bytes alone.

A word is a run of the bytes `a-z`, `0-9`, `'` and all from 0x80 up, after ASCII capitals are lowered and
outer apostrophes dropped. No Unicode table is consulted, so every peer, of every version, sees the same
words. An n-gram is named by the first 8 bytes of a SHA-256 over its words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

from attribution.limits import NGRAM_WORDS_MAX, NGRAM_WORDS_MIN, SHINGLE_WORDS, WORD_BYTES_MAX

_WORD: Final = re.compile(rb"[a-z0-9'\x80-\xff]*[a-z0-9\x80-\xff][a-z0-9'\x80-\xff]*")


def words_with_places(text: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each word with the byte offsets where it begins and ends in `text`, outer apostrophes excluded."""
    for match in _WORD.finditer(text.lower()):
        run = match.group()
        start = match.start() + len(run) - len(run.lstrip(b"'"))
        word = run.strip(b"'")
        yield word[:WORD_BYTES_MAX], start, start + len(word)


def words(text: bytes) -> tuple[bytes, ...]:
    """The words of `text`, in order."""
    return tuple(word for word, _, _ in words_with_places(text))


def hash_ngram(run: Sequence[bytes]) -> int:
    """The name of a run of words, 0 .. 2^64-1."""
    return int.from_bytes(hashlib.sha256(b" ".join(run)).digest()[:8], "big")


def ngrams(run: Sequence[bytes]) -> Iterator[int]:
    """The names of all n-grams of a text's words, in order of their first word; repeated ones repeat."""
    for start in range(len(run)):
        for length in range(NGRAM_WORDS_MIN, NGRAM_WORDS_MAX + 1):
            if start + length > len(run):
                break
            yield hash_ngram(run[start : start + length])


def shingles(text: bytes) -> frozenset[int]:
    """What near-duplicates are told by: all runs of `SHINGLE_WORDS` words, or the one run of a shorter
    text.
    """
    run = words(text)
    if not run:
        return frozenset()
    count = max(1, len(run) - SHINGLE_WORDS + 1)
    return frozenset(hash_ngram(run[start : start + SHINGLE_WORDS]) for start in range(count))
