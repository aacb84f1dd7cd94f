"""Having the base model on disk, with a progress bar where it must be fetched first."""

from __future__ import annotations

from pathlib import Path


def prepare_base(name: str) -> Path:
    """The folder of a base; empty means the default one. Raises `LocalError`."""
    from rich.progress import Progress

    from gpu_worker.base import cache_folder, find_base
    from peer.cli.shell import notes

    out = notes()
    if not out.is_terminal:
        return find_base(name, cache_folder())
    with Progress(console=out, transient=True) as bars:
        task = bars.add_task("base model", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        return find_base(name, cache_folder(), advance)
