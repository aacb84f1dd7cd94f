"""The repository as the tidy tests see it: its text files, and its modules as syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("attribution", "gossip_ledger", "gpu_worker", "p2p", "peer")
PURE = ("attribution", "gossip_ledger", "p2p/protocols")
PYTHON_SCRIPT = b"#!/usr/bin/env python3"


def expect_none(offences: Iterable[str]) -> None:
    """Fails with one line for each offence."""
    lines = list(offences)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} to mend:", *lines]), pytrace=False)


def name_of(path: Path) -> str:
    """The path from the root of the repository, as messages show it."""
    return path.relative_to(ROOT).as_posix()


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is in the repository or about to be: tracked, or new and not ignored."""
    command = ("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode().split("\0")
    return tuple(sorted(ROOT / name for name in listed if name and (ROOT / name).is_file()))


@cache
def texts() -> dict[Path, str]:
    """The files that are UTF-8 text."""
    found: dict[Path, str] = {}
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        try:
            found[path] = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return found


@cache
def python_files() -> dict[Path, ast.Module]:
    """Every Python file of the repository, also scripts without a suffix, parsed."""
    return {
        path: ast.parse(source, filename=name_of(path))
        for path, source in texts().items()
        if path.suffix == ".py" or source.encode().startswith(PYTHON_SCRIPT)
    }


def modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The Python files below `folders`, for example `p2p/protocols`."""
    wanted = tuple(f"{folder}/" for folder in folders)
    for path, tree in python_files().items():
        if name_of(path).startswith(wanted):
            yield path, tree


def dotted(node: ast.expr) -> str:
    """`a.b.c` for an attribute chain, the name for a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
