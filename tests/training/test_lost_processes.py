"""Two nodes of two processes: what each reports when a process, a node or the network to it is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.fork_server import python
from tests.machine_speed import patience
from tests.training.nodes import Node, free_port, node_environment, start_nodes, wait_for
from vesselseg.errors import UserError
from vesselseg.training import heartbeat
from vesselseg.training.heartbeat import Heartbeats
from vesselseg.training.nodes import LOSS, Loss, Nodes

# Writes its process id, then works as in a long step: without any communication.
SCRIPT = """
import os, sys, time
from pathlib import Path
from vesselseg.training.heartbeat import start_heartbeat
start_heartbeat()
Path(sys.argv[1], "begun" + os.environ["RANK"]).write_text(str(os.getpid()))
Path(sys.argv[1], "begun" + os.environ["RANK"]).rename(Path(sys.argv[1], os.environ["RANK"]))
time.sleep(600)
"""
HOST = socket.gethostname()
PATIENCE = patience(90)  # seconds that the end of a job may take on a busy machine
SILENCE = round(patience(4))  # seconds that mean a loss
RESUME = "; all processes were stopped. The same command with --resume auto continues from the last checkpoint"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[list[Node]]:
    """Two nodes whose four processes are at work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [python(), "-m", "vesselseg.training.launcher", "2", str(script), str(tmp_path)]
    started = start_nodes(command, tmp_path, LOST_AFTER=str(SILENCE))
    try:
        for rank in range(4):
            wait_for(tmp_path / str(rank), 200)
        yield started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()


def process_id(folder: Path, rank: int) -> int:
    return int((folder / str(rank)).read_text())


def gone(process: int) -> bool:
    until = time.monotonic() + PATIENCE
    while runs(process) and time.monotonic() < until:
        time.sleep(0.1)
    return not runs(process)


