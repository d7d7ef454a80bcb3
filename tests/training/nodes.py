"""Nodes of a job as this machine can show them: launchers of their own, each with its processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.machine_speed import patience

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def node_environment(rank: int, port: int, count: int = 2, **settings: str) -> dict[str, str]:
    """What a user sets on node `rank`, and no GPU."""
    nodes = {"NNODES": str(count), "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "PORT": str(port)}
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return {**os.environ, **alone, **nodes, **settings}


class Node:
    """A launcher that runs, and what it says."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], output: Path) -> None:
        self.output = output
        self.started = time.monotonic()
        with output.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def wait(self, seconds: float) -> int:
        """The exit status."""
        return self.process.wait(timeout=seconds)

    def errors(self) -> list[str]:
        """Lines that begin with "error: "."""
        return [line for line in self.output.read_text().splitlines() if line.startswith("error: ")]


def start_nodes(command: Sequence[str], folder: Path, count: int = 2, **settings: str) -> list[Node]:
    """The same command on every node."""
    port = free_port()
    return [
        Node(command, node_environment(rank, port, count, **settings), folder / f"node_{rank}.txt")
        for rank in range(count)
    ]


def wait_for(path: Path, seconds: float = 60) -> None:
    """Until a file exists; seconds: on an idle machine."""
    until = time.monotonic() + patience(seconds)
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not exist after {patience(seconds):.0f} s"
        time.sleep(0.05)
