"""Further commands of vesselseg, started by one of them, with their output in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_logged(arguments: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> int:
    """The exit status of `vesselseg ARGUMENTS`, which stands in the first line of the log. variables: set for it."""
    with log.open("w", encoding="utf-8") as file:
        file.write(" ".join(["vesselseg", *arguments]) + "\n")
        file.flush()
        ended = subprocess.run(
            [sys.executable, "-m", "vesselseg", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(variables or {})},
            check=False,
        )
    return ended.returncode


def last_lines(log: Path, count: int) -> str:
    """The end of a log, indented below a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line}" for line in lines)
