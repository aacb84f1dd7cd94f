"""What every test shares: quiet threads, a private home, a Hypothesis profile, and which marks run here."""

from __future__ import annotations

import os
import shutil

import hypothesis
import pytest

# Before anything loads a numeric library: on small machines threads of several processes wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No deadline for one example: on a shared machine it measures the neighbours. Bound the work instead.
hypothesis.settings.register_profile("upkeep", deadline=None, print_blob=True)
hypothesis.settings.load_profile("upkeep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, and says why."""
    skips = {}
    if shutil.which("nvidia-smi") is None:
        skips["gpu"] = pytest.mark.skip(reason="no CUDA device")
    if os.environ.get("UPKEEP_NET_TESTS") != "1":
        skips["net"] = pytest.mark.skip(reason="set UPKEEP_NET_TESTS=1 to download from a package registry")
    for item in items:
        for name, mark in skips.items():
            if item.get_closest_marker(name):
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def _private_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test that forgets to name a home must not find the developer's."""
    monkeypatch.setenv("UPKEEP_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))
