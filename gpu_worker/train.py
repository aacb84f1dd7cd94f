"""Trains an adapter in a process of its own and reports progress as JSON, one object a line.

`python -m gpu_worker.train --documents FOLDER --base FOLDER --out FOLDER`. FOLDER of documents is a datanet's
folder, or any with `shards/*.jsonl` and perhaps `held_out.jsonl`; without that file every twentieth document
is held out. The lines are `started`, `step`, `measured` and `finished`, or `failed` with a reason. The exit
status is 0, 1 after a failure, and 130 after an interrupt, which leaves a checkpoint that the same command
goes on from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import torch
from transformers.utils import logging as transformers_logging

from gossip_ledger.errors import UpkeepError
from gpu_worker.documents import Document, decode_documents
from gpu_worker.training import CONFIG_NAME, REPORT_NAME, WEIGHTS_NAME, Measured, Recipe, Step, Trained, train

HELD_OUT_PART: Final = 20
"""Without a file for it, one document in this many is held out."""
INTERRUPTED: Final = 130


def read_folder(folder: Path) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """The documents to train on and those to measure with. Raises `LocalError`."""
    given = tuple(
        document
        for path in sorted((folder / "shards").glob("*.jsonl"))
        for document in decode_documents(path.read_bytes(), str(path))
    )
    spare = folder / "held_out.jsonl"
    if spare.is_file():
        return given, decode_documents(spare.read_bytes(), str(spare))
    ordered = sorted(given, key=lambda document: hashlib.sha256(document.text.encode("utf-8")).digest())
    held_out = tuple(ordered[: -(-len(ordered) // HELD_OUT_PART)])
    return tuple(document for document in given if document not in held_out), held_out


def say(event: str, **said: object) -> None:
    """One line of progress."""
    sys.stdout.write(json.dumps({"event": event, **said}, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def progress(event: Step | Measured) -> None:
    """Tells a step or a measurement."""
    say("step" if isinstance(event, Step) else "measured", **asdict(event))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_worker.train", description="Trains one LoRA adapter."
    )
    parser.add_argument("--documents", type=Path, required=True, help="folder with shards/*.jsonl")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    for field in fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        default: Any = field.default
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", default=default)
        elif isinstance(default, tuple):
            parser.add_argument(flag, nargs="+", default=list(map(str, default)))
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Trained:
    """Trains as the command line says. Raises `UpkeepError`."""
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    recipe = Recipe(**{**given, "targets": tuple(given["targets"])})
    documents, held_out = read_folder(options.documents)
    say(
        "started",
        documents=len(documents),
        held_out=len(held_out),
        recipe=asdict(recipe),
        device=options.device,
        base=options.base.name,
    )
    return train(
        base=options.base,
        documents=documents,
        held_out=held_out,
        recipe=recipe,
        out=options.out,
        progress=progress,
        device=options.device,
    )


def main(arguments: list[str] | None = None) -> int:
    """Trains, and returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    try:
        trained = run(options)
    except KeyboardInterrupt:
        say("failed", reason="interrupted; run the same command again to go on from the checkpoint")
        return INTERRUPTED
    except (UpkeepError, OSError) as error:
        say("failed", reason=str(error))
        sys.stderr.write(f"upkeep: training: {error}\n")
        return 1
    files = {name: _described(options.out / name) for name in (WEIGHTS_NAME, CONFIG_NAME, REPORT_NAME)}
    say("finished", out=str(options.out), files=files, **asdict(trained))
    return 0


def _described(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
