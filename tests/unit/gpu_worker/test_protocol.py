"""Frames of the pipe: one encoding, cut anywhere, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.errors import DecodeError
from gossip_ledger.records import ModelId
from gpu_worker.identity import BaseId
from gpu_worker.limits import FRAME_BYTES_MAX, PROMPT_TOKENS_MAX, STOP_IDS_MAX
from gpu_worker.protocol import (
    FROM_WORKER,
    TO_WORKER,
    Cancel,
    CannotStart,
    Failed,
    Finished,
    FrameReader,
    FromWorker,
    Generate,
    Generated,
    GetStats,
    LoadAdapter,
    Loaded,
    Ready,
    Shutdown,
    Stats,
    ToWorker,
    UnloadAdapter,
    Unloaded,
    WorkerSettings,
    encode_frame,
    short,
)

MODEL = ModelId(b"m" * 32)
LARGEST = Generate(
    request=2**53,
    model=MODEL,
    prompt=(2**31 - 1,) * PROMPT_TOKENS_MAX,
    max_tokens=8192,
    temperature_milli=10_000,
    top_p_milli=1000,
    seed=2**63 - 1,
    stop_ids=(2**31 - 1,) * STOP_IDS_MAX,
)
QUESTIONS: tuple[ToWorker, ...] = (
    LARGEST,
    Cancel(request=1),
    LoadAdapter(request=2, model=MODEL, folder="/some/folder é"),
    UnloadAdapter(request=3, model=MODEL),
    GetStats(request=4),
    Shutdown(),
)
ANSWERS: tuple[FromWorker, ...] = (
    Ready(
        base=BaseId(b"b" * 32),
        quantization="nf4",
        dtype="bfloat16",
        device="cpu",
        kernels="x",
        max_context=1,
        slots=1,
        vocabulary=1,
    ),
    CannotStart(reason="no"),
    Generated(request=1, ids=(1, 2)),
    Finished(request=1, reason="stop", tokens_in=1, tokens_out=0),
    Failed(request=1, code="busy", reason="later", retry_after_ms=5),
    Loaded(request=1, rank=8, bytes=1),
    Unloaded(request=1),
    Stats(
        request=1, running=0, waiting=0, kv_tokens_used=0, tokens_per_s=0, adapters=64, resident=(MODEL,) * 64
    ),
)


@given(cuts=st.lists(st.integers(1, 30_000), min_size=1, max_size=30))
def test_frames_cut_anywhere(cuts: list[int]) -> None:
    for schema, values in ((TO_WORKER, QUESTIONS), (FROM_WORKER, ANSWERS)):
        data = b"".join(encode_frame(schema, value) for value in values)
        reader, found, at = FrameReader(schema), [], 0
        for cut in cuts:
            found += reader.receive(data[at : at + cut])
            at += cut
        found += reader.receive(data[at:])
        assert tuple(found) == values


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x01\xff",
        b"\xff\xff\xff\xff",
        b"\x81\x80\x04",
        b"\xff\xff\xff\x7f",
        bytes([3]) + b"\x82\x02\x01"[:2] + b"\xff",
        encode_frame(FROM_WORKER, ANSWERS[2]),
    ],
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        list(FrameReader(TO_WORKER).receive(data))


def test_a_length_is_judged_before_the_contents_come() -> None:
    reader = FrameReader(TO_WORKER)
    length = FRAME_BYTES_MAX + 1
    head = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    with pytest.raises(DecodeError):
        list(reader.receive(head))


def test_reasons_are_made_fit() -> None:
    for reason in ("x" * 2000, "é" * 2000, "\x1b[31m\n\0", "\ud800"):
        frame = encode_frame(FROM_WORKER, CannotStart(reason=short(reason)))
        assert list(FrameReader(FROM_WORKER).receive(frame))


def test_settings_are_the_command_line_of_the_worker() -> None:
    from gpu_worker.__main__ import parse_arguments

    settings = WorkerSettings(
        base="/b", quantization="nf4", device="cuda", threads=3, slots=5, max_context=77, cache="/c"
    )
    assert parse_arguments(list(settings.arguments())) == settings
    with pytest.raises(SystemExit):
        parse_arguments(["--base", "/b", "--quantization", "q2"])
