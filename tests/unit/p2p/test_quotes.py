"""Quotes: who may use one, when, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.errors import SignatureError
from gossip_ledger.records import ModelId, NetworkId
from p2p.protocols.limits import QUOTE_TTL_S_MAX
from p2p.quotes import (
    QuoteError,
    check_quote,
    quote_id,
    quoted_fee,
    sign_quote,
    tokens_affordable,
    verify_quote,
)
from tests.unit.p2p.protocols.people import MODEL, NETWORK, PAYER, QUOTE, STRANGER, WORKER, make_quote

NOW_S = 500
RIGHT = {
    "network": NETWORK,
    "worker": WORKER.account,
    "payer": PAYER.account,
    "model": MODEL,
    "now_s": NOW_S,
}


def test_a_good_quote_gives_its_id() -> None:
    assert check_quote(QUOTE, **RIGHT) == quote_id(QUOTE.quote, NETWORK) == verify_quote(QUOTE, NETWORK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"worker": STRANGER.account}, "another worker"),
        ({"payer": STRANGER.account}, "another payer"),
        ({"model": ModelId(bytes(32))}, "another model"),
        ({"now_s": 1000}, "expired"),
        ({"now_s": 999 - QUOTE_TTL_S_MAX}, "clock"),
    ],
)
def test_a_quote_for_others_or_other_times(change: dict[str, object], words: str) -> None:
    with pytest.raises(QuoteError, match=words):
        check_quote(QUOTE, **(RIGHT | change))  # type: ignore[arg-type]


def test_a_changed_quote_or_another_network_does_not_verify() -> None:
    changed = replace(QUOTE, quote=replace(QUOTE.quote, price_out=1))
    with pytest.raises(SignatureError):
        check_quote(changed, **RIGHT)  # type: ignore[arg-type]
    with pytest.raises(SignatureError):
        check_quote(QUOTE, **(RIGHT | {"network": NetworkId(bytes(32))}))  # type: ignore[arg-type]


def test_every_term_is_in_the_id() -> None:
    quote = QUOTE.quote
    others = [
        replace(quote, price_in=301),
        replace(quote, price_out=2001),
        replace(quote, nonce=2),
        replace(quote, max_fee=9_999),
        replace(quote, quantization="nf4"),
        replace(quote, tokens_in_max=63),
        replace(quote, tokens_out_max=63),
        replace(quote, expiry_s=999),
    ]
    assert len({quote_id(other, NETWORK) for other in (quote, *others)}) == len(others) + 1


def test_only_the_worker_signs() -> None:
    with pytest.raises(AssertionError):
        sign_quote(QUOTE.quote, STRANGER, NETWORK)


def test_nothing_is_due_before_the_first_token() -> None:
    assert quoted_fee(QUOTE.quote, 1000, 0) == 0
    assert quoted_fee(QUOTE.quote, 1000, 1) == 302
    assert quoted_fee(QUOTE.quote, 3, 5) == 11


amounts = st.integers(0, 2**63 - 1)


@given(
    price_in=st.integers(0, 10_000) | amounts,
    price_out=st.integers(0, 10_000) | amounts,
    tokens_in=st.integers(1, 8192),
    max_tokens=st.integers(1, 8192),
    tokens_out_max=st.integers(0, 8192),
    max_fee=st.integers(0, 100_000) | amounts,
    quoted=st.integers(0, 100_000) | amounts,
)
def test_what_a_fee_pays_for_is_the_most_that_it_pays_for(
    price_in: int,
    price_out: int,
    tokens_in: int,
    max_tokens: int,
    tokens_out_max: int,
    max_fee: int,
    quoted: int,
) -> None:
    quote = make_quote(price_in=price_in, price_out=price_out, tokens_out_max=tokens_out_max, max_fee=quoted)
    most = tokens_affordable(quote, tokens_in=tokens_in, max_tokens=max_tokens, max_fee=max_fee)
    limit = min(max_fee, quoted)
    assert 0 <= most <= min(max_tokens, tokens_out_max)
    assert quoted_fee(quote, tokens_in, most) <= limit
    if most < min(max_tokens, tokens_out_max):
        assert quoted_fee(quote, tokens_in, most + 1) > limit
