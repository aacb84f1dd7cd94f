"""`upkeep doctor`: what a person would check, one after the other, each with what to do about it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

import trio

from gossip_ledger.errors import LocalError, UpkeepError
from peer.client import DaemonClient
from peer.config import Home, load_config
from peer.keys import read_account
from peer.networks import read_genesis, read_invite
from peer.store import open_store_to_read

DISK_FREE_BYTES_MIN: Final = 1 << 30


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    what: str
    is_fine: bool
    finding: str


def examine(home: Home) -> list[Finding]:
    """Every check, in an order in which the first problem explains the later ones."""
    checks: tuple[tuple[str, Callable[[Home], str]], ...] = (
        ("home", _home),
        ("key", _key),
        ("configuration", _config),
        ("genesis", _genesis),
        ("invite", _invite),
        ("disk", _disk),
        ("store", _store),
        ("worker", _worker),
    )
    findings = [_run(what, check, home) for what, check in checks]
    return findings + _daemon(home)


def _run(what: str, check: Callable[[Home], str], home: Home) -> Finding:
    try:
        return Finding(what=what, is_fine=True, finding=check(home))
    except UpkeepError as error:
        return Finding(what=what, is_fine=False, finding=str(error))


def _home(home: Home) -> str:
    if not home.path.is_dir():
        raise LocalError(f"{home.path} is no folder; run `upkeep init INVITE`, or name another --home")
    return str(home.path)


def _key(home: Home) -> str:
    return f"account {read_account(home).hex()}"


def _config(home: Home) -> str:
    config = load_config(home)
    listens = ", ".join(config.peer.listen) or "nowhere: this node only dials out"
    return f"listens on {listens}; dials {len(config.peer.bootstrap)} addresses first"


def _genesis(home: Home) -> str:
    genesis = read_genesis(home)
    return f"network {genesis.name}, {len(genesis.witnesses)} witnesses, quorum {genesis.quorum}"


def _invite(home: Home) -> str:
    invite = read_invite(home)
    if invite is None:
        return "none kept here: fine for a home that a network was made with"
    return f"names {len(invite.addresses)} addresses and a grant of {invite.grant_amount} micro-units"


def _disk(home: Home) -> str:
    try:
        free = shutil.disk_usage(home.path).free
    except OSError as error:
        raise LocalError(f"cannot tell the free space: {error.strerror}") from error
    if free < DISK_FREE_BYTES_MIN:
        raise LocalError(f"only {free >> 20} MiB are free; a node should have 1 GiB. Free some space")
    return f"{free >> 30} GiB free"


def _store(home: Home) -> str:
    if not home.store.exists():
        return "none yet: `upkeep up` makes it"
    store = open_store_to_read(home.store)
    try:
        trio.run(store.integrity)
        count = sum(1 for _ in store.read_records())
    finally:
        store.close()
    return f"{count} records, undamaged"


def _worker(home: Home) -> str:
    has_torch = importlib.util.find_spec("torch") is not None
    if load_config(home).worker.enabled and not has_torch:
        raise LocalError("configured to serve, but there is no torch; run: pip install 'upkeep[worker]'")
    return "can serve and train" if has_torch else "asks only: no torch here, which is fine"


def _daemon(home: Home) -> list[Finding]:
    try:
        with DaemonClient(home) as client:
            status = client.get("/api/status")
            workers: list[Any] = client.get("/api/workers")["workers"]
    except UpkeepError as error:
        return [Finding(what="daemon", is_fine=False, finding=str(error))]
    findings = [
        Finding(what="daemon", is_fine=True, finding=f"answers at {client.url}, process {client.pid}")
    ]
    if status.get("links"):
        findings.append(Finding(what="links", is_fine=True, finding=f"{status['links']} peers"))
    else:
        where = ", ".join(load_config(home).peer.bootstrap) or "no address at all"
        hint = "is a peer running there, and does a firewall let it through?"
        what = f"no peer is linked. It dials {where}: {hint}"
        findings.append(Finding(what="links", is_fine=False, finding=what))
    count = len(workers)
    shown = (
        f"{count} advertise" if count else "none advertises; answers need one: `upkeep up --worker` somewhere"
    )
    findings.append(Finding(what="workers", is_fine=bool(count), finding=shown))
    return findings
