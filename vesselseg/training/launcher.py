"""Start a script in several processes: torchrun's launcher, plus what it lacks (docs/training.md has the measurements).

    python -m vesselseg.training.launcher GPUS SCRIPT [ARGUMENTS]

GPUS: processes on this machine; 0 is one process on the CPU. Without a GPU, N processes train on the CPU. Environment:
NNODES, NODE_RANK, MASTER_ADDR and PORT (by default a free one); NODES_WAIT, seconds in which all nodes must have called
the first one (900); LOST_AFTER, seconds without a heartbeat after which a process or a node counts as lost (60: longer
than a machine short of memory may stall, and the whole job has ended within two minutes). A loss ends the job on all
nodes, and each of them says which process or node was lost.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vesselseg.errors import UserError
from vesselseg.machine import available_cores
from vesselseg.run_tool import run_tool
from vesselseg.training.heartbeat import FOLDER_VARIABLE, INTERVAL, LAUNCHER_VARIABLE, Heartbeats
from vesselseg.training.nodes import Loss, Nodes

BAD_INPUT = 2
CLOSING = 45.0  # seconds; torch kills processes that ignore SIGTERM after 30
NOTHING_TO_CLOSE = 2.0  # seconds, before any process was started, when torch may not handle SIGTERM
RESUME = "; all processes were stopped. The same command with --resume auto continues from the last checkpoint"


def main() -> int:
    """Launch and wait; returns the failed process's exit status."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        raise UserError(f"expected GPUS SCRIPT [ARGUMENTS], found {' '.join(sys.argv[1:]) or 'nothing'}")
    return launch(int(sys.argv[1]), sys.argv[2:])


def launch(gpus: int, command: Sequence[str]) -> int:
    """Run ``python COMMAND`` in max(1, gpus) processes of this node; returns the exit status."""
    check_devices(gpus)
    processes = max(1, gpus)
    set_environment(gpus, processes)
    logging.disable(logging.ERROR)  # torch's own reports of the same failures
    config = launch_config(processes)
    nodes = other_nodes(config)
    memory = Path("/dev/shm")  # other writers cannot slow it down as they can a disk
    with tempfile.TemporaryDirectory(prefix="vesselseg_", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        os.environ |= {FOLDER_VARIABLE: folder, LAUNCHER_VARIABLE: str(os.getpid())}
        if nodes is not None:
            nodes.meet()
        watch = Watch(Heartbeats(Path(folder), _number("LOST_AFTER", 60)), nodes)
        own = run_processes(config, command, watch)
        return conclude(own, watch.cause, nodes)


def run_processes(config: LaunchConfig, command: Sequence[str], watch: Watch) -> Loss | None:
    """Run until all processes of this node have succeeded, one has failed, or the launcher gets a signal.

    The watch's SIGTERM may arrive before torch handles it, or too late: afterwards it is ignored.
    """
    loss = None
    try:
        signal.signal(signal.SIGTERM, _stop_running)
        watch.start()
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except ChildFailedError as error:
            loss = loss_of(error)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except SignalException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        name = signal.Signals(error.sigval).name
        loss = loss or Loss(f"the launcher{_on_this_node()} was ended by {name}{RESUME}", 128 + error.sigval)
    watch.end()
    return loss


def _stop_running(number: int, _: object) -> None:
    raise SignalException("before processes were started", signal.Signals(number))


def conclude(own: Loss | None, found: Loss | None, nodes: Nodes | None) -> int:
    """Report once why the job ended, here and to the other nodes; returns the exit status.

    own: how this node's processes ended. found: what the watch found, and has printed.
    """
    cause = found or own
    if cause is not None and nodes is not None:
        cause = nodes.report(cause)
    if nodes is not None:
        nodes.leave()
    if cause is None:
        return 0
    printed_by_process = cause == own and cause.status == BAD_INPUT
    if found is None and not printed_by_process:
        say(cause)
    return cause.status


class Watch(threading.Thread):
    """Ends this node's processes when one of them is silent, or when another node reports a loss."""

    def __init__(self, beats: Heartbeats, nodes: Nodes | None) -> None:
        super().__init__(daemon=True)
        self.beats = beats
        self.nodes = nodes
        self.cause: Loss | None = None
        self.over = threading.Event()

    def run(self) -> None:
        """Check once a second until the processes have ended."""
        while not self.over.wait(INTERVAL):
            self.cause = self._silent_process() or (self.nodes.news() if self.nodes else None)
            if self.cause is not None:
                break
        else:
            return
        say(self.cause)
        if self.nodes is not None:
            self.nodes.report(self.cause)
        closing = NOTHING_TO_CLOSE if signal.getsignal(signal.SIGTERM) is _stop_running else CLOSING
        os.kill(os.getpid(), signal.SIGTERM)
        if not self.over.wait(closing):  # a process that cannot be killed; the others end without their launcher
            os._exit(self.cause.status)

    def end(self) -> None:
        """Stop checking; returns when the other nodes know what was found."""
        self.over.set()
        if self.ident is not None:  # it was started
            self.join()

    def _silent_process(self) -> Loss | None:
        silent = self.beats.silent()
        if silent is None:
            return None
        rank, process = silent
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        text = f"process {rank}{_on_this_node()} gave no heartbeat for {self.beats.lost_after:.0f} s"
        return Loss(f"{text}{RESUME}", 128 + signal.SIGKILL)


def check_devices(gpus: int) -> None:
    """Raise UserError for more processes than GPUs on a machine that has some."""
    present = torch.cuda.device_count()
    if 0 < present < gpus:
        raise UserError(
            f"{gpus} GPUs requested, {present} found on this machine (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); start with {present} or fewer, or 0 for the CPU"
        )


def set_environment(gpus: int, processes: int) -> None:
    """Environment of the processes: their share of the cores, and no GPU with GPUS=0."""
    if gpus == 0 or not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Fragmentation costs gigabytes otherwise, because conversations differ in length.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def launch_config(processes: int) -> LaunchConfig:
    """torchrun's settings from NNODES, NODE_RANK, MASTER_ADDR and PORT; raises UserError for invalid ones.

    A single node uses torchrun's standalone rendezvous, which listens on a free port if PORT names none.
    """
    nodes = _number("NNODES", 1)
    node_rank = _number("NODE_RANK", 0)
    if not 0 <= node_rank < max(1, nodes):
        raise UserError(f"NODE_RANK is {node_rank}, NNODES {nodes}; expected a rank from 0 to {nodes - 1}")
    if nodes > 1 and ("MASTER_ADDR" not in os.environ or "PORT" not in os.environ):
        raise UserError("with NNODES above 1, MASTER_ADDR and PORT must name the first node, the same on every node")
    port = _number("PORT", 0)
    rendezvous: dict[str, Any] = {  # is_host: never join a store of another job that uses the same port
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"127.0.0.1:{port}",
        "rdzv_configs": {"is_host": True},
    }
    if nodes > 1:
        rendezvous = {
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{os.environ['MASTER_ADDR']}:{port}",
            "rdzv_configs": {"rank": node_rank, "timeout": 900},
        }
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id="vesselseg",
        **rendezvous,
        max_restarts=0,
        monitor_interval=0.2,
    )


