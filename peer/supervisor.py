"""The worker process as a child of the daemon: spoken to, and started again when it dies.

Two tasks share one process, one reads and one writes. Askers hold a channel each; whatever happens to the
process, each of them gets exactly one last event. A process that died is started again after a pause that
doubles, and gets the adapters back that were loaded. One that cannot start the first time is for the
operator: `open_engine` raises.

Left out: the process itself (`worker_process.py`) and what a request means (`gpu_worker.protocol`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import trio

from gossip_ledger.errors import DecodeError, LocalError
from gossip_ledger.records import ModelId
from gpu_worker.protocol import (
    BAD_REQUEST,
    ENGINE_DIED,
    TO_WORKER,
    Cancel,
    CannotStart,
    Event,
    Failed,
    Finished,
    FromWorker,
    Generate,
    Generated,
    GetStats,
    LoadAdapter,
    Loaded,
    Ready,
    Stats,
    ToWorker,
    UnloadAdapter,
    Unloaded,
    WorkerSettings,
    encode_frame,
    short,
)
from peer.engine import AdapterRefusedError, Engine, EngineDownError
from peer.limits import (
    ENGINE_ASKS_MAX,
    ENGINE_BACKOFF_S,
    ENGINE_BACKOFF_S_MAX,
    ENGINE_HEALTHY_S,
    ENGINE_STALL_S,
)
from peer.worker_process import Started, WorkerEndedError, WorkerProcess, start_worker

Report = Callable[[str], None]
"""Told in one line when the worker process died, and when it is back."""


def ignore(line: str) -> None:
    """A `Report` that says nothing."""
    del line


@asynccontextmanager
async def open_engine(
    *,
    base: Path,
    quantization: str = "bf16",
    device: str = "cpu",
    threads: int = 0,
    slots: int = 8,
    max_context: int = 2048,
    cache: Path | None = None,
    report: Report = ignore,
) -> AsyncGenerator[Engine]:
    """A worker on the base in folder `base`, running for as long as the block lasts.

    `threads` 0 takes half of the cores. `cache` keeps digests, which saves a large base's reading at the
    next start. Raises `LocalError` where the worker cannot start.
    """
    settings = WorkerSettings(
        base=_absolute(base),
        quantization=quantization,
        device=device,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // 2),
        slots=slots,
        max_context=max_context,
        cache=str(cache) if cache else "",
    )
    command = (sys.executable, "-P", "-m", "gpu_worker", *settings.arguments())
    async with open_worker(command, {"OMP_NUM_THREADS": str(settings.threads)}, report=report) as engine:
        yield engine


@asynccontextmanager
async def open_worker(
    command: Sequence[str], environment: Mapping[str, str], *, report: Report = ignore
) -> AsyncGenerator[SupervisedEngine]:
    """As `open_engine`, with any program that speaks the worker's side of the pipe."""
    engine = SupervisedEngine(command, environment, await start_worker(command, environment), report)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        try:
            yield engine
        finally:
            nursery.cancel_scope.cancel()


