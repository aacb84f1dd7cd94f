"""The worker as a child: whatever becomes of it, askers get one clear end, and it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.records import ModelId
from gpu_worker.protocol import ENGINE_DIED, Event, Failed, Finished, Generate, Generated
from peer import supervisor as module
from peer.engine import EngineDownError
from peer.supervisor import SupervisedEngine, open_engine, open_worker
from tests.support.stub_worker import ANSWER, CRASH, EXIT, GARBAGE, HANG, SILENT

ROOT = Path(__file__).parents[3]
MODEL = ModelId(b"m" * 32)


def ask(kind: int) -> Generate:
    return Generate(
        request=0,
        model=ModelId(b""),
        prompt=(kind,),
        max_tokens=4,
        temperature_milli=0,
        top_p_milli=1000,
        seed=0,
        stop_ids=(),
    )


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.support.stub_worker", str(folder)]


@pytest.fixture
def lines() -> list[str]:
    return []


@asynccontextmanager
async def stub(folder: Path, lines: list[str]) -> AsyncGenerator[SupervisedEngine]:
    with trio.fail_after(60):
        async with open_worker(command(folder), {}, report=lines.append) as engine:
            yield engine


async def answer(engine: SupervisedEngine, kind: int) -> list[Event]:
    async with engine.generate(ask(kind)) as events:
        return [event async for event in events]


async def back(engine: SupervisedEngine, lines: list[str], times: int = 1) -> None:
    while lines.count("the worker is back") < times or engine.pid is None:
        await trio.sleep(0.02)


def starts(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "starts").read_text().split()]


async def test_it_answers(tmp_path: Path, lines: list[str]) -> None:
    async with stub(tmp_path, lines) as engine:
        assert engine.info.kernels == "stub"
        events = await answer(engine, ANSWER)
        assert [type(e) for e in events] == [Generated, Finished]
        assert (await engine.load_adapter(MODEL, tmp_path)).rank == 8
        assert (await engine.stats()).resident == (MODEL,)
        await engine.unload_adapter(MODEL)
    assert lines == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [(CRASH, "signal 11"), (EXIT, "exit status 3: out of memory on device 0"), (GARBAGE, "pipe broke")],
)
async def test_a_death_is_told_to_every_asker_and_mended(
    tmp_path: Path, lines: list[str], kind: int, words: str
) -> None:
    async with stub(tmp_path, lines) as engine:
        await engine.load_adapter(MODEL, tmp_path)
        async with engine.generate(ask(SILENT)) as bystander:
            assert isinstance(await bystander.receive(), Generated)
            last = (await answer(engine, kind))[-1]
            assert isinstance(last, Failed)
            assert last.code == ENGINE_DIED
            assert words in last.reason
            other = [event async for event in bystander]
            assert [e.code for e in other if isinstance(e, Failed)] == [ENGINE_DIED]
        refused = await answer(engine, ANSWER)
        assert [e.code for e in refused if isinstance(e, Failed)] == [ENGINE_DIED]
        with pytest.raises(EngineDownError):
            await engine.stats()
        with pytest.raises(EngineDownError):
            await engine.load_adapter(MODEL, tmp_path)
        await back(engine, lines)
        assert isinstance((await answer(engine, ANSWER))[-1], Finished)
        assert (await engine.stats()).resident == (MODEL,), "adapters are loaded again"
    assert len(starts(tmp_path)) == 2
    assert "died" in lines[0]


async def test_a_question_under_way_when_it_dies(tmp_path: Path, lines: list[str]) -> None:
    async with stub(tmp_path, lines) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(answer, engine, HANG)
        await trio.sleep(0.1)

        async def kill() -> None:
            await trio.sleep(0.2)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)

        nursery.start_soon(kill)
        with pytest.raises(EngineDownError, match="signal 9"):
            await engine.stats()


async def test_a_worker_that_hangs_is_replaced(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENGINE_STALL_S", 0.3)
    async with stub(tmp_path, lines) as engine:
        await trio.sleep(0.7)
        assert engine.pid == starts(tmp_path)[0], "idle is not hanging"
        last = (await answer(engine, HANG))[-1]
        assert isinstance(last, Failed)
        assert "silent" in last.reason
        await back(engine, lines)


async def test_pauses_double_while_it_keeps_dying(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENGINE_BACKOFF_S", 0.05)
    async with stub(tmp_path, lines) as engine:
        (tmp_path / "die").touch()
        begun = trio.current_time()
        await answer(engine, CRASH)
        while len(starts(tmp_path)) < 5:
            await trio.sleep(0.02)
        assert trio.current_time() - begun > 0.05 + 0.1 + 0.2 + 0.4
        (tmp_path / "die").unlink()
        await back(engine, lines)
    assert any("does not start again" in line and "cannot find the device" in line for line in lines)


async def test_it_does_not_come_back_as_somebody_else(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENGINE_BACKOFF_S", 0.05)
    async with stub(tmp_path, lines) as engine:
        (tmp_path / "other").touch()
        await answer(engine, CRASH)
        while not any("another one" in line for line in lines):
            await trio.sleep(0.02)
        assert [e.code for e in await answer(engine, ANSWER) if isinstance(e, Failed)] == [ENGINE_DIED]


@pytest.mark.parametrize(("flag", "words"), [("refuse", "no such base"), ("die", "cannot find the device")])
async def test_a_worker_that_cannot_start_is_the_operators_matter(
    tmp_path: Path, lines: list[str], flag: str, words: str
) -> None:
    (tmp_path / flag).touch()
    with pytest.raises(LocalError, match=words):
        async with stub(tmp_path, lines):
            pytest.fail("started")
    with pytest.raises(LocalError, match="cannot start the worker"):
        async with open_worker(["/no/such/program"], {}):
            pytest.fail("started")


async def test_leaving_the_block_cancels_in_the_worker(tmp_path: Path, lines: list[str]) -> None:
    async with stub(tmp_path, lines) as engine:
        async with engine.generate(ask(SILENT)) as events:
            first = await events.receive()
        while not (tmp_path / "cancelled").exists():
            await trio.sleep(0.02)
        await engine.stats()
    assert (tmp_path / "cancelled").read_text() == f"{first.request}\n"


async def test_nothing_is_left_behind(tmp_path: Path, lines: list[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with stub(tmp_path, lines) as engine:
        pid = engine.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_a_killed_daemon_takes_its_worker_with_it(tmp_path: Path) -> None:
    """The real worker process: its parent is killed without a chance to clean up."""
    pytest.importorskip("torch")
    from tests.support.tiny_base import write_tiny_base

    write_tiny_base(tmp_path / "base")
    code = (
        "import trio, sys; from pathlib import Path; from peer.supervisor import open_engine\n"
        "async def main():\n"
        "    async with open_engine(base=Path(sys.argv[1]), threads=1) as engine:\n"
        "        print(engine.pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "base")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as daemon:
        assert daemon.stdout is not None
        worker = int(daemon.stdout.readline())
        daemon.kill()
    trio.run(_gone, worker)


async def _gone(pid: int) -> None:
    with trio.fail_after(10):
        while _is_alive(pid):
            await trio.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
async def test_the_real_worker_says_why_it_cannot_start(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(LocalError, match=r"config\.json"):
        async with open_engine(base=tmp_path):
            pytest.fail("started")
