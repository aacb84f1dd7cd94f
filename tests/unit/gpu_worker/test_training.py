"""Training on a tiny base: it learns, it is repeatable, it goes on after a stop, and its files can be
served.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from gossip_ledger.errors import LocalError  # noqa: E402 (needs torch)
from gpu_worker.adapter_file import read_adapter  # noqa: E402
from gpu_worker.documents import Document, encode_documents  # noqa: E402
from gpu_worker.settings import read_settings  # noqa: E402
from gpu_worker.tokenizer import Tokenizer  # noqa: E402
from gpu_worker.train import main, read_folder  # noqa: E402
from gpu_worker.training import (  # noqa: E402
    CHECKPOINT_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    Measured,
    Recipe,
    Step,
    answer_loss,
    build_model,
    compare,
    learning_rate,
    schedule,
    tokenize,
    train,
)
from tests.support.tiny_base import write_tiny_base  # noqa: E402

RECIPE = Recipe(steps=12, batch=4, tokens_max=96, rank=4, alpha=8, learning_rate=2e-2, seed=3)
DOCUMENTS = tuple(
    Document(title=str(number), prompt=f"Say {number}.", text="abcabcabcabcabcabc" * 2)
    for number in range(10)
)
HELD_OUT = (Document(title="x", prompt="Say x.", text="abcabcabcabcabcabcabc"),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    write_tiny_base(folder)
    return folder


def trained(base: Path, out: Path, recipe: Recipe = RECIPE) -> list[Step | Measured]:
    told: list[Step | Measured] = []
    train(base=base, documents=DOCUMENTS, held_out=HELD_OUT, recipe=recipe, out=out, progress=told.append)
    return told


def test_it_learns(base: Path, tmp_path: Path) -> None:
    told = trained(base, tmp_path)
    measured = [event for event in told if isinstance(event, Measured)]
    assert measured[1].perplexity < measured[0].perplexity * 0.8
    assert [event.step for event in told if isinstance(event, Step)] == list(range(1, 13))
    assert told[-2].tokens > 0
    before, after, tokens = compare(base, tmp_path, HELD_OUT, RECIPE)
    assert before == pytest.approx(measured[0].perplexity, rel=1e-6)
    assert after == pytest.approx(measured[1].perplexity, rel=0.02), "bf16 rounds, it does not break"
    assert tokens == measured[0].tokens == len(HELD_OUT[0].text) + 1, "the answer and its end, not the prompt"


def test_the_same_seed_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for name, recipe in (("one", RECIPE), ("two", RECIPE), ("other", replace(RECIPE, seed=4))):
        trained(base, tmp_path / name, recipe)
    one, two, other = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("one", "two", "other"))
    assert one == two != other


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "whole")
    stop_at = 5

    def interrupt(event: Step | Measured) -> None:
        if isinstance(event, Step) and event.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            base=base,
            documents=DOCUMENTS,
            held_out=HELD_OUT,
            recipe=RECIPE,
            out=tmp_path / "cut",
            progress=interrupt,
        )
    assert not (tmp_path / "cut" / WEIGHTS_NAME).exists()
    assert (tmp_path / "cut" / CHECKPOINT_NAME).exists()
    told = trained(base, tmp_path / "cut")
    assert [event.step for event in told if isinstance(event, Step)] == list(range(stop_at + 1, 13))
    assert (tmp_path / "cut" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()
    assert not (tmp_path / "cut" / CHECKPOINT_NAME).exists()


def test_a_checkpoint_of_another_run_is_not_used(base: Path, tmp_path: Path) -> None:
    def interrupt(event: Step | Measured) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            base=base, documents=DOCUMENTS, held_out=HELD_OUT, recipe=RECIPE, out=tmp_path, progress=interrupt
        )
    told = trained(base, tmp_path, replace(RECIPE, learning_rate=1e-3))
    assert next(event.step for event in told if isinstance(event, Step)) == 1


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(base: Path, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(LocalError, match="delete"):
        trained(base, tmp_path)


def test_the_files_pass_the_load_policy(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path)
    loaded = read_adapter(tmp_path, read_settings(base))
    assert loaded is not None
    assert str(tmp_path) not in (tmp_path / CONFIG_NAME).read_text()
    assert str(base) not in (tmp_path / CONFIG_NAME).read_text()


def test_only_the_answer_counts(base: Path) -> None:
    (example,) = tokenize(base, HELD_OUT, 96)
    tokenizer = Tokenizer.from_folder(base)
    assert tokenizer.decode(example.tokens[example.answer_from :]) == HELD_OUT[0].text
    assert example.tokens[-1] in tokenizer.stop_ids
    model = build_model(base, RECIPE).requires_grad_(False)
    loss, count = answer_loss(model, (example,), autocast=False)
    logits = model(input_ids=torch.tensor([example.tokens])).logits[0]
    plain = torch.nn.functional.cross_entropy(
        logits[example.answer_from - 1 : -1],
        torch.tensor(example.tokens[example.answer_from :]),
        reduction="sum",
    )
    assert count == len(example.tokens) - example.answer_from
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)


def test_padding_changes_nothing(base: Path) -> None:
    short, long = tokenize(base, (HELD_OUT[0], DOCUMENTS[0]), 96)
    model = build_model(base, RECIPE).requires_grad_(False)
    apart = [float(answer_loss(model, (example,), autocast=False)[0]) for example in (short, long)]
    together, count = answer_loss(model, (short, long), autocast=False)
    assert float(together) == pytest.approx(sum(apart), rel=1e-5)
    assert count == sum(len(example.tokens) - example.answer_from for example in (short, long))


def test_a_long_document_is_cut_and_one_without_room_dropped(base: Path) -> None:
    (example,) = tokenize(base, (DOCUMENTS[0],), 48)
    assert len(example.tokens) == 48
    assert tokenize(base, (DOCUMENTS[0],), 20) == ()


def test_every_document_comes_once_a_round() -> None:
    steps = list(schedule(10, replace(RECIPE, steps=5, batch=4)))
    assert [len(step) for step in steps] == [4] * 5
    taken = [index for step in steps for index in step]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, replace(RECIPE, steps=100, learning_rate=1.0)) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(("given", "held"), [((), HELD_OUT), (DOCUMENTS, ())])
def test_nothing_to_work_with_is_an_error(
    base: Path, tmp_path: Path, given: tuple[Document, ...], held: tuple[Document, ...]
) -> None:
    with pytest.raises(LocalError):
        train(base=base, documents=given, held_out=held, recipe=RECIPE, out=tmp_path, progress=print)


def test_without_a_file_for_it_some_documents_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/0000.jsonl").write_bytes(encode_documents(DOCUMENTS[:5]))
    different = tuple(replace(document, text=document.title * 5) for document in DOCUMENTS)
    (tmp_path / "shards/0001.jsonl").write_bytes(encode_documents(different))
    given, held = read_folder(tmp_path)
    assert len(held) == 1
    assert set(given) | set(held) == {*DOCUMENTS[:5], *different}
    (tmp_path / "held_out.jsonl").write_bytes(encode_documents(HELD_OUT))
    assert read_folder(tmp_path) == ((*DOCUMENTS[:5], *different), HELD_OUT)


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "net/shards").mkdir(parents=True)
    (tmp_path / "net/shards/0000.jsonl").write_bytes(encode_documents(DOCUMENTS))
    (tmp_path / "net/held_out.jsonl").write_bytes(encode_documents(HELD_OUT))
    return tmp_path / "net"


def _arguments(net: Path, base: Path, out: Path, steps: int) -> list[str]:
    return [
        *("--documents", str(net), "--base", str(base), "--out", str(out), "--device", "cpu"),
        *("--steps", str(steps), "--batch", "2", "--rank", "4", "--tokens-max", "64"),
    ]


def test_the_command_tells_json_lines(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(_folder(tmp_path), base, tmp_path / "out", 2)) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in told] == ["started", "measured", "step", "step", "measured", "finished"]
    assert told[0]["recipe"]["rank"] == 4
    assert told[-1]["files"][WEIGHTS_NAME]["size"] == (tmp_path / "out" / WEIGHTS_NAME).stat().st_size


def test_the_command_fails_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tmp_path / "nowhere", base, tmp_path / "out", 2)) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert json.loads(captured.out.splitlines()[-1])["event"] == "failed"
    assert main(_arguments(_folder(tmp_path), tmp_path / "nowhere", tmp_path / "out", 2)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(base: Path, tmp_path: Path, kind: signal.Signals) -> None:
    out = tmp_path / "out"
    arguments = _arguments(_folder(tmp_path), base, out, 100_000)
    with subprocess.Popen(
        [sys.executable, "-m", "gpu_worker.train", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        while json.loads(next(lines))["event"] != "step":
            pass
        process.send_signal(kind)
        last = list(lines)[-1]
    assert process.returncode == 130
    assert "go on" in json.loads(last)["reason"]
    assert (out / CHECKPOINT_NAME).exists()
