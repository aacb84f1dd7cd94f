"""What a daemon leaves in its home while it runs: its address and its logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gossip_ledger.errors import LocalError
from peer.config import Home
from peer.logs import configure_logs
from peer.run_file import RunFile, read_run_file, remove_run_file, write_run_file


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()


def test_run_files(home: Home) -> None:
    assert read_run_file(home) is None
    run = RunFile(pid=7, gateway="http://127.0.0.1:1")
    write_run_file(home, run)
    assert read_run_file(home) == run
    assert home.run.stat().st_mode & 0o777 == 0o600
    remove_run_file(home, 8)
    assert read_run_file(home) == run
    remove_run_file(home, 7)
    remove_run_file(home, 7)
    assert read_run_file(home) is None
    for text in ("", "{}", "[]", '{"pid": 1}', '{"pid": true, "gateway": "http://x"}', "[" * 4000):
        home.run.write_text(text)
        assert read_run_file(home) is None
    home.run.write_text('{"pid": 1, "gateway": "file:///etc/passwd"}')
    assert read_run_file(home) is None
    with pytest.raises(LocalError, match="cannot write"):
        write_run_file(Home(home.path / "absent"), run)


@pytest.mark.usefixtures("logging_restored")
def test_logs_go_to_the_home(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(home, level="info", stderr_level="warning")
    structlog.get_logger("ledger").info("records_added", count=3, id=b"\xab" * 32)
    structlog.get_logger("ledger").debug("hidden")
    logging.getLogger("upkeep.gateway.server").warning("from %s", "elsewhere")
    logging.getLogger("libp2p.swarm").warning("noise")
    try:
        raise KeyError("x")
    except KeyError:
        structlog.get_logger("node").exception("defect")
    lines = [json.loads(line) for line in (home.logs / "upkeep.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["records_added", "from elsewhere", "defect"]
    assert lines[0].items() >= {"count": 3, "id": "abababababab", "logger": "ledger", "level": "info"}.items()
    assert "KeyError" in lines[2]["exception"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "from elsewhere" in shown.err
    assert "records_added" not in shown.err


@pytest.mark.usefixtures("logging_restored")
def test_a_home_where_logs_cannot_be_written(home: Home) -> None:
    home.logs.write_text("in the way")
    with pytest.raises(LocalError, match="in the way"):
        configure_logs(home)
