"""An interpreter whose packages are imported already: `python` of a folder, for tests that start processes.

Importing torch, DeepSpeed and xtuner takes half a minute of CPU time, and a training of two processes does it three
times. Here one process does it once and forks for each command. What a test sees is a process like any other: its
arguments, environment, working directory and open files are its own, and signals reach it and its exit status comes
back. Its imports are not its own: settings that packages read while they are imported (HF_*, DS_ACCELERATOR,
OMP_NUM_THREADS) are those of the server, and nothing can be said about what it imports. Tests of those start
`sys.executable`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER_VARIABLE = "VESSELSEG_TESTS_FORK_SERVER"  # the folder of the session, the same for all workers
PATIENCE = 600.0  # seconds in which the server must have imported everything


def python() -> str:
    """Path of the interpreter; the first call of a session waits for the imports."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    with (folder / "lock").open("w") as lock:  # workers (-n) share one server
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "socket").exists():
            _start(folder)
    return str(folder / "bin" / "python")


def on_path(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which scripts find this interpreter as `python` of an active environment."""
    folder = Path(python()).parent
    found = {"PATH": f"{folder}{os.pathsep}{environment['PATH']}", "VIRTUAL_ENV": sys.prefix}
    return {**environment, **found}


def configure(config: pytest.Config) -> None:
    """The session's folder, and the server's end with the session. For pytest_configure."""
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="vesselseg-fork-server-")
    os.environ[FOLDER_VARIABLE] = folder.name
    (Path(folder.name) / "session").write_text(str(os.getpid()))

    def end() -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((Path(folder.name) / "pid").read_text()), signal.SIGTERM)
        folder.cleanup()

    config.add_cleanup(end)


def cpu_seconds() -> dict[str, float]:
    """What ended commands took, by the test that started them; "" is the server itself."""
    file = Path(os.environ[FOLDER_VARIABLE]) / "cpu_seconds"
    found: dict[str, float] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        seconds, _, test = line.partition(" ")
        found[test] = found.get(test, 0.0) + float(seconds)
    return found


def server_cpu_seconds() -> float:
    """What the server and all commands that have ended took; 0 without a server."""
    file = Path(os.environ[FOLDER_VARIABLE]) / "pid"
    if not file.exists():
        return 0.0
    fields = Path(f"/proc/{file.read_text()}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime, stime, and those of ended children


def _start(folder: Path) -> None:
    """Start the server and wait for its socket."""
    client = (Path(__file__).parent / "client.py").read_text()
    (folder / "bin").mkdir(exist_ok=True)
    target = folder / "bin" / "python"
    target.write_text(f"#!{sys.executable} -S\nREAL = {sys.executable!r}\nFOLDER = {str(folder)!r}\n{client}")
    target.chmod(0o755)
    settings = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    settings |= {"PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    with (folder / "output").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server.server", str(folder), target],
            cwd=REPOSITORY,
            env={**inherited, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(server.pid))
    until = time.monotonic() + PATIENCE
    while not (folder / "socket").exists():
        if server.poll() is not None or time.monotonic() > until:
            pytest.fail(f"the fork server did not start:\n{(folder / 'output').read_text()[-3000:]}")
        time.sleep(0.05)
