"""The command line as a person uses it, with right and wrong input, against real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from peer.capabilities import SystemClock, SystemEntropy
from peer.config import Home
from peer.demo.daemons import Daemon
from peer.networks import NetworkPlan, create_network, init_home
from tests.e2e.network import CONFIG, Net, running_network, until, worker_config

pytestmark = pytest.mark.slow

Result = subprocess.CompletedProcess[bytes]
QUESTION = "What is the capital of Italy?"


async def upkeep(home: Path, *arguments: str) -> Result:
    """Runs one command with a home."""
    command = [sys.executable, "-m", "peer", *arguments]
    environment = {**os.environ, "UPKEEP_HOME": str(home), "COLUMNS": "100"}
    with trio.fail_after(120):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment
        )


async def told(home: Path, *arguments: str) -> Any:
    """The JSON of a command that must succeed and print nothing else."""
    result = await upkeep(home, *arguments, "--json")
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


async def refused(home: Path, *arguments: str, code: int = 1, says: str = "") -> str:
    """The one line of a command that must fail."""
    result = await upkeep(home, *arguments)
    line = result.stderr.decode()
    assert result.returncode == code, (result.returncode, line, result.stdout)
    assert line.startswith("upkeep: "), line
    assert line.count("\n") == 1, line
    assert "Traceback" not in line
    assert says in line, line
    return line


async def test_a_whole_visit(tmp_path: Path) -> None:
    """Every command against a running network, and every wrong input: one line, and nothing charged."""
    async with running_network(tmp_path) as net:
        await net.join("studio")
        await net.join("worker", worker_config())
        await net.join("reader")
        model = await net.publish_base("studio")
        await net.funded("reader")
        await net.served(model, 1, seen_by="reader")
        reader = net["reader"].home.path
        await wrong_questions(net, reader)
        before = await told(reader, "status")
        assert (await told(reader, "ledger", "receipts"))["receipts"] == []
        quote = await told(reader, "quote", QUESTION, "--max-tokens", "12")
        answer = await told(reader, "ask", QUESTION, "--max-tokens", "12")
        assert 0 < answer["fee"] <= quote["max_fee"]
        streamed = await upkeep(reader, "ask", QUESTION, "--max-tokens", "12")
        assert streamed.stdout.decode().strip().startswith(answer["text"].strip())
        await net.agree()
        await right_questions(net, reader, answer, before)
        await nobody_left(net, reader)


async def wrong_questions(net: Net, reader: Path) -> None:
    await refused(reader, "ask", QUESTION, "--model", "nobody", says="no model is called nobody")
    await refused(reader, "ask", QUESTION, "--max-tokens", "0", code=2)
    await refused(reader, "ask", code=2)
    await refused(reader, "ask", QUESTION, "--max-fee", "1u", says="max_fee")
    await refused(reader, "ask", "word " * 3000, says="tokens")
    await refused(reader, "ask", QUESTION, "--worker", "ffffff", says="serves")
    await refused(reader, "ledger", "explain", "no-such-thing")
    await refused(reader, "send", "00" * 32, "1")
    await refused(reader, "send", "ab" * 32, "1000000")
    await refused(reader, "frobnicate", code=2)
    poor = Home(net.folder / "poor")
    init_home(poor, net.created.invites[0].read_text(encoding="utf-8"), SystemEntropy(), config=CONFIG)
    net.daemons["poor"] = Daemon("poor", poor)
    net["poor"].start()
    await net["poor"].ready()
    await net.served((await told(reader, "models"))["models"][0]["id"], 1, seen_by="poor")
    await refused(poor.path, "ask", QUESTION, says="can be spent")


async def right_questions(net: Net, reader: Path, answer: dict[str, Any], before: dict[str, Any]) -> None:
    (receipt,) = answer["receipt"]
    explained = await told(reader, "ledger", "explain", receipt)
    assert explained["fee"] == answer["fee"] == sum(share["amount"] for share in explained["shares"])
    assert (await told(reader, "ledger", "confirm", receipt))["is_confirmed"]
    payouts = await told(reader, "ledger", "payouts")
    assert payouts["sums_to_fees"]
    roots = {(await told(net[name].home.path, "ledger", "root"))["root"] for name in net.daemons}
    assert len(roots) == 1
    workers = (await told(reader, "workers"))["workers"]
    assert workers[0]["quantization"] == "nf4"
    assert len((await told(reader, "peers"))["peers"]) >= 1
    zero = await told(reader, "ledger", "explain", "cd" * 32)
    assert "nothing earned" in zero["why"]
    balance = await told(reader, "ledger", "balance")
    assert {row["standing"] for row in balance["amounts"]} == {"final", "pending", "reserved", "unvested"}
    assert balance["spendable"] < before["spendable"]
    exported = net.folder / "ledger.export"
    await told(reader, "ledger", "export", str(exported))
    verified = await told(net.folder, "ledger", "verify", str(exported))
    assert verified["root"] in roots
    damaged = bytearray(exported.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    exported.write_bytes(damaged)
    await refused(net.folder, "ledger", "verify", str(exported))
    sent = await told(reader, "send", net.genesis.treasury.hex(), "1")
    assert sent["amount"] == 1_000_000
    for command in (("status",), ("models",), ("doctor",), ("ledger", "balance"), ("ledger", "receipts")):
        assert (await upkeep(reader, *command)).returncode == 0, command


async def nobody_left(net: Net, reader: Path) -> None:
    net["worker"].kill()

    async def unserved() -> bool:
        return not (await told(reader, "workers"))["workers"]

    await until(unserved, "a dead worker is still offered")
    await refused(reader, "ask", QUESTION, says="serves")
    assert (await upkeep(reader, "stop")).returncode == 0
    await refused(reader, "ask", QUESTION, says="upkeep up")
    await refused(reader, "status", says="upkeep up")


async def test_homes_that_cannot_be_used(tmp_path: Path) -> None:
    """No home, a second daemon, unknown keys, a damaged key, a full disk and a read-only one."""
    await refused(tmp_path / "none", "up", says="init")
    await refused(tmp_path / "none", "init", "not-an-invite", code=2)
    created = create_network(
        tmp_path / "network", NetworkPlan(name="t", start_s=SystemClock().now_s()), SystemEntropy()
    )
    invite = str(created.invites[0])
    home = tmp_path / "home"
    assert (await upkeep(home, "init", invite)).returncode == 0
    await refused(home, "init", invite, says="home already")
    config = home / "config.toml"
    good = config.read_text(encoding="utf-8")
    config.write_text(good.replace("[gateway]", "[gatewey]"), encoding="utf-8")
    await refused(home, "up", says="gatewey")
    config.write_text(good, encoding="utf-8")
    key = (home / "key").read_text(encoding="ascii")
    (home / "key").write_text("damaged", encoding="ascii")
    await refused(home, "up", says="key")
    (home / "key").write_text(key, encoding="ascii")


async def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    created = create_network(
        tmp_path / "network", NetworkPlan(name="t", start_s=SystemClock().now_s()), SystemEntropy()
    )
    invite = created.invites[0].read_text(encoding="utf-8")
    with small_disk(tmp_path / "disk") as disk:
        home = Home(disk / "home")
        init_home(home, invite, SystemEntropy(), config=CONFIG)
        disk.joinpath("ballast").write_bytes(bytes(free_bytes(disk)))
        await refused(home.path, "up", says="disk")
        disk.joinpath("ballast").unlink()
        await trio.run_process(["mount", "-o", "remount,ro", str(disk)], check=True)
        await refused(home.path, "up")
        await refused(disk / "other", "init", str(created.invites[1]))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this machine lets us mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_bsize