def other_nodes(config: LaunchConfig) -> Nodes | None:
    """The other nodes of the job; None if there are none."""
    if config.max_nodes == 1:
        return None
    address, _, port = config.rdzv_endpoint.rpartition(":")
    waits = {"wait": _number("NODES_WAIT", 900), "lost_after": _number("LOST_AFTER", 60)}
    return Nodes(config.max_nodes, config.rdzv_configs["rank"], address, int(port), **waits)


def say(loss: Loss) -> None:
    """On stderr."""
    sys.stderr.write(f"error: {loss.text}\n")
    sys.stderr.flush()


def loss_of(error: ChildFailedError) -> Loss:
    """The process that failed first; its own message was printed before."""
    rank, failure = error.get_first_failure()
    ending = RESUME if failure.exitcode < 0 else "; all processes were stopped"
    if exit_status(failure) == BAD_INPUT:
        ending = "; its message is in the output of that node"
    return Loss(f"process {rank}{_on_this_node()} {_how(failure)}{ending}", exit_status(failure))


def exit_status(failure: ProcessFailure) -> int:
    """Exit status as a shell reports it: 128 + signal for a process that was killed."""
    return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode


def _how(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"ended with status {failure.exitcode} at {time.strftime('%H:%M:%S', time.localtime(failure.timestamp))}"
    name = signal.Signals(-failure.exitcode).name
    hints = {
        "SIGKILL": " (often by the system, because main memory ran out)",
        "SIGABRT": " (often by NCCL, after a GPU error or after waiting DEEPSPEED_TIMEOUT minutes for a process)",
    }
    return f"was ended by {name}{hints.get(name, '')}"


def _on_this_node() -> str:
    nodes = _number("NNODES", 1)
    return f" on node {_number('NODE_RANK', 0)} ({socket.gethostname()})" if nodes > 1 else ""


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise UserError(f"{variable} is {text!r}; expected a whole number")
    return int(text)


if __name__ == "__main__":
    run_tool(main)
