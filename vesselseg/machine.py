"""What a process may use of this machine, and the unit that memory is reported in."""

from __future__ import annotations

import os

GIB = 2**30


def available_cores() -> int:
    """Processor cores that this process may use: fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
