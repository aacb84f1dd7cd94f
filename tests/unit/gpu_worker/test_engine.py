"""The engine as a whole, in this process: batches, cancellation, adapters that come and go, refusals."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

torch = pytest.importorskip("torch")

from gossip_ledger.records import ModelId  # noqa: E402
from gpu_worker import bank as bank_module  # noqa: E402
from gpu_worker import engine as engine_module  # noqa: E402
from gpu_worker.adapter_file import WEIGHTS_FILE  # noqa: E402
from gpu_worker.engine import Engine  # noqa: E402
from gpu_worker.protocol import (  # noqa: E402
    ADAPTER_REFUSED,
    BARE_BASE,
    BUSY,
    CANCELLED,
    DEVICE,
    LENGTH,
    STOPPED,
    TOO_LONG,
    UNKNOWN_ADAPTER,
    Failed,
    Finished,
    Generate,
    Generated,
    Loaded,
    WorkerSettings,
)
from tests.support.engines import answers, ask, make_engine, run  # noqa: E402
from tests.support.tiny_base import VOCABULARY, write_tiny_adapter, write_tiny_base  # noqa: E402

MODELS = tuple(ModelId(bytes([n]) * 32) for n in range(1, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    settings = write_tiny_base(folder)
    for number, model in enumerate(MODELS):
        write_tiny_adapter(folder / model.hex(), settings, seed=number, rank=4 * number + 2)
    return folder


def with_adapters(folder: Path, **options: object) -> Engine:
    engine = make_engine(folder, **options)  # pyright: ignore[reportArgumentType]
    for model in MODELS:
        assert isinstance(engine.load_adapter(0, model, folder / model.hex()), Loaded)
    return engine


def some_requests(count: int, seed: int = 1) -> list[Generate]:
    rng = Random(seed)
    return [
        ask(
            number,
            [rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 2, 5, 40, 130)))],
            model=rng.choice((BARE_BASE, *MODELS)),
            max_tokens=rng.randrange(1, 14),
            temperature_milli=rng.choice((0, 0, 700)),
            seed=number,
        )
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("quantization", ["bf16", "nf4", "int8"])
def test_company_does_not_change_an_answer(folder: Path, quantization: str) -> None:
    """Requests that join, wait, leave and share batches answer exactly as each does alone."""
    if quantization != "bf16":
        pytest.importorskip("bitsandbytes")
    engine = with_adapters(folder, quantization=quantization, slots=4)
    requests = some_requests(14)
    events = []
    for number, request in enumerate(requests):
        assert engine.submit(request) is None
        if number % 3 == 0:
            events += engine.step()
    together = answers(events + run(engine))
    for request in requests:
        assert engine.submit(request) is None
        assert answers(run(engine))[request.request] == together[request.request]
        assert len(together[request.request]) == request.max_tokens


def test_adapters_change_answers(folder: Path) -> None:
    engine = with_adapters(folder)
    for number, model in enumerate((BARE_BASE, *MODELS)):
        engine.submit(ask(number, range(20), model=model, max_tokens=12))
    found = answers(run(engine))
    assert len({tuple(tokens) for tokens in found.values()}) == 4


def test_reasons_and_counts(folder: Path) -> None:
    engine = make_engine(folder)
    engine.submit(ask(1, range(20), max_tokens=9))
    events = run(engine)
    assert events[-1] == Finished(request=1, reason=LENGTH, tokens_in=20, tokens_out=9)
    tokens = answers(events)[1]
    at = next(n for n in range(1, 9) if tokens[n] not in tokens[:n])
    stop = tokens[at]
    engine.submit(ask(2, range(20), max_tokens=9, stop_ids=(stop,)))
    events = run(engine)
    assert answers(events)[2] == tokens[:at]
    assert events[-1] == Finished(request=2, reason=STOPPED, tokens_in=20, tokens_out=at)


def test_one_token_at_a_time_and_cancelled_within_a_step(folder: Path) -> None:
    engine = make_engine(folder)
    for number in (1, 2, 3):
        engine.submit(ask(number, range(10 * number), max_tokens=100))
    assert {e.request for e in engine.step() if isinstance(e, Generated)} == {1, 2, 3}
    assert engine.cancel(1) == Finished(request=1, reason=CANCELLED, tokens_in=10, tokens_out=1)
    assert engine.cancel(1) is None
    assert engine.cancel(99) is None
    assert {e.request for e in engine.step()} == {2, 3}
    assert engine.stats(0).kv_tokens_used == 20 + 30 + 2
    engine.cancel(2)
    engine.cancel(3)
    assert engine.is_idle
    assert engine.stats(0).kv_tokens_used == 0


def test_cancelling_does_not_disturb_the_neighbours(folder: Path) -> None:
    engine = with_adapters(folder, quantization="bf16")
    requests = [ask(n, range(n, n + 30), model=MODELS[n % 3], max_tokens=12) for n in range(1, 6)]
    expected = {}
    for request in requests:
        engine.submit(request)
        expected |= answers(run(engine))
    for request in requests:
        engine.submit(request)
    events = engine.step() + engine.step()
    engine.cancel(1)
    engine.cancel(4)
    found = answers([e for e in events + run(engine) if e.request in (2, 3, 5)])
    assert found == {n: expected[n] for n in (2, 3, 5)}


def test_a_waiting_request_is_withdrawn(folder: Path) -> None:
    engine = make_engine(folder, slots=1)
    engine.submit(ask(1, range(4), max_tokens=5))
    events = engine.step()
    engine.submit(ask(2, range(4)))
    assert engine.stats(0).waiting == 1
    assert engine.cancel(2) == Finished(request=2, reason=CANCELLED, tokens_in=0, tokens_out=0)
    assert engine.stats(0).waiting == 0
    assert set(answers(events + run(engine))) == {1}


def test_refusals_say_why(folder: Path) -> None:
    engine = make_engine(folder, max_context=64)
    assert engine.submit(ask(1, range(60), max_tokens=4)) is None
    for request, code in (
        (ask(2, range(60), max_tokens=5), TOO_LONG),
        (ask(3, [VOCABULARY]), "bad-request"),
        (ask(4, [1], model=MODELS[0]), UNKNOWN_ADAPTER),
    ):
        refusal = engine.submit(request)
        assert refusal is not None
        assert (refusal.request, refusal.code, refusal.retry_after_ms) == (request.request, code, 0)
    assert set(answers(run(engine))) == {1}


def test_a_full_queue_says_when_to_come_back(folder: Path) -> None:
    engine = make_engine(folder, slots=1)
    refusals = [engine.submit(ask(n, range(5))) for n in range(70)]
    assert refusals[:64] == [None] * 64
    for refusal in refusals[64:]:
        assert refusal is not None
        assert refusal.code == BUSY
        assert refusal.retry_after_ms >= 500


def test_an_adapter_is_unloaded_while_it_answers(folder: Path) -> None:
    engine = with_adapters(folder)
    engine.submit(ask(1, range(9), model=MODELS[0]))
    expected = answers(run(engine))[1]
    engine.submit(ask(1, range(9), model=MODELS[0]))
    events = engine.step()
    engine.unload_adapter(MODELS[0])
    engine.submit(ask(2, range(9), model=MODELS[1]))
    assert answers(events + run(engine))[1] == expected
    refusal = engine.submit(ask(3, range(9), model=MODELS[0]))
    assert refusal is not None
    assert refusal.code == UNKNOWN_ADAPTER


def test_an_adapter_unloaded_before_its_turn_fails_that_request_only(folder: Path) -> None:
    engine = with_adapters(folder, slots=1)
    engine.submit(ask(1, range(9), model=MODELS[1]))
    engine.step()
    engine.submit(ask(2, range(9), model=MODELS[0]))
    engine.submit(ask(3, range(9)))
    engine.unload_adapter(MODELS[0])
    events = run(engine)
    assert [(e.request, e.code) for e in events if isinstance(e, Failed)] == [(2, ADAPTER_REFUSED)]
    assert [e.request for e in events if isinstance(e, Finished)] == [1, 3]


def test_evicted_adapters_come_back_from_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "ADAPTERS_RESIDENT_BYTES", 1)
    engine = with_adapters(folder)
    assert engine.stats(0).adapters == 3
    assert engine.stats(0).resident == (MODELS[2],)
    everything = with_adapters(folder)
    for number, model in enumerate(MODELS):
        engine.submit(ask(number, range(9), model=model))
        everything.submit(ask(number, range(9), model=model))
    assert answers(run(engine)) == answers(run(everything))


def test_an_adapter_whose_files_changed_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "ADAPTERS_RESIDENT_BYTES", 1)
    engine = with_adapters(folder)
    settings = write_tiny_base(tmp_path / "base")
    own = ModelId(b"z" * 32)
    write_tiny_adapter(tmp_path / "a", settings, seed=50)
    assert isinstance(engine.load_adapter(1, own, tmp_path / "a"), Loaded)
    assert isinstance(engine.load_adapter(2, MODELS[0], folder / MODELS[0].hex()), Loaded)
    write_tiny_adapter(tmp_path / "a", settings, seed=51)
    again = engine.load_adapter(3, own, tmp_path / "a")
    assert isinstance(again, Failed)
    assert "another adapter" in again.reason
    engine.submit(ask(1, range(9), model=own))
    events = run(engine)
    assert [e.code for e in events if isinstance(e, Failed)] == [ADAPTER_REFUSED]
    (tmp_path / "a" / WEIGHTS_FILE).unlink()
    assert isinstance(engine.load_adapter(4, own, tmp_path / "a"), Failed)


def test_the_number_of_adapters_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "ADAPTERS_REGISTERED_MAX", 3)
    engine = with_adapters(folder)
    assert isinstance(engine.load_adapter(1, MODELS[0], folder / MODELS[0].hex()), Loaded)
    refusal = engine.load_adapter(1, ModelId(b"z" * 32), folder / MODELS[0].hex())
    assert isinstance(refusal, Failed)


def test_a_failing_device_ends_what_ran_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(folder, slots=2)
    for number in (1, 2, 3):
        engine.submit(ask(number, range(5)))
    engine.step()
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise RuntimeError("out of memory\x1b[31m")

        patch.setattr(engine_module.LlamaModel, "forward", fail)
        events = engine.step()
    assert [(e.request, e.code) for e in events if isinstance(e, Failed)] == [(1, DEVICE), (2, DEVICE)]
    assert all("\x1b" not in e.reason for e in events if isinstance(e, Failed))
    assert set(answers(run(engine))) == {3}


def test_speed_is_that_of_one_answer(folder: Path) -> None:
    ticks = iter(range(10_000))
    engine = Engine(WorkerSettings(base=str(folder), quantization="fp32"), lambda: next(ticks) * 0.05)
    assert engine.stats(0).tokens_per_s == 0
    for number in range(4):
        engine.submit(ask(number, range(5)))
    run(engine)
    assert engine.stats(0).tokens_per_s == 20


def test_what_a_worker_says_of_itself(folder: Path) -> None:
    engine = make_engine(folder, quantization="bf16", max_context=4096)
    assert engine.ready.max_context == 512, "no more than the base was made for"
    assert (engine.ready.quantization, engine.ready.dtype, engine.ready.device) == ("bf16", "bfloat16", "cpu")
    assert engine.ready.vocabulary == VOCABULARY
    assert engine.ready.kernels.startswith("torch")
