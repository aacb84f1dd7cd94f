"""Files of documents: one encoding out, strict parsing in."""

from __future__ import annotations

import pytest

from gossip_ledger.errors import LocalError
from gpu_worker.documents import DOCUMENT_BYTES_MAX, Document, decode_documents, encode_documents

GIVEN = (
    Document(title="a", prompt="What is é?", text='A letter.\nSaid "so".'),
    Document(title="", prompt="x", text="\N{ROLLING ON THE FLOOR LAUGHING}"),
)


def test_round_trip() -> None:
    data = encode_documents(GIVEN)
    assert decode_documents(data, "file") == GIVEN
    assert data.count(b"\n") == len(GIVEN)
    assert decode_documents(encode_documents(()), "file") == ()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff",
        b"[" * 100_000,
        b'{"title":"t","prompt":"p"}',
        b'{"title":"t","prompt":"p","text":5}',
        b'{"title":"t","prompt":"p","text":"x","more":"y"}',
        b'{"title":"t","prompt":" ","text":"x"}',
        b'{"title":"t","prompt":"p","text":"\\n"}',
        b'{"title":"t","prompt":"p","text":"' + b"x" * DOCUMENT_BYTES_MAX + b'"}',
    ],
)
def test_a_bad_line_is_named(line: bytes) -> None:
    with pytest.raises(LocalError, match=r"here\.jsonl:2"):
        decode_documents(encode_documents(GIVEN[:1]) + line + b"\n", "here.jsonl")


def test_a_file_cut_off_is_refused() -> None:
    with pytest.raises(LocalError, match="cut off"):
        decode_documents(encode_documents(GIVEN)[:-1], "here.jsonl")
