"""The text of an answer in pieces: the same as in one, nothing of a stop string, nothing after it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gpu_worker.tokenizer import Tokenizer
from peer.answer_text import AnswerText
from tests.unit.peer.town import base_files

TOKENIZER = Tokenizer(base_files())
CHUNKS = st.lists(st.binary(min_size=1, max_size=4), max_size=12)


def shown(chunks: list[bytes], *stop: str) -> tuple[list[str], AnswerText]:
    """The deltas; the tokens of the tiny base are bytes."""
    text = AnswerText(TOKENIZER.decoder(), stop)
    deltas = [text.feed(tuple(chunk)) for chunk in chunks]
    return [*deltas, text.finish()], text


def test_a_character_is_shown_once_it_is_whole() -> None:
    euro = "€".encode()
    deltas, _ = shown([b"a" + euro[:1], euro[1:2], euro[2:] + b"b"])
    assert deltas == ["a", "", "€b", ""]


def test_what_may_begin_a_stop_string_is_held_back_and_shown_if_it_does_not() -> None:
    deltas, text = shown([b"one S", b"TO", b"X two ST"], "STOP")
    assert deltas == ["one ", "", "STOX two ", "ST"]
    assert not text.is_stopped


def test_nothing_from_a_stop_string_on_is_shown() -> None:
    deltas, text = shown([b"one S", b"TOP two", b"three"], "STOP", "two")
    assert deltas == ["one ", "", "", ""]
    assert text.is_stopped
    assert text.shown == "one "


def test_the_first_of_several_stop_strings_counts() -> None:
    _, text = shown([b"a bc abc"], "abc", "bc")
    assert text.shown == "a "


def test_an_empty_answer_is_empty() -> None:
    assert shown([], "x")[1].shown == ""


@given(chunks=CHUNKS)
@example(chunks=[b"\x80", b"\xf0\x90", b"\x80", b"\x80"])
@example(chunks=[b"\x80\x80\x80\x80\x80", b"\xf0\x90", b"\x80\x80"])
def test_without_stop_strings_the_pieces_are_the_whole(chunks: list[bytes]) -> None:
    deltas, text = shown(chunks)
    assert "".join(deltas) == text.shown == TOKENIZER.decode(tuple(b"".join(chunks)))


@given(
    chunks=st.lists(st.text("ab", min_size=1, max_size=3), max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3, unique=True),
)
def test_with_stop_strings_the_pieces_are_what_comes_before_the_first(
    chunks: list[str], stop: list[str]
) -> None:
    deltas, text = shown([chunk.encode() for chunk in chunks], *stop)
    whole = "".join(chunks)
    assert "".join(deltas) == text.shown
    assert not any(word in text.shown for word in stop)
    assert whole.startswith(text.shown)
    assert text.is_stopped == any(word in whole for word in stop)
    if not text.is_stopped:
        assert text.shown == whole
