"""Running one command: what becomes of its errors."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final, cast

from typer.exceptions import TyperException

from gossip_ledger.errors import UpkeepError
from peer.cli.app import app
from peer.cli.usage import CutShortError, UsageError

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


def run(arguments: list[str]) -> int:
    """Runs `arguments` and returns the exit code. Errors become one line on stderr."""
    is_debug = "--debug" in arguments
    if is_debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, prog_name="upkeep", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            say_error("interrupted")
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _usage(error)
    except UpkeepError as error:
        return _failed(error, is_debug=is_debug)
    except BaseExceptionGroup as group:
        expected, defects = group.split(UpkeepError)
        if expected is None or defects is not None:
            return _defect(group, is_debug=is_debug)
        return _failed(_first(expected), is_debug=is_debug)
    except BrokenPipeError:
        # Whoever read our output has gone, for example `head`. Python must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost handler: a defect is told in one line too
        return _defect(error, is_debug=is_debug)


def say_error(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write("upkeep: " + " ".join(message.split()) + "\n")
    sys.stderr.flush()


def _usage(error: TyperException) -> int:
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return USAGE
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "upkeep"
    text = message.rstrip(".") or "wrong usage"
    say_error(f"{text[:1].lower()}{text[1:]}; see `{command} --help`")
    return int(getattr(error, "exit_code", USAGE))


def _failed(error: BaseException, *, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    say_error(str(error))
    if isinstance(error, UsageError):
        return USAGE
    return INTERRUPTED if isinstance(error, CutShortError) else FAILED


def _defect(error: BaseException, *, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if is_debug else "; run it again with --debug for the trace"
    say_error(f"this is a defect of upkeep: {what[:300]}{hint}")
    return FAILED


def _first(group: BaseException) -> BaseException:
    found = group
    while isinstance(found, BaseExceptionGroup):
        found = cast("BaseExceptionGroup[BaseException]", found).exceptions[0]
    return found
