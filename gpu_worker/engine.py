"""The engine: requests in, events out, one step at a time.

Single-threaded and synchronous: `submit`, `cancel` and the adapter calls change the books, `step` does one
pass of the model and returns what came of it. The process around it (`__main__.py`) alternates the two, so
a cancellation takes effect before the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, final

import torch

from gossip_ledger.records import ModelId
from gpu_worker.adapter_file import AdapterError
from gpu_worker.bank import ActiveSet, Bank
from gpu_worker.identity import BaseId, base_id, identify
from gpu_worker.kv_cache import KvCache
from gpu_worker.limits import ADAPTERS_RESIDENT_BYTES, CONTEXT_MAX, SLOTS_MAX
from gpu_worker.model import LlamaModel, Piece
from gpu_worker.protocol import (
    ADAPTER_REFUSED,
    BARE_BASE,
    CANCELLED,
    DEVICE,
    Event,
    Failed,
    Finished,
    Generate,
    Generated,
    Loaded,
    Ready,
    Stats,
    WorkerSettings,
    short,
)
from gpu_worker.sampling import choose
from gpu_worker.scheduler import RefusedError, Scheduler, Sequence, Work
from gpu_worker.settings import read_settings

_SPEED_MEMORY: Final = 0.9
"""How much of the measured time of a step is carried over to the next."""
_KERNELS_CHARACTERS_MAX: Final = 32
"""Room for the class of hardware and code in an advert."""


@final
class Engine:
    """One base, its adapters and the requests on them."""

    def __init__(self, settings: WorkerSettings, clock: Callable[[], float]) -> None:
        """Loads the base. `clock` gives seconds, for measuring speed. Raises `LocalError`."""
        folder = Path(settings.base)
        shape = read_settings(folder)
        max_context = min(settings.max_context, shape.positions, CONTEXT_MAX)
        slots = min(settings.slots, SLOTS_MAX)
        self._clock = clock
        identity = identify(folder, Path(settings.cache) if settings.cache else None)
        self._model = LlamaModel(
            folder,
            shape,
            quantization=settings.quantization,
            device=settings.device,
            max_context=max_context,
        )
        self._cache = KvCache(shape, slots, self._model.dtype, settings.device)
        self._bank = Bank(shape, self._model.dtype, settings.device, ADAPTERS_RESIDENT_BYTES)
        self._scheduler = Scheduler(
            slots=slots, max_context=max_context, vocabulary=shape.vocabulary, rank_of=self._bank.rank
        )
        self._active: ActiveSet | None = None
        self._step_s = 0.0
        self.ready = Ready(
            base=BaseId(base_id(identity)),
            quantization=settings.quantization,
            dtype="float32" if settings.quantization == "fp32" else "bfloat16",
            device=settings.device,
            kernels=kernels(settings.device),
            max_context=max_context,
            slots=slots,
            vocabulary=shape.vocabulary,
        )

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._scheduler.running and not self._scheduler.waiting

    def submit(self, request: Generate) -> Failed | None:
        """Queues a request; a refusal is returned."""
        try:
            self._scheduler.submit(request, self._tokens_per_s)
        except RefusedError as error:
            return _failed(request, error.code, str(error), error.retry_after_ms)
        return None

    def cancel(self, request: int) -> Finished | None:
        """Ends a request now; None where it is not (or no longer) known."""
        found = self._scheduler.withdraw(request)
        if isinstance(found, Sequence):
            self._leave(found)
            return _finished(found, CANCELLED)
        if found is None:
            return None
        return Finished(request=request, reason=CANCELLED, tokens_in=0, tokens_out=0)

    def load_adapter(self, request: int, model: ModelId, folder: Path) -> Loaded | Failed:
        """Checks and loads an adapter."""
        try:
            adapter = self._bank.load(model, folder)
        except AdapterError as error:
            return Failed(request=request, code=ADAPTER_REFUSED, reason=short(str(error)), retry_after_ms=0)
        return Loaded(request=request, rank=adapter.rank, bytes=adapter.bytes)

    def unload_adapter(self, model: ModelId) -> None:
        """Forgets an adapter. Requests that run with it keep it; those that wait for it will fail."""
        self._bank.unload(model)

    def stats(self, request: int) -> Stats:
        """What is going on."""
        return Stats(
            request=request,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_tokens_used=self._scheduler.tokens_held,
            tokens_per_s=self._tokens_per_s,
            adapters=self._bank.count,
            resident=self._bank.resident(),
        )

    def step(self) -> list[Event]:
        """One pass over everything that runs. Returns what to tell the askers."""
        begun = self._clock()
        events: list[Event] = list(self._admit())
        work = self._scheduler.plan()
        if not work:
            return events
        # Pieces of one token come first; that is how the model wants them.
        work = sorted(work, key=lambda w: len(w.tokens) > 1)
        try:
            tokens = self._compute(work)
        except (RuntimeError, MemoryError) as error:
            return events + self._fail_all(f"{type(error).__name__}: {error}")
        for item, token in zip(work, tokens, strict=True):
            events.extend(self._advance(item, token))
        if any(token is not None for token in tokens):
            self._measure(self._clock() - begun)
        return events

    def _admit(self) -> list[Event]:
        """Starts waiting requests and brings their adapters into the batch."""
        events: list[Event] = []
        for sequence in self._scheduler.admit():
            model = sequence.request.model
            try:
                if model != BARE_BASE:
                    self._bank.get(model)
            except (AdapterError, KeyError) as error:
                self._leave(sequence)
                events.append(_failed(sequence.request, ADAPTER_REFUSED, str(error)))
        return events

    def _compute(self, work: list[Work]) -> list[int | None]:
        running = self._scheduler.running
        active = self._activate()
        self._cache.fit(len(running), max(s.computed + _needed(s) for s in running))
        pieces = [
            Piece(
                row=item.sequence.row,
                start=item.sequence.computed,
                tokens=item.tokens,
                adapter=_index(active, item.sequence.request.model),
            )
            for item in work
        ]
        wanted = [n for n, item in enumerate(work) if item.is_last]
        logits = iter(self._model.forward(pieces, self._cache, active, wanted))
        return [_choose(next(logits), item) if item.is_last else None for item in work]

    def _activate(self) -> ActiveSet | None:
        """The adapters of the batch side by side; made anew only when they change."""
        models = sorted({s.request.model for s in self._scheduler.running} - {BARE_BASE})
        if not models:
            self._active = None
        elif self._active is None or list(self._active.models) != models:
            kept = {} if self._active is None else {a.model: a for a in self._active.adapters}
            self._active = ActiveSet([kept.get(m) or self._bank.get(m) for m in models])
        return self._active

    def _advance(self, item: Work, token: int | None) -> list[Event]:
        reason = self._scheduler.advance(item, token)
        request = item.sequence.request
        events: list[Event] = []
        if token is not None and token not in request.stop_ids:
            events.append(Generated(request=request.request, ids=(token,)))
        if reason is not None:
            self._leave(item.sequence)
            events.append(_finished(item.sequence, reason))
        return events

    def _leave(self, sequence: Sequence) -> None:
        source = self._scheduler.remove(sequence)
        if source is not None and self._cache.width:
            self._cache.move(source, sequence.row)
        if not self._scheduler.running:
            self._cache.fit(0, 0)
            self._active = None

    def _fail_all(self, reason: str) -> list[Event]:
        """The device failed in the middle of a pass: what ran is lost, what waits may still be served."""
        events: list[Event] = [_failed(s.request, DEVICE, reason) for s in self._scheduler.running]
        self._scheduler.running.clear()
        self._cache.fit(0, 0)
        self._active = None
        return events

    def _measure(self, seconds: float) -> None:
        """A step gave one token to each answer in it."""
        before = self._step_s or seconds
        self._step_s = _SPEED_MEMORY * before + (1 - _SPEED_MEMORY) * seconds

    @property
    def _tokens_per_s(self) -> int:
        """Of one answer; 0 where nothing was measured."""
        return round(1 / self._step_s) if self._step_s > 0 else 0


def kernels(device: str) -> str:
    """The class of hardware and code that decides the last bits of a result."""
    version = torch.__version__.split("+")[0]
    if device != "cpu":
        return f"torch{version} {torch.cuda.get_device_name(device)}"[:_KERNELS_CHARACTERS_MAX]
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    words = f"torch{version} cpu {torch.backends.cpu.get_cpu_capability()}{' bf16' if has_bf16 else ''}"
    return words[:_KERNELS_CHARACTERS_MAX]


def _needed(sequence: Sequence) -> int:
    """Tokens to make room for: the whole prompt at once, then one at a time."""
    return max(len(sequence.request.prompt) - sequence.computed, 1)


def _index(active: ActiveSet | None, model: ModelId) -> int:
    return -1 if active is None or model == BARE_BASE else active.models.index(model)


def _choose(logits: torch.Tensor, item: Work) -> int:
    request = item.sequence.request
    return choose(
        logits,
        temperature_milli=request.temperature_milli,
        top_p_milli=request.top_p_milli,
        seed=request.seed,
        position=len(item.sequence.answer),
    )


def _finished(sequence: Sequence, reason: str) -> Finished:
    return Finished(
        request=sequence.request.request,
        reason=reason,
        tokens_in=len(sequence.request.prompt),
        tokens_out=len(sequence.answer),
    )


def _failed(request: Generate, code: str, reason: str, retry_after_ms: int = 0) -> Failed:
    return Failed(request=request.request, code=code, reason=short(reason), retry_after_ms=retry_after_ms)
