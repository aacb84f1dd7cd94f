"""The models this node knows: names to ids, and what an id needs on disk or in memory.

A name is a pointer kept in its creator's chain: the newest `publish` of that name by that creator. Receipts
and requests carry ids only, so a name that moves changes nothing that was agreed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from gossip_ledger.ledger import Ledger
from gossip_ledger.records import AccountId, Manifest, ModelId
from peer.api import ErrorCode, RequestError

PREFIX_CHARS_MIN = 6
"""Shortest prefix of an id or account that counts as one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model as its creator's chain names it."""

    model: ModelId
    manifest: Manifest
    is_final: bool


def published(ledger: Ledger) -> tuple[Published, ...]:
    """Every published model whose manifest is held, oldest first within a creator's chain."""
    found: list[Published] = []
    for publication in ledger.publishes():
        manifest = ledger.manifest(publication.model)
        if manifest is not None and manifest.creator == publication.author:
            found.append(Published(model=publication.model, manifest=manifest, is_final=publication.is_final))
    return tuple(found)


def newest(models: Iterable[Published]) -> dict[tuple[AccountId, str], Published]:
    """The newest version of each creator's name: a later `publish` in one chain replaces an earlier one."""
    return {(entry.manifest.creator, entry.manifest.name): entry for entry in models}


def resolve(ledger: Ledger, name: str) -> tuple[ModelId, Manifest]:
    """The model that a person means by `name`, `creator/name`, `name@version` or an id in hex.

    Raises `RequestError` (unknown, or ambiguous with the ways to say it).
    """
    wanted, _, version = name.partition("@")
    owner, _, short = wanted.rpartition("/")
    models = published(ledger)
    pool = list(models) if version else list(newest(models).values())
    matches = [
        entry
        for entry in pool
        if entry.manifest.name == short
        and entry.manifest.creator.hex().startswith(owner)
        and (not version or str(entry.manifest.version) == version)
    ]
    if not matches and len(wanted) >= PREFIX_CHARS_MIN:
        matches = [entry for entry in models if entry.model.hex().startswith(wanted.lower())]
    distinct = {entry.model: entry for entry in matches}
    if len(distinct) == 1:
        (entry,) = distinct.values()
        return entry.model, entry.manifest
    if distinct:
        ways = ", ".join(sorted(f"{e.manifest.creator.hex()[:8]}/{short}" for e in distinct.values()))
        raise RequestError(ErrorCode.UNKNOWN_MODEL, f"several models are called {name}; say which: {ways}")
    known = ", ".join(sorted({entry.manifest.name for entry in models})) or "none yet"
    raise RequestError(ErrorCode.UNKNOWN_MODEL, f"no model is called {name}; known here: {known}")


def base_manifest(ledger: Ledger, base: bytes) -> Manifest | None:
    """A published manifest of the bare base with this identity: it carries tokenizer and template."""
    for entry in published(ledger):
        if entry.manifest.kind == "base" and entry.manifest.base == base:
            return entry.manifest
    return None


def matching_account(accounts: Iterable[AccountId], prefix: str) -> AccountId:
    """The one account whose hex starts with `prefix`. Raises `RequestError`."""
    found = {account for account in accounts if account.hex().startswith(prefix.lower())}
    if len(found) != 1:
        problem = "no account" if not found else f"{len(found)} accounts"
        raise RequestError(ErrorCode.NOT_FOUND, f"{problem} known here start with {prefix}; give more of it")
    return found.pop()
