"""An engine without a model: the real books, made-up tokens. Held to the contract of the real one.

Tokens are a hash of model, prompt, seed and position, so equal requests give equal answers on every
machine. Time passes by `trio.sleep`, one step at a time, so it runs under a virtual clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import final

import trio

from gossip_ledger.errors import DecodeError
from gossip_ledger.records import ModelId
from gpu_worker.adapter_file import CONFIG_FILE, WEIGHTS_FILE, AdapterError, read_adapter
from gpu_worker.identity import BaseId
from gpu_worker.protocol import (
    BAD_REQUEST,
    CANCELLED,
    ENGINE_DIED,
    TO_WORKER,
    Event,
    Failed,
    Finished,
    Generate,
    Generated,
    Loaded,
    Ready,
    Stats,
)
from gpu_worker.scheduler import RefusedError, Scheduler, Sequence
from gpu_worker.settings import ModelSettings
from peer.engine import AdapterRefusedError, Engine, EngineDownError

RANK = 8


@asynccontextmanager
async def open_fake_engine(
    *,
    base: bytes = b"b" * 32,
    vocabulary: int = 320,
    slots: int = 4,
    max_context: int = 512,
    step_s: float = 0.01,
    settings: ModelSettings | None = None,
) -> AsyncGenerator[FakeEngine]:
    """A fake worker for as long as the block lasts.

    `settings` makes it check adapters as the real one does; else any folder with the two files will do.
    """
    info = Ready(
        base=BaseId(base),
        quantization="fp32",
        dtype="float32",
        device="none",
        kernels="fake",
        max_context=max_context,
        slots=slots,
        vocabulary=vocabulary,
    )
    engine = FakeEngine(info, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, step_s)
        try:
            yield engine
        finally:
            nursery.cancel_scope.cancel()


def fake_token(request: Generate, position: int, vocabulary: int) -> int:
    """The token that the fake says at `position` of its answer."""
    words = [request.model, str(request.prompt).encode(), str((position, request.temperature_milli)).encode()]
    if request.temperature_milli:
        words.append(str(request.seed).encode())
    return int.from_bytes(hashlib.sha256(b"|".join(words)).digest()[:8], "big") % vocabulary


@final
class FakeEngine:
    """See the module."""

    def __init__(self, info: Ready, settings: ModelSettings | None) -> None:
        self._info = info
        self._settings = settings
        self._adapters: dict[ModelId, int] = {}
        self._scheduler = self._new_scheduler()
        self._asks: dict[int, trio.MemorySendChannel[Event]] = {}
        self._number = 0
        self.is_down = False
        """While True the worker is as good as dead; see `die` and `come_back`."""
        self.loads = 0
        """How often an adapter was loaded."""

    @property
    def info(self) -> Ready:
        """See `Engine`."""
        return self._info

    async def load_adapter(self, model: ModelId, folder: Path) -> Loaded:
        """See `Engine`."""
        await trio.lowlevel.checkpoint()
        if self.is_down:
            raise EngineDownError("the worker is being started again")
        rank = RANK
        if self._settings is not None:
            try:
                rank = read_adapter(folder, self._settings).rank
            except AdapterError as error:
                raise AdapterRefusedError(str(error)) from error
        elif not all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            raise AdapterRefusedError(f"{folder} holds no adapter")
        self._adapters[model] = rank
        self.loads += 1
        return Loaded(request=0, rank=rank, bytes=1024)

    async def unload_adapter(self, model: ModelId) -> None:
        """See `Engine`."""
        await trio.lowlevel.checkpoint()
        self._adapters.pop(model, None)

    @asynccontextmanager
    async def generate(self, request: Generate) -> AsyncGenerator[trio.MemoryReceiveChannel[Event]]:
        """See `Engine`."""
        self._number += 1
        numbered = replace(request, request=self._number)
        send, receive = trio.open_memory_channel[Event](request.max_tokens + 2)
        self._asks[numbered.request] = send
        self._submit(numbered)
        try:
            yield receive
        finally:
            if self._asks.pop(numbered.request, None) is not None:
                self._withdraw(numbered.request)
            receive.close()

    async def stats(self) -> Stats:
        """See `Engine`."""
        await trio.lowlevel.checkpoint()
        if self.is_down:
            raise EngineDownError("the worker is being started again")
        return Stats(
            request=0,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_tokens_used=self._scheduler.tokens_held,
            tokens_per_s=100 if self._number else 0,
            adapters=len(self._adapters),
            resident=tuple(self._adapters)[:64],
        )

    def die(self) -> None:
        """The worker process dies: whoever waits is told."""
        self.is_down = True
        self._scheduler = self._new_scheduler()
        for number in list(self._asks):
            self._end(number, _failed(number, ENGINE_DIED, "the worker died; ask again"))

    def come_back(self) -> None:
        """The worker is started again, with the adapters it had."""
        self.is_down = False

    async def run(self, step_s: float) -> None:
        """Steps for ever."""
        while True:
            await trio.sleep(step_s)
            self._scheduler.admit()
            for work in self._scheduler.plan():
                self._compute(work.sequence, work.is_last, len(work.tokens))

    def _compute(self, sequence: Sequence, is_last: bool, count: int) -> None:
        request, number = sequence.request, sequence.request.request
        sequence.computed += count
        if not is_last:
            return
        token = fake_token(request, len(sequence.answer), self._info.vocabulary)
        reason = "stop" if token in request.stop_ids else ""
        if not reason:
            sequence.answer.append(token)
            with suppress(trio.BrokenResourceError):
                self._asks[number].send_nowait(Generated(request=number, ids=(token,)))
            reason = "length" if len(sequence.answer) == request.max_tokens else ""
        if reason:
            self._scheduler.remove(sequence)
            self._end(number, _finished(sequence, reason))

    def _submit(self, request: Generate) -> None:
        number = request.request
        try:
            TO_WORKER.encode(request)
            if self.is_down:
                raise RefusedError(ENGINE_DIED, "the worker is being started again")
            self._scheduler.submit(request, 100)
        except DecodeError as error:
            self._end(number, _failed(number, BAD_REQUEST, str(error)))
        except RefusedError as error:
            self._end(number, _failed(number, error.code, str(error), error.retry_after_ms))

    def _withdraw(self, number: int) -> None:
        found = self._scheduler.withdraw(number)
        if isinstance(found, Sequence):
            self._scheduler.remove(found)
            self._end(number, _finished(found, CANCELLED))

    def _end(self, number: int, event: Event) -> None:
        channel = self._asks.pop(number, None)
        if channel is not None:
            with suppress(trio.BrokenResourceError):
                channel.send_nowait(event)
            channel.close()

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            slots=self._info.slots,
            max_context=self._info.max_context,
            vocabulary=self._info.vocabulary,
            rank_of=self._adapters.get,
        )


def _finished(sequence: Sequence, reason: str) -> Finished:
    return Finished(
        request=sequence.request.request,
        reason=reason,
        tokens_in=len(sequence.request.prompt),
        tokens_out=len(sequence.answer),
    )


def _failed(number: int, code: str, reason: str, retry_after_ms: int = 0) -> Failed:
    return Failed(request=number, code=code, reason=reason, retry_after_ms=retry_after_ms)


_is_an_engine: type[Engine] = FakeEngine
