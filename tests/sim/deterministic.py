"""Runs trio under virtual time with every choice of its scheduler drawn from a seed.

The only place that touches trio's private names, which is why trio is pinned exactly. trio keeps its tasks in
sets and shuffles each batch; the flag below sorts a batch first, and the seeded generator decides the order.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeVar

import structlog
import trio
import trio.testing
from trio._core import _run  # pyright: ignore[reportPrivateUsage]

T = TypeVar("T")


def run_world(seed: int, main: Callable[[Random], Awaitable[T]]) -> T:
    """Runs `main` with a generator made from `seed`.

    The same seed gives the same run in one process, and with the same `PYTHONHASHSEED` also in another.
    """
    with _seeded_scheduler(seed), _quiet_logs():
        return trio.run(main, Random(seed), clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    flag, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = flag
        _run._r.setstate(state)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """A world has many refusals and lost links; what matters is what its checkers say."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
