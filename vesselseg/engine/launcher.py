"""Start a tool in several processes: torchrun's own launcher, with readable failures.

    python -m vesselseg.engine.launcher GPUS SCRIPT [ARGUMENTS]

GPUS: processes on this machine; 0 is one process on the CPU. Without a GPU, N processes train on the CPU. Reads NNODES,
NODE_RANK, MASTER_ADDR and PORT from the environment; without PORT a free one is taken.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vesselseg.cli import run_tool
from vesselseg.errors import UserError

BAD_INPUT = 2


def main() -> int:
    """Launch and wait; the exit status is the failed process's."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        raise UserError(f"expected GPUS SCRIPT [ARGUMENTS], found {' '.join(sys.argv[1:]) or 'nothing'}")
    return launch(int(sys.argv[1]), sys.argv[2:])


def launch(gpus: int, command: Sequence[str]) -> int:
    """Run ``python COMMAND`` in max(1, gpus) processes of this node; returns the exit status."""
    check_devices(gpus)
    processes = max(1, gpus)
    set_environment(gpus, processes)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(launch_config(processes), sys.executable)("-u", *command)
    except ChildFailedError as error:
        return report(error)
    return 0


def check_devices(gpus: int) -> None:
    """Raise UserError for more processes than GPUs on a machine that has some."""
    present = torch.cuda.device_count()
    if 0 < present < gpus:
        raise UserError(
            f"{gpus} GPUs asked for, {present} found on this machine (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); start with {present} or fewer, or 0 for the CPU"
        )


def set_environment(gpus: int, processes: int) -> None:
    """What the processes inherit: their share of the cores, and no GPU where none is wanted."""
    if gpus == 0 or not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Fragmentation costs gigabytes otherwise, because conversations differ in length.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def launch_config(processes: int) -> LaunchConfig:
    """torchrun's settings from NNODES, NODE_RANK, MASTER_ADDR and PORT; raises UserError for ones without sense."""
    nodes = _number("NNODES", 1)
    node_rank = _number("NODE_RANK", 0)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if not 0 <= node_rank < max(1, nodes):
        raise UserError(f"NODE_RANK is {node_rank}, NNODES {nodes}; expected a rank from 0 to {nodes - 1}")
    if nodes > 1 and ("MASTER_ADDR" not in os.environ or "PORT" not in os.environ):
        raise UserError("with NNODES above 1, MASTER_ADDR and PORT must name the first node, the same on every node")
    port = _number("PORT", 0) or free_port()
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id="vesselseg",
        rdzv_backend="static",
        rdzv_endpoint=f"{address}:{port}",
        rdzv_configs={"rank": node_rank, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.2,
    )


def report(error: ChildFailedError) -> int:
    """Say which process failed first; its own message stands above. Returns the job's exit status."""
    rank, failure = error.get_first_failure()
    status = exit_status(failure)
    if status != BAD_INPUT:
        sys.stderr.write(f"error: process {rank} {_how(failure)}; all processes were stopped\n")
    return status


def exit_status(failure: ProcessFailure) -> int:
    """A shell's view of how a process ended: 128 + signal for one that was killed."""
    return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _how(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"ended with status {failure.exitcode} at {time.strftime('%H:%M:%S', time.localtime(failure.timestamp))}"
    name = signal.Signals(-failure.exitcode).name
    hint = " (often the system's answer to too little main memory)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise UserError(f"{variable} is {text!r}; expected a whole number")
    return int(text)


if __name__ == "__main__":
    run_tool(main)
