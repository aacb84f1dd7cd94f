"""Which sequences are computed next. Pure bookkeeping, free of torch.

Requests wait in the order they came, at most so many and so many tokens of them; more are refused with a
time to retry. A waiting request starts as soon as a row of the cache is free and its adapter's ranks fit
the batch. Every step computes one token for each answering sequence and a bounded number of prompt tokens,
shared by the sequences that still read their prompt. Rows are dense: when a sequence ends, the last one
moves into its row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import ModelId
from gpu_worker.limits import (
    ACTIVE_RANK_MAX,
    PREFILL_BUSY_TOKENS,
    PREFILL_CHUNK_TOKENS,
    WAITING_MAX,
    WAITING_TOKENS_MAX,
)
from gpu_worker.protocol import (
    BAD_REQUEST,
    BARE_BASE,
    BUSY,
    LENGTH,
    STOPPED,
    TOO_LONG,
    UNKNOWN_ADAPTER,
    Generate,
)


class RefusedError(RemoteError):
    """A request that is not admitted. `code` is one of the protocol's."""

    def __init__(self, code: str, reason: str, retry_after_ms: int = 0) -> None:
        super().__init__(reason)
        self.code = code
        self.retry_after_ms = retry_after_ms


@final
@dataclass(slots=True, eq=False)
class Sequence:
    """One request that runs."""

    request: Generate
    row: int
    """Its row of the cache."""
    computed: int = 0
    """Prompt and answer tokens that the cache holds."""
    answer: list[int] = field(default_factory=list[int])

    @property
    def is_reading(self) -> bool:
        """Whether some of the prompt is still to be computed."""
        return self.computed < len(self.request.prompt)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Tokens of one sequence to compute in this step."""

    sequence: Sequence
    tokens: tuple[int, ...]
    is_last: bool
    """Whether the next token of the answer comes out of it."""


@final
class Scheduler:
    """The waiting and the running requests of one worker."""

    def __init__(
        self,
        *,
        slots: int,
        max_context: int,
        vocabulary: int,
        rank_of: Callable[[ModelId], int | None],
    ) -> None:
        """`rank_of` gives the ranks of a loaded adapter, None for one that is not loaded."""
        self._slots = slots
        self._max_context = max_context
        self._vocabulary = vocabulary
        self._rank_of = rank_of
        self.waiting: deque[Generate] = deque()
        self.running: list[Sequence] = []
        """By row."""

    @property
    def tokens_held(self) -> int:
        """Tokens in the cache."""
        return sum(sequence.computed for sequence in self.running)

    def submit(self, request: Generate, tokens_per_s: int) -> None:
        """Queues a request. Raises `RefusedError`; `tokens_per_s`, of one answer, is for saying when to try
        again."""
        length = len(request.prompt) + request.max_tokens
        if length > self._max_context:
            raise RefusedError(
                TOO_LONG,
                f"the prompt has {len(request.prompt)} tokens and the answer may have {request.max_tokens}; "
                f"together at most {self._max_context} fit",
            )
        if max(request.prompt) >= self._vocabulary:
            raise RefusedError(BAD_REQUEST, "the prompt holds ids that are not in the vocabulary")
        if request.model != BARE_BASE and self._rank_of(request.model) is None:
            raise RefusedError(UNKNOWN_ADAPTER, "the adapter is not loaded")
        queued = sum(len(r.prompt) + r.max_tokens for r in self.waiting)
        if len(self.waiting) >= WAITING_MAX or (self.waiting and queued + length > WAITING_TOKENS_MAX):
            left = queued + sum(s.request.max_tokens - len(s.answer) for s in self.running)
            retry_after_ms = min(60_000, max(500, left * 1000 // (max(tokens_per_s, 1) * self._slots) // 2))
            raise RefusedError(BUSY, f"{len(self.waiting)} requests are waiting already", retry_after_ms)
        self.waiting.append(request)

    def admit(self) -> tuple[Sequence, ...]:
        """Starts what can start, in order."""
        started: list[Sequence] = []
        while self.waiting and len(self.running) < self._slots and self._fits(self.waiting[0].model):
            sequence = Sequence(self.waiting.popleft(), len(self.running))
            self.running.append(sequence)
            started.append(sequence)
        return tuple(started)

    def plan(self) -> tuple[Work, ...]:
        """What to compute in this step: the answering sequences, then pieces of prompts."""
        work = [
            Work(sequence=s, tokens=(s.answer[-1],), is_last=True) for s in self.running if not s.is_reading
        ]
        readers = [s for s in self.running if s.is_reading]
        budget = PREFILL_BUSY_TOKENS if work else PREFILL_CHUNK_TOKENS
        for left, sequence in zip(range(len(readers), 0, -1), readers, strict=True):
            prompt, start = sequence.request.prompt, sequence.computed
            piece = prompt[start : start + max(1, budget // left)]
            budget -= len(piece)
            is_last = start + len(piece) == len(prompt)
            work.append(Work(sequence=sequence, tokens=piece, is_last=is_last))
            if budget <= 0:
                break
        return tuple(work)

    def advance(self, work: Work, token: int | None) -> str | None:
        """Notes that `work` was computed and gave `token`. Returns why the sequence ends, or None."""
        sequence, request = work.sequence, work.sequence.request
        sequence.computed += len(work.tokens)
        if token is None:
            return None
        if token in request.stop_ids:
            return STOPPED
        sequence.answer.append(token)
        return LENGTH if len(sequence.answer) == request.max_tokens else None

    def remove(self, sequence: Sequence) -> int | None:
        """Takes a sequence off its row. Returns the row whose contents must be copied there, if any."""
        last = self.running.pop()
        if last is sequence:
            return None
        self.running[sequence.row] = last
        source, last.row = last.row, sequence.row
        return source

    def withdraw(self, request: int) -> Generate | Sequence | None:
        """Finds a request by number; one that waits is taken out of the queue at once."""
        for waiting in self.waiting:
            if waiting.request == request:
                self.waiting.remove(waiting)
                return waiting
        return next((s for s in self.running if s.request.request == request), None)

    def _fits(self, model: ModelId) -> bool:
        models = {s.request.model for s in self.running} | {model}
        return sum(self._rank_of(m) or 0 for m in models - {BARE_BASE}) <= ACTIVE_RANK_MAX
