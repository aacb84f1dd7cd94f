"""Salted commitments to prompt and answer: what a bill says about text that it does not show.

`SHA-256("upkeep/1/<kind>" || salt || tokens)`, each token as four big-endian bytes. The salt is drawn by the
payer and known to both sides; whoever is shown salt and tokens can check the bill, and nobody else can guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from struct import pack

from p2p.protocols.limits import SALT_BYTES


def prompt_commitment(salt: bytes, ids: Sequence[int]) -> bytes:
    """The `prompt_commit` of a bill, 32 bytes."""
    return _commit(b"upkeep/1/prompt", salt, ids)


def output_commitment(salt: bytes, ids: Sequence[int]) -> bytes:
    """The `output_commit` of a bill over the tokens billed so far, 32 bytes."""
    return _commit(b"upkeep/1/output", salt, ids)


def _commit(kind: bytes, salt: bytes, ids: Sequence[int]) -> bytes:
    assert len(salt) == SALT_BYTES
    return hashlib.sha256(kind + salt + pack(f">{len(ids)}I", *ids)).digest()
