"""The command line. Everything it says about a running node it learns from that node's gateway.

Results go to stdout, all else to stderr. `--json` makes stdout one JSON object. Errors are one line that
begins with `upkeep: `; exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. `--debug` shows traces.

Importing this package imports nothing heavy: what a command needs is imported when it runs.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        from peer.version import VERSION

        print(f"upkeep {VERSION}")  # noqa: T201 - this is the command line
        return 0
    from peer.cli.run import run

    return run(given)
