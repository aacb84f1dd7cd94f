"""Spans: what is shown as somebody's words."""

from __future__ import annotations

from attribution.limits import SPANS_MAX
from attribution.spans import matching_spans
from attribution.tables import Tables, build_tables

VERSE = b"When shall we three meet again, in thunder, lightning, or in rain?"
LAW = b"The revenue of the last year has exceeded every estimate that was made of it."


def tables() -> Tables:
    return Tables(build_tables([[VERSE], [LAW], [b"something else entirely is said here"]]))


def shown(answer: bytes) -> list[tuple[bytes, tuple[int, ...]]]:
    return [(answer[span.start : span.end], span.clusters) for span in matching_spans(tables(), answer)]


def test_a_whole_quotation_is_one_span() -> None:
    answer = b"He said: WHEN shall we three meet again in thunder lightning or in rain? And left."
    assert shown(answer) == [(b"WHEN shall we three meet again in thunder lightning or in rain", (0,))]


def test_two_sources_in_one_answer() -> None:
    answer = b"The revenue of the last year; when shall we three meet?"
    assert shown(answer) == [(b"The revenue of the last year", (1,)), (b"when shall we three meet", (0,))]


def test_two_words_are_no_span_and_three_are() -> None:
    assert shown(b"shall we go") == []
    assert shown(b"shall we three go") == [(b"shall we three", (0,))]


def test_a_changed_word_ends_a_span() -> None:
    assert shown(b"when shall we four meet again in thunder") == [
        (b"when shall we", (0,)),
        (b"meet again in thunder", (0,)),
    ]


def test_shared_words_name_all_who_hold_them() -> None:
    shared = Tables(build_tables([[b"by the grace of god"], [b"by the grace of god"], [b"x y z"]]))
    (span,) = matching_spans(shared, b"by the grace of god")
    assert span.clusters == (0, 1)


def test_a_chain_needs_one_cluster_that_holds_all_of_it() -> None:
    split = Tables(build_tables([[b"a b c d e f"], [b"c d e f g h"], [b"x y"]]))
    spans = matching_spans(split, b"a b c d e f g h")
    assert [(span.start, span.end, span.clusters) for span in spans] == [(0, 11, (0,))]


def test_who_drops_out_of_a_chain_is_not_named() -> None:
    split = Tables(build_tables([[b"a b c d e f"], [b"a b c d e z"], [b"x y"]]))
    assert [span.clusters for span in matching_spans(split, b"a b c d e")] == [(0, 1)]
    assert [span.clusters for span in matching_spans(split, b"a b c d e f")] == [(0,)]


def test_nothing_to_show() -> None:
    assert shown(b"") == []
    assert shown(b"zzz") == []
    assert matching_spans(Tables(build_tables([])), b"when shall we three meet") == ()


def test_no_more_spans_than_a_page_can_take() -> None:
    answer = b" zzz ".join([b"shall we three"] * (SPANS_MAX + 20))
    assert len(matching_spans(tables(), answer)) == SPANS_MAX


def test_places_are_bytes_also_beside_other_letters() -> None:
    answer = "«Été» — shall we three — Ω".encode()
    assert shown(answer) == [(b"shall we three", (0,))]
