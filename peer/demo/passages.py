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

SPEECH_LINES_MIN: Final = 3
"""A shorter speech is banter and is left out."""

_STAGE_DIRECTION: Final = re.compile(r"\[[^\]]*\]")
_SPEAKER: Final = re.compile(r"[A-Z][A-Za-z' ]{0,24}[.]?")
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
    """Lines of verse, a few at a time: speeches without names and stage directions, or (`by_line`) an epic's
    lines.
    """
    clean = "\n".join(line.strip() for line in text.replace("\r\n", "\n").split("\n"))
    if by_line:
        return _gather([line for line in clean.split("\n") if line], "\n", VERSE_BYTES)
    blocks = (_speech_lines(block) for block in re.split(r"\n\s*\n", _STAGE_DIRECTION.sub("", clean)))
    return _gather(
        ["\n".join(lines) for lines in blocks if len(lines) >= SPEECH_LINES_MIN], "\n", VERSE_BYTES
    )


def _speech_lines(block: str) -> list[str]:
    lines = [line for line in block.split("\n") if line]
    return lines[1:] if lines and _SPEAKER.fullmatch(lines[0]) else lines


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
