"""The books of the scheduler, without a model."""

from __future__ import annotations

from typing import final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.records import ModelId
from gpu_worker.limits import ACTIVE_RANK_MAX, PREFILL_BUSY_TOKENS, PREFILL_CHUNK_TOKENS
from gpu_worker.protocol import BARE_BASE, Generate
from gpu_worker.scheduler import RefusedError, Scheduler, Sequence

BIG, SMALL = ModelId(b"b" * 32), ModelId(b"s" * 32)
RANKS = {BIG: ACTIVE_RANK_MAX, SMALL: 8}


def request(number: int, length: int, *, model: ModelId = BARE_BASE, max_tokens: int = 4) -> Generate:
    return Generate(
        request=number,
        model=model,
        prompt=(1,) * length,
        max_tokens=max_tokens,
        temperature_milli=0,
        top_p_milli=1000,
        seed=0,
        stop_ids=(),
    )


def make(slots: int = 4) -> Scheduler:
    return Scheduler(slots=slots, max_context=4096, vocabulary=10, rank_of=RANKS.get)


def test_prompts_share_a_step_and_answers_come_first() -> None:
    books = make()
    books.submit(request(1, 1000), 10)
    books.submit(request(2, 10), 10)
    books.admit()
    first = books.plan()
    assert [len(work.tokens) for work in first] == [PREFILL_CHUNK_TOKENS // 2, 10]
    assert [work.is_last for work in first] == [False, True]
    books.advance(first[0], None)
    books.advance(first[1], 5)
    second = books.plan()
    assert [(work.sequence.request.request, work.tokens) for work in second[:1]] == [(2, (5,))]
    assert len(second[1].tokens) == PREFILL_BUSY_TOKENS


def test_a_batch_holds_so_many_ranks() -> None:
    books = make()
    for number, model in enumerate((SMALL, SMALL, BIG, BARE_BASE)):
        books.submit(request(number, 5, model=model), 10)
    assert [s.request.model for s in books.admit()] == [SMALL, SMALL]
    for sequence in tuple(books.running):
        books.remove(sequence)
    assert [s.request.model for s in books.admit()] == [BIG, BARE_BASE]


def test_waiting_tokens_are_bounded_but_one_request_always_fits() -> None:
    books = Scheduler(slots=1, max_context=100_000, vocabulary=10, rank_of=RANKS.get)
    books.submit(request(1, 8000, max_tokens=90_000), 10)
    with pytest.raises(RefusedError) as caught:
        books.submit(request(2, 8000), 10)
    assert caught.value.code == "busy"
    assert caught.value.retry_after_ms == 60_000


@final
class _World:
    """A scheduler, what each row of its cache would hold, and who has ended."""

    def __init__(self, slots: int) -> None:
        self.books = make(slots)
        self.rows = [0] * slots
        self.ended: list[int] = []
        self.submitted = 0

    def submit(self, length: int, tokens: int) -> None:
        self.submitted += 1
        self.books.submit(request(self.submitted, length, max_tokens=tokens), 10)

    def step(self) -> None:
        for sequence in self.books.admit():
            self.rows[sequence.row] = sequence.request.request
        work = self.books.plan()
        assert sum(len(w.tokens) for w in work if w.sequence.is_reading) <= PREFILL_CHUNK_TOKENS
        assert bool(work) == bool(self.books.running)
        for item in work:
            if self.books.advance(item, 7 if item.is_last else None) is not None:
                self.leave(item.sequence)
        for number, sequence in enumerate(self.books.running):
            assert sequence.row == number
            assert self.rows[number] == sequence.request.request

    def cancel(self, number: int) -> None:
        found = self.books.withdraw(number)
        if isinstance(found, Sequence):
            self.leave(found)
        elif found is not None:
            self.ended.append(found.request)

    def leave(self, sequence: Sequence) -> None:
        source = self.books.remove(sequence)
        if source is not None:
            self.rows[sequence.row] = self.rows[source]
        self.ended.append(sequence.request.request)


KINDS = st.sampled_from(("submit", "step", "cancel"))


@given(
    steps=st.lists(st.tuples(KINDS, st.integers(1, 300), st.integers(1, 6)), max_size=60),
    slots=st.integers(1, 5),
)
def test_rows_stay_dense_and_every_request_ends_once(steps: list[tuple[str, int, int]], slots: int) -> None:
    world = _World(slots)
    for kind, length, tokens in steps:
        match kind:
            case "submit":
                world.submit(length, tokens)
            case "step":
                world.step()
            case _:
                world.cancel(length % (world.submitted + 1))
    while world.books.running or world.books.waiting:
        world.step()
    assert sorted(world.ended) == list(range(1, world.submitted + 1))
