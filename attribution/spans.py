"""Which words of an answer stand in whose text: the longest matching runs, for display. Touches no money.

A run of up to five words is exact. A longer one is a chain of five-word runs that one cluster holds each of;
nearly always, not provably, it stands there as a whole. Runs that every cluster holds are in no table and
break a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from attribution.limits import NGRAM_WORDS_MAX, SPAN_WORDS_MIN, SPANS_MAX
from attribution.tables import Tables
from attribution.text import hash_ngram, words_with_places


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of words of the answer that some clusters hold too."""

    start: int
    """Byte offset in the answer where it begins."""
    end: int
    """Byte offset behind it."""
    clusters: tuple[int, ...]
    """Places in the manifest's list of clusters, ascending."""


def matching_spans(tables: Tables, answer: bytes) -> tuple[Span, ...]:
    """The matches, in the answer's order, without overlaps: longer ones first claim their words."""
    places = list(words_with_places(answer))
    runs = [word for word, _, _ in places]
    candidates: list[tuple[int, int, tuple[int, ...]]] = []
    windows = _windows(tables, runs)
    for start in range(len(runs)):
        length, clusters = _longest(windows, start)
        if length >= SPAN_WORDS_MIN:
            candidates.append((start, start + length, clusters))
    candidates.sort(key=lambda found: (found[0] - found[1], found[0]))
    taken: set[int] = set()
    spans: list[Span] = []
    for start, end, clusters in candidates:
        if len(spans) < SPANS_MAX and taken.isdisjoint(range(start, end)):
            taken.update(range(start, end))
            spans.append(Span(start=places[start][1], end=places[end - 1][2], clusters=clusters))
    return tuple(sorted(spans, key=lambda span: span.start))


def _windows(tables: Tables, runs: Sequence[bytes]) -> list[dict[int, frozenset[int]]]:
    """For each first word: run length -> the clusters that hold that run."""
    asked = [
        (start, length)
        for start in range(len(runs))
        for length in range(SPAN_WORDS_MIN, NGRAM_WORDS_MAX + 1)
        if start + length <= len(runs)
    ]
    found = tables.places_of([hash_ngram(runs[start : start + length]) for start, length in asked])
    windows: list[dict[int, frozenset[int]]] = [{} for _ in runs]
    for (start, length), place in zip(asked, found, strict=True):
        if place >= 0:
            windows[start][length] = frozenset(tables.groups[place])
    return windows


def _longest(windows: Sequence[dict[int, frozenset[int]]], start: int) -> tuple[int, tuple[int, ...]]:
    """Length of the longest match from `start`, and who holds it; 0 and nobody where there is none."""
    own = windows[start]
    if not own:
        return 0, ()
    length = max(own)
    clusters = own[length]
    while length >= NGRAM_WORDS_MAX:
        onward = windows[start + length - NGRAM_WORDS_MAX + 1].get(NGRAM_WORDS_MAX, frozenset())
        if not clusters & onward:
            break
        clusters &= onward
        length += 1
    return length, tuple(sorted(clusters))
