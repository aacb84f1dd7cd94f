"""What the demo shows a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from peer.demo import plan
from peer.demo.daemons import Daemon
from peer.demo.plan import Question
from peer.demo.stage import Stage

MICRO: Final = 1_000_000


def money(amount: int) -> str:
    """Micro-units for people: exact, in units."""
    return f"{amount // MICRO}.{amount % MICRO:06d}"


def step(console: Console, what: str, folder: Path | None = None) -> None:
    """The next thing that happens."""
    console.print(f"[bold]»[/bold] {what}" + (f" [dim]({folder})[/dim]" if folder else ""))


def ready(console: Console, daemon: Daemon) -> None:
    """A peer answers."""
    console.print(f"  [green]✓[/green] {daemon.name} [dim]pid {daemon.pid}, {daemon.url}[/dim]")


def question(console: Console, asked: Question) -> None:
    """What is asked now."""
    console.print(f"\n[bold cyan]? {asked.model}:[/bold cyan] {asked.text}")


def delta(console: Console, text: str) -> None:
    """More of the answer."""
    console.print(text, end="", markup=False, highlight=False)


def killed(console: Console, name: str) -> None:
    """A worker was killed in the middle of an answer."""
    console.print(f"\n  [bold red]✗ kill -9 {name}[/bold red]")


def failed_over(console: Console, note: dict[str, Any], names: dict[str, str]) -> None:
    """The answer goes on elsewhere."""
    lost = names.get(str(note["worker"]), str(note["worker"])[:8])
    console.print(
        f"  [yellow]↻ {lost} was lost after {note['tokens_delivered']} delivered tokens; the answer goes on "
        "elsewhere, and those tokens stay paid once[/yellow]"
    )


def restarting(console: Console, name: str) -> None:
    """The killed worker comes back."""
    console.print(f"  [yellow]↻ starting {name} again; its last signed bill becomes a receipt[/yellow]")


def answered(console: Console, answer: dict[str, Any], names: dict[str, str]) -> None:
    """The answer's costs and who gets them."""
    workers = ", ".join(names.get(str(worker), str(worker)[:8]) for worker in answer["workers"])
    console.print()
    console.print(
        f"  [dim]{answer['tokens_in']} tokens in, {answer['tokens_out']} out, by {workers} "
        f"({answer['quantization']}), first token after {answer['ttft_ms']} ms, "
        f"{answer['tokens_per_s']} tokens/s[/dim]"
    )
    if answer["failovers"]:
        console.print(
            f"  [dim]{answer['failovers']} failover: every delivered token is billed once; the continuation "
            "bills its prefix as input[/dim]"
        )
    if not answer["shares"]:
        console.print(f"  fee {money(answer['fee'])}; the split follows with the lost worker's receipt")
        return
    _shares(console, answer, names)


def _shares(console: Console, answer: dict[str, Any], names: dict[str, str]) -> None:
    table = Table(box=None, padding=(0, 2), show_header=False)
    for share in answer["shares"]:
        if share["amount"]:
            name = (
                share["name"]
                if share["role"] in ("data", "upkeep")
                else names.get(share["account"], share["name"])
            )
            table.add_row(f"  {share['role']}", name, money(share["amount"]))
    console.print(f"  fee [bold]{money(answer['fee'])}[/bold], paid to")
    console.print(table)


def outcome(console: Console, document: dict[str, Any], names: dict[str, str], stage: Stage) -> None:
    """Payouts, roots and whether everything adds up."""
    console.print()
    late = [answer for answer in document["answers"] if answer["killed"]]
    for answer in late:
        console.print(f"[bold]The answer that lost {answer['killed']}[/bold], with both receipts:")
        _shares(console, answer, names)
    shares = [share for answer in document["answers"] for share in answer["shares"]]
    funds = {f"fund:{share['account']}": share["name"] for share in shares if share["role"] == "upkeep"}
    table = Table(title="Paid by final receipts", title_justify="left")
    table.add_column("who")
    table.add_column("micro-units", justify="right")
    for account, amount in sorted(document["payouts"].items(), key=lambda pair: -pair[1]):
        shown = names.get(account) or funds.get(account, account[:8])
        table.add_row(shown, f"{amount:,}")
    table.add_row("[bold]sum[/bold]", f"[bold]{sum(document['payouts'].values()):,}[/bold]")
    table.add_row("fees", f"{document['fees']:,}")
    console.print(table)
    roots = Table(title="State roots", title_justify="left")
    roots.add_column("peer")
    roots.add_column("root")
    for name, root in document["roots"].items():
        roots.add_row(name, root[:32] + "…")
    console.print(roots)
    mark = "[green]✓[/green]" if document["is_consistent"] else "[red]✗[/red]"
    console.print(
        f"{mark} equal roots on {len(stage.daemons)} peers, payouts equal fees, supply conserved: "
        f"{document['is_consistent']}; receipts final within {document['final_s']} s (p95); "
        f"{document['duration_s']} s in all"
    )


def kept(console: Console, stage: Stage) -> None:
    """How to go on with the running network."""
    reader = stage[plan.READER]
    console.print(f"\nThe network keeps running. Gateway: {reader.url}")
    console.print(f"  export UPKEEP_HOME={reader.home.path}")
    console.print('  upkeep ask "What is a peer-to-peer network?" --model smollm2')
    console.print(f"Stop it with: pkill -f {stage.folder}")
