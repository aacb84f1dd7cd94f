"""`upkeep ledger ...` and `upkeep send`: money, receipts, and who earned what."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import (
    HomeOption,
    JsonOption,
    connect,
    console,
    home_of,
    money,
    notes,
    parse_money,
    print_fields,
    print_json,
    print_table,
    printable,
    short,
)
from peer.cli.usage import UsageError

if TYPE_CHECKING:
    from peer.client import DaemonClient

AccountArgument = Annotated[
    str, typer.Argument(help="Account in hex, or its beginning. [default: this node's]", show_default=False)
]


def balance(account: AccountArgument = "", home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Each amount of an account, and whether it is final, pending, reserved or unvested."""
    with connect(home) as client:
        found = client.get("/api/ledger/balance", account=account or None)
    if as_json:
        print_json(found)
        return
    _print_balance(found)


def receipts(
    account: AccountArgument = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest receipts."""
    with connect(home) as client:
        found = client.get("/api/ledger/receipts", account=account or None, limit=limit)
        if as_json:
            print_json(found)
            return
        unit = _unit(client)
    _print_receipts(found["receipts"], unit)


def payouts(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What everybody earned from final receipts; adds up to the fees."""
    with connect(home) as client:
        found = client.get("/api/ledger/payouts")
        if as_json:
            print_json(found)
            return
        unit = _unit(client)
    names = found.get("names", {})
    rows: list[tuple[object, ...]] = [
        (names.get(account) or "", short(account), money(amount, unit))
        for account, amount in sorted(found["accounts"].items(), key=lambda item: -item[1])
    ]
    rows += [("upkeep fund", short(model), money(amount, unit)) for model, amount in found["funds"].items()]
    empty = "nobody has earned anything yet: no receipt is final"
    print_table("payouts", ("who", "account or model", "earned"), rows, empty=empty)
    verdict = "add up to the fees" if found.get("sums_to_fees", True) else "DO NOT add up to the fees"
    console().print(
        f"fees {money(found['fees'], unit)} in {found.get('receipts', 0)} receipts; payouts {verdict}"
    )


def root(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The state root: equal on every peer that holds the same records."""
    with connect(home) as client:
        found = client.get("/api/ledger/root")
    if as_json:
        print_json(found)
        return
    print_fields(found)


def explain(
    subject: Annotated[str, typer.Argument(help="An account, a receipt or a model.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Why a balance, receipt or model is what it is, down to receipts and integers."""
    with connect(home) as client:
        wanted = subject or str(client.get("/api/status")["account"])
        found = client.get("/api/ledger/explain", subject=wanted)
        if as_json:
            print_json(found)
            return
        unit = _unit(client)
    match found.get("kind"):
        case "account":
            _print_balance(found)
            earned = [
                (line["model"], line["role"], money(line["amount"], unit)) for line in found["earned_from"]
            ]
            print_table("earned from", ("model", "as", "amount"), earned, empty=found["why"])
            _print_receipts(found["receipts"], unit)
        case "receipt":
            _print_receipt(found, unit)
        case _:
            _print_model(found, unit)


def confirm(
    receipt: Annotated[str, typer.Argument(help="A receipt's id, or its beginning.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute who shaped an answer from its evidence, here and now."""
    with connect(home) as client:
        found = client.get("/api/ledger/confirm", receipt=receipt)
    if as_json:
        print_json(found)
    elif found["is_confirmed"]:
        console().print(f"receipt {short(found['receipt'])}: {printable(str(found['reason']))}", markup=False)
    if not found["is_confirmed"]:
        raise LocalError(f"receipt {short(found['receipt'])} is not confirmed: {found['reason']}")


def verify(
    file: Annotated[
        Path | None, typer.Argument(help="A file made by `ledger export`; else this home.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every signature and recompute the state from the records alone; no daemon is needed."""
    from peer.networks import read_genesis
    from peer.recheck import recheck_file, recheck_store
    from peer.store import open_store_to_read

    where = home_of(home)
    if file is not None:
        result = recheck_file(file.expanduser())
    else:
        store = open_store_to_read(where.store)
        try:
            result = recheck_store(store, read_genesis(where))
        finally:
            store.close()
    if as_json:
        print_json(asdict(result))
    else:
        print_fields(asdict(result))
    if not result.is_conserved or result.alarms:
        raise LocalError("the records do not add up; keep a copy of them and tell the network's operators")


def export(
    file: Annotated[Path, typer.Argument(help="The file to make.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write every record and manifest to one file that anybody can verify."""
    from peer.networks import read_genesis
    from peer.recheck import export_lines
    from peer.store import open_store_to_read

    where, target = home_of(home), file.expanduser().absolute()
    if target.exists():
        raise LocalError(f"{target} exists and is kept; choose another name")
    store = open_store_to_read(where.store)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    count = 0
    try:
        with temporary.open("x", encoding="ascii") as out:
            for line in export_lines(store, read_genesis(where)):
                out.write(line + "\n")
                count += 1
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(target)
    except OSError as error:
        raise LocalError(f"cannot write {target}: {error.strerror}") from error
    finally:
        store.close()
        temporary.unlink(missing_ok=True)
    if as_json:
        print_json({"file": str(target), "lines": count})
        return
    print_fields({"file": target, "lines": count, "verify": f"upkeep ledger verify {target}"})


def send(
    to: Annotated[str, typer.Argument(help="The account that gets it: 64 hex digits.")],
    amount: Annotated[str, typer.Argument(help="How much: 1.5 units or 1500u micro-units.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send money from this node's account."""
    if not re.fullmatch(r"[0-9a-f]{64}", to, re.ASCII):
        raise UsageError("an account is 64 hex digits; `upkeep status` prints this node's")
    value = parse_money(amount, "AMOUNT")
    if value == 0:
        raise UsageError("AMOUNT: nothing is sent; name an amount above zero")
    with connect(home) as client:
        found = client.post("/api/send", {"to": to, "amount": value})
        if as_json:
            print_json(found)
            return
        unit = _unit(client)
    console().print(f"sent {money(value, unit)} to {short(to)}; {found.get('standing', 'pending')}")


def _unit(client: DaemonClient) -> str:
    return str(client.get("/api/status").get("unit", ""))


def _print_balance(found: dict[str, Any]) -> None:
    unit = str(found.get("unit", ""))
    name = printable(str(found.get("name") or ""))
    console().print(f"account {found['account']} {name}", markup=False)
    rows = [
        (line["what"], money(line["amount"], unit), line["standing"]) for line in found.get("amounts", ())
    ]
    print_table("balance", ("what", "amount", "standing"), rows, empty="this account holds nothing")
    if found.get("is_frozen"):
        notes().print("upkeep: this account signed two records for one place and is frozen", markup=False)


def _print_receipts(found: list[dict[str, Any]], unit: str) -> None:
    rows = [
        (
            short(line["id"]),
            line["model"],
            line["tokens_in"],
            line["tokens_out"],
            money(line["fee"], unit),
            line["standing"],
            short(line["worker"]),
        )
        for line in found
    ]
    columns = ("receipt", "model", "in", "out", "fee", "standing", "worker")
    print_table("receipts", columns, rows, empty="no receipt yet: nothing was asked")


def _print_receipt(found: dict[str, Any], unit: str) -> None:
    print_fields(
        {
            "receipt": found["id"],
            "standing": f"{found['standing']}, {found['acks']} of {found['quorum']} witnesses",
            "model": found["model"],
            "payer": found["payer"],
            "worker": found["worker"],
            "tokens": f"{found['tokens_in']} in, {found['tokens_out']} out, {found['answers']} answers",
            "fee": money(found["fee"], unit),
            "divided by": "the answer's overlap with the shards"
            if found["evidence"]
            else "the manifest's priors",
        }
    )
    rows = [
        (part["role"], part["name"], short(part["account"]), money(part["amount"], unit))
        for part in found["shares"]
    ]
    print_table(
        "shares", ("role", "who", "account", "amount"), rows, empty="the model's manifest is not here yet"
    )


def _print_model(found: dict[str, Any], unit: str) -> None:
    shown = {name: found[name] for name in ("name", "version", "id", "creator", "standing", "licence", "why")}
    split = ", ".join(f"{role} {part / 100:g} %" for role, part in found["split"].items())
    print_fields(
        {**shown, "split": split, "fees": money(found["fees"], unit), "fund": money(found["fund"], unit)}
    )
