"""Frames: any split of the bytes gives the same frames, and every malformed length is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.framing import FrameDecoder, FrameError, encode_frame, encode_length

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def decode_all(decoder: FrameDecoder) -> list[bytes]:
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


@given(payloads=payloads, cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_any_split_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder(300)
    frames: list[bytes] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        decoder.receive(data[start:end])
        frames += decode_all(decoder)
    assert frames == payloads
    decoder.finish()


@given(st.binary(max_size=200))
def test_noise_gives_frames_or_a_frame_error(data: bytes) -> None:
    decoder = FrameDecoder(50)
    decoder.receive(data)
    try:
        frames = decode_all(decoder)
        decoder.finish()
    except FrameError:
        with pytest.raises(FrameError):
            decoder.next_frame()
    else:
        assert b"".join(encode_frame(frame) for frame in frames) == data, "one encoding per sequence"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00", "empty"),
        (b"\x80\x00", "shortest"),
        (b"\x81\x00a", "shortest"),
        (encode_length(1001), "exceeds 1000"),
        (b"\xff\xff", "exceeds 1000"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "exceeds 1000"),
    ],
)
def test_a_bad_length_is_refused_before_its_payload(data: bytes, reason: str) -> None:
    decoder = FrameDecoder(1000)
    decoder.receive(data)
    with pytest.raises(FrameError, match=reason):
        decoder.next_frame()
    decoder.receive(encode_frame(b"good"))
    with pytest.raises(FrameError, match=reason):
        decoder.next_frame()


def test_the_largest_frame_passes_and_one_more_does_not() -> None:
    decoder = FrameDecoder(128)
    decoder.receive(encode_frame(bytes(128)))
    assert decoder.next_frame() == bytes(128)
    decoder.receive(encode_frame(bytes(129)))
    with pytest.raises(FrameError):
        decoder.next_frame()


@pytest.mark.parametrize("data", [b"\x80", b"\x05abc"])
def test_an_end_inside_a_frame_is_told(data: bytes) -> None:
    decoder = FrameDecoder(1000)
    decoder.receive(data)
    assert decoder.next_frame() is None
    with pytest.raises(FrameError, match="ended inside"):
        decoder.finish()
