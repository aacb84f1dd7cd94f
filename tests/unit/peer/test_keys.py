"""Keys: private, whole or absent, and used by one process at a time."""

from __future__ import annotations

import random
import stat
import subprocess
import sys
from pathlib import Path

import nacl.signing
import pytest

from gossip_ledger.errors import LocalError
from peer.capabilities import SeededEntropy, SystemEntropy
from peer.config import Home
from peer.keys import NodeKey, SeedSigner, read_account, read_secret, write_secret


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def entropy(seed: int = 1) -> SeededEntropy:
    return SeededEntropy(random.Random(seed))


def one_line(error: pytest.ExceptionInfo[LocalError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_created_then_loaded(home: Home) -> None:
    with NodeKey.create(home, entropy()) as created:
        seed = created.seed
        assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
        assert [path.name for path in home.path.iterdir() if path.name.startswith(".")] == []
    with NodeKey.load(home) as loaded:
        assert loaded.seed == seed
        assert loaded.account == loaded.signer.account == read_account(home)


def test_real_keys_differ(home: Home, tmp_path: Path) -> None:
    with (
        NodeKey.create(home, SystemEntropy()) as one,
        NodeKey.create(Home(tmp_path / "2"), SystemEntropy()) as two,
    ):
        assert one.seed != two.seed


def test_signatures_verify(home: Home) -> None:
    with NodeKey.create(home, entropy()) as key:
        signature = key.signer.sign(b"message")
    nacl.signing.VerifyKey(key.account).verify(b"message", signature)
    assert SeedSigner(key.seed).sign(b"message") == signature


def test_a_key_is_never_overwritten(home: Home) -> None:
    with NodeKey.create(home, entropy(1)) as key:
        seed = key.seed
    with pytest.raises(LocalError, match="exists already") as error:
        NodeKey.create(home, entropy(2))
    one_line(error)
    with NodeKey.load(home) as key:
        assert key.seed == seed


def test_no_key(home: Home) -> None:
    with pytest.raises(LocalError, match="upkeep init"):
        NodeKey.load(home)
    assert not home.path.exists()


def test_one_key_one_process(home: Home) -> None:
    with NodeKey.create(home, entropy()):
        program = (
            "import sys; from pathlib import Path\n"
            "from peer.keys import NodeKey; from peer.config import Home\n"
            "from gossip_ledger.errors import LocalError\n"
            "try: NodeKey.load(Home(Path(sys.argv[1])))\n"
            "except LocalError as error: print(error); sys.exit(7)\n"
        )
        root = Path(__file__).parents[3]
        done = subprocess.run(
            [sys.executable, "-c", program, str(home.path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
        )
        assert done.returncode == 7, done.stderr
        assert "is in use by process" in done.stdout
        assert done.stdout.count("\n") == 1
        with pytest.raises(LocalError, match="in use"):
            NodeKey.load(home)
    NodeKey.load(home).close()


def test_the_lock_is_freed_when_loading_fails(home: Home) -> None:
    NodeKey.create(home, entropy()).close()
    good = home.key.read_text()
    home.key.write_text("spoiled")
    for _ in range(2):
        with pytest.raises(LocalError, match="damaged"):
            NodeKey.load(home)
    home.key.write_text(good)
    NodeKey.load(home).close()


@pytest.mark.parametrize(
    "text", ["", "00" * 31, "00" * 33, "zz" * 32, "AA" * 32, "00" * 32 + "\n\n\n", "\u00e9" * 32]
)
def test_damaged_keys(home: Home, text: str) -> None:
    NodeKey.create(home, entropy()).close()
    home.key.write_text(text)
    with pytest.raises(LocalError, match="damaged") as error:
        NodeKey.load(home)
    one_line(error)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read(home: Home, mode: int) -> None:
    NodeKey.create(home, entropy()).close()
    home.key.chmod(mode)
    with pytest.raises(LocalError, match="chmod 600"):
        NodeKey.load(home)


def test_a_key_that_is_a_link_or_a_folder(home: Home, tmp_path: Path) -> None:
    NodeKey.create(home, entropy()).close()
    elsewhere = tmp_path / "elsewhere"
    home.key.rename(elsewhere)
    home.key.symlink_to(elsewhere)
    with pytest.raises(LocalError, match="cannot read"):
        NodeKey.load(home)
    home.key.unlink()
    home.key.mkdir()
    with pytest.raises(LocalError, match=r"not a plain file|cannot read"):
        NodeKey.load(home)


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LocalError, match="choose another --home"):
            NodeKey.create(Home(path), entropy())


def test_secrets_are_written_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    write_secret(path, "one\n")
    assert read_secret(path, bytes_max=10) == "one\n"
    with pytest.raises(LocalError, match="exists already"):
        write_secret(path, "two\n")
    assert path.read_text() == "one\n"
    with pytest.raises(LocalError, match="cannot write"):
        write_secret(tmp_path / "absent" / "token", "x")
    with pytest.raises(LocalError, match="damaged"):
        read_secret(path, bytes_max=3)
