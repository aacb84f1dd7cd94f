"""`upkeep worker plan`: what serving a base would take on this machine, and what it would give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gossip_ledger.errors import LocalError
from peer.cli.bases import prepare_base
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    console,
    home_of,
    notes,
    print_fields,
    print_json,
    print_table,
)
from peer.cli.usage import UsageError

if TYPE_CHECKING:
    from gpu_worker.settings import ModelSettings

SELFTEST_S_MAX: Final = 900
"""Longest self-test of one quantization: it reads the base and quantizes it."""
PLAN_CONTEXT: Final = 2048
"""Context that a worker offers, tokens, where the base allows as much."""
BUSY_LOAD: Final = 0.5
"""Load before the self-tests from which on they are not to be trusted."""
_MIB: Final = 1 << 20


def plan(
    base: Annotated[str, typer.Option(help="Folder of the base. [default: as in config.toml]")] = "",
    quantization: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given again.", show_default="all")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=256, help="Answers at the same time.", show_default="config.toml")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="CPU threads.", show_default="config.toml")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Run the self-tests.")] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What serving a base takes here, by quantization: memory, what fits, how fast. Needs no daemon."""
    from gpu_worker.settings import read_settings
    from peer.cli.training import require_torch
    from peer.config import QUANTIZATIONS, load_config

    chosen = tuple(quantization or QUANTIZATIONS)
    for name in chosen:
        if name not in QUANTIZATIONS:
            raise UsageError(f"--quantization: {name} is none of {', '.join(QUANTIZATIONS)}")
    if measure:
        require_torch("run the self-test; use --no-measure")
    config = load_config(home_of(home)).worker
    folder = prepare_base(base or config.base)
    settings = read_settings(folder)
    slots = slots or config.max_slots
    threads = threads or config.threads or _half_the_cores()
    available, load = _available_memory(), os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for name in chosen:
        row = _needs(settings, name, slots, available)
        if measure and row["fits"]:
            notes().print(f"measuring {name} ...", markup=False)
            row["measured"] = _selftest(folder, name, threads, slots)
        rows.append(row)
    result = {
        "base": str(folder),
        "slots": slots,
        "threads": threads,
        "context": min(PLAN_CONTEXT, settings.positions),
        "memory_available": available,
        "load": round(load, 2),
        "plans": rows,
        **_advice(rows),
    }
    if as_json:
        print_json(result)
    else:
        _print_plan(result)


def _needs(settings: ModelSettings, quantization: str, slots: int, available: int | None) -> dict[str, Any]:
    from gpu_worker.plan import PLAN_RANK, adapters_in_batch, compute_needs

    needs = compute_needs(settings, quantization, slots=slots, context=min(PLAN_CONTEXT, settings.positions))
    room = needs.most if available is None else available
    return {
        "quantization": quantization,
        "weights_bytes": needs.weights,
        "kv_bytes_per_token": needs.kv_per_token,
        "kv_bytes_max": needs.kv_full,
        "least_bytes": needs.least,
        "most_bytes": needs.most,
        "fits": needs.least <= room,
        "adapter_rank": PLAN_RANK,
        "adapter_bytes": needs.adapter,
        "adapters_in_memory": needs.adapters_within(room),
        "adapters_in_batch": adapters_in_batch(slots),
        "measured": None,
    }


def _selftest(folder: Path, quantization: str, threads: int, slots: int) -> dict[str, Any]:
    """The report of the self-test's own process. Raises `LocalError`."""
    from gpu_worker.base import cache_folder

    command = [
        *(sys.executable, "-P", "-m", "gpu_worker.selftest"),
        *("--base", str(folder.resolve())),
        *("--quantization", quantization),
        *("--threads", str(threads)),
        *("--slots", str(slots)),
        *("--cache", str(cache_folder())),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SELFTEST_S_MAX, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise LocalError(
            f"the self-test of {quantization} took over {SELFTEST_S_MAX} s; use --no-measure"
        ) from error
    except (ValueError, IndexError) as error:
        raise LocalError(
            f"the self-test of {quantization} died, perhaps for lack of memory; use --no-measure"
        ) from error
    return found


def _advice(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The quantization to take, and why: the fastest full batch of those that fit."""
    fitting = [row for row in rows if row["fits"]]
    measured = [row for row in fitting if row["measured"] and "batch_tokens_per_s" in row["measured"]]
    if measured:
        best = max(measured, key=lambda row: row["measured"]["batch_tokens_per_s"])
        speed = best["measured"]["batch_tokens_per_s"]
        return {
            "advice": best["quantization"],
            "why": f"of those that fit, its full batch is the fastest here: {speed:g} tokens/s",
        }
    if fitting:
        best = next((row for row in fitting if row["quantization"] == "bf16"), fitting[0])
        return {"advice": best["quantization"], "why": "it fits; nothing was measured"}
    return {
        "advice": None,
        "why": "none fits the free memory; close something, or take a smaller base",
    }


def _print_plan(result: dict[str, Any]) -> None:
    available = result["memory_available"]
    print_fields(
        {
            "base": result["base"],
            "memory free": "unknown" if available is None else _mib(available),
            "slots": f"{result['slots']} of {result['context']} tokens",
            "threads": result["threads"],
        }
    )
    rows: list[tuple[object, ...]] = []
    for row in result["plans"]:
        found: dict[str, Any] = row["measured"] or {}
        rows.append(
            (
                row["quantization"],
                _mib(row["weights_bytes"]),
                f"{row['kv_bytes_per_token'] / 1024:g} KiB",
                _mib(row["least_bytes"]),
                _mib(row["most_bytes"]),
                row["fits"],
                f"{row['adapters_in_memory']} of {_mib(row['adapter_bytes'])}",
                row["adapters_in_batch"],
                found.get("tokens_per_s", found.get("reason")),
                found.get("batch_tokens_per_s"),
                found.get("prompt_tokens_per_s"),
            )
        )
    columns = ("form", "weights", "KV/token", "least", "most", "fits", "adapters kept", "in a batch")
    speeds = ("tokens/s, one", f"tokens/s, {result['slots']}", "reading")
    print_table("plan", (*columns, *speeds), rows, empty="nothing was planned")
    print_fields({"take": result["advice"] or "none", "because": result["why"]})
    if result["load"] > BUSY_LOAD:
        notes().print(
            f"upkeep: the machine is busy (load {result['load']:g}); an idle one is faster, "
            "and may favour another form",
            markup=False,
        )
    if result["advice"]:
        console().print(f"start it: upkeep up --worker --quantization {result['advice']}", markup=False)


def _mib(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB"


def _half_the_cores() -> int:
    """What the daemon takes where nothing is said."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _available_memory() -> int | None:
    """Bytes that a new process could have: free on the machine, and within a container's limit."""
    found: list[int] = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)
