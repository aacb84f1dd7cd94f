"""What the rest of the daemon knows of a worker: one protocol, kept by the real process and by the test fake.

Left out: how the worker is started and kept alive (`supervisor.py`) and what happens inside (`gpu_worker`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import trio

from gossip_ledger.errors import LocalError, RemoteError
from gossip_ledger.records import ModelId
from gpu_worker.protocol import Event, Generate, Loaded, Ready, Stats

EngineInfo = Ready
"""What a worker is: base, quantization, device, context and slots."""


class EngineDownError(LocalError):
    """The worker process is not running right now; it is being started again."""


class AdapterRefusedError(RemoteError):
    """An adapter whose files break the load policy. Says which rule."""


class Engine(Protocol):
    """Answers requests on one base model with any of its loaded adapters."""

    @property
    def info(self) -> EngineInfo:
        """What the worker said of itself when it started; it stays the same over restarts."""
        ...

    async def load_adapter(self, model: ModelId, folder: Path) -> Loaded:
        """Checks the files in `folder` and makes the adapter available, also after a restart of the worker.

        Loading a model again is a matter of course. Raises `AdapterRefusedError` or `EngineDownError`.
        """
        ...

    async def unload_adapter(self, model: ModelId) -> None:
        """Forgets an adapter; requests that run keep it to their end. Unknown models are ignored."""
        ...

    def generate(self, request: Generate) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        """Asks for an answer: events as they happen, ending with one `Finished` or `Failed`, then the
        channel ends.

        `request.request` is of no matter: the engine numbers requests itself. Leaving the block cancels
        what still runs. The channel never blocks the worker: it holds a whole answer.
        """
        ...

    async def stats(self) -> Stats:
        """What the worker is doing. Raises `EngineDownError`."""
        ...
