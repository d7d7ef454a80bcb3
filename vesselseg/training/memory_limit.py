"""How much memory a process may use on a GPU or in main memory, and a limit at which allocations fail."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from vesselseg.machine import GIB

KEPT_FREE = 0.03  # share of the memory that a process may use
UNLIMITED = resource.RLIM_INFINITY
PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class MemoryLimit(Protocol):
    """max_bytes: what a trial may use, the same on all processes of a job."""

    max_bytes: float

    def describe(self) -> str:
        """As text."""

    def restart(self) -> None:
        """Forget the peak."""

    def peak(self) -> float:
        """Peak in bytes since then."""

    def wait(self) -> None:
        """Wait until the device has finished all submitted work."""

    def release(self) -> None:
        """Release cached memory."""

    def enforced(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, allocating more than `max_bytes` fails."""


def memory_limit(device: torch.device) -> MemoryLimit:
    """The limit of this device, the minimum over all processes; a collective call."""
    limit: MemoryLimit = GpuLimit(device) if device.type == "cuda" else HostLimit()
    least = torch.tensor(limit.max_bytes, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    limit.max_bytes = float(least)
    return limit


def allocator_fraction(device: torch.device) -> float:
    """Fraction of a GPU that torch's allocator may use; torch 2.6 does not report it: 1."""
    return float(getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device))


class GpuLimit:
    """A GPU's limit, through torch's allocator, whose fraction may have been set before by a benchmark or a user."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.empty_cache()
        free, self.total = torch.cuda.mem_get_info(device)
        self.share = allocator_fraction(device)
        room = min(self.share * self.total, free + torch.cuda.memory_reserved(device))
        self.max_bytes = room * (1 - KEPT_FREE)

    def describe(self) -> str:
        """Usable memory of the GPU."""
        return f"{self.max_bytes / GIB:.2f} GiB, {KEPT_FREE:.0%} of the free memory being kept free"

    def restart(self) -> None:
        """Count from here."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """Allocated bytes."""
        return float(torch.cuda.max_memory_allocated(self.device))

    def wait(self) -> None:
        """Until all kernels have run."""
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Release the allocator's cached blocks."""
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Enforced by the allocator, which releases cached blocks before it fails."""
        torch.cuda.set_per_process_memory_fraction(self.max_bytes / self.total, self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(self.share, self.device)


class HostLimit:
    """The address space of this process (Linux): its current size and its share of the free memory."""

    def __init__(self) -> None:
        self.before, _ = resource.getrlimit(resource.RLIMIT_AS)
        in_use = _kilobytes("self/status", "VmSize")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        most = in_use + (available_bytes() or 0) / processes
        if self.before != UNLIMITED:
            most = min(most, self.before)
        self.max_bytes = most - KEPT_FREE * (most - in_use)

    def describe(self) -> str:
        """Usable address space."""
        return f"{self.max_bytes / GIB:.2f} GiB of address space in each process"

    def restart(self) -> None:
        """Count from here, where the system allows it."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """Resident bytes."""
        return _kilobytes("self/status", "VmHWM")

    def wait(self) -> None:
        """Do nothing: CPU work is synchronous."""

    def release(self) -> None:
        """Do nothing: the system's allocator returns large blocks itself."""

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Enforced by the operating system."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (int(self.max_bytes), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (self.before, hard))


def available_bytes() -> float | None:
    """Main memory that new processes could use, None if the system does not report it.

    The free memory, within the limits of this process's control groups (cgroup v2), such as a container's or a batch
    job's. Page cache that the system would drop counts as free.
    """
    found = [_kilobytes("meminfo", "MemAvailable")] if (PROC / "meminfo").is_file() else []
    for group in _control_groups():
        limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            found.append(max(0.0, float(limit) - float(used) + _entry(group / "memory.stat", "inactive_file")))
    return min(found) if found else None


def _control_groups() -> list[Path]:
    """The folders of this process's group and its parents; in a container there may be only one."""
    own = next((line[3:] for line in _text(PROC / "self" / "cgroup").splitlines() if line.startswith("0::")), "/")
    folder = CONTROL_GROUPS / own.strip("/")
    return [folder, *(above for above in folder.parents if above.is_relative_to(CONTROL_GROUPS))]


def _kilobytes(path: str, name: str) -> float:
    """An entry of a file of /proc, in bytes."""
    return _entry(PROC / path, f"{name}:") * 1024


def _entry(path: Path, name: str) -> float:
    """A number in a file of names and numbers; 0 if it is missing."""
    words = (line.split() for line in _text(path).splitlines())
    return float(next((line[1] for line in words if line and line[0] == name), 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
