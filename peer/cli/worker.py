"""`upkeep worker price|pause|resume|drain|earnings`: what the running worker charges, does and earns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    connect,
    money,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from peer.client import DaemonClient

POLL_S: Final = 0.5
_PRICES: Final = (("prompt", "price_in"), ("answer", "price_out"))


def price(
    price_in: Annotated[
        int | None, typer.Option("--in", min=0, help="Micro-units per 1,000 prompt tokens.")
    ] = None,
    price_out: Annotated[
        int | None, typer.Option("--out", min=0, help="Micro-units per 1,000 answer tokens.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set what the running worker charges, at once and in config.toml. Quotes already given hold."""
    given = {
        name: value for name, value in (("price_in", price_in), ("price_out", price_out)) if value is not None
    }
    with connect(home) as client:
        found = client.post("/api/worker/price", given) if given else client.get("/api/worker")
    if as_json:
        print_json(found)
        return
    print_fields({f"{name} tokens, per 1,000": f"{found[key]}u" for name, key in _PRICES})


def pause(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take no new questions until `upkeep worker resume`; what runs goes on. A restart takes them again."""
    _stand("pause", home, as_json)


def resume(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take new questions again."""
    _stand("resume", home, as_json)


def drain(
    timeout: Annotated[int, typer.Option(min=0, help="Seconds to wait for what runs; 0: do not wait.")] = 300,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take no new questions, wait until those that run are done, and say when it is safe to stop."""
    with connect(home) as client:
        found = client.post("/api/worker/drain", {})
        found = _wait_until_safe(client, found, timeout)
    if as_json:
        print_json(found)
    else:
        _print_standing(found)
    if timeout and found["standing"] != "draining":
        raise LocalError("the worker was told to take questions again meanwhile; drain it once more")
    if timeout and not found["is_safe_to_stop"]:
        raise LocalError(
            f"{found['asks']} questions still run after {timeout} s; wait longer with --timeout, "
            "or stop anyway: what was delivered is paid, the askers go elsewhere for the rest"
        )


def earnings(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What this node earned by serving, by model: final and pending."""
    with connect(home) as client:
        found = client.get("/api/worker/earnings")
    if as_json:
        print_json(found)
        return
    unit = str(found.get("unit", ""))
    total = {**found["total"], "model": "all"}
    rows = [
        (
            row["model"],
            row["receipts"],
            row["tokens_in"],
            row["tokens_out"],
            money(row["fees"], unit),
            money(row["final"], unit),
            money(row["pending"], unit),
        )
        for row in (*found["models"], *([total] if len(found["models"]) > 1 else []))
    ]
    columns = ("model", "receipts", "in", "out", "fees paid", "earned, final", "earned, pending")
    print_table("earnings", columns, rows, empty="nothing earned yet: no receipt names this worker")


def _stand(action: str, home: Path | None, as_json: bool) -> None:
    with connect(home) as client:
        found = client.post(f"/api/worker/{action}", {})
    if as_json:
        print_json(found)
    else:
        _print_standing(found)


def _wait_until_safe(client: DaemonClient, found: dict[str, Any], timeout: int) -> dict[str, Any]:
    """The worker once it is safe to stop, or when the time is up, or when somebody resumed it."""
    for _ in range(round(timeout / POLL_S)):
        if found["is_safe_to_stop"] or found["standing"] != "draining":
            break
        time.sleep(POLL_S)
        found = client.get("/api/worker")
    return found


def _print_standing(found: dict[str, Any]) -> None:
    fields: dict[str, object] = {"worker": found["standing"], "questions running": found["asks"]}
    if found["receipts_to_write"]:
        fields["receipts to write"] = f"{found['receipts_to_write']}; their bills are on disk"
    if found["standing"] != "open":
        fields["safe to stop"] = "yes: `upkeep stop`" if found["is_safe_to_stop"] else "not yet"
    print_fields(fields)
