"""Logarithms in integers, the same bits on every machine."""

from __future__ import annotations

from typing import Final

FRACTION_BITS: Final = 8
"""Information is counted in 1/256 of a bit."""
_MANTISSA_BITS: Final = 62


def log2_q8(number: int) -> int:
    """floor(256 * log2(number)) for 1 <= number < 2^62, by repeated squaring."""
    assert 1 <= number < 1 << _MANTISSA_BITS, "a count"
    exponent = number.bit_length() - 1
    mantissa = (number << _MANTISSA_BITS) >> exponent
    result = exponent << FRACTION_BITS
    for bit in range(FRACTION_BITS - 1, -1, -1):
        mantissa = (mantissa * mantissa) >> _MANTISSA_BITS
        if mantissa >> (_MANTISSA_BITS + 1):
            mantissa >>= 1
            result |= 1 << bit
    return result
