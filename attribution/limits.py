"""Every bound of attribution, with its unit."""

from __future__ import annotations

from typing import Final

NGRAM_WORDS_MIN: Final = 2
"""Shortest run of words that is counted."""
NGRAM_WORDS_MAX: Final = 5
"""Longest run of words that is counted."""
SHINGLE_WORDS: Final = 5
"""Length of the runs that near-duplicates are told by."""

WORD_BYTES_MAX: Final = 64
"""A longer word counts as its first bytes."""

POSTING_CLUSTERS_MAX: Final = 64
"""An n-gram that more clusters share says nothing and is in no table."""

TABLES_BYTES_MAX: Final = 256 << 20
"""Largest encoded tables of one model."""
TABLES_KEYS_MAX: Final = 1 << 25
"""Most n-grams in one table."""
TABLES_GROUPS_MAX: Final = 1 << 20
"""Most different sets of clusters in one table."""

OVERLAP_BITS_MIN: Final = 24
"""Less shared information than this, bits, is no signal: the manifest's priors decide."""

PAYEES_MAX: Final = 8
"""Most clusters that one answer pays."""
WEIGHT_TOTAL: Final = 1_000_000
"""What the weights of one answer add up to: they are parts per million."""

EVIDENCE_BYTES_MAX: Final = 64 << 10
"""Largest encoded evidence blob."""
EVIDENCE_NGRAMS_MAX: Final = 8_000
"""Most n-grams in an evidence blob; an answer's come first, then the prompt's."""

SPAN_WORDS_MIN: Final = 3
"""Shortest run of words that is shown as a match."""
SPANS_MAX: Final = 64
"""Most spans shown for one answer."""

COPY_PERCENT: Final = 30
"""A document that shares more than this part of its rarity-weighted shingles with an earlier shard is a
copy.
"""
COPIED_PERCENT: Final = 50
"""A shard with more than this part of its text in such documents is a copy as a whole."""