@final
class SupervisedEngine:
    """The engine that the daemon sees, whatever becomes of the process behind it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], started: Started, report: Report
    ) -> None:
        self._command = command
        self._environment = environment
        self._report = report
        self._started: Started | None = started
        self._info = started.info
        self._number = 0
        self._asks: dict[int, trio.MemorySendChannel[FromWorker]] = {}
        self._adapters: dict[ModelId, Path] = {}
        self._outbox: trio.MemorySendChannel[ToWorker] | None = None
        """There while a process lives that takes questions."""
        self._to_write = self._open_outbox()

    @property
    def info(self) -> Ready:
        """What the worker is."""
        return self._info

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return self._started.process.pid if self._started else None

    async def load_adapter(self, model: ModelId, folder: Path) -> Loaded:
        """See `Engine`."""
        number = self._next_number()
        answer = await self._ask(LoadAdapter(request=number, model=model, folder=_absolute(folder)))
        match answer:
            case Loaded():
                self._adapters[model] = folder
                return answer
            case Failed(code=code, reason=reason) if code != ENGINE_DIED:
                raise AdapterRefusedError(reason)
            case _:
                raise EngineDownError(_reason(answer))

    async def unload_adapter(self, model: ModelId) -> None:
        """See `Engine`."""
        self._adapters.pop(model, None)
        await self._ask(UnloadAdapter(request=self._next_number(), model=model))

    async def stats(self) -> Stats:
        """See `Engine`."""
        answer = await self._ask(GetStats(request=self._next_number()))
        if not isinstance(answer, Stats):
            raise EngineDownError(_reason(answer))
        return answer

    @asynccontextmanager
    async def generate(self, request: Generate) -> AsyncGenerator[trio.MemoryReceiveChannel[Event]]:
        """See `Engine`."""
        number = self._next_number()
        # Room for every token and the end: the reader of the pipe never waits for an asker.
        send, receive = trio.open_memory_channel[Event](request.max_tokens + 2)
        self._post(replace(request, request=number), send)
        try:
            yield receive
        finally:
            if self._asks.pop(number, None) is not None and self._outbox is not None:
                self._queue(Cancel(request=number))
            receive.close()

    async def run(self) -> None:
        """Serves for ever. Each time around, one process lives and dies."""
        pause = ENGINE_BACKOFF_S
        try:
            while True:
                if self._started is not None:
                    begun = trio.current_time()
                    why = await self._serve(self._started.process)
                    how = await self._started.process.end()
                    self._started = None
                    self._report(f"the worker died ({why}; {how}) and is being started again")
                    self._tell_all(f"the worker died ({why}; {how}); ask again")
                    if trio.current_time() - begun >= ENGINE_HEALTHY_S:
                        pause = ENGINE_BACKOFF_S
                await trio.sleep(pause)
                pause = min(2 * pause, ENGINE_BACKOFF_S_MAX)
                await self._start_again()
        finally:
            if self._started is not None:
                await self._started.process.end()
            self._tell_all("the daemon is stopping")

    async def _start_again(self) -> None:
        try:
            started = await start_worker(self._command, self._environment)
        except LocalError as error:
            self._report(f"the worker does not start again: {error}")
            return
        if started.info != self._info:
            await started.process.end()
            self._report(
                "the worker came back as another one: its base or machine changed; restart the daemon"
            )
            return
        self._started = started
        self._to_write = self._open_outbox()
        for model, folder in self._adapters.items():
            self._queue(LoadAdapter(request=self._next_number(), model=model, folder=_absolute(folder)))
        self._report("the worker is back")

    async def _serve(self, process: WorkerProcess) -> str:
        """Reads and writes until the process fails. Returns why."""
        why = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_words)
            nursery.start_soon(self._write, process, self._to_write)
            try:
                await self._read(process)
            except WorkerEndedError as error:
                why = str(error)
            nursery.cancel_scope.cancel()
        return why

    async def _read(self, process: WorkerProcess) -> None:
        while True:
            with trio.move_on_after(ENGINE_STALL_S) as patience:
                for frame in await process.read():
                    self._deliver(frame)
            if patience.cancelled_caught and self._asks:
                raise WorkerEndedError(f"the worker was silent for {ENGINE_STALL_S} s")

    async def _write(self, process: WorkerProcess, to_write: trio.MemoryReceiveChannel[ToWorker]) -> None:
        try:
            async for message in to_write:
                await process.write(encode_frame(TO_WORKER, message))
        except WorkerEndedError:
            return  # The reader sees the same, and says so.

    def _deliver(self, frame: FromWorker) -> None:
        match frame:
            case Ready() | CannotStart():
                return
            case Generated(request=number):
                if number in self._asks:
                    with suppress(trio.BrokenResourceError):
                        self._asks[number].send_nowait(frame)
            case Finished(request=number) | Failed(request=number) | Stats(request=number):
                self._conclude(number, frame)
            case Loaded(request=number) | Unloaded(request=number):
                self._conclude(number, frame)

    def _conclude(self, number: int, frame: FromWorker) -> None:
        channel = self._asks.pop(number, None)
        if channel is not None:
            with suppress(trio.BrokenResourceError):
                channel.send_nowait(frame)
            channel.close()

    def _tell_all(self, reason: str) -> None:
        """The process is gone: everybody who waits is told."""
        self._outbox = None
        for number in list(self._asks):
            self._conclude(number, _failed(number, ENGINE_DIED, reason))

    async def _ask(self, question: LoadAdapter | UnloadAdapter | GetStats) -> FromWorker:
        send, receive = trio.open_memory_channel[FromWorker](1)
        self._post(question, send)
        try:
            return await receive.receive()
        finally:
            self._asks.pop(question.request, None)
            receive.close()

    def _post(
        self,
        question: Generate | LoadAdapter | UnloadAdapter | GetStats,
        channel: trio.MemorySendChannel[Any],
    ) -> None:
        """Sends a question; where that is not possible the answer says so at once."""
        number = question.request
        self._asks[number] = channel
        try:
            TO_WORKER.encode(question)
        except DecodeError as error:
            self._conclude(number, _failed(number, BAD_REQUEST, str(error)))
            return
        if self._outbox is None:
            self._conclude(number, _failed(number, ENGINE_DIED, "the worker is being started again"))
        elif not self._queue(question):
            self._conclude(number, _failed(number, ENGINE_DIED, "the worker is not keeping up"))

    def _open_outbox(self) -> trio.MemoryReceiveChannel[ToWorker]:
        self._outbox, to_write = trio.open_memory_channel[ToWorker](ENGINE_ASKS_MAX)
        return to_write

    def _queue(self, message: ToWorker) -> bool:
        assert self._outbox is not None
        try:
            self._outbox.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def _absolute(path: Path) -> str:
    return str(path.resolve())


def _failed(number: int, code: str, reason: str) -> Failed:
    return Failed(request=number, code=code, reason=short(reason), retry_after_ms=0)


def _reason(answer: FromWorker) -> str:
    return answer.reason if isinstance(answer, Failed) else "the worker gave an unexpected answer"
