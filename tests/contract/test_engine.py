"""What every engine promises, asked of the fake and of the real worker process alike."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gossip_ledger.records import ModelId
from gpu_worker.protocol import (
    BAD_REQUEST,
    BARE_BASE,
    BUSY,
    LENGTH,
    STOPPED,
    TOO_LONG,
    UNKNOWN_ADAPTER,
    Event,
    Failed,
    Finished,
    Generate,
    Generated,
)
from gpu_worker.settings import ModelSettings
from peer.engine import AdapterRefusedError, Engine
from peer.supervisor import open_engine
from tests.support.fake_engine import open_fake_engine
from tests.support.tiny_base import VOCABULARY, write_tiny_adapter, write_tiny_base

ADAPTER, OTHER = ModelId(b"a" * 32), ModelId(b"o" * 32)
SLOTS, CONTEXT = 2, 256
PLAIN = Generate(
    request=0,
    model=BARE_BASE,
    prompt=tuple(range(30)),
    max_tokens=10,
    temperature_milli=0,
    top_p_milli=1000,
    seed=0,
    stop_ids=(),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("base")
    settings = write_tiny_base(folder)
    for number, model in enumerate((ADAPTER, OTHER)):
        write_tiny_adapter(folder / model.hex(), settings, seed=number, rank=4, strength=2)
    return folder


@asynccontextmanager
async def opened(kind: str, base: Path, settings: ModelSettings) -> AsyncGenerator[Engine]:
    if kind == "fake":
        async with open_fake_engine(
            slots=SLOTS, max_context=CONTEXT, vocabulary=VOCABULARY, step_s=0.001, settings=settings
        ) as engine:
            yield engine
    else:
        async with open_engine(base=base, threads=1, slots=SLOTS, max_context=CONTEXT) as engine:
            yield engine


@pytest.fixture(params=["fake", pytest.param("process", marks=pytest.mark.slow)])
async def engine(request: pytest.FixtureRequest, base: Path) -> AsyncGenerator[Engine]:
    settings = write_tiny_base(base)
    async with opened(request.param, base, settings) as engine:
        yield engine


async def answer(engine: Engine, request: Generate) -> list[Event]:
    with trio.fail_after(30):
        async with engine.generate(request) as events:
            return [event async for event in events]


def tokens(events: list[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, Generated) for token in event.ids)


async def test_it_says_what_it_is(engine: Engine) -> None:
    info = engine.info
    assert (info.slots, info.max_context, info.vocabulary) == (SLOTS, CONTEXT, VOCABULARY)
    assert len(info.base) == 32


async def test_an_answer_is_tokens_and_one_end(engine: Engine) -> None:
    events = await answer(engine, PLAIN)
    assert all(isinstance(event, Generated) for event in events[:-1])
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.tokens_in, end.tokens_out) == (LENGTH, 30, 10)
    assert len(tokens(events)) == 10
    assert tokens(await answer(engine, replace(PLAIN, request=77))) == tokens(events)


async def test_answers_at_once_are_the_answers_alone(engine: Engine) -> None:
    requests = [replace(PLAIN, prompt=tuple(range(n, 3 * n + 5)), max_tokens=n + 1) for n in range(5)]
    alone = [tokens(await answer(engine, request)) for request in requests]
    together: dict[int, tuple[int, ...]] = {}

    async def one(number: int) -> None:
        together[number] = tokens(await answer(engine, requests[number]))

    async with trio.open_nursery() as nursery:
        for number in range(len(requests)):
            nursery.start_soon(one, number)
    assert [together[number] for number in range(len(requests))] == alone


async def test_seeds_decide_draws(engine: Engine) -> None:
    warm = replace(PLAIN, temperature_milli=1500, seed=1)
    first = tokens(await answer(engine, warm))
    assert tokens(await answer(engine, warm)) == first
    assert tokens(await answer(engine, replace(warm, seed=2))) != first


async def test_a_stop_id_ends_the_answer_and_is_no_part_of_it(engine: Engine) -> None:
    warm = replace(PLAIN, temperature_milli=2000, max_tokens=20)
    said = tokens(await answer(engine, warm))
    at = next(n for n in range(1, 20) if said[n] not in said[:n])
    events = await answer(engine, replace(warm, stop_ids=(said[at],)))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.tokens_out) == (STOPPED, at)
    assert tokens(events) == said[:at]


async def test_adapters_are_loaded_used_and_forgotten(engine: Engine, base: Path) -> None:
    bare = tokens(await answer(engine, PLAIN))
    for _ in range(2):
        loaded = await engine.load_adapter(ADAPTER, base / ADAPTER.hex())
        assert loaded.rank >= 4
    await engine.load_adapter(OTHER, base / OTHER.hex())
    adapted = tokens(await answer(engine, replace(PLAIN, model=ADAPTER)))
    assert len({bare, adapted, tokens(await answer(engine, replace(PLAIN, model=OTHER)))}) == 3
    stats = await engine.stats()
    assert stats.adapters == 2
    assert set(stats.resident) == {ADAPTER, OTHER}
    await engine.unload_adapter(ADAPTER)
    await engine.unload_adapter(ADAPTER)
    events = await answer(engine, replace(PLAIN, model=ADAPTER))
    assert [e.code for e in events if isinstance(e, Failed)] == [UNKNOWN_ADAPTER]
    assert tokens(await answer(engine, PLAIN)) == bare


async def test_a_bad_adapter_is_refused_with_its_rule(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefusedError, match=r"adapter_config\.json"):
        await engine.load_adapter(ADAPTER, tmp_path)
    write_tiny_adapter(tmp_path, write_tiny_base(tmp_path / "b"), seed=1, use_dora=True)
    with pytest.raises(AdapterRefusedError, match="use_dora"):
        await engine.load_adapter(ADAPTER, tmp_path)
    assert (await engine.stats()).adapters == 0


REFUSED: tuple[tuple[Generate, str], ...] = (
    (replace(PLAIN, max_tokens=CONTEXT - 29), TOO_LONG),
    (replace(PLAIN, prompt=tuple(range(CONTEXT))), TOO_LONG),
    (replace(PLAIN, model=OTHER), UNKNOWN_ADAPTER),
    (replace(PLAIN, prompt=(VOCABULARY,)), BAD_REQUEST),
    (replace(PLAIN, prompt=()), BAD_REQUEST),
    (replace(PLAIN, max_tokens=0), BAD_REQUEST),
    (replace(PLAIN, top_p_milli=0), BAD_REQUEST),
    (replace(PLAIN, temperature_milli=-1), BAD_REQUEST),
)


async def test_refusals_name_their_code(engine: Engine) -> None:
    for request, code in REFUSED:
        events = await answer(engine, request)
        assert len(events) == 1
        assert isinstance(events[0], Failed)
        assert (events[0].code, events[0].retry_after_ms) == (code, 0)


async def test_the_longest_that_fits_is_served(engine: Engine) -> None:
    events = await answer(engine, replace(PLAIN, prompt=tuple(range(CONTEXT - 3)), max_tokens=3))
    assert isinstance(events[-1], Finished)


async def test_a_full_queue_is_busy_with_a_time_to_retry(engine: Engine) -> None:
    codes: list[tuple[str, bool]] = []

    async def one() -> None:
        last = (await answer(engine, replace(PLAIN, prompt=(1,), max_tokens=2)))[-1]
        if isinstance(last, Failed):
            codes.append((last.code, last.retry_after_ms > 0))

    async with trio.open_nursery() as nursery:
        for _ in range(140):
            nursery.start_soon(one)
    assert codes
    assert set(codes) == {(BUSY, True)}
    assert len(codes) <= 140 - 64


async def test_leaving_the_block_cancels(engine: Engine) -> None:
    async with engine.generate(replace(PLAIN, max_tokens=200)) as events:
        with trio.fail_after(10):
            await events.receive()
    with trio.fail_after(10):
        while (await engine.stats()).running:
            await trio.sleep(0.01)
    assert (await engine.stats()).kv_tokens_used == 0
    assert isinstance((await answer(engine, PLAIN))[-1], Finished)


async def test_a_slow_reader_delays_nobody(engine: Engine) -> None:
    async with engine.generate(replace(PLAIN, max_tokens=100)) as unread:
        assert isinstance((await answer(engine, PLAIN))[-1], Finished)
        with trio.fail_after(10):
            while (await engine.stats()).running:
                await trio.sleep(0.01)
        assert math.isfinite(unread.statistics().max_buffer_size)
        assert len(tokens([event async for event in unread])) == 100


async def test_a_reader_may_close_its_end(engine: Engine) -> None:
    async with engine.generate(replace(PLAIN, max_tokens=50)) as events:
        await events.receive()
        await events.aclose()
        assert isinstance((await answer(engine, PLAIN))[-1], Finished)
