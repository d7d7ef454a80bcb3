"""Before a training: its memory plan compared with this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vesselseg.errors import UserError
from vesselseg.machine import GIB
from vesselseg.training.memory_limit import allocator_fraction, available_bytes
from vesselseg.training.memory_plan.cards import card_like
from vesselseg.training.memory_plan.changes import proposals
from vesselseg.training.memory_plan.plan import CONTEXT_GIB, NCCL_GIB, MemoryPlan, Target, plan_memory
from vesselseg.training.memory_plan.report import peak_line, text_report

logger = logging.getLogger(__name__)
# Memory beyond CUDA's context that counts as used by other programs.
NOTICED_GIB = 1.0


class MemoryPlanError(UserError):
    """The run cannot fit; the message contains its plan."""


@dataclass(frozen=True)
class AvailableMemory:
    """Memory available to a process. usable: bytes of its GPU for torch, None on the CPU. device: the GPU's name.

    total: bytes of the GPU; taken: by other programs. host: bytes of free main memory, None if unknown.
    """

    usable: float | None
    device: str = "CPU"
    total: float = 0
    taken: float = 0
    host: float | None = None


def available_memory(device: torch.device, processes: int) -> AvailableMemory:
    """Memory available to this process; an allocator limit that was set counts as the GPU's size."""
    host = available_bytes()
    if device.type != "cuda":
        return AvailableMemory(None, host=host)
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    usable = min(free + own - (NCCL_GIB * GIB if processes > 1 else 0), allocator_fraction(device) * total)
    taken = max(0.0, total - free - own - CONTEXT_GIB * GIB)
    return AvailableMemory(usable, torch.cuda.get_device_name(device), total, taken, host)


def min_over_ranks(own: AvailableMemory) -> AvailableMemory:
    """The smallest of all processes; a collective call."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return min(everyone, key=lambda one: one.usable or 0)


def check_memory(config: Mapping[str, Any], processes: int, available: AvailableMemory, force: bool) -> None:
    """Plan a training; raises MemoryPlanError with the plan and possible changes if it cannot fit.

    force: warn instead.
    """
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    target = Target(processes, available.usable, card_like(available.device), per_machine=per_machine)
    plan = plan_memory(config, target)
    lacking = shortages(plan, available)
    if not lacking:
        if plan.phases:
            logger.info("planned %s", peak_line(plan))
        return
    lines = [f"this run cannot fit: {'; '.join(lacking)}", text_report(plan, proposals(config, target))]
    if not force:
        raise MemoryPlanError("\n".join([*lines, "--force trains anyway, --skip-plan trains without this plan"]))
    logger.warning("%s\ntraining anyway (--force)", "\n".join(lines))


def shortages(plan: MemoryPlan, available: AvailableMemory) -> list[str]:
    """What a plan needs and the machine lacks, one sentence each."""
    found = []
    if not plan.fits and available.usable is not None:
        sentence = (
            f"it needs {plan.peak / GIB:.2f} GiB of GPU memory, {available.device} has {available.total / GIB:.2f}"
        )
        sentence += f", {available.usable / GIB:.2f} for this process"
        if available.taken > NOTICED_GIB * GIB:
            sentence += f": other programs hold {available.taken / GIB:.2f} (nvidia-smi lists them)"
        found.append(sentence)
    needed = plan.host.total - plan.host.memory["processes"]  # they are already running
    if available.host is not None and needed > available.host:
        largest = max(plan.host.memory, key=lambda name: plan.host.memory[name])
        found.append(
            f"it needs {needed / GIB:.1f} GiB more of main memory (most for: {largest}), "
            f"{available.host / GIB:.1f} are free"
        )
    return found
