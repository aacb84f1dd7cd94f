"""The self-test: loads a base as a worker would and says how fast it answers here.

`python -m gpu_worker.selftest` decodes for a few seconds with one answer and with a full batch, reads a
prompt, and prints one JSON object. Memory is this process' own, as the system counts it. Exit 1, with the
reason as JSON, where the worker would not start either.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Final

from gossip_ledger.errors import LocalError
from gpu_worker.protocol import BARE_BASE, QUANTIZATIONS, Generate, Generated, WorkerSettings

if TYPE_CHECKING:
    from gpu_worker.engine import Engine

CONTEXT: Final = 512
PROMPT: Final = 256
"""Tokens of the prompt whose reading is timed."""
SHORT: Final = 8
"""Tokens of the prompts whose answers are timed."""


def main(arguments: list[str] | None = None) -> int:
    """Measures once and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.selftest", description=main.__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--quantization", default="bf16", choices=QUANTIZATIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.5, help="decoding, for each batch")
    parser.add_argument("--cache", default="", help="folder for digests of weights")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    try:
        found = measure(options)
    except (LocalError, RuntimeError, MemoryError, OSError, ImportError) as error:
        found = {"reason": " ".join(str(error).split()) or type(error).__name__}
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if "reason" in found else 0


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Loads the base, then times it."""
    begun = time.perf_counter()
    import torch

    from gpu_worker.engine import Engine

    torch.set_num_threads(options.threads)
    engine = Engine(
        WorkerSettings(
            base=options.base,
            quantization=options.quantization,
            device="cpu",
            threads=options.threads,
            slots=options.slots,
            max_context=CONTEXT,
            cache=options.cache,
        ),
        time.perf_counter,
    )
    load_s = time.perf_counter() - begun
    memory = _memory()
    read_s = _begin(engine, 1, PROMPT)
    _end(engine, 1)
    _begin(engine, 1, SHORT)
    one = _tokens_per_s(engine, options.seconds)
    _end(engine, 1)
    _begin(engine, options.slots, SHORT)
    many = _tokens_per_s(engine, options.seconds)
    _end(engine, options.slots)
    return {
        "quantization": options.quantization,
        "kernels": engine.ready.kernels,
        "threads": options.threads,
        "load_s": round(load_s, 2),
        "memory_bytes": memory,
        "memory_bytes_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "prompt_tokens_per_s": round(PROMPT / read_s, 1),
        "tokens_per_s": round(one, 1),
        "batch": options.slots,
        "batch_tokens_per_s": round(many, 1),
    }


def _begin(engine: Engine, count: int, prompt: int) -> float:
    """Starts answers; returns the seconds until all of them have a token."""
    vocabulary = engine.ready.vocabulary
    for number in range(1, count + 1):
        refusal = engine.submit(
            Generate(
                request=number,
                model=BARE_BASE,
                prompt=tuple((7 * number + 13 * n) % vocabulary for n in range(prompt)),
                max_tokens=engine.ready.max_context - prompt,
                temperature_milli=0,
                top_p_milli=1000,
                seed=1,
                stop_ids=(),
            )
        )
        if refusal is not None:
            raise LocalError(refusal.reason)
    begun = time.perf_counter()
    waiting = set(range(1, count + 1))
    while waiting:
        waiting -= {event.request for event in engine.step() if isinstance(event, Generated)}
    return time.perf_counter() - begun


def _tokens_per_s(engine: Engine, seconds: float) -> float:
    """Steps until time or the context is up."""
    count, begun = 0, time.perf_counter()
    for _ in range(engine.ready.max_context - SHORT - 2):
        count += sum(isinstance(event, Generated) for event in engine.step())
        if time.perf_counter() - begun >= seconds:
            break
    return count / (time.perf_counter() - begun)


def _end(engine: Engine, count: int) -> None:
    for number in range(1, count + 1):
        engine.cancel(number)


def _memory() -> int:
    """Resident memory, bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
