"""A process of a search for a micro-batch with little address space, least of all in the last process.

Run by tests/training/test_micro_batch_search.py, in as many processes as the launcher starts: CONFIG ROOM KEY=VALUE ...
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
from pathlib import Path

from vesselseg.config.load import load_config
from vesselseg.config.overrides import parse_overrides
from vesselseg.run_tool import run_tool
from vesselseg.training.micro_batch_search import find_micro_batch

MIB = 2**20


def address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def main() -> None:
    path, room, *options = sys.argv[1:]
    config = load_config(path, parse_overrides(options))
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + int(room) * MIB, resource.RLIM_INFINITY))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    taken = mmap.mmap(-1, 300 * MIB) if world > 1 and rank == world - 1 else None
    found = find_micro_batch(config)
    if rank == 0:
        sys.stdout.write(found + "\n")
    del taken


if __name__ == "__main__":
    run_tool(main)
