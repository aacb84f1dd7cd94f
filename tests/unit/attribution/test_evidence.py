"""Evidence: the same weights for everybody who recomputes, and no others accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attribution.evidence import EVIDENCE, Evidence, EvidenceError, collect, confirm, recompute
from attribution.limits import EVIDENCE_BYTES_MAX, EVIDENCE_NGRAMS_MAX, WEIGHT_TOTAL
from attribution.tables import Tables, build_tables
from attribution.text import ngrams, words
from gossip_ledger.errors import DecodeError
from gossip_ledger.records import (
    AccountId,
    Bill,
    Cluster,
    ClusterId,
    Manifest,
    ModelId,
    Receipt,
    RecordId,
    Split,
    Weight,
)
from gossip_ledger.signing import blob_id, model_id

TEXTS = (
    b"Four score and seven years ago our fathers brought forth on this continent a new nation",
    b"When shall we three meet again in thunder lightning or in rain when the battle is lost and won",
    b"The product does not neutralize special elements used in a command before it is sent downstream",
)
COMMIT = b"c" * 32


def manifest(clusters: int = 3) -> Manifest:
    return Manifest(
        creator=AccountId(b"m" * 32),
        name="sample",
        version=1,
        kind="adapter",
        base=b"b" * 32,
        split=Split(worker=5000, creator=1500, data=2500, upkeep=500, network=500),
        clusters=tuple(
            Cluster(
                name=ClusterId(bytes([number]) * 32),
                owner=AccountId(bytes([100 + number]) * 32),
                prior=1,
                label=f"contributor {number}",
            )
            for number in range(clusters)
        ),
        files=(),
        tables=(),
        datanet=b"",
        licence="public domain",
        about="{}",
    )


def tables() -> Tables:
    return Tables(build_tables([[text] for text in TEXTS]))


def answered(answer: bytes, prompt: bytes = b"") -> Evidence:
    return collect(model_id(manifest()), COMMIT, prompt, answer)


def receipt(evidence: Evidence, weights: tuple[Weight, ...]) -> Receipt:
    bill = Bill(
        payer=AccountId(b"p" * 32),
        open=RecordId(b"o" * 32),
        ask=1,
        model=model_id(manifest()),
        quote=RecordId(b"q" * 32),
        answers=1,
        tokens_in=10,
        tokens_out=10,
        fee=100,
        epoch=1,
        prompt_commit=b"i" * 32,
        output_commit=COMMIT,
    )
    return Receipt(
        worker=AccountId(b"w" * 32),
        n=1,
        prev=RecordId(b"o" * 32),
        cumulative=100,
        bill=bill,
        evidence=weights,
        sketch=blob_id(EVIDENCE.encode(evidence)),
    )


def test_an_answer_in_ones_words_pays_one() -> None:
    for number, text in enumerate(TEXTS):
        (weight,) = recompute(manifest(), tables(), answered(b"Well: " + text.upper()))
        assert weight == Weight(cluster=ClusterId(bytes([number]) * 32), weight=WEIGHT_TOTAL)


def test_an_answer_in_nobodys_words_pays_by_priors() -> None:
    assert recompute(manifest(), tables(), answered(b"A cat sat on the mat and had a hat.")) == ()
    assert recompute(manifest(), None, answered(TEXTS[0])) == ()


def test_the_prompt_counts_too() -> None:
    (weight,) = recompute(manifest(), tables(), answered(b"Yes.", prompt=TEXTS[1]))
    assert weight.cluster == ClusterId(b"\1" * 32)


def test_clusters_are_measured_by_their_mass() -> None:
    """Two matches of equal worth: the one in the smaller cluster is the more telling."""
    padding = b" ".join(b"pad%d" % number for number in range(200))
    padded = Tables(build_tables([[TEXTS[0]], [TEXTS[1], padding], [TEXTS[2]]]))
    weights = recompute(manifest(), padded, answered(TEXTS[0] + b" | " + TEXTS[1]))
    assert weights[0].cluster == ClusterId(b"\0" * 32)
    alone = recompute(manifest(), tables(), answered(TEXTS[0] + b" | " + TEXTS[1]))
    assert alone[0].cluster == ClusterId(b"\1" * 32), "it is the longer text"


def test_a_receipt_with_these_weights_is_confirmed() -> None:
    for answer in (TEXTS[0], b"nothing of the kind", TEXTS[1] + b" " + TEXTS[2]):
        evidence = answered(answer)
        weights = recompute(manifest(), tables(), evidence)
        confirm(receipt(evidence, weights), manifest(), tables(), EVIDENCE.encode(evidence))


def _forgeries() -> dict[str, tuple[Receipt, Manifest, bytes]]:
    evidence = answered(TEXTS[0] + b" " + TEXTS[1])
    weights = recompute(manifest(), tables(), evidence)
    first, second = weights
    good, blob = receipt(evidence, weights), EVIDENCE.encode(evidence)
    other_model = replace(evidence, model=ModelId(b"x" * 32))
    other_answer = replace(evidence, output_commit=b"x" * 32)
    return {
        "one unit moved": (
            replace(
                good,
                evidence=(replace(first, weight=first.weight + 1), replace(second, weight=second.weight - 1)),
            ),
            manifest(),
            blob,
        ),
        "everything scaled": (
            replace(good, evidence=tuple(replace(pair, weight=pair.weight * 2) for pair in weights)),
            manifest(),
            blob,
        ),
        "another order": (replace(good, evidence=(second, first)), manifest(), blob),
        "one left out": (replace(good, evidence=(first,)), manifest(), blob),
        "none at all": (replace(good, evidence=()), manifest(), blob),
        "a stranger added": (
            replace(good, evidence=(*weights, Weight(cluster=ClusterId(b"z" * 32), weight=1))),
            manifest(),
            blob,
        ),
        "another blob": (good, manifest(), EVIDENCE.encode(answered(TEXTS[2]))),
        "another blob that leads to the same": (
            good,
            manifest(),
            EVIDENCE.encode(answered(TEXTS[0] + b" " + TEXTS[1] + b" zz")),
        ),
        "another model's receipt": (
            replace(good, bill=replace(good.bill, model=ModelId(b"x" * 32))),
            manifest(),
            blob,
        ),
        "another model's evidence": (receipt(other_model, weights), manifest(), EVIDENCE.encode(other_model)),
        "another answer's evidence": (
            receipt(other_answer, weights),
            manifest(),
            EVIDENCE.encode(other_answer),
        ),
        "another manifest": (good, replace(manifest(), version=2), blob),
    }


@pytest.mark.parametrize("name", list(_forgeries()))
def test_a_forged_receipt_is_not_confirmed(name: str) -> None:
    forged, claimed, blob = _forgeries()[name]
    with pytest.raises(EvidenceError):
        confirm(forged, claimed, tables(), blob)


def test_tables_over_other_clusters_are_refused() -> None:
    with pytest.raises(DecodeError, match="clusters"):
        recompute(manifest(2), tables(), answered(TEXTS[0]))


@pytest.mark.parametrize("packed", [b"1234567", b"\0" * 8 + b"\0" * 8, b"\1" + b"\0" * 7 + b"\0" * 8])
def test_malformed_ngrams_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="n-grams"):
        replace(answered(b""), ngrams=packed)


def test_ngrams_compare_as_unsigned_numbers() -> None:
    assert replace(answered(b""), ngrams=b"\1" * 8 + b"\xff" * 8).names() == [0x0101010101010101, 2**64 - 1]


def test_bytes_that_are_no_evidence_are_a_decode_error() -> None:
    for data in (
        b"",
        b"\x80",
        EVIDENCE.encode(answered(TEXTS[0]))[:-1],
        b"\xff" * 100,
        b"\0" * (EVIDENCE_BYTES_MAX + 1),
    ):
        with pytest.raises(DecodeError):
            EVIDENCE.decode(data)


def test_the_longest_answers_still_fit() -> None:
    long = b" ".join(b"word%d" % number for number in range(5000))
    evidence = collect(ModelId(b"m" * 32), COMMIT, b"some prompt", long)
    assert len(evidence.names()) == EVIDENCE_NGRAMS_MAX
    assert EVIDENCE.decode(EVIDENCE.encode(evidence)) == evidence


def test_the_answer_comes_before_the_prompt() -> None:
    long = b" ".join(b"word%d" % number for number in range(5000))
    evidence = collect(ModelId(b"m" * 32), COMMIT, long, TEXTS[0])
    assert set(ngrams(words(TEXTS[0]))) <= set(evidence.names())
