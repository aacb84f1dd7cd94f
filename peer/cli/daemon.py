"""`upkeep up`, and the commands about the daemon that runs."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    connect,
    console,
    home_of,
    money,
    print_fields,
    print_json,
    print_table,
    printable,
    short,
)
from peer.cli.usage import UsageError
from peer.limits import STOP_WAIT_S_MAX

POLL_S: Final = 0.1


def up(
    worker: Annotated[
        bool | None, typer.Option("--worker/--no-worker", help="Serve models for money.", show_default=False)
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="bf16, nf4, int8 or fp32.")] = None,
    price_in: Annotated[int | None, typer.Option(help="Micro-units per 1,000 prompt tokens.")] = None,
    price_out: Annotated[int | None, typer.Option(help="Micro-units per 1,000 answer tokens.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the engine; 0: all.")] = None,
    max_slots: Annotated[int | None, typer.Option(help="Answers generated at the same time.")] = None,
    base: Annotated[str | None, typer.Option(help="Folder of the base model.")] = None,
    bind: Annotated[str | None, typer.Option(help="The gateway's host:port.")] = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="Multiaddress to listen on; may be given again.")
    ] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Multiaddress to dial first; may be given again.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run this node until it is told to stop. Options override config.toml for this run."""
    from peer.config import load_config, override

    where = home_of(home)
    if not where.key.exists():
        raise LocalError(
            f"{where.path} is no home yet; run `upkeep init INVITE` first, or name another --home"
        )
    given = {
        "worker.enabled": worker,
        "worker.quantization": quantization,
        "worker.price_in": price_in,
        "worker.price_out": price_out,
        "worker.threads": threads,
        "worker.max_slots": max_slots,
        "worker.base": base,
        "gateway.bind": bind,
        "peer.listen": listen,
        "peer.bootstrap": bootstrap,
    }
    stored = load_config(where)
    try:
        config = override(stored, {key: value for key, value in given.items() if value is not None})
    except LocalError as error:
        raise UsageError(str(error)) from error
    if config.worker.enabled:
        from peer.cli.training import require_torch

        require_torch("serve models")
    import trio

    from peer.daemon import run_daemon
    from peer.logs import configure_logs

    configure_logs(where, stderr_level="info" if verbose else "error")
    announce = partial(_announce, where.path, as_json)
    trio.run(partial(run_daemon, where, config, announce=announce), strict_exception_groups=True)


def _announce(path: Path, as_json: bool, url: str, page_path: str) -> None:
    if as_json:
        print_json({"gateway": url, "page": url + page_path, "pid": os.getpid(), "home": str(path)})
    else:
        print_fields(
            {"running": f"{path} (process {os.getpid()})", "page": url + page_path, "OpenAI API": url + "/v1"}
        )
        console().print("stop it with Ctrl-C or `upkeep stop`", markup=False)
    sys.stdout.flush()


def page(
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an address that opens the page once."""
    with connect(home) as client:
        url = client.url + str(client.post("/api/page", {})["path"])
    if browser:
        import webbrowser

        webbrowser.open(url)
    if as_json:
        print_json({"page": url})
    else:
        console().print(url, markup=False, soft_wrap=True)


def stop(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop the daemon, and wait until it has ended."""
    where = home_of(home)
    with connect(where.path) as client:
        client.post("/api/stop", {})
        pid = client.pid
    for _ in range(round(STOP_WAIT_S_MAX / POLL_S)):
        if not _is_alive(pid):
            break
        time.sleep(POLL_S)
    else:
        raise LocalError(
            f"process {pid} has not ended after {STOP_WAIT_S_MAX} s; see its log in {where.logs}"
        )
    if as_json:
        print_json({"stopped": True, "pid": pid})
    else:
        console().print(f"stopped process {pid}", markup=False)


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """This node: account, network, links, ledger, worker."""
    with connect(home) as client:
        found = client.get("/api/status")
    if as_json:
        print_json(found)
        return
    unit = str(found.get("unit", ""))
    books: dict[str, Any] = found.get("ledger") or {}
    worker: dict[str, Any] | None = found.get("worker")
    fields: dict[str, object] = {
        "account": found.get("account"),
        "network": f"{found.get('network_name')} {short(found.get('network'))}, epoch {found.get('epoch')}",
        "spendable": money(found.get("spendable", 0), unit),
        "links": found.get("links"),
        "synced": found.get("is_synced"),
        "witness": found.get("is_witness"),
        "records": f"{books.get('records', 0)}, of which {books.get('final', 0)} final",
        "root": books.get("root"),
        "worker": "no",
        "software": found.get("software"),
        "page": "`upkeep page` prints its address",
    }
    if worker:
        models = ", ".join(worker.get("models") or ["nothing loaded yet"])
        fields["worker"] = f"{worker['quantization']} on {worker['device']}: {models}"
    if books.get("alarms"):
        fields["alarms"] = books["alarms"]
    print_fields(fields)


def peers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The peers that this node is linked to."""
    with connect(home) as client:
        found = client.get("/api/peers")
    if as_json:
        print_json(found)
        return
    rows = [
        (short(link["account"]), link.get("name"), link["direction"], link["round_trip_ms"], link["address"])
        for link in found["peers"]
    ]
    empty = "no peer is linked; `upkeep doctor` says why"
    print_table("peers", ("account", "name", "direction", "ms", "address"), rows, empty=empty)


def workers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The workers that advertise now."""
    with connect(home) as client:
        found = client.get("/api/workers")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            short(one.get("account")),
            one.get("quantization"),
            f"{one.get('running', 0)}+{one.get('waiting', 0)}/{one.get('slots', '?')}",
            one.get("tokens_per_s"),
            f"{one.get('price_in')}u",
            f"{one.get('price_out')}u",
            one.get("models") or "",
        )
        for one in found["workers"]
    ]
    columns = ("account", "quantization", "load", "tokens/s", "in/1k", "out/1k", "models")
    print_table("workers", columns, rows, empty="no worker advertises now; ask again in a few seconds")


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check this node and say in plain words what is wrong and what to do."""
    from peer.doctor import examine

    findings = examine(home_of(home))
    problems = [finding for finding in findings if not finding.is_fine]
    if as_json:
        checks = [{"check": f.what, "is_fine": f.is_fine, "finding": f.finding} for f in findings]
        print_json({"is_fine": not problems, "checks": checks})
    else:
        for finding in findings:
            mark = "[green]ok[/]     " if finding.is_fine else "[red]problem[/]"
            console().print(f"{mark} [bold]{finding.what:<14}[/]", end=" ")
            console().print(printable(finding.finding), markup=False)
    if problems:
        raise LocalError(f"{len(problems)} of {len(findings)} checks found a problem; see above")


def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    from peer.version import VERSION

    if as_json:
        print_json({"version": VERSION, "python": sys.version.split()[0]})
    else:
        console().print(f"upkeep {VERSION}", markup=False)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except OSError:
        return _takes_signals(pid)


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
