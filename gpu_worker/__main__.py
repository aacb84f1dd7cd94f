"""The worker process: frames in on stdin, frames out on stdout, one engine between them.

Nobody else writes to stdout: it is moved aside before anything is loaded and whatever prints goes to
stderr. The process ends when stdin does, and on Linux also when its parent dies. It never opens a network
connection.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Final, assert_never

from gossip_ledger.errors import DecodeError, LocalError
from gpu_worker.limits import CONTEXT_MAX, SLOTS_MAX
from gpu_worker.protocol import (
    FROM_WORKER,
    QUANTIZATIONS,
    TO_WORKER,
    Cancel,
    CannotStart,
    FrameReader,
    FromWorker,
    Generate,
    GetStats,
    LoadAdapter,
    Shutdown,
    ToWorker,
    UnloadAdapter,
    Unloaded,
    WorkerSettings,
    encode_frame,
    short,
)

_PR_SET_PDEATHSIG: Final = 1
_READ_BYTES: Final = 65_536
_OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
}


def main(arguments: list[str] | None = None) -> int:
    """Serves until stdin ends. Exit 0 then, 1 where it could not start or the daemon broke the protocol."""
    settings = parse_arguments(arguments)
    _die_with_parent()
    output = _take_stdout()
    os.environ.update(_OFFLINE)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    inbox: queue.Queue[ToWorker | None] = queue.Queue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    try:
        engine = _start(settings)
    except (LocalError, RuntimeError, MemoryError, OSError, ImportError) as error:
        _write(output, CannotStart(reason=short(str(error) or type(error).__name__)))
        return 1
    _write(output, engine.ready)
    return _serve(engine, inbox, output)


def parse_arguments(arguments: list[str] | None) -> WorkerSettings:
    """The settings on the command line; exit 2 where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m gpu_worker", description=main.__doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--quantization", default="bf16", choices=QUANTIZATIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, choices=range(1, 257), metavar="N")
    parser.add_argument("--slots", type=int, default=8, choices=range(1, SLOTS_MAX + 1), metavar="N")
    parser.add_argument(
        "--max-context", type=int, default=2048, choices=range(16, CONTEXT_MAX + 1), metavar="TOKENS"
    )
    parser.add_argument("--cache", default="", help="folder for digests of weights")
    return WorkerSettings(**vars(parser.parse_args(arguments)))


def _start(settings: WorkerSettings) -> Any:
    """Loads torch and the base, which takes a second or two."""
    import torch

    from gpu_worker.engine import Engine

    torch.set_num_threads(settings.threads)
    engine = Engine(settings, time.perf_counter)
    if sys.platform == "linux":
        # Quantizing leaves hundreds of megabytes of freed memory behind that the allocator would keep.
        ctypes.CDLL(None).malloc_trim(0)
    return engine


def _serve(engine: Any, inbox: queue.Queue[ToWorker | None], output: BinaryIO) -> int:
    while True:
        try:
            while True:
                message = inbox.get(block=engine.is_idle)
                if message is None or isinstance(message, Shutdown):
                    return 0
                for answer in _answer(engine, message):
                    _write(output, answer)
        except queue.Empty:
            pass
        for event in engine.step():
            _write(output, event)


def _answer(engine: Any, message: ToWorker) -> list[FromWorker]:
    match message:
        case Generate():
            refusal = engine.submit(message)
            return [refusal] if refusal else []
        case Cancel(request=request):
            end = engine.cancel(request)
            return [end] if end else []
        case LoadAdapter(request=request, model=model, folder=folder):
            return [engine.load_adapter(request, model, Path(folder))]
        case UnloadAdapter(request=request, model=model):
            engine.unload_adapter(model)
            return [Unloaded(request=request)]
        case GetStats(request=request):
            return [engine.stats(request)]
        case Shutdown():
            return []
        case _:
            assert_never(message)


def _read(inbox: queue.Queue[ToWorker | None]) -> None:
    """Runs in a thread of its own until stdin ends; then the process ends, even in the middle of a step."""
    reader = FrameReader(TO_WORKER)
    while data := os.read(0, _READ_BYTES):
        try:
            for message in reader.receive(data):
                inbox.put(message)
        except DecodeError as error:
            sys.stderr.write(f"the daemon sent a frame that cannot be read: {error}\n")
            os._exit(1)
    os._exit(0)


def _write(output: BinaryIO, message: FromWorker) -> None:
    try:
        output.write(encode_frame(FROM_WORKER, message))
        output.flush()
    except BrokenPipeError:
        os._exit(0)


def _take_stdout() -> BinaryIO:
    """The real stdout, for frames alone; file descriptor 1 becomes stderr."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return output


def _die_with_parent() -> None:
    """Asks Linux to end this process with its parent; elsewhere the end of stdin does that."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
