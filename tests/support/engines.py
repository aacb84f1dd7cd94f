"""Small helpers to run the real engine in the test's own process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from gossip_ledger.records import ModelId
from gpu_worker.engine import Engine
from gpu_worker.protocol import BARE_BASE, Event, Failed, Finished, Generate, Generated, WorkerSettings


def ask(
    request: int,
    prompt: Iterable[int],
    *,
    model: ModelId = BARE_BASE,
    max_tokens: int = 8,
    temperature_milli: int = 0,
    top_p_milli: int = 1000,
    seed: int = 0,
    stop_ids: tuple[int, ...] = (),
) -> Generate:
    """A request with plain defaults."""
    return Generate(
        request=request,
        model=model,
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        temperature_milli=temperature_milli,
        top_p_milli=top_p_milli,
        seed=seed,
        stop_ids=stop_ids,
    )


def make_engine(
    folder: Path, *, quantization: str = "fp32", slots: int = 8, max_context: int = 512
) -> Engine:
    """An engine on one thread with a clock that stands still."""
    torch.set_num_threads(1)
    settings = WorkerSettings(
        base=str(folder), quantization=quantization, slots=slots, max_context=max_context
    )
    return Engine(settings, lambda: 0.0)


def run(engine: Engine) -> list[Event]:
    """Steps until nothing is left to do."""
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    return events


def answers(events: Iterable[Event]) -> dict[int, list[int]]:
    """Request -> its tokens; every request must have finished."""
    found: dict[int, list[int]] = {}
    for event in events:
        assert not isinstance(event, Failed), event
        tokens = found.setdefault(event.request, [])
        if isinstance(event, Generated):
            tokens += event.ids
        else:
            assert isinstance(event, Finished)
            assert event.tokens_out == len(tokens)
    return found
