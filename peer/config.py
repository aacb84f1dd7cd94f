"""A node's home folder and its configuration.

The home holds everything a node owns: key, genesis, store, configuration, logs. The configuration is one
TOML file of known sections and keys; anything unknown or ill-typed is a `LocalError` that names the key.
Options of `upkeep up` never write the file; they replace values of the frozen `Config` in memory.
`store_config` writes single values, and leaves the rest of the file as its owner wrote it.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, cast, final

from gossip_ledger.errors import LocalError
from peer.limits import CONFIG_BYTES_MAX, PRICE_MAX

QUANTIZATIONS: Final = ("bf16", "nf4", "int8", "fp32")
GATEWAY_BIND: Final = "127.0.0.1:8480"
HOME_VARIABLE: Final = "UPKEEP_HOME"


@final
@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one node's home folder. Touches no file itself."""

    path: Path

    @staticmethod
    def choose(option: Path | None, environment: Mapping[str, str]) -> Home:
        """`--home`, else the environment variable UPKEEP_HOME, else ~/.upkeep."""
        if option is not None:
            return Home(option.expanduser().absolute())
        named = environment.get(HOME_VARIABLE)
        return Home(Path(named).expanduser().absolute() if named else Path.home() / ".upkeep")

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def key(self) -> Path:
        """The node's secret seed, mode 0600."""
        return self.path / "key"

    @property
    def lock(self) -> Path:
        """Held by the one process that uses the key."""
        return self.path / "lock"

    @property
    def genesis(self) -> Path:
        return self.path / "genesis.cbor"

    @property
    def invite(self) -> Path:
        """The invite that this home was made from, mode 0600: it may hold a grant not collected yet."""
        return self.path / "invite.txt"

    @property
    def store(self) -> Path:
        return self.path / "upkeep.sqlite"

    @property
    def api_token(self) -> Path:
        """The local key of the gateway, mode 0600."""
        return self.path / "api-token"

    @property
    def run(self) -> Path:
        """Written by the running daemon: its process id and the gateway's address."""
        return self.path / "run.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """`[peer]`: the node in the network."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddresses to listen on; port 0 takes a free one, none: this node only dials out."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddresses (with /p2p/ peer id) to dial first, beside those in the invite."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """`[gateway]`: the local HTTP interface."""

    bind: str = GATEWAY_BIND
    """`host:port`; port 0 takes a free one. Anything but a loopback address is reachable by others."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`[worker]`: serving models for money."""

    enabled: bool = False
    quantization: str = "bf16"
    price_in: int = 1_000
    """Micro-units per 1,000 prompt tokens."""
    price_out: int = 4_000
    """Micro-units per 1,000 answer tokens."""
    threads: int = 0
    """CPU threads of the engine; 0: as many as the machine has cores."""
    max_slots: int = 8
    """Answers generated at the same time."""
    base: str = ""
    """Folder of the base model; empty: the default base."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessConfig:
    """`[witness]`: acknowledging records. Counts only where the genesis names this node's account."""

    enabled: bool = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A node's configuration."""

    peer: PeerConfig = field(default_factory=PeerConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    witness: WitnessConfig = field(default_factory=WitnessConfig)


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _integer(minimum: int, maximum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise ValueError(f"must be an integer from {minimum} to {maximum}")
        return value

    return parse


def _string(value: object) -> str:
    if type(value) is not str or "\0" in value or len(value) > 4096:
        raise ValueError("must be text of at most 4096 characters")
    return value


def _choice(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if type(value) is not str or value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return parse


def _addresses(value: object) -> tuple[str, ...]:
    message = "must be a list of at most 64 multiaddresses such as /ip4/192.0.2.7/tcp/8479"
    items = cast("list[object]", value) if type(value) is list else [None]
    found = [item for item in items if type(item) is str and item.startswith("/") and len(item) <= 512]
    if len(found) != len(items) or len(items) > 64:
        raise ValueError(message)
    return tuple(found)


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`. Raises `ValueError`."""
    host, colon, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:8480")
    return host, int(port)


def _bind(value: object) -> str:
    text = _string(value)
    parse_bind(text)
    return text


_PRICE = _integer(0, PRICE_MAX)
_PARSERS: Final[Mapping[str, tuple[type[Any], Mapping[str, Callable[[object], object]]]]] = {
    "peer": (PeerConfig, {"listen": _addresses, "bootstrap": _addresses}),
    "gateway": (GatewayConfig, {"bind": _bind}),
    "worker": (
        WorkerConfig,
        {
            "enabled": _flag,
            "quantization": _choice(*QUANTIZATIONS),
            "price_in": _PRICE,
            "price_out": _PRICE,
            "threads": _integer(0, 1024),
            "max_slots": _integer(1, 1024),
            "base": _string,
        },
    ),
    "witness": (WitnessConfig, {"enabled": _flag}),
}
for _section, (_type, _keys) in _PARSERS.items():  # a section that drifts from its dataclass must not import
    assert [f.name for f in fields(_type)] == list(_keys), _section


def parse_config(text: str, *, source: str = "config.toml") -> Config:
    """The configuration that TOML `text` says; what it leaves out has its default. Raises `LocalError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalError(f"{source}: not valid TOML: {error}; correct the file") from error
    sections: dict[str, Any] = {}
    for name, content in document.items():
        if name not in _PARSERS:
            raise LocalError(f"{source}: unknown section [{name}]{_nearest(name, _PARSERS, '[{}]')}")
        if not isinstance(content, dict):
            raise LocalError(f"{source}: {name} must be a section; write [{name}]")
        sections[name] = _parse_section(source, name, cast("dict[str, object]", content))
    return Config(**sections)


def load_config(home: Home) -> Config:
    """The configuration in `home`; the defaults where there is no file. Raises `LocalError`."""
    try:
        data = home.config.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise LocalError(f"cannot read {home.config}: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise LocalError(f"{home.config}: {len(data)} bytes exceed {CONFIG_BYTES_MAX}; is it the right file?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LocalError(f"{home.config}: not UTF-8 text; save it as UTF-8") from error
    return parse_config(text, source=str(home.config))


def override(config: Config, changes: Mapping[str, object]) -> Config:
    """The configuration with some values replaced, by dotted key. Raises `LocalError` that names the key."""
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, _, key = dotted.partition(".")
        try:
            sections.setdefault(name, {})[key] = _PARSERS[name][1][key](value)
        except ValueError as error:
            raise LocalError(f"{dotted} {error}") from error
    changed = {name: replace(getattr(config, name), **values) for name, values in sections.items()}
    return replace(config, **changed)


def store_config(home: Home, changes: Mapping[str, object]) -> None:
    """Sets values in `home`'s file, by dotted key, in one step; comments and order stay.

    Raises `LocalError`, and then nothing changed.
    """
    wanted = override(load_config(home), changes)
    try:
        text = home.config.read_text(encoding="utf-8") if home.config.exists() else ""
        for dotted, value in changes.items():
            section, _, key = dotted.partition(".")
            text = _with_value(text, section, key, _toml(value))
        if _parsed_or_none(text) != wanted:  # a way of writing that lines do not show, such as inline tables
            text = render_config(wanted)
        temporary = home.config.with_name(f".config.{os.getpid()}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(home.config)
    except OSError as error:
        raise LocalError(
            f"cannot write {home.config}: {error.strerror}; check the disk and permissions"
        ) from error


def _with_value(text: str, section: str, key: str, value: str) -> str:
    """TOML with `key = value` in `[section]`: its line is replaced, or one is added."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]\s*(#.*)?")
    start = next((n for n, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        return "\n".join([*lines, *([""] if lines else []), f"[{section}]", f"{key} = {value}", ""])
    assignment = re.compile(rf"(\s*{re.escape(key)}\s*=\s*)[^#\s]+(\s*(#.*)?)")
    for number in range(start + 1, len(lines)):
        if lines[number].lstrip().startswith("["):
            break
        if match := assignment.fullmatch(lines[number]):
            lines[number] = f"{match[1]}{value}{match[2]}"
            return "\n".join([*lines, ""])
    return "\n".join([*lines[: start + 1], f"{key} = {value}", *lines[start + 1 :], ""])


def _parsed_or_none(text: str) -> Config | None:
    try:
        return parse_config(text)
    except LocalError:
        return None


def render_config(config: Config) -> str:
    """TOML that `parse_config` reads back as `config`."""
    lines: list[str] = []
    for name, (_, keys) in _PARSERS.items():
        section = getattr(config, name)
        lines += [f"[{name}]", *(f"{key} = {_toml(getattr(section, key))}" for key in keys), ""]
    return "\n".join(lines)


def _parse_section(source: str, name: str, content: Mapping[str, object]) -> Any:
    section, parsers = _PARSERS[name]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in parsers:
            raise LocalError(f"{source}: unknown key {name}.{key}{_nearest(key, parsers, name + '.{}')}")
        try:
            values[key] = parsers[key](value)
        except ValueError as error:
            raise LocalError(f"{source}: {name}.{key} {error}") from error
    return section(**values)


def _nearest(name: str, known: Mapping[str, object], form: str) -> str:
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {form.format(close[0])}?"
    return f"; known are {', '.join(form.format(key) for key in known)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
    assert isinstance(value, tuple), value
    return "[" + ", ".join(_toml(item) for item in cast("tuple[object, ...]", value)) + "]"
