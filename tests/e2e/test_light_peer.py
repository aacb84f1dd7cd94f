"""A peer without torch, in an environment that has none: it asks, counts tokens itself, and recomputes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from peer.demo.daemons import Daemon
from tests.e2e.network import running_network, worker_config
from tests.e2e.test_network import ask

ROOT = Path(__file__).parents[2]
SETUP_S_MAX = 600

pytestmark = pytest.mark.slow


@pytest.mark.timeout(SETUP_S_MAX + 200)
async def test_a_light_install_asks_and_recomputes(tmp_path: Path) -> None:
    venv = tmp_path / "light"
    setup = [str(ROOT / "scripts" / "setup"), "--light", str(venv)]
    with trio.fail_after(SETUP_S_MAX):
        await trio.run_process(setup, check=True)
    python = str(venv / "bin" / "python")
    for module in ("torch", "transformers", "peft", "bitsandbytes"):
        missing = await run([python, "-c", f"import {module}"])
        assert missing.returncode == 1, f"the light environment has {module}"
    async with running_network(tmp_path) as net:
        await net.join("studio")
        await net.join("worker", worker_config())
        home = net.add("reader").home
        net.daemons["reader"] = Daemon("reader", home, python=python)
        net["reader"].start()
        await net["reader"].ready()
        model = await net.publish_base("studio")
        await net.funded("reader")
        await net.served(model, 1, seen_by="reader")
        answer = await ask(net, "reader", "What is the capital of Italy?", 8)
        assert 1 <= answer["tokens_out"] <= 8
        await net.agree()
        confirmed = await net["reader"].get("/api/ledger/confirm", receipt=answer["receipt"][0])
        assert confirmed["is_confirmed"], confirmed
        said = await run([python, "-m", "peer", "no-such-command", "--home", str(home.path)])
        assert said.returncode == 2
        train = await run([python, "-m", "peer", "adapter", "train", str(tmp_path), str(tmp_path / "a")])
        assert train.returncode == 1
        assert b"upkeep[worker]" in train.stderr, train.stderr
        assert train.stderr.count(b"\n") == 1


async def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end."""
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
