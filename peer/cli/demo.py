"""`upkeep demo`: a whole network on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from peer.cli.shell import JsonOption
from peer.cli.training import require_torch


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running and print its address.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A whole network on this machine: real questions, real payouts, equal state roots."""
    require_torch("run the demo's workers")
    from peer.demo.run import run

    code = run(as_json=as_json, keep=keep)
    if code:
        raise typer.Exit(code)
