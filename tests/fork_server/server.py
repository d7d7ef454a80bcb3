"""The server: imports, then forks for each command that a client hands it; see the package's docstring.

It has one thread, as a process that forks must. A client's connection stays open until its command ends: the server
writes the command's process id and then its exit status (below 0: the signal), and kills the command when the client
is gone, as it is when somebody kills the client.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vesselseg.training.console import muted, quieten_imports

quieten_imports()
with muted():
    import transformers.dynamic_module_utils

# What commands need; each brings further ones.
IMPORTED = (
    "matplotlib.pyplot",
    "peft",
    "vesselseg.evaluation.evaluator",
    "vesselseg.export.convert",
    "vesselseg.inference.load",
    "vesselseg.reports.evaluation_report",
    "vesselseg.training.feature_filling",
    "vesselseg.training.launch",
    "vesselseg.training.launcher",
    "vesselseg.training.micro_batch_search",
)
LOOK = 2.0  # seconds between two looks whether the session still exists


def import_everything() -> None:
    """Quietly, as a training's start does it."""
    with muted():
        for name in IMPORTED:
            importlib.import_module(name)


class Server:
    """folder: of the session. interpreter: path of the client, which commands take for their own Python."""

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.folder = folder
        self.interpreter = interpreter
        self.session = int((folder / "session").read_text())
        self.running: dict[int, tuple[socket.socket, str]] = {}  # by process: its client, its test
        self.wanted = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.woken, self.alarm = os.pipe()
        for end in (self.woken, self.alarm):
            os.set_blocking(end, False)

    def run(self) -> Callable[[], None]:
        """Serve for ever; in a forked process, return what it is to do."""
        self.listener.bind(str(self.folder / "unfinished"))
        self.listener.listen(64)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.alarm, warn_on_full_buffer=False)
        self.wanted.register(self.listener, selectors.EVENT_READ)
        self.wanted.register(self.woken, selectors.EVENT_READ)
        (self.folder / "unfinished").rename(self.folder / "socket")
        while self.session_exists():
            for key, _ in self.wanted.select(LOOK):
                if key.fileobj is self.listener:
                    work = self.begin()
                    if work is not None:
                        return work
                elif key.fileobj == self.woken:
                    os.read(self.woken, 4096)
                else:
                    self.client_is_gone(key.fileobj)
            self.reap()
        for process in self.running:
            os.kill(process, signal.SIGKILL)
        return lambda: None

    def session_exists(self) -> bool:
        """Not the process that started the server: it may be a worker (-n), which may end before others do."""
        return self.folder.is_dir() and Path(f"/proc/{self.session}").exists()

    def begin(self) -> Callable[[], None] | None:
        """Fork for a new client; None in the server itself."""
        client, _ = self.listener.accept()
        with suppress(ConnectionError):
            request, descriptors = read_request(client)
            process = os.fork()
            if process == 0:
                self.leave(client)
                return lambda: become(request, descriptors, self.interpreter)
            for descriptor in descriptors:
                os.close(descriptor)
            self.running[process] = client, request["environment"].get("PYTEST_CURRENT_TEST", "")
            self.wanted.register(client, selectors.EVENT_READ)
            client.sendall(process.to_bytes(8, "big"))
            return None
        client.close()
        return None

    def leave(self, client: socket.socket) -> None:
        """What a forked process gives up of the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for opened in (client, self.listener, self.wanted, *(one for one, _ in self.running.values())):
            opened.close()
        os.close(self.woken)
        os.close(self.alarm)

    def reap(self) -> None:
        """Report the commands that have ended."""
        with suppress(ChildProcessError):
            while True:
                process, status, usage = os.wait4(-1, os.WNOHANG)
                if process == 0:
                    return
                client, test = self.running.pop(process)
                with (self.folder / "cpu_seconds").open("a") as file:
                    file.write(f"{usage.ru_utime + usage.ru_stime:.3f} {test.rpartition(' ')[0]}\n")
                with suppress(KeyError):
                    self.wanted.unregister(client)
                with suppress(OSError):
                    client.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
                client.close()

    def client_is_gone(self, client: Any) -> None:
        self.wanted.unregister(client)
        for process, (own, _) in self.running.items():
            if own is client:
                os.kill(process, signal.SIGKILL)


def read_request(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The command with what it inherits, and its stdin, stdout and stderr."""
    descriptors = array.array("i")
    size, further, _, _ = client.recvmsg(8, socket.CMSG_SPACE(3 * descriptors.itemsize))
    for _, _, data in further:
        descriptors.frombytes(data)
    message = b""
    while len(message) < int.from_bytes(size, "big"):
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError
        message += piece
    return json.loads(message), list(descriptors)


def become(request: dict[str, Any], descriptors: list[int], interpreter: str) -> None:
    """Turn this process into the command's, and run it."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    own, parent, getppid = os.getpid(), Path(f"/proc/{request['client']}/stat"), os.getppid
    os.getppid = lambda: parent_of(parent) if os.getpid() == own else getppid()
    sys.executable = interpreter
    own_code_folder()
    reseed()
    further = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [entry for entry in further if entry and entry not in sys.path]
    execute(request["command"])


def parent_of(stat: Path) -> int:
    """The client's parent, which started the command; 1 when the client is gone, as for an orphan."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 1


def own_code_folder() -> None:
    """transformers copies a model's code where HF_MODULES_CACHE says, which workers (-n) must not share."""
    if "HF_MODULES_CACHE" in os.environ:
        for module in (transformers.utils.hub, transformers.dynamic_module_utils):
            module.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]


def reseed() -> None:
    """Generators that a new process seeds from the system's entropy."""
    random.seed()
    np.random.seed()


def execute(command: list[str]) -> None:
    """The command line of an interpreter: [-u] (-c CODE | -m MODULE | SCRIPT) ARGUMENTS."""
    if command[0] == "-u":
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        command = command[1:]
    kind, *arguments = command
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(arguments[0], "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.argv, sys.path[0] = arguments, str(Path.cwd())
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def end_as_interpreter(work: Callable[[], None]) -> NoReturn:
    """Run and exit with the status that an interpreter has; taking all modules apart, as one does, takes a second."""
    status = 0
    try:
        work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def main() -> None:
    import_everything()
    gc.collect()
    gc.freeze()  # what is never collected is never copied for a forked process
    end_as_interpreter(Server(Path(sys.argv[1]), sys.argv[2]).run())


if __name__ == "__main__":
    main()
