"""The text of one answer while its tokens arrive: whole characters, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from gpu_worker.tokenizer import IncrementalDecoder


@final
class AnswerText:
    """Turns tokens into deltas. Text that might be the beginning of a stop string is held back."""

    def __init__(self, decoder: IncrementalDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self.shown = ""
        self.is_stopped = False
        """A stop string came: the answer ends before it."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` add for the reader."""
        return self._take(self._decoder.feed(ids), is_end=False)

    def finish(self) -> str:
        """What was held back, at the end."""
        return self._take(self._decoder.finish(), is_end=True)

    def _take(self, more: str, *, is_end: bool) -> str:
        if self.is_stopped:
            return ""
        text = self._held + more
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.is_stopped = True
            delta, self._held = text[: min(found)], ""
        else:
            keep = 0 if is_end else _overlap(text, self._stop)
            delta, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.shown += delta
        return delta


def _overlap(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    longest = 0
    for word in stop:
        for length in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:length]):
                longest = length
                break
    return longest
