"""`upkeep adapter train`: the trainer is a process of its own, and what becomes of it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gossip_ledger.errors import LocalError
from peer.cli.training import run_trainer

ROOT = Path(__file__).parents[3]


def trainer(*lines: str, code: str = "") -> list[str]:
    """A trainer that says `lines` and then runs `code`."""
    program = "\n".join([*(f"print({line!r}, flush=True)" for line in lines), code])
    return [sys.executable, "-c", program]


STARTED = '{"event": "started", "documents": 40, "held_out": 2}'
STEP = '{"event": "step", "step": 10, "steps": 10, "loss": 2.5, "tokens": 100}'
MEASURED = '{"event": "measured", "step": 10, "perplexity": 12.25, "tokens": 50}'
FINISHED = '{"event": "finished", "out": "/out", "before": 20.0, "after": 12.25}'


def test_a_training_that_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    finished = run_trainer(trainer(STARTED, "a library speaks", "[1]", STEP, MEASURED, FINISHED))
    assert finished["after"] == 12.25
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 10 of 10, loss 2.500" in err
    assert "held-out perplexity 12.25 at step 10" in err
    assert "a library" not in err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (trainer(STARTED, '{"event": "failed", "reason": "no documents"}', code="exit(1)"), "no documents"),
        (
            trainer(STARTED, code="import sys; sys.exit('ModuleNotFoundError: peft')"),
            "ModuleNotFoundError: peft",
        ),
        (trainer(STARTED, code="import os; os.kill(os.getpid(), 9)"), "the trainer died"),
        (trainer(STARTED), "the trainer died"),
    ],
)
def test_a_training_that_fails_says_why(command: list[str], expected: str) -> None:
    with pytest.raises(LocalError, match="training failed: ") as error:
        run_trainer(command)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_interrupted_training_waits_for_its_checkpoint(tmp_path: Path) -> None:
    mark = tmp_path / "checkpoint"
    child = (
        "import signal, sys, time, pathlib\n"
        f"print('''{STARTED}''', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"  time.sleep(0.3); pathlib.Path({str(mark)!r}).touch()\n"
        '  print(\'{"event": "failed", "reason": "interrupted; go on later"}\', flush=True); sys.exit(130)\n'
    )
    program = (
        "import sys\nfrom peer.cli import run\nfrom peer.cli.training import run_trainer\n"
        f"run.app = lambda *a, **k: run_trainer([sys.executable, '-c', {child!r}])\n"
        "sys.exit(run.run([]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        while not _has_child(process.pid):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(20) == 130, err
    assert mark.exists()
    assert err.strip().splitlines()[-1].startswith("upkeep: interrupted")
    assert "Traceback" not in err


def _has_child(pid: int) -> bool:
    """Whether the process has a child that sleeps already."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        return False
    try:
        fields = Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) > 0 and fields[0] == "S"
    except (FileNotFoundError, ProcessLookupError):
        return False
