"""Commands of `vesselseg` inside this process, which is faster, and in one of their own, as a user runs them."""

from __future__ import annotations

import io
import logging
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.fork_server import python
from vesselseg.cli.main import main, parse

REPOSITORY = Path(__file__).resolve().parent.parent


def call_command(*arguments: object) -> int:
    """The exit status of a command line run inside this process; its output is for capsys."""
    package = logging.getLogger("vesselseg")
    level = package.level
    try:
        return main([str(argument) for argument in arguments])
    finally:  # what a command logs is not for the tests after it
        package.setLevel(level)


def completed_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Status and output of a command line run inside this process."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        status = call_command(*arguments)
    return subprocess.CompletedProcess(list(arguments), status, output.getvalue(), errors.getvalue())


def run_command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own. options: of `subprocess.run`, e.g. cwd."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


def command(*arguments: object) -> list[str]:
    """What starts a command line in a process of its own."""
    return [python(), "-m", "vesselseg", *map(str, arguments)]


def parsed(*arguments: object) -> dict[str, Any]:
    """The arguments with which a command line calls its function."""
    _, bound = parse([str(argument) for argument in arguments])
    bound.apply_defaults()
    return dict(bound.arguments)
