"""One worker process: started, its pipes as trio streams, and its end. `supervisor.py` decides when.

Its stdin and stdout carry frames, its stderr the complaints of libraries, of which the last are kept.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import trio

import gpu_worker
from gossip_ledger.errors import DecodeError, LocalError
from gpu_worker.protocol import FROM_WORKER, CannotStart, FrameReader, FromWorker, Ready
from peer.limits import ENGINE_START_S, ENGINE_STDERR_BYTES

_READ_BYTES: Final = 65_536


class WorkerEndedError(LocalError):
    """The worker process ended or broke the protocol."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A worker process that said what it is."""

    process: WorkerProcess
    info: Ready


@final
class WorkerProcess:
    """A running child."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it. Raises `LocalError` where the program is not there.

        Not through a thread of trio's: the child asks Linux to end it with the thread that started it.
        """
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **_environment(), **environment},
                bufsize=0,
            )
        except OSError as error:
            raise LocalError(f"cannot start the worker ({error}); check the installation") from error
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._popen = popen
        self._stdin = trio.lowlevel.FdStream(os.dup(popen.stdin.fileno()))
        self._stdout = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
        self._stderr = trio.lowlevel.FdStream(os.dup(popen.stderr.fileno()))
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            pipe.close()
        self._reader = FrameReader(FROM_WORKER)
        self._words = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    async def write(self, frame: bytes) -> None:
        """Raises `WorkerEndedError`."""
        try:
            await self._stdin.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WorkerEndedError("the worker closed its pipe") from error

    async def read(self) -> list[FromWorker]:
        """The next frames, one at least. Raises `WorkerEndedError`."""
        while True:
            try:
                data = await self._stdout.receive_some(_READ_BYTES)
                frames = list(self._reader.receive(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError, DecodeError) as error:
                raise WorkerEndedError(f"the worker's pipe broke ({error})") from error
            if not data:
                raise WorkerEndedError("the worker ended")
            if frames:
                return frames

    async def keep_words(self) -> None:
        """Reads stderr to its end and keeps the last of it."""
        try:
            while data := await self._stderr.receive_some(_READ_BYTES):
                self._words = (self._words + data)[-ENGINE_STDERR_BYTES:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def end(self) -> str:
        """Kills it if need be, collects it, and says how it ended. Not to be cancelled, and quick."""
        code = 0
        with trio.CancelScope(shield=True):
            self._popen.kill()
            code = await trio.to_thread.run_sync(self._popen.wait)
            with trio.move_on_after(1):
                await self.keep_words()
            for pipe in (self._stdin, self._stdout, self._stderr):
                await pipe.aclose()
        words = self._words.decode("utf-8", "replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{how}: {words[-1]}" if words else how


async def start_worker(command: Sequence[str], environment: Mapping[str, str]) -> Started:
    """Starts a worker process and waits until it can serve. Raises `LocalError` with the reason it gives."""
    process = WorkerProcess(command, environment)
    first: FromWorker | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_words)
            with trio.move_on_after(ENGINE_START_S):
                first = await _first(process)
            nursery.cancel_scope.cancel()
    except BaseException:
        await process.end()
        raise
    match first:
        case Ready():
            return Started(process=process, info=first)
        case CannotStart(reason=reason):
            await process.end()
            raise LocalError(f"the worker cannot start: {reason}")
        case _:
            how = await process.end()
            raise LocalError(f"the worker did not start ({how}); try `python -m gpu_worker` by hand")


async def _first(process: WorkerProcess) -> FromWorker | None:
    try:
        return (await process.read())[0]
    except WorkerEndedError:
        return None


def _environment() -> dict[str, str]:
    """The package is found where the daemon found it; nothing is fetched from a network."""
    root = str(Path(gpu_worker.__file__).resolve().parents[1])
    return {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
