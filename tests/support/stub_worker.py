"""A program that speaks the worker's side of the pipe and does as it is told: for tests of the supervisor.

Run as `python -m tests.support.stub_worker FOLDER`. The first token of a prompt says what to do; files in
FOLDER change how it starts, and it leaves notes there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from gpu_worker.identity import BaseId
from gpu_worker.protocol import (
    FROM_WORKER,
    TO_WORKER,
    Cancel,
    CannotStart,
    Finished,
    FrameReader,
    FromWorker,
    Generate,
    Generated,
    GetStats,
    LoadAdapter,
    Loaded,
    Ready,
    Stats,
    UnloadAdapter,
    Unloaded,
    encode_frame,
)

ANSWER, CRASH, EXIT, GARBAGE, HANG, SILENT = range(6)


def main() -> int:
    folder = Path(sys.argv[1])
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    sys.stderr.write("a library says something\n")
    if (folder / "refuse").exists():
        send(CannotStart(reason="no such base"))
        return 1
    if (folder / "die").exists():
        sys.stderr.write("cannot find the device\n")
        return 7
    base = BaseId(b"c" * 32 if (folder / "other").exists() else b"b" * 32)
    send(
        Ready(
            base=base,
            quantization="fp32",
            dtype="float32",
            device="none",
            kernels="stub",
            max_context=64,
            slots=2,
            vocabulary=9,
        )
    )
    reader = FrameReader(TO_WORKER)
    adapters: list[bytes] = []
    while data := os.read(0, 65_536):
        for message in reader.receive(data):
            match message:
                case Generate():
                    answer(message)
                case LoadAdapter():
                    adapters.append(message.model)
                    send(Loaded(request=message.request, rank=8, bytes=1))
                case UnloadAdapter():
                    send(Unloaded(request=message.request))
                case GetStats():
                    send(
                        Stats(
                            request=message.request,
                            running=0,
                            waiting=0,
                            kv_tokens_used=0,
                            tokens_per_s=0,
                            adapters=len(adapters),
                            resident=tuple(adapters),  # pyright: ignore[reportArgumentType]
                        )
                    )
                case Cancel():
                    with (folder / "cancelled").open("a") as file:
                        file.write(f"{message.request}\n")
                case _:
                    return 0
    (folder / "ended").write_text("stdin closed")
    return 0


def answer(request: Generate) -> None:
    send(Generated(request=request.request, ids=(5,)))
    match request.prompt[0]:
        case 0:
            send(Finished(request=request.request, reason="length", tokens_in=1, tokens_out=1))
        case 1:
            os.kill(os.getpid(), 11)
        case 2:
            sys.stderr.write("out of memory on device 0\n")
            sys.exit(3)
        case 3:
            os.write(1, b"\xff" * 64)
        case 4:
            time.sleep(60)
        case _:
            pass


def send(message: FromWorker) -> None:
    os.write(1, encode_frame(FROM_WORKER, message))


if __name__ == "__main__":
    sys.exit(main())
