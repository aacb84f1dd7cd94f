"""`upkeep adapter train`: the trainer runs in a process of its own, so this one needs no torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from gossip_ledger.errors import LocalError
from peer.cli.bases import prepare_base
from peer.cli.shell import JsonOption, notes, print_fields, print_json
from peer.cli.usage import CutShortError

INTERRUPTED: Final = 130
STDERR_CHARS: Final = 2_000


def train(
    datanet: Annotated[Path, typer.Argument(help="Folder with shards/*.jsonl, such as a datanet's.")],
    out: Annotated[Path, typer.Argument(help="Folder for the adapter.")],
    base: Annotated[str, typer.Option(help="Folder of the base. [default: the default base]")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 120,
    batch: Annotated[int, typer.Option(min=1, help="Documents per step.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    alpha: Annotated[int, typer.Option(min=1, help="Scale of the adapter, over its rank.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 1e-3,
    tokens_max: Annotated[int, typer.Option(min=8, help="Longer documents are cut.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and data give the same adapter.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    autocast: Annotated[bool, typer.Option("--autocast", help="Multiply in bf16: faster on GPUs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA adapter on a datanet. Interrupted, the same command goes on where it stopped."""
    require_torch("train adapters")
    if not (folder := datanet.expanduser().absolute()).is_dir():
        raise LocalError(f"{folder} is not a folder; name one with shards/*.jsonl")
    arguments = [
        *("--documents", str(folder)),
        *("--base", str(prepare_base(base))),
        *("--out", str(out.expanduser().absolute())),
        *("--steps", str(steps)),
        *("--batch", str(batch)),
        *("--rank", str(rank)),
        *("--alpha", str(alpha)),
        *("--learning-rate", repr(learning_rate)),
        *("--tokens-max", str(tokens_max)),
        *("--seed", str(seed)),
        *("--threads", str(threads)),
        *(["--autocast"] if autocast else []),
    ]
    finished = run_trainer([sys.executable, "-m", "gpu_worker.train", *arguments])
    if as_json:
        print_json(finished)
        return
    print_fields(
        {
            "adapter": finished["out"],
            "held-out perplexity": f"{finished['before']:.2f} before, {finished['after']:.2f} after",
            "next": f"upkeep adapter publish {finished['out']} --datanet {folder}",
        }
    )


def require_torch(what: str) -> None:
    """Raises `LocalError` on an installation without torch."""
    if importlib.util.find_spec("torch") is None:
        raise LocalError(
            f"this installation cannot {what}: it has no torch; run: pip install 'upkeep[worker]'"
        )


def run_trainer(command: list[str]) -> dict[str, Any]:
    """Runs the trainer, shows its progress on stderr and returns its last report. Raises `LocalError`."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        finished: dict[str, Any] = {}
        reason = ""
        try:
            for event in _shown(_events(process.stdout)):
                if event["event"] == "finished":
                    finished = event
                reason = str(event.get("reason", reason))
            process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same signal, and writes a checkpoint
            reason = reason or "interrupted; run the same command again to go on from the checkpoint"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if process.returncode == INTERRUPTED:
            raise CutShortError(reason)
        if process.returncode or not finished:
            raise LocalError(f"training failed: {reason or _last_line(errors) or 'the trainer died'}")
    return finished


def _events(lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event: Any = json.loads(line)
        except ValueError:
            continue  # a library's own words
        if isinstance(event, dict) and "event" in event:
            yield event


def _shown(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Passes events on, showing a bar on a terminal and a line now and then elsewhere."""
    from rich.progress import Progress

    out = notes()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task("loading", total=None)
        for event in events:
            match event["event"]:
                case "started":
                    bars.update(task, description=f"{event['documents']} documents")
                case "step":
                    step, steps, loss = event["step"], event["steps"], event["loss"]
                    bars.update(task, description=f"loss {loss:.3f}", completed=step, total=steps)
                    if not out.is_terminal and (step == steps or step % max(1, steps // 10) == 0):
                        out.print(f"step {step} of {steps}, loss {loss:.3f}", markup=False)
                case "measured":
                    out.print(
                        f"held-out perplexity {event['perplexity']:.2f} at step {event['step']}", markup=False
                    )
                case _:
                    pass
            yield event


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read()[-STDERR_CHARS:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