def runs(process: int) -> bool:
    """An orphan that has ended keeps its number where nobody asks how it ended, as in a container without an init."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.process
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (signal.SIGKILL, "was ended by SIGKILL (often by the system, because main memory ran out)"),
        (signal.SIGSTOP, f"gave no heartbeat for {SILENCE} s"),
    ],
    ids=["killed", "stopped"],  # a measured time in a name would differ between workers (-n), which then refuse to run
)
def test_a_lost_process_ends_the_job_on_all_nodes(
    group: list[Node], tmp_path: Path, sent: signal.Signals, expected: str
) -> None:
    os.kill(process_id(tmp_path, 3), sent)
    statuses = [one.wait(PATIENCE) for one in group]
    assert statuses == [128 + signal.SIGKILL] * 2
    for one in group:
        assert one.errors() == [f"error: process 3 on node 1 ({HOST}) {expected}{RESUME}"]
        assert "Traceback" not in one.output.read_text()
    assert all(gone(process_id(tmp_path, rank)) for rank in range(4))


@pytest.mark.process
def test_a_lost_node_ends_the_job_on_the_other(group: list[Node], tmp_path: Path) -> None:
    group[0].process.kill()
    assert group[1].wait(PATIENCE) == 1
    assert group[1].errors() == ["error: node 0 (127.0.0.1) is lost: its launcher ended, or the network to it"]
    assert all(gone(process_id(tmp_path, rank)) for rank in range(4)), "processes outlive their launcher"


@pytest.mark.process
def test_a_loss_reported_before_processes_are_started_ends_the_launcher(tmp_path: Path) -> None:
    """It waits for the other node inside torch, which handles no signal meanwhile."""
    port = free_port()
    command = [python(), "-m", "vesselseg.training.launcher", "1", "no_script.py"]
    first, second = Node(command, node_environment(0, port), tmp_path / "0.txt"), node(1, 2, port)
    try:
        assert meet(second) == [None]
        assert second.report(Loss("the other node has no disk", 7)).status == 7
        second.leave()
        assert first.wait(PATIENCE) == 7 and first.errors() == ["error: the other node has no disk"]
    finally:
        first.process.kill()


def meet(*nodes: Nodes) -> list[str | None]:
    """Let nodes meet; what each complained about."""

    def outcome(node: Nodes) -> str | None:
        try:
            node.meet()
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(outcome, nodes))


def node(rank: int, count: int, port: int, wait: float = PATIENCE, lost_after: float = PATIENCE) -> Nodes:
    return Nodes(count, rank, "127.0.0.1", port, wait=wait, lost_after=lost_after)


def test_the_first_loss_reaches_all_nodes_and_a_silent_node_is_a_loss() -> None:
    port = free_port()
    first, second, third = group = [node(rank, 3, port, lost_after=SILENCE) for rank in range(3)]
    assert meet(*group) == [None] * 3
    third._over.set()  # as after a power cut: no further communication
    until = time.monotonic() + PATIENCE
    while not (first.news() and second.news()) and time.monotonic() < until:  # whichever reads it first
        time.sleep(0.1)
    news = second.news()
    assert news == first.news() == Loss(f"node 2 ({HOST}) is lost: its launcher ended, or the network to it", 1)
    assert first.report(Loss("later", 2)) == second.report(Loss("later still", 3)) == news
    second.leave()
    first.leave()


def test_a_loss_is_reported_that_occurs_while_the_first_node_checks_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    first, second = node(0, 2, port), node(1, 2, port)
    looks, reported, look = threading.Event(), threading.Event(), first._silent_node

    def slow_look() -> Loss | None:
        found = look()
        looks.set()
        assert reported.wait(PATIENCE)
        return found

    monkeypatch.setattr(first, "_silent_node", slow_look)
    assert meet(first, second) == [None] * 2
    assert looks.wait(PATIENCE)
    loss = Loss("the first node's disk is full", 2)
    with ThreadPoolExecutor() as pool:
        telling = pool.submit(first.report, loss)
        while first._own_loss is None:
            time.sleep(0.01)
        reported.set()
        assert telling.result() == loss
    until = time.monotonic() + PATIENCE
    while not second.news() and time.monotonic() < until:
        time.sleep(0.1)
    assert second.news() == loss
    second.leave()
    first.leave()


def test_the_first_node_stays_until_waiting_nodes_know_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    first, second = node(0, 3, port, wait=1), node(1, 3, port)
    read, ended = second._reported_loss, []

    def slow_read() -> Loss | None:
        if not second._store.check([LOSS]):
            return None
        time.sleep(3)
        ended.append(giving_up.done())
        return read()

    monkeypatch.setattr(second, "_reported_loss", slow_read)
    with ThreadPoolExecutor() as pool:
        giving_up = pool.submit(meet, first)
        assert meet(second) == giving_up.result() and ended == [False]


def test_nodes_that_wait_in_vain_report_which_one_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    right = free_port()
    with socket.socket() as silent:  # nobody listens, and nobody else can
        silent.bind(("127.0.0.1", 0))
        wrong = silent.getsockname()[1]
        first, second, third = meet(node(0, 3, right, wait=3), node(1, 3, right), node(2, 3, wrong, wait=1))
    assert first == second and str(first).startswith(f"node(s) 2 of 3 did not call 127.0.0.1:{right} within 3 s")
    assert str(third).startswith(f"node 2 could not reach node 0 at 127.0.0.1:{wrong} within 1 s (Connection refused)")
    said = rf"node 0: waiting for node\(s\) 2 of 3 to call 127.0.0.1:{right}, \d+ s of 3\n"
    assert re.search(said, capfd.readouterr().err)


def test_a_port_in_use_and_a_repeated_node_rank_are_errors() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"PORT={port} cannot be opened on this node" in str(meet(node(0, 2, port)))
    port = free_port()
    errors = meet(node(0, 3, port, wait=SILENCE), node(1, 3, port), node(1, 3, port))
    assert sum("two nodes have NODE_RANK=1" in str(one) for one in errors) == 1


@pytest.mark.process
def test_only_running_processes_that_have_gone_silent_are_lost(tmp_path: Path) -> None:
    """And neither one that goes on nor one that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    beats = Heartbeats(tmp_path, lost_after=0.3)
    assert beats.silent() is None
    for rank, process in enumerate((os.getppid(), ended.pid, os.getpid())):
        (tmp_path / str(rank)).write_text(str(process))
    for step in range(6):
        os.utime(tmp_path / "0", (step, step))
        found = beats.silent()
        time.sleep(0.1)
    assert found == (2, os.getpid())


def test_a_suspended_launcher_counts_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine may be suspended, or a scheduler may stop the whole job for a while."""
    clock = iter([0.0, 1.0, 2.0, 900.0, *(901.0 + second for second in range(6))])  # 1, 2, 4, 5, ... 10 to the launcher
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    beats = Heartbeats(tmp_path, lost_after=8)
    (tmp_path / "0").write_text(str(os.getpid()))
    assert [beats.silent() for _ in range(9)] == [None] * 8 + [(0, os.getpid())]
