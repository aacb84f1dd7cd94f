"""Cutting public text into passages, and choosing a bounded, repeatable sample of them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

PROSE_BYTES: Final = 520
"""Aim for one passage of prose, bytes: about 115 tokens."""
VERSE_BYTES: Final = 420
"""Aim for one passage of verse, bytes."""

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")


def prose_passages(text: str) -> Iterator[str]:
    """Whole sentences of `text`, a few at a time, never across two paragraphs unless these are short."""
    sentences = [
        " ".join(sentence.split())
        for paragraph in text.split("\n")
        for sentence in _SENTENCE_END.split(paragraph.strip())
        if sentence.strip()
    ]
    return _gather(sentences, " ", PROSE_BYTES)


def verse_passages(text: str, *, by_line: bool) -> Iterator[str]:
    """Blocks of `text` (parted by blank lines), a few at a time; `by_line`: lines, where there are no
    blocks.
    """
    clean = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
    blocks = clean.split("\n") if by_line else [block.strip("\n") for block in re.split(r"\n\s*\n", clean)]
    return _gather([block for block in blocks if block.strip()], "\n" if by_line else "\n\n", VERSE_BYTES)


def _gather(pieces: Iterable[str], glue: str, aim: int) -> Iterator[str]:
    passage = ""
    for piece in pieces:
        if passage and len(passage) + len(piece) > aim * 5 // 4:
            yield passage
            passage = ""
        passage = f"{passage}{glue}{piece}" if passage else piece
        if len(passage) >= aim:
            yield passage
            passage = ""
    if len(passage) >= aim // 3:
        yield passage


def draw(seed: str, name: str) -> int:
    """A number that depends on nothing but the two texts; the corpora's only chance."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def shorten(text: str, bytes_max: int) -> str:
    """The longest run of whole sentences from the start of `text` that fits; at least the first one, cut."""
    kept = ""
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        longer = f"{kept} {sentence}" if kept else sentence
        if len(longer.encode("utf-8")) > bytes_max:
            break
        kept = longer
    return kept or text.encode("utf-8")[:bytes_max].decode("utf-8", "ignore")
