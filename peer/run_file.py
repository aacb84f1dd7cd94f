"""`run.json` in a home: where the running daemon can be reached. Written when it can, removed when it ends.

A daemon that was killed leaves a stale one; whoever reads it finds nobody at the address.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, final

from gossip_ledger.errors import LocalError
from peer.config import Home
from peer.limits import RUN_FILE_BYTES_MAX


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A daemon's process and gateway."""

    pid: int
    gateway: str
    """URL without a path."""


def write_run_file(home: Home, run: RunFile) -> None:
    """Replaces the file in one step. Raises `LocalError`."""
    temporary = home.run.with_name(f".run.{os.getpid()}.new")
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii"
        ) as file:
            json.dump({"pid": run.pid, "gateway": run.gateway}, file)
        temporary.replace(home.run)
    except OSError as error:
        raise LocalError(
            f"cannot write {home.run}: {error.strerror}; check the disk and permissions"
        ) from error


def read_run_file(home: Home) -> RunFile | None:
    """The daemon that `home` last had; None where there was none or the file is not whole."""
    try:
        with home.run.open("rb") as file:
            found: Any = json.loads(file.read(RUN_FILE_BYTES_MAX))
        pid, gateway = found["pid"], found["gateway"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(pid) is not int or not isinstance(gateway, str) or not gateway.startswith("http://"):
        return None
    return RunFile(pid=pid, gateway=gateway)


def remove_run_file(home: Home, pid: int) -> None:
    """Removes the file if it is that process' own. Never fails: a stale file harms nobody."""
    found = read_run_file(home)
    if found is not None and found.pid == pid:
        try:
            home.run.unlink()
        except OSError:
            return
