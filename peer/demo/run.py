"""`upkeep demo`: a whole network on this machine, real questions on a real model, payouts that add up.

Five daemons: a witness, a studio that publishes, two workers (bf16 and nf4), and a reader without torch that
asks. One worker is killed in the middle of an answer and started again. In the end every peer must hold the
same state root and the payouts must add up to the fees.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console

from gossip_ledger.errors import LocalError
from peer.capabilities import SystemClock, SystemEntropy
from peer.demo import plan, report
from peer.demo.daemons import Daemon
from peer.demo.questions import Asked, ask_all
from peer.demo.stage import Stage, make_datanets, publish_models, set_stage, workers_ready

SETTLE_S_MAX: Final = 60
POLL_S: Final = 0.1


def run(*, as_json: bool, keep: bool) -> int:
    """Runs the demo and returns the exit code: 0 if everything added up. Raises `LocalError`."""
    console = Console(stderr=as_json)
    folder = Path(tempfile.mkdtemp(prefix="upkeep-demo-"))
    is_kept = False
    for ending in (signal.SIGTERM, signal.SIGHUP):
        # However the demo is ended, its peers end with it, in the way that Ctrl-C ends it.
        signal.signal(ending, _interrupt)
    try:
        document, is_kept = trio.run(_demo, folder, console, keep)
    except* trio.TooSlowError as group:
        raise LocalError(f"the demo's peers did not get ready in time; their logs are in {folder}") from group
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    return 0 if document["is_consistent"] else 1


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


async def _demo(folder: Path, console: Console, keep: bool) -> tuple[dict[str, Any], bool]:
    clock, entropy = SystemClock(), SystemEntropy()
    began_s = clock.monotonic()
    report.step(console, "making a network with five peers", folder)
    stage = set_stage(folder, clock, entropy)
    is_kept = False
    try:
        for daemon in stage.daemons.values():
            daemon.start()
        names = await trio.to_thread.run_sync(make_datanets, stage, entropy)
        for daemon in stage.daemons.values():
            await daemon.ready()
            report.ready(console, daemon)
        report.step(console, "publishing the base and its adapters")
        models = await publish_models(stage)
        report.step(console, "waiting for both workers to fetch and load them")
        await workers_ready(stage, models, count=2)
        names |= stage.names()
        asked = await ask_all(stage, console, names)
        report.step(console, "waiting until every receipt is final on every peer")
        await _settle(stage, asked)
        document = await _document(stage, asked)
        document["duration_s"] = round(clock.monotonic() - began_s, 1)
        report.outcome(console, document, document.pop("names") | names, stage)
        if keep:
            is_kept = True
            document["gateway"] = stage[plan.READER].url
            document["home"] = str(folder)
            report.kept(console, stage)
    finally:
        if not is_kept:
            await _stop_all(list(stage.daemons.values()))
    return document, is_kept


async def _settle(stage: Stage, asked: list[Asked]) -> None:
    """Returns once all answers' receipts are final everywhere and all roots are equal."""
    reader = stage[plan.READER]
    with trio.fail_after(SETTLE_S_MAX):
        for item in asked:
            while True:
                item.answer = await reader.get(f"/api/answers/{item.answer['id']}")
                if len(item.answer["receipt"]) == len(item.answer["workers"]) and await item.all_final(
                    reader
                ):
                    break
                await trio.sleep(POLL_S)
        while True:
            roots = [await daemon.get("/api/ledger/root") for daemon in stage.daemons.values()]
            if len({root["root"] for root in roots}) == 1 and not any(root["unfinished"] for root in roots):
                return
            await trio.sleep(POLL_S)


async def _document(stage: Stage, asked: list[Asked]) -> dict[str, Any]:
    """The demo's result as JSON: see README."""
    roots = {name: await daemon.get("/api/ledger/root") for name, daemon in stage.daemons.items()}
    payouts = {name: await daemon.get("/api/ledger/payouts") for name, daemon in stage.daemons.items()}
    of_reader = payouts[plan.READER]
    flat = dict(of_reader["accounts"])
    for model, amount in of_reader["funds"].items():
        flat[f"fund:{model}"] = amount
    fees = sum(item.answer["fee"] for item in asked)
    finals = sorted(second for item in asked for second in item.final_s)
    root_set = {root["root"] for root in roots.values()}
    conserved = all(root["supply_conserved"] for root in roots.values())
    return {
        "answers": [item.document() for item in asked],
        "roots": {name: root["root"] for name, root in roots.items()},
        "payouts": flat,
        "names": dict(of_reader["names"]),
        "fees": fees,
        "supply_conserved": conserved,
        "final_s": round(finals[min(len(finals) - 1, -(-95 * len(finals) // 100) - 1)], 2)
        if finals
        else None,
        "is_consistent": conserved
        and len(root_set) == 1
        and sum(flat.values()) == fees
        and all(found["accounts"] == of_reader["accounts"] for found in payouts.values()),
    }


async def _stop_all(daemons: list[Daemon]) -> None:
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            nursery.start_soon(daemon.stop)
