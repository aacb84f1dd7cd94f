"""What a daemon leaves in its home while it runs: its address and its logs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import structlog
import trio

from gossip_ledger.errors import LocalError
from peer.capabilities import SeededEntropy, SystemClock
from peer.config import Home
from peer.gateway.server import open_socket, run_gateway
from peer.keys import read_secret
from peer.logs import configure_logs
from peer.run_file import RunFile, read_run_file, remove_run_file, write_run_file
from tests.unit.peer.fake_node import FakeNode


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


async def test_a_gateway_writes_and_removes_its_run_file(home: Home) -> None:
    start = partial(
        run_gateway,
        FakeNode(),
        home,
        "127.0.0.1:0",
        clock=SystemClock(),
        entropy=SeededEntropy(random.Random(1)),
        stop=lambda: None,
    )
    async with trio.open_nursery() as nursery:
        url = await nursery.start(start)
        run = read_run_file(home)
        assert run is not None
        assert run.gateway == url
        token = read_secret(home.api_token, bytes_max=100).strip()
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"{url}/api/status", headers={"Authorization": f"Bearer {token}"})
        assert reply.status_code == 200
        nursery.cancel_scope.cancel()
    assert read_run_file(home) is None


async def test_a_gateway_that_cannot_listen_leaves_no_run_file(home: Home) -> None:
    with open_socket("127.0.0.1:0") as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LocalError, match="choose another with --bind"):
            await run_gateway(
                FakeNode(),
                home,
                bind,
                clock=SystemClock(),
                entropy=SeededEntropy(random.Random(1)),
                stop=lambda: None,
            )
    assert read_run_file(home) is None


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
