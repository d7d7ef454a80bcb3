"""Before a training: its plan against what this machine has."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vesselseg.errors import UserError
from vesselseg.machine import GIB
from vesselseg.training.memory_limit import allowed_share, available_bytes
from vesselseg.training.memory_plan.cards import card_like
from vesselseg.training.memory_plan.changes import proposals
from vesselseg.training.memory_plan.plan import CONTEXT_GIB, NCCL_GIB, MemoryPlan, Target, plan_memory
from vesselseg.training.memory_plan.report import peak_line, text_report

logger = logging.getLogger(__name__)
# Less than this beyond CUDA's own context is no other program's.
NOTICED_GIB = 1.0


class MemoryPlanError(UserError):
    """A run that cannot fit, with its plan."""


@dataclass(frozen=True)
class AvailableMemory:
    """What a process finds. usable: bytes of its GPU that torch may have, None on the CPU. device: the GPU's name.

    total: bytes of the GPU; taken: by other programs. host: bytes of main memory that are free, None if unknown.
    """

    usable: float | None
    device: str = "CPU"
    total: float = 0
    taken: float = 0
    host: float | None = None


def available_memory(device: torch.device, processes: int) -> AvailableMemory:
    """What this process may have; the limit that was set for it counts as the card's size."""
    host = available_bytes()
    if device.type != "cuda":
        return AvailableMemory(None, host=host)
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    usable = min(free + own - (NCCL_GIB * GIB if processes > 1 else 0), allowed_share(device) * total)
    taken = max(0.0, total - free - own - CONTEXT_GIB * GIB)
    return AvailableMemory(usable, torch.cuda.get_device_name(device), total, taken, host)


def min_over_ranks(own: AvailableMemory) -> AvailableMemory:
    """That of the process with the smallest; a collective call."""
    rooms: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(rooms, own)
    return min(rooms, key=lambda room: room.usable or 0)


def check_memory(config: Mapping[str, Any], processes: int, room: AvailableMemory, force: bool) -> None:
    """Plan a training; raises MemoryPlanError with the plan and what could be changed if it cannot fit.

    force: say it and go on.
    """
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    target = Target(processes, room.usable, card_like(room.device), per_machine=per_machine)
    plan = plan_memory(config, target)
    lacking = lacks(plan, room)
    if not lacking:
        if plan.phases:
            logger.info("planned %s", peak_line(plan))
        return
    lines = [f"this run cannot fit: {'; '.join(lacking)}", text_report(plan, proposals(config, target))]
    if not force:
        raise MemoryPlanError("\n".join([*lines, "--force goes on all the same, --skip-plan without this plan"]))
    logger.warning("%s\ngoing on all the same (--force)", "\n".join(lines))


def lacks(plan: MemoryPlan, room: AvailableMemory) -> list[str]:
    """What a plan needs and does not find, one sentence each."""
    found = []
    if not plan.fits and room.usable is not None:
        sentence = f"it needs {plan.peak / GIB:.2f} GiB of GPU memory, {room.device} has {room.total / GIB:.2f}"
        sentence += f", {room.usable / GIB:.2f} for this process"
        if room.taken > NOTICED_GIB * GIB:
            sentence += f": other programs hold {room.taken / GIB:.2f} (nvidia-smi lists them)"
        found.append(sentence)
    needed = plan.host.total - plan.host.memory["processes"]  # these run already
    if room.host is not None and needed > room.host:
        largest = max(plan.host.memory, key=lambda name: plan.host.memory[name])
        found.append(
            f"it needs {needed / GIB:.1f} GiB more of main memory (most for: {largest}), {room.host / GIB:.1f} are free"
        )
    return found
