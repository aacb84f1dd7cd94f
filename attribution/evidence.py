"""The evidence of an answer: what any peer needs to recompute a receipt's weights, without model or torch.

It names the n-grams of answer and prompt by their hashes. The worker publishes it as a blob and names it in
the receipt; whoever holds the manifest and its tables gets the same weights or catches the worker. That the
n-grams are those of the answer is for an auditor to check, who is shown the answer itself (`collect` again,
and compare).

Hashes of short phrases can be guessed: an evidence blob tells a determined reader much of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, cast, final

import numpy as np

from attribution.limits import EVIDENCE_BYTES_MAX, EVIDENCE_NGRAMS_MAX
from attribution.overlap import cluster_scores
from attribution.tables import Tables
from attribution.text import ngrams, words
from attribution.weights import weigh
from gossip_ledger.codec import Schema, Table, octets, octets_up_to
from gossip_ledger.errors import DecodeError, RemoteError
from gossip_ledger.records import Manifest, ModelId, Receipt, Weight
from gossip_ledger.signing import blob_id, model_id

_NAME_BYTES: Final = 8


class EvidenceError(RemoteError):
    """A receipt's weights are not those that its evidence leads to."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the weights of one answer are computed from."""

    model: ModelId
    output_commit: bytes
    """The bill's; orders ties and binds the evidence to its receipt."""
    ngrams: bytes
    """The names of the different n-grams, 8 bytes each, big-endian, ascending."""

    def __post_init__(self) -> None:
        if len(self.ngrams) % _NAME_BYTES:
            raise ValueError("n-grams must be whole")
        names = np.frombuffer(self.ngrams, dtype=">u8")
        if len(names) and not bool((names[1:] > names[:-1]).all()):
            raise ValueError("n-grams must ascend")

    def names(self) -> list[int]:
        """The n-grams' names."""
        return np.frombuffer(self.ngrams, dtype=">u8").tolist()


EVIDENCE: Final = Schema(
    Table(
        82,
        Evidence,
        (
            ("model", octets(32)),
            ("output_commit", octets(32)),
            ("ngrams", octets_up_to(EVIDENCE_NGRAMS_MAX * _NAME_BYTES)),
        ),
    ),
    bytes_max=EVIDENCE_BYTES_MAX,
)
"""Evidence as a blob."""


def collect(model: ModelId, output_commit: bytes, prompt: bytes, answer: bytes) -> Evidence:
    """The evidence of one answer: its n-grams, then the prompt's, up to `EVIDENCE_NGRAMS_MAX` different
    ones.
    """
    found: set[int] = set()
    for name in chain(_names(answer), _names(prompt)):
        if len(found) == EVIDENCE_NGRAMS_MAX:
            break
        found.add(name)
    packed = np.array(sorted(found), dtype=np.uint64).astype(">u8").tobytes()
    return Evidence(model=model, output_commit=output_commit, ngrams=packed)


def _names(text: bytes) -> Iterator[int]:
    return ngrams(words(text))


def recompute(manifest: Manifest, tables: Tables | None, evidence: Evidence) -> tuple[Weight, ...]:
    """The weights that the evidence leads to; empty where the priors decide.

    Raises `DecodeError` where the tables are not over the manifest's clusters.
    """
    if tables is None:
        return ()
    if tables.clusters != len(manifest.clusters):
        raise DecodeError("the tables are not over the manifest's clusters")
    names = [cluster.name for cluster in manifest.clusters]
    return weigh(
        cluster_scores(tables, evidence.names()), names, evidence.output_commit, masses=tables.masses
    )


def confirm(receipt: Receipt, manifest: Manifest, tables: Tables | None, blob: bytes) -> None:
    """Checks a receipt's weights against its evidence blob. Raises `EvidenceError` or `DecodeError`."""
    if blob_id(blob) != receipt.sketch:
        raise EvidenceError("the evidence is not the blob that the receipt names")
    evidence = cast("Evidence", EVIDENCE.decode(blob))
    if receipt.bill.model != evidence.model or model_id(manifest) != evidence.model:
        raise EvidenceError("the evidence is of another model")
    if receipt.bill.output_commit != evidence.output_commit:
        raise EvidenceError("the evidence is of another answer")
    if recompute(manifest, tables, evidence) != receipt.evidence:
        raise EvidenceError("the receipt's weights are not those that its evidence leads to")
