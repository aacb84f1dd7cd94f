"""Configuration: what is not known or not right is named, with what to write instead."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.errors import LocalError
from peer.config import (
    QUANTIZATIONS,
    Config,
    GatewayConfig,
    Home,
    PeerConfig,
    WitnessConfig,
    WorkerConfig,
    load_config,
    override,
    parse_bind,
    parse_config,
    render_config,
    store_config,
)

ADDRESS = st.text(max_size=40).map(lambda tail: "/" + tail.replace("\0", ""))
PRICES = st.integers(0, 10**15)
CONFIGS = st.builds(
    Config,
    peer=st.builds(
        PeerConfig,
        listen=st.lists(ADDRESS, max_size=3).map(tuple),
        bootstrap=st.lists(ADDRESS, max_size=3).map(tuple),
    ),
    gateway=st.builds(GatewayConfig, bind=st.sampled_from(["127.0.0.1:0", "[::1]:8480", "localhost:65535"])),
    worker=st.builds(
        WorkerConfig,
        enabled=st.booleans(),
        quantization=st.sampled_from(QUANTIZATIONS),
        price_in=PRICES,
        price_out=PRICES,
        threads=st.integers(0, 1024),
        max_slots=st.integers(1, 1024),
        base=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50),
    ),
    witness=st.builds(WitnessConfig, enabled=st.booleans()),
)


@given(CONFIGS)
def test_what_is_rendered_is_read_back(config: Config) -> None:
    assert parse_config(render_config(config)) == config


def test_what_is_left_out_has_its_default() -> None:
    assert parse_config("") == Config()
    config = parse_config("[worker]\nenabled = true\nprice_out = 7\n")
    assert config.worker == WorkerConfig(enabled=True, price_out=7)
    assert config.peer == PeerConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[worker]\nquantisation = 'nf4'",
            r"unknown key worker\.quantisation; did you mean worker\.quantization\?",
        ),
        ("[worker]\nPRICE_IN = 4", r"unknown key worker\.PRICE_IN; did you mean worker\.price_in\?"),
        ("[gateway]\nxyzzy = 1", r"unknown key gateway\.xyzzy; known are gateway\.bind"),
        ("[workers]\nenabled = true", r"unknown section \[workers\]; did you mean \[worker\]\?"),
        ("listen = []", r"unknown section \[listen\]"),
        ("worker = 3", r"worker must be a section; write \[worker\]"),
        ("[worker]\nenabled = 1", r"worker\.enabled must be true or false"),
        ("[worker]\nprice_in = true", r"worker\.price_in must be an integer"),
        ("[worker]\nprice_in = -1", r"worker\.price_in must be an integer from 0"),
        ("[worker]\nprice_in = 1.0", r"worker\.price_in must be an integer"),
        ("[worker]\nmax_slots = 0", r"worker\.max_slots must be an integer from 1"),
        ("[worker]\nquantization = 'q4'", r"worker\.quantization must be one of bf16, nf4, int8, fp32"),
        ("[worker]\nbase = 3", r"worker\.base must be text"),
        ("[peer]\nlisten = '/ip4/0.0.0.0/tcp/1'", r"peer\.listen must be a list"),
        ("[peer]\nlisten = ['0.0.0.0:1']", r"peer\.listen must be a list"),
        ("[peer]\nbootstrap = [3]", r"peer\.bootstrap must be a list"),
        ("[peer]\nbootstrap = [" + "'/a'," * 65 + "]", r"peer\.bootstrap must be a list of at most 64"),
        ("[gateway]\nbind = '8480'", r"gateway\.bind must be host:port"),
        ("[gateway]\nbind = 'x:99999'", r"gateway\.bind must be host:port"),
        ("[gateway]\nbind = ':80'", r"gateway\.bind must be host:port"),
        ("[worker", r"not valid TOML"),
        ("[worker]\nenabled = true\nenabled = true", r"not valid TOML"),
    ],
)
def test_wrong_configurations(text: str, expected: str) -> None:
    with pytest.raises(LocalError, match=expected) as error:
        parse_config(text, source="/home/x/config.toml")
    assert str(error.value).startswith("/home/x/config.toml: ")
    assert "\n" not in str(error.value)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_local_error(text: str) -> None:
    with contextlib.suppress(LocalError):
        parse_config(text)


def test_files(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert load_config(home) == Config()
    home.config.write_text("[gateway]\nbind = '127.0.0.1:0'\n")
    assert load_config(home).gateway.bind == "127.0.0.1:0"
    home.config.write_bytes(b"\xff\xfe")
    with pytest.raises(LocalError, match="UTF-8"):
        load_config(home)
    home.config.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(LocalError, match="right file"):
        load_config(home)
    home.config.unlink()
    home.config.mkdir()
    with pytest.raises(LocalError, match="cannot read"):
        load_config(home)


def test_choosing_a_home(tmp_path: Path) -> None:
    assert Home.choose(tmp_path, {"UPKEEP_HOME": "/elsewhere"}).path == tmp_path
    assert Home.choose(None, {"UPKEEP_HOME": "/elsewhere"}).path == Path("/elsewhere")
    assert Home.choose(None, {}).path == Path.home() / ".upkeep"
    assert Home.choose(Path("relative"), {}).path == Path.cwd() / "relative"


def test_binds() -> None:
    assert parse_bind("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_bind("[::1]:0") == ("::1", 0)
    for wrong in ("", ":", "host", "host:", "host:-1", "host:\u0663", "host:65536"):
        with pytest.raises(ValueError, match="host:port"):
            parse_bind(wrong)


def test_the_command_line_replaces_values() -> None:
    base = Config(worker=WorkerConfig(price_in=5))
    changed = override(base, {"worker.enabled": True, "peer.listen": ["/ip4/10.0.0.7/tcp/1"]})
    assert changed.worker == WorkerConfig(price_in=5, enabled=True)
    assert changed.peer.listen == ("/ip4/10.0.0.7/tcp/1",)
    assert override(base, {}) == base
    with pytest.raises(LocalError, match=r"worker\.price_out must be an integer"):
        override(base, {"worker.price_out": -1})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[worker]\nprice_out = 9\n"),
        ("[gateway]\nbind = 'x:1'\n", "[gateway]\nbind = 'x:1'\n\n[worker]\nprice_out = 9\n"),
        ("[worker]\nenabled = true\n", "[worker]\nprice_out = 9\nenabled = true\n"),
        (
            "# mine\n[worker] # why\n  price_out=1_000 # dear\nprice_in = 5\n[peer]\n",
            "# mine\n[worker] # why\n  price_out=9 # dear\nprice_in = 5\n[peer]\n",
        ),
        ("[worker]\n# price_out = 7\nprice_out = 8", "[worker]\n# price_out = 7\nprice_out = 9\n"),
    ],
)
def test_a_value_is_stored_and_the_rest_stays(tmp_path: Path, before: str, after: str) -> None:
    home = Home(tmp_path)
    if before:
        home.config.write_text(before)
    expected = override(load_config(home), {"worker.price_out": 9})
    store_config(home, {"worker.price_out": 9})
    assert home.config.read_text() == after
    assert load_config(home) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_storing_where_lines_do_not_show_the_value(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config.write_text("worker.price_out = 1\nworker.price_in = 2\n")
    store_config(home, {"worker.price_out": 9, "worker.enabled": True})
    assert load_config(home) == Config(worker=WorkerConfig(price_out=9, price_in=2, enabled=True))


def test_storing_that_fails_changes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(LocalError, match="cannot write"):
        store_config(home, {"worker.price_out": 9})
    home = Home(tmp_path)
    home.config.write_text("[worker]\nprice_out = 1\n")
    with pytest.raises(LocalError, match=r"worker\.price_out must be an integer"):
        store_config(home, {"worker.price_in": 2, "worker.price_out": -1})
    assert home.config.read_text() == "[worker]\nprice_out = 1\n"
