"""Exactly one spelling of each wire message decodes, only in its direction, and only within its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.codec import Schema, load
from gossip_ledger.errors import DecodeError
from gossip_ledger.records import BlobId, NetworkId, RecordId
from p2p.adverts import SIGNED_ADVERTS
from p2p.invites import INVITES, Invite
from p2p.messages import (
    HELLO_MESSAGES,
    SYNC_MESSAGES,
    TO_BLOB_CLIENT,
    TO_BLOB_SERVER,
    TO_PAYER,
    TO_WORKER,
    Accepted,
    Blob,
    Cancel,
    Done,
    End,
    Failed,
    Get,
    Hello,
    Missing,
    Next,
    PayerMessage,
    Quoted,
    QuoteRequest,
    Records,
    Refused,
    Round,
    Settled,
    Tokens,
    Turn,
    Want,
    WorkerMessage,
)
from p2p.protocols.limits import ASK_FRAME_BYTES_MAX, CHUNK_TOKENS, PROMPT_TOKENS_MAX
from p2p.quotes import SIGNED_QUOTES
from tests.property.gossip_ledger.sloppy import Value, spellings
from tests.unit.p2p.protocols.people import MODEL, NETWORK, QUOTE, bill_over, make_request, signed
from tests.unit.p2p.test_adverts import SIGNED

ID = RecordId(bytes(range(32)))
HELLO = Hello(network=NETWORK, rules=1, software="upkeep/1", clock_s=5, listening=("a",), known=("b", "c"))
REQUEST = make_request(records=(b"one", b"two"))
REFUSED = Refused(code="busy", reason="full", retry_after_ms=300)
CASES: tuple[tuple[Schema, Any], ...] = (
    (HELLO_MESSAGES, HELLO),
    (HELLO_MESSAGES, REFUSED),
    (TO_WORKER, QuoteRequest(model=MODEL, tokens_in_max=300, tokens_out_max=5)),
    (TO_WORKER, REQUEST),
    (TO_WORKER, signed(bill_over(3, REQUEST))),
    (TO_WORKER, Cancel()),
    (TO_PAYER, Quoted(quote=QUOTE)),
    (TO_PAYER, REFUSED),
    (TO_PAYER, Accepted(waiting=2)),
    (TO_PAYER, Tokens(first=1, ids=(1, 300, 70_000))),
    (TO_PAYER, Done(reason="stop", tokens_in=3, tokens_out=4)),
    (TO_PAYER, Failed(code="engine", reason="broken", tokens_in=3, tokens_out=4)),
    (TO_PAYER, Settled(receipt=b"receipt")),
    (SYNC_MESSAGES, Round(data=b"data")),
    (SYNC_MESSAGES, Want(ids=(ID, ID))),
    (SYNC_MESSAGES, Next()),
    (SYNC_MESSAGES, Records(records=(b"one", b"two"))),
    (SYNC_MESSAGES, Turn()),
    (SYNC_MESSAGES, End()),
    (TO_BLOB_SERVER, Get(ids=(BlobId(ID),))),
    (TO_BLOB_SERVER, End()),
    (TO_BLOB_CLIENT, Blob(id=BlobId(ID), data=b"data")),
    (TO_BLOB_CLIENT, Missing(id=BlobId(ID))),
    (SIGNED_QUOTES, QUOTE),
    (SIGNED_ADVERTS, SIGNED),
    (
        INVITES,
        Invite(network=NetworkId(ID), genesis=b"", addresses=("a",), grant_seed=bytes(32), grant_amount=5),
    ),
)
SCHEMAS = (HELLO_MESSAGES, TO_WORKER, TO_PAYER, SYNC_MESSAGES, TO_BLOB_SERVER, TO_BLOB_CLIENT)


def name(case: object) -> str:
    return type(case[1]).__name__ if isinstance(case, tuple) else ""


@pytest.mark.parametrize("case", CASES, ids=name)
def test_one_spelling_decodes(case: tuple[Schema, Any]) -> None:
    schema, value = case
    data = schema.encode(value)
    assert schema.decode(data) == value
    loaded: Value = load(data, schema.bytes_max)  # type: ignore[assignment]
    for how, spelled in spellings(loaded):
        if spelled == data:
            continue
        try:
            other = schema.decode(spelled)
        except DecodeError:
            continue
        assert other != value, how
        assert schema.encode(other) == spelled, how


@pytest.mark.parametrize("case", CASES[:-3], ids=name)
def test_a_message_decodes_only_where_it_may_stand(case: tuple[Schema, Any]) -> None:
    home, value = case
    data = home.encode(value)
    for schema in SCHEMAS:
        if schema is home or type(value) in (Refused, End):
            continue
        with pytest.raises(DecodeError):
            schema.decode(data)


def test_every_message_is_among_the_cases() -> None:
    kinds = {type(value) for _, value in CASES}
    assert kinds >= set(get_args(PayerMessage)) | set(get_args(WorkerMessage))


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_raise_decode_error_only(data: bytes) -> None:
    for schema in (*SCHEMAS, SIGNED_QUOTES, SIGNED_ADVERTS, INVITES):
        try:
            value = schema.decode(data)
        except DecodeError:
            continue
        assert schema.encode(value) == data


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (TO_PAYER, Tokens(first=0, ids=(1,) * (CHUNK_TOKENS + 1))),
        (TO_PAYER, Tokens(first=0, ids=())),
        (TO_PAYER, Tokens(first=0, ids=(2**31,))),
        (TO_PAYER, Tokens(first=-1, ids=(1,))),
        (TO_WORKER, make_request(prompt=())),
        (TO_WORKER, make_request(prompt=(1,) * (PROMPT_TOKENS_MAX + 1))),
        (TO_WORKER, make_request(max_tokens=0)),
        (TO_WORKER, make_request(salt=bytes(31))),
        (TO_WORKER, make_request(max_fee=2**63)),
        (TO_WORKER, make_request(records=(b"x" * 4097,))),
        (TO_WORKER, make_request(records=(b"x",) * 17)),
        (HELLO_MESSAGES, replace(HELLO, known=("a",) * 17)),
        (HELLO_MESSAGES, replace(HELLO, software="\x1b[2J")),
        (HELLO_MESSAGES, replace(HELLO, listening=("a" * 257,))),
        (SYNC_MESSAGES, Want(ids=())),
        (SYNC_MESSAGES, Want(ids=(ID,) * 257)),
        (TO_BLOB_SERVER, Get(ids=(BlobId(ID),) * 17)),
        (TO_BLOB_CLIENT, Blob(id=BlobId(ID), data=bytes((1 << 20) + 1))),
        (TO_WORKER, QuoteRequest(model=MODEL, tokens_in_max=8193, tokens_out_max=0)),
    ],
)
def test_bounds_hold_on_the_way_out_too(schema: Schema, value: object) -> None:
    with pytest.raises(DecodeError):
        schema.encode(value)


def test_an_answer_ends_for_one_of_three_reasons() -> None:
    data = TO_PAYER.encode(Done(reason="stop", tokens_in=1, tokens_out=1))
    with pytest.raises(DecodeError, match="reason must be"):
        TO_PAYER.decode(data.replace(b"stop", b"stup"))


def test_the_largest_ask_fits_its_frame() -> None:
    largest = make_request(prompt=(2**31 - 1,) * PROMPT_TOKENS_MAX, records=(b"x" * 4096,) * 16)
    assert len(TO_WORKER.encode(largest)) <= ASK_FRAME_BYTES_MAX


def test_the_largest_answers_fit_their_frames() -> None:
    assert SYNC_MESSAGES.encode(Records(records=(b"x" * 4096,) * 256))
    assert TO_BLOB_CLIENT.encode(Blob(id=BlobId(ID), data=bytes(1 << 20)))
    assert SYNC_MESSAGES.encode(Round(data=bytes(256 * 1024)))
