"""What the benchmarks of the worker share: bases and adapters made for them, a driver, rounds, the machine.

Modes are measured in turns, each round in another order, so that whatever else the machine does falls on all
of them alike. A ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gossip_ledger.records import ModelId
from gpu_worker import safetensors_file
from gpu_worker.convert import to_bfloat16
from gpu_worker.engine import Engine
from gpu_worker.linears import load_bitsandbytes
from gpu_worker.protocol import BARE_BASE, Failed, Generate, Generated, Loaded, WorkerSettings
from gpu_worker.settings import MODULE, TARGETS, ModelSettings
from tests.support.tiny_base import write_tiny_base

CONTEXT = 2048
ANSWER_TOKENS_MAX = 256
"""More than any benchmark lets an answer have."""


def prepare(threads: int) -> None:
    """Sets torch's threads, keeps libraries from the network and from talking. Before they are imported."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
    )
    warnings.simplefilter("ignore")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    load_bitsandbytes()
    torch.set_num_threads(threads)


def machine(threads: int, quantization: str) -> dict[str, object]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line for line in file if line.startswith("model name")).partition(":")[2].strip()
    except (OSError, StopIteration):
        pass
    return {
        "device": "cpu",
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "threads": threads,
        "dtype": quantization,
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def write_base(folder: Path, *, hidden: int, layers: int, vocabulary: int = 2048) -> ModelSettings:
    """A Llama of the usual proportions with random weights. The small vocabulary keeps the output matrix,
    which no adapter changes, from making adapters look cheap."""
    return write_tiny_base(
        folder,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        num_key_value_heads=max(hidden // 256, 1),
        head_dim=min(hidden, 64),
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
    )


def write_adapter(folder: Path, settings: ModelSettings, *, seed: int, rank: int) -> int:
    """An adapter on all matrices in PEFT's format, bf16; returns the bytes of its weights."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(TARGETS),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = np.random.default_rng(seed)
    tensors: list[tuple[str, tuple[int, int]]] = []
    for layer in range(settings.layers):
        for target in TARGETS:
            rows, columns = settings.shape(target)
            name = f"base_model.model.model.layers.{layer}.{MODULE[target]}"
            tensors += [(f"{name}.lora_A.weight", (rank, columns)), (f"{name}.lora_B.weight", (rows, rank))]
    with (folder / "adapter_model.safetensors").open("wb") as file:
        safetensors_file.write(
            file,
            [(name, "BF16", shape) for name, shape in tensors],
            (
                to_bfloat16((rng.standard_normal(s) * 0.2 * s[1] ** -0.5).astype(np.float32)).tobytes()
                for _, s in tensors
            ),
        )
        file.flush()
        os.fsync(file.fileno())
    return sum(2 * rows * columns for _, (rows, columns) in tensors)


def open_engine(folder: Path, *, quantization: str, threads: int, slots: int = 32) -> Engine:
    """The engine that a worker process runs, in this process."""
    settings = WorkerSettings(
        base=str(folder),
        quantization=quantization,
        device="cpu",
        threads=threads,
        slots=slots,
        max_context=CONTEXT,
        cache="",
    )
    return Engine(settings, time.perf_counter)


def model_name(number: int) -> ModelId:
    """The id of adapter `number`; -1 is the bare base."""
    return BARE_BASE if number < 0 else ModelId(number.to_bytes(32, "big"))


def load(engine: Engine, number: int, folder: Path) -> None:
    """Makes an adapter known to an engine."""
    answer = engine.load_adapter(0, model_name(number), folder)
    assert isinstance(answer, Loaded), answer


class Batch:
    """Requests with one adapter each (-1: none) and prompts of equal length, stepped until all answer."""

    def __init__(self, engine: Engine, adapters: Sequence[int], prompt_tokens: int) -> None:
        self.engine = engine
        self.requests = range(1, len(adapters) + 1)
        self.begun = time.perf_counter()
        for request, adapter in zip(self.requests, adapters, strict=True):
            refusal = engine.submit(
                Generate(
                    request=request,
                    model=model_name(adapter),
                    prompt=prompt(request, prompt_tokens),
                    max_tokens=ANSWER_TOKENS_MAX,
                    temperature_milli=0,
                    top_p_milli=1000,
                    seed=1,
                    stop_ids=(),
                )
            )
            assert refusal is None, refusal
        answering: set[int] = set()
        while len(answering) < len(self.requests):
            answering |= {event.request for event in self.step()}
        self.first_s = time.perf_counter() - self.begun
        """Until the last of them had its first token."""

    def step(self) -> list[Generated]:
        """One pass of the engine; a failure is the benchmark's end."""
        events = self.engine.step()
        failed = [event for event in events if isinstance(event, Failed)]
        assert not failed, failed
        return [event for event in events if isinstance(event, Generated)]

    def decode(self, steps: int) -> float:
        """Median seconds of a step."""
        times: list[float] = []
        for _ in range(steps):
            begun = time.perf_counter()
            events = self.step()
            times.append(time.perf_counter() - begun)
            assert len(events) == len(self.requests)
        return statistics.median(times)

    def end(self) -> None:
        for request in self.requests:
            self.engine.cancel(request)


def prompt(number: int, tokens: int) -> tuple[int, ...]:
    """Ids that mean nothing, different for each request."""
    return tuple((7 * number + 13 * position) % 251 for position in range(tokens))


def interleave(
    modes: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of every mode in every round, after one round that is not counted.

    After `seconds` no round is begun, so a busy machine measures fewer; one round there always is.
    """
    end = time.monotonic() + seconds
    found: dict[str, list[float]] = {name: [] for name in modes}
    names = list(modes)
    for number in range(-1, rounds):
        if number > 0 and time.monotonic() >= end:
            break
        turn = max(number, 0) % len(names)
        for name in names[turn:] + names[:turn]:
            taken = modes[name]()
            if number >= 0:
                found[name].append(taken)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)


def milliseconds(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians, as milliseconds."""
    return {f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in times.items()}


def lines(result: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A result for people; numbers that have a target say whether they reach it."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        else:
            yield f"{indent}{name:28} {value}"


def judged(value: float, target: str) -> dict[str, object]:
    """A number beside what it should be; `target` is `>= x` or `<= x`."""
    sign, limit = target.split()
    is_met = value >= float(limit) if sign == ">=" else value <= float(limit)
    return {"value": value, "target": target, "is_met": is_met}


def report(result: Mapping[str, object], as_json: bool) -> None:
    """Prints a benchmark's result."""
    if as_json:
        print(json.dumps(result))
        return
    for line in lines({name: value for name, value in result.items() if name != "ratios"}):
        print(line)
    ratios = result["ratios"]
    assert isinstance(ratios, Mapping)
    print("ratios")
    for name, found in ratios.items():
        if isinstance(found, Mapping):
            word = "met" if found["is_met"] else "NOT met"
            print(f"  {name:28} {found['value']:<8} target {found['target']}: {word}")
        else:
            print(f"  {name:28} {found}")
