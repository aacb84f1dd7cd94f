"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from peer.cli import asking, daemon, demo, ledger, making, models, planning, training, worker

app = typer.Typer(
    name="upkeep",
    help="A peer-to-peer network in which every answer pays the people who keep the model good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Amounts: 1.5 means units, 1500u micro-units. Every command takes --json, --home and --debug.",
)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Only declares what `main` handles before any command is looked for."""
    del version, debug


network = typer.Typer(help="Make a network.", no_args_is_help=True)
network.command("create")(making.create)
books = typer.Typer(help="Balances, receipts and who earned what.", no_args_is_help=True)
books.command("balance")(ledger.balance)
books.command("receipts")(ledger.receipts)
books.command("payouts")(ledger.payouts)
books.command("root")(ledger.root)
books.command("explain")(ledger.explain)
books.command("confirm")(ledger.confirm)
books.command("verify")(ledger.verify)
books.command("export")(ledger.export)
adapter = typer.Typer(help="Train, publish and look at adapters.", no_args_is_help=True)
adapter.command("train")(training.train)
adapter.command("publish")(models.publish)
adapter.command("show")(models.show)
datanet = typer.Typer(help="Look at training data and who gave it.", no_args_is_help=True)
datanet.command("show")(models.show_datanet)
work = typer.Typer(help="Plan, price, pause, drain: serving models for money.", no_args_is_help=True)
work.command("plan")(planning.plan)
work.command("price")(worker.price)
work.command("pause")(worker.pause)
work.command("resume")(worker.resume)
work.command("drain")(worker.drain)
work.command("earnings")(worker.earnings)

app.command("demo")(demo.demo)
app.add_typer(network, name="network")
app.command("init")(making.init)
app.command("up")(daemon.up)
app.command("ask")(asking.ask)
app.command("quote")(asking.quote)
app.command("status")(daemon.status)
app.command("peers")(daemon.peers)
app.command("workers")(daemon.workers)
app.command("models")(models.models)
app.add_typer(work, name="worker")
app.add_typer(books, name="ledger")
app.add_typer(adapter, name="adapter")
app.add_typer(datanet, name="datanet")
app.command("send")(ledger.send)
app.command("page")(daemon.page)
app.command("stop")(daemon.stop)
app.command("doctor")(daemon.doctor)
app.command("version")(daemon.version)
