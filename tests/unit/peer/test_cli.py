"""The command line: results on stdout, one line of error, exit codes; against a daemon in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gossip_ledger.errors import LocalError
from peer.cli import main
from peer.cli.shell import money, parse_money, printable
from peer.cli.usage import UsageError
from peer.config import Home
from peer.run_file import RunFile, write_run_file
from tests.unit.peer.fake_node import PAYER, WORKER

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    def failed(self, code: int, *words: str) -> None:
        assert self.code == code, self
        assert self.err.startswith("upkeep: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


Run = Callable[..., Done]


@pytest.fixture
def upkeep(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@contextmanager
def command(*arguments: str, home: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs a command in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "peer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "UPKEEP_HOME": str(home)},
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def daemon(home: Path, mode: str = "") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.peer.fake_daemon", str(home), mode],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("running") / "home"
    with daemon(home):
        yield home


@pytest.fixture
def home(running: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UPKEEP_HOME", str(running))
    return running


# ------------------------------------------------------------------------------------------------ asking


@pytest.mark.usefixtures("home")
def test_asking(upkeep: Run) -> None:
    done = upkeep("ask", "how", "are", "you", "--max-fee", "0.5", "--worker", "aa", "--policy", "cheapest")
    assert done.code == 0
    assert done.out == "Hello, wörld\n"
    for word in ("tiny", "5 + 3 tokens", "0.000100 OPEN", "worker", "creator of tiny", "0.000060 OPEN"):
        assert word in done.err


@pytest.mark.usefixtures("home")
def test_asking_for_json(upkeep: Run) -> None:
    answer = upkeep("ask", "hi", "--model", "poet", "--json").document
    assert (answer["text"], answer["model"], answer["fee"]) == ("Hello, wörld", "poet", 100)
    assert sum(part["amount"] for part in answer["shares"]) == answer["fee"]
    assert upkeep("ask", "hi", "--raw", "--json").document["text"] == "Hello, wörld"


@pytest.mark.usefixtures("home")
def test_quoting(upkeep: Run) -> None:
    assert upkeep("quote", "hi", "--json").document["max_fee"] == 700
    assert "0.000700 OPEN" in upkeep("quote", "hi").out


def test_a_question_on_standard_input(running: Path) -> None:
    with command("ask", "-", "--json", home=running, stdin=subprocess.PIPE) as process:
        out, err = process.communicate("hello\nthere\n", timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out)["text"] == "Hello, wörld"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask",), ("missing argument", "upkeep ask --help")),
        (("ask", " "), ("no question",)),
        (("ask", "hi", "--max-tokens", "0"), ("--max-tokens",)),
        (("ask", "hi", "--max-fee", "x"), ("--max-fee", "1.5")),
        (("ask", "hi", "--max-fee", "-1"), ("--max-fee",)),
        (("ask", "hi", "--max-fee", "1.1234567"), ("--max-fee",)),
        (("ask", "hi", "--raw", "--system", "x"), ("--raw",)),
        (("ask", "hi", "--mdoel", "x"), ("--mdoel",)),
        (("aks", "hi"), ("no such command", "aks")),
        (("ledger", "blance"), ("no such command",)),
        (("send", "abc", "1"), ("64 hex digits",)),
        (("send", WORKER, "zero"), ("AMOUNT",)),
        (("send", WORKER, "0"), ("above zero",)),
        (("send", WORKER), ("missing argument",)),
        (("ledger", "receipts", "--limit", "0"), ("--limit",)),
        (("init", "nonsense"), ("neither an invite",)),
        (("network", "create", "/x", "--supply", "lots"), ("--supply",)),
        (("adapter", "publish", "--base", "x"), ("--name",)),
        (("adapter", "publish", "/tmp", "--split", "50,50"), ("--split",)),
        (("adapter", "publish", "/tmp", "--split", "60,10,20,5,6"), ("--split",)),
        (("adapter", "publish", "/tmp"), ("--datanet",)),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(upkeep: Run, arguments: tuple[str, ...], words: Any) -> None:
    done = upkeep(*arguments)
    done.failed(2, *words)
    assert done.out == ""


def test_no_arguments_show_the_help(upkeep: Run) -> None:
    done = upkeep()
    assert done.code == 2
    assert "Commands:" in done.err


# ---------------------------------------------------------------------------------------- the daemon's data


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "key", "shown"),
    [
        (("status",), "account", PAYER),
        (("peers",), "peers", "10.0.0.7"),
        (("workers",), "workers", "bf16"),
        (("models",), "models", "poet"),
        (("ledger", "balance"), "account", PAYER),
        (("ledger", "balance", WORKER), "account", WORKER),
        (("ledger", "receipts"), "receipts", "ffffffffffff"),
        (("ledger", "payouts"), "fees", "add up to the fees"),
        (("ledger", "root"), "root", "77" * 32),
        (("ledger", "explain"), "kind", "spendable"),
        (("ledger", "explain", "tiny"), "kind", "fund"),
        (("ledger", "explain", "ff" * 32), "kind", "divided by"),
        (("ledger", "confirm", "ff"), "is_confirmed", "follow from the evidence"),
        (("adapter", "show", "poet"), "split", "Walt"),
        (("send", WORKER, "1.5"), "id", "1.500000 OPEN"),
        (("worker", "price"), "price_in", "4000u"),
        (("worker", "earnings"), "models", "0.000060 OPEN"),
        (("page",), "page", "http://127.0.0.1:"),
        (("version",), "version", "upkeep 0"),
    ],
)
def test_every_command_for_people_and_programs(
    upkeep: Run, arguments: tuple[str, ...], key: str, shown: str
) -> None:
    assert key in upkeep(*arguments, "--json").document
    done = upkeep(*arguments)
    assert done.code == 0, done.err
    assert shown in done.out


def test_the_home_is_an_option_or_a_variable(upkeep: Run, running: Path, tmp_path: Path) -> None:
    assert upkeep("status", "--home", str(running), "--json").document["account"] == PAYER
    upkeep("status", "--home", str(tmp_path)).failed(1, "no daemon runs", "upkeep up")


@pytest.mark.usefixtures("home")
def test_publishing(upkeep: Run, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "poet").mkdir()
    options = ("--datanet", str(tmp_path), "--base", str(tmp_path / "base"), "--split", "60,10,20.5,5,4.5")
    assert upkeep("adapter", "publish", str(tmp_path / "poet"), *options, "--json").document["name"] == "poet"
    upkeep("adapter", "publish", str(tmp_path / "absent"), *options).failed(1, "is not a folder")
    upkeep("adapter", "show", "absent").failed(1, "upkeep models")


# -------------------------------------------------------------------------------------------------- failures


def test_no_daemon(upkeep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPKEEP_HOME", str(tmp_path))
    upkeep("peers").failed(1, "no daemon runs", "upkeep up")
    (tmp_path / "api-token").write_text("0" * 64)
    (tmp_path / "api-token").chmod(0o600)
    write_run_file(Home(tmp_path), RunFile(pid=1, gateway="http://127.0.0.1:9"))
    for arguments in (("peers",), ("ask", "hi"), ("ask", "hi", "--json"), ("stop",), ("page",)):
        done = upkeep(*arguments)
        done.failed(1, "no daemon answers", "upkeep up")
        assert done.out == ""
    (tmp_path / "api-token").chmod(0o644)
    upkeep("peers").failed(1, "chmod 600")
    (tmp_path / "api-token").unlink()
    upkeep("peers").failed(1, "api-token")


def test_a_wrong_local_key(upkeep: Run, running: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((running / "run.json").read_bytes())
    (tmp_path / "api-token").touch(0o600)
    (tmp_path / "api-token").write_text("f" * 64)
    upkeep("peers", "--home", str(tmp_path)).failed(1, "local key")


def test_failures_of_the_node(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "poor"):
        done = upkeep("ask", "hi", "--home", str(tmp_path))
        done.failed(1, "12 micro-units are too few; lower --max-fee")
        assert done.out == ""


def test_an_answer_cut_off_by_a_failure(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "lost"):
        done = upkeep("ask", "hi", "--home", str(tmp_path))
        assert done.out.startswith("Hello, ")
        done.failed(1, "the last worker was lost; ask again")
        assert upkeep("ask", "hi", "--home", str(tmp_path), "--json").out == ""


def test_a_failover_is_told(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "failover"):
        done = upkeep("ask", "hi", "--home", str(tmp_path))
        assert done.out == "Hello, wörld\n"
        assert "lost worker aaaaaaaaaaaa (the stream broke); going on elsewhere" in done.err


def test_answers_cannot_steer_the_terminal(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "hostile"):
        done = upkeep("ask", "hi", "--home", str(tmp_path))
        assert "\x1b" not in done.out + done.err
        assert "\x07" not in done.out
        assert "red" in done.out


def test_text_comes_as_it_is_made_and_ctrl_c_is_one_line(tmp_path: Path) -> None:
    with daemon(tmp_path, "slow"), command("ask", "hi", home=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "word "
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert err.strip().splitlines()[-1] == "upkeep: interrupted"
        assert "Traceback" not in err
        assert len(out) < 500


def test_a_daemon_that_dies_in_the_middle(tmp_path: Path) -> None:
    with daemon(tmp_path, "slow") as fake, command("ask", "hi", home=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "word "
        fake.kill()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert err.count("\n") == 1
        assert "see its log" in err


def test_a_reader_of_our_output_that_goes_away(running: Path) -> None:
    with command("status", home=running) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_stopping_waits_for_the_end(upkeep: Run, tmp_path: Path) -> None:
    with daemon(tmp_path) as fake:
        assert upkeep("stop", "--home", str(tmp_path), "--json").document == {
            "stopped": True,
            "pid": fake.pid,
        }
        assert fake.wait(5) == 0
    upkeep("stop", "--home", str(tmp_path)).failed(1, "no daemon answers")


def test_defects_are_one_line_and_a_trace_only_on_demand(
    upkeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("peer.cli.daemon.connect", broken)
    upkeep("peers").failed(1, "this is a defect of upkeep: ZeroDivisionError: oh", "--debug")
    assert "Traceback" in upkeep("--debug", "peers").err
    assert "Traceback" in upkeep("peers", "--debug").err

    def grouped(path: object) -> None:
        raise ExceptionGroup(
            "nursery", [ExceptionGroup("inner", [LocalError("the disk is full; free some")])]
        )

    monkeypatch.setattr("peer.cli.daemon.connect", grouped)
    upkeep("peers").failed(1, "upkeep: the disk is full; free some")


# --------------------------------------------------------------------------------------- homes and networks


def test_a_network_and_a_home(upkeep: Run, tmp_path: Path) -> None:
    net, mine = tmp_path / "net", tmp_path / "mine"
    made = upkeep(
        "network", "create", str(net), "--invites", "2", "--grant", "7.5", "--team", "10", "--json"
    ).document
    assert made["supply"] == 10**12
    assert len(made["invites"]) == 2
    assert Path(made["vesting"][0]).name == "team"
    upkeep("network", "create", str(net)).failed(1, "choose another folder")
    home = upkeep("init", made["invites"][0], "--home", str(mine), "--json").document
    assert (home["grant"], home["network"]) == (7_500_000, made["network"])
    upkeep("init", made["invites"][1], "--home", str(mine)).failed(1, "is a home already")
    text = Path(made["invites"][1]).read_text()
    assert "7.500000 OPEN" in upkeep("init", text, "--home", str(tmp_path / "second")).out
    upkeep("init", text[:-9], "--home", str(tmp_path / "third")).failed(1, "damaged or incomplete")
    upkeep("status", "--home", str(mine)).failed(1, "no daemon runs")
    upkeep("ledger", "verify", "--home", str(mine)).failed(1, "no store")


def test_up_refuses_what_cannot_run(upkeep: Run, tmp_path: Path) -> None:
    net, home = tmp_path / "net", str(tmp_path / "net" / "witness")
    upkeep("up", "--home", str(tmp_path / "absent")).failed(1, "upkeep init")
    upkeep("network", "create", str(net))
    upkeep("up", "--home", home, "--price-in", "-1").failed(2, "worker.price_in must be an integer")
    upkeep("up", "--home", home, "--bind", "nowhere").failed(2, "gateway.bind must be host:port")
    upkeep("up", "--home", home, "--quantization", "q4").failed(2, "bf16, nf4, int8, fp32")
    (net / "witness" / "config.toml").write_text("[worker]\nquantisation = 'nf4'\n")
    upkeep("up", "--home", home).failed(1, "worker.quantisation; did you mean worker.quantization?")


def test_a_light_installation_says_what_to_install(
    upkeep: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else real(name))
    upkeep("network", "create", str(tmp_path / "net"))
    for arguments in (
        ("adapter", "train", "data", "out"),
        ("worker", "plan"),
        ("demo",),
        ("up", "--worker", "--home", str(tmp_path / "net" / "witness")),
    ):
        upkeep(*arguments).failed(1, "pip install 'upkeep[worker]'")


def test_the_doctor(upkeep: Run, running: Path, tmp_path: Path) -> None:
    done = upkeep("doctor", "--home", str(tmp_path / "absent"), "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert not report["is_fine"]
    assert {check["check"] for check in report["checks"]} >= {"home", "key", "genesis", "daemon"}
    upkeep("network", "create", str(tmp_path / "net"))
    home = tmp_path / "net" / "witness"
    for name in ("run.json", "api-token"):
        (home / name).unlink(missing_ok=True)
        (home / name).write_bytes((running / name).read_bytes())
        (home / name).chmod(0o600)
    done = upkeep("doctor", "--home", str(home))
    assert done.code == 0, done.out + done.err
    assert "problem" not in done.out


# ---------------------------------------------------------------------------------------------- small parts


def test_money() -> None:
    assert money(1_234_567_890_123, "OPEN") == "1,234,567.890123 OPEN"
    assert money(-5, "OPEN") == "-0.000005 OPEN"
    for text, amount in (("1.5", 1_500_000), ("0.000001", 1), ("7u", 7), ("12", 12_000_000), ("0", 0)):
        assert parse_money(text, "--x") == amount
    for text in ("", "-1", "1.", ".5", "1.0000001", "1e3", "9" * 14, "9" * 19 + "u", "\u0661", "1,5", " 1"):
        with pytest.raises(UsageError):
            parse_money(text, "--x")


def test_printable() -> None:
    assert printable("a\x1bb\u202ec\nd\te") == "a\ufffdb\ufffdc\nd\te"


def test_starting_is_fast(running: Path) -> None:
    """CPU time, so that a busy machine does not matter."""
    for arguments, seconds in ((("--version",), 0.3), (("peers", "--json"), 1.0)):
        before = os.times()
        with command(*arguments, home=running) as process:
            out, err = process.communicate(timeout=60)
        after = os.times()
        assert process.returncode == 0, err
        used = after.children_user - before.children_user + after.children_system - before.children_system
        assert used < seconds, out
