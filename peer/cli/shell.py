"""What every command shares: its options, where its results go, and amounts as people write them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from gossip_ledger.errors import LocalError
from peer.cli.usage import UsageError
from peer.config import Home

if TYPE_CHECKING:
    from rich.console import Console

    from peer.client import DaemonClient

MICRO: Final = 1_000_000
MAX_AMOUNT: Final = 2**63 - 1
ID_CHARS: Final = 12
"""Characters of an id that a table shows."""

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The node's home folder. [default: $UPKEEP_HOME or ~/.upkeep]", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def home_of(option: Path | None) -> Home:
    """The home that a command is about."""
    return Home.choose(option, os.environ)


def connect(option: Path | None) -> DaemonClient:
    """The daemon of that home; imported late, since many commands end before they need it."""
    from peer.client import DaemonClient

    return DaemonClient(home_of(option))


def print_json(document: Mapping[str, object]) -> None:
    """The one JSON object of `--json`."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def console() -> Console:
    """Where results for people go. Wide and plain when stdout is a file or a pipe."""
    from rich.console import Console

    return Console(
        highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200
    )


def notes() -> Console:
    """Where progress and remarks go: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or one line that says why there is none. Numbers stand to the right."""
    from rich.markup import escape
    from rich.table import Table

    listed = [[_cell(value) for value in row] for row in rows]
    if not listed:
        console().print(escape(empty))
        return
    table = Table(title=escape(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        is_number = all(re.fullmatch(r"[-+]?[\d.,]+( \S+)?|-", row[number]) for row in listed)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in listed:
        table.add_row(*map(escape, row))
    console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    from rich.markup import escape

    width = max(map(len, fields), default=0)
    out = console()
    for name, value in fields.items():
        out.print(f"[bold]{escape(name):<{width}}[/]  {escape(_cell(value))}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        items = cast("Iterable[object]", value)
        return ", ".join(map(_cell, items)) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """Text from others without what could steer a terminal; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def short(identity: object) -> str:
    """The first characters of an id or account: enough to name it again."""
    return str(identity)[:ID_CHARS] if identity else "-"


def money(amount: object, unit: str) -> str:
    """Micro-units as people read them, exactly."""
    value = int(str(amount))
    whole, rest = divmod(abs(value), MICRO)
    return f"{'-' if value < 0 else ''}{whole:,}.{rest:06d} {printable(unit)}"


def parse_money(text: str, option: str) -> int:
    """Micro-units from `1.5` (units, at most six decimals) or `1500u` (micro-units). Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,19})u|(\d{1,13})(?:\.(\d{1,6}))?", text, re.ASCII)
    if match is None:
        what = f"{option}: {text[:40]!r} is no amount"
        raise UsageError(f"{what}; write units such as 1.5 (at most 6 decimals) or micro-units such as 1500u")
    micro, whole, rest = match.groups()
    value = int(micro) if micro else int(whole) * MICRO + int((rest or "").ljust(6, "0"))
    if value > MAX_AMOUNT:
        raise UsageError(f"{option}: {text[:40]} is more than there can be")
    return value


def read_text(words: Sequence[str], *, chars_max: int = 1 << 20) -> str:
    """A text given as words, or on standard input where the only word is `-`."""
    text = sys.stdin.read(chars_max + 1) if list(words) == ["-"] else " ".join(words)
    if not text.strip():
        raise UsageError("there is no question; write one, or - to read it from standard input")
    if len(text) > chars_max:
        raise LocalError(f"the text exceeds {chars_max} characters; shorten it")
    return text
