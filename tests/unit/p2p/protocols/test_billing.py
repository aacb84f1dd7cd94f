"""The money rules by themselves, also where the machines never let it come that far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p.protocols.billing import check_bill, compute_bill, compute_tokens_max
from p2p.protocols.commitments import output_commitment, prompt_commitment
from p2p.protocols.session import ProtocolError
from tests.unit.p2p.protocols.people import NETWORK, PAYER, QUOTE, TOKEN, bill_over, make_request, signed

REQUEST = make_request()


def test_a_bill_above_the_maximum_is_refused_even_for_delivered_tokens() -> None:
    with pytest.raises(ProtocolError, match="exceeds the maximum fee"):
        check_bill(
            signed(bill_over(25, REQUEST)),
            network=NETWORK,
            payer=PAYER.account,
            request=REQUEST,
            quote=QUOTE.quote,
            delivered=(TOKEN,) * 25,
            billed=0,
        )


def test_there_is_no_bill_before_the_first_token() -> None:
    with pytest.raises(AssertionError):
        compute_bill(PAYER.account, REQUEST, QUOTE.quote, ())


def test_the_least_of_all_limits_counts() -> None:
    assert compute_tokens_max(REQUEST, QUOTE.quote) == 24
    assert compute_tokens_max(replace(REQUEST, max_tokens=5), QUOTE.quote) == 5
    assert compute_tokens_max(replace(REQUEST, max_fee=10**6), QUOTE.quote) == 60
    assert compute_tokens_max(REQUEST, replace(QUOTE.quote, max_fee=11)) == 5
    assert compute_tokens_max(REQUEST, replace(QUOTE.quote, tokens_out_max=4)) == 4


def test_commitments_are_salted_told_apart_and_fixed() -> None:
    """The first two are written down: another implementation must find the same."""
    salt = bytes(range(32))
    assert (
        prompt_commitment(salt, (1, 300, 2**31 - 1)).hex()
        == "2d328884419998ba322eb209740f90e7776bb5a9060916e1f6001917ad259124"
    )
    assert (
        output_commitment(salt, ()).hex()
        == "5b6086ebc75530612122f0b5d57e56144e05ea2cc73df573afd00ce2b1146cbe"
    )
    found = {
        prompt_commitment(salt, (1, 2)),
        output_commitment(salt, (1, 2)),
        output_commitment(salt, (1,)),
        output_commitment(salt, (2, 1)),
        output_commitment(bytes(32), (1, 2)),
    }
    assert len(found) == 5
