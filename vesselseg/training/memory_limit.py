"""What a process may take of a GPU, or of main memory, and a limit there at which allocations fail."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from vesselseg.machine import GIB

KEPT_FREE = 0.03  # share of what a process may take
UNLIMITED = resource.RLIM_INFINITY
PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class MemoryLimit(Protocol):
    """most: bytes that a trial may reach. All processes of a job have the same."""

    most: float

    def describe(self) -> str:
        """For people."""

    def restart(self) -> None:
        """Forget the peak."""

    def peak(self) -> float:
        """Bytes at most since then."""

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""

    def release(self) -> None:
        """Give back what is kept for later."""

    def enforced(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, allocating beyond `most` fails."""


def memory_limit(device: torch.device) -> MemoryLimit:
    """Of this device, as small on every process as on the one with least; a collective call."""
    limit: MemoryLimit = GpuLimit(device) if device.type == "cuda" else HostLimit()
    least = torch.tensor(limit.most, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    limit.most = float(least)
    return limit


def allowed_share(device: torch.device) -> float:
    """What torch's allocator may take of a GPU; torch 2.6 cannot tell, and takes all."""
    return float(getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device))


class GpuLimit:
    """torch's allocator has a limit of its own, which may be set already: a benchmark's, a user's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.empty_cache()
        free, self.total = torch.cuda.mem_get_info(device)
        self.share = allowed_share(device)
        room = min(self.share * self.total, free + torch.cuda.memory_reserved(device))
        self.most = room * (1 - KEPT_FREE)

    def describe(self) -> str:
        """What of the GPU may be taken."""
        return f"{self.most / GIB:.2f} GiB, {KEPT_FREE:.0%} of what is free being kept so"

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
        """Blocks that the allocator keeps."""
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """By the allocator, which gives kept blocks back before it fails."""
        torch.cuda.set_per_process_memory_fraction(self.most / self.total, self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(self.share, self.device)


class HostLimit:
    """The address space of this process (Linux): what it takes now, and its share of the memory that is free."""

    def __init__(self) -> None:
        self.before, _ = resource.getrlimit(resource.RLIMIT_AS)
        in_use = _kilobytes("self/status", "VmSize")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        most = in_use + (available_bytes() or 0) / processes
        if self.before != UNLIMITED:
            most = min(most, self.before)
        self.most = most - KEPT_FREE * (most - in_use)

    def describe(self) -> str:
        """What may be taken of the address space."""
        return f"{self.most / GIB:.2f} GiB of address space in each process"

    def restart(self) -> None:
        """Count from here, where the system allows it."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """Resident bytes."""
        return _kilobytes("self/status", "VmHWM")

    def wait(self) -> None:
        """Nothing: a CPU is done when it returns."""

    def release(self) -> None:
        """Nothing: the system's allocator gives large blocks back by itself."""

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """By the operating system."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (int(self.most), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (self.before, hard))


def available_bytes() -> float | None:
    """Main memory that new processes could have, None where the system does not tell.

    What is free, within the limits of this process's control groups (cgroup v2): a container's, a batch job's. File
    contents that the system would drop count as free.
    """
    found = [_kilobytes("meminfo", "MemAvailable")] if (PROC / "meminfo").is_file() else []
    for group in _control_groups():
        limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            found.append(max(0.0, float(limit) - float(used) + _entry(group / "memory.stat", "inactive_file")))
    return min(found) if found else None


def _control_groups() -> list[Path]:
    """The folder of this process's group and those above it; in a container the first may be the only one."""
    own = next((line[3:] for line in _text(PROC / "self" / "cgroup").splitlines() if line.startswith("0::")), "/")
    folder = CONTROL_GROUPS / own.strip("/")
    return [folder, *(above for above in folder.parents if above.is_relative_to(CONTROL_GROUPS))]


def _kilobytes(path: str, name: str) -> float:
    """An entry of a file of /proc, in bytes."""
    return _entry(PROC / path, f"{name}:") * 1024


def _entry(path: Path, name: str) -> float:
    """A number of a file of names and numbers; 0 where it does not stand there."""
    words = (line.split() for line in _text(path).splitlines())
    return float(next((line[1] for line in words if line and line[0] == name), 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
