"""What a store acknowledged outlives SIGKILL, and no transaction is ever half there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KILLS = 20


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    program = Path(__file__).with_name("store_killing.py")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "upkeep.sqlite"), str(KILLS), "1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lost"] == 0
    assert result["torn"] == 0
    assert result["acknowledged"] > 10 * KILLS
