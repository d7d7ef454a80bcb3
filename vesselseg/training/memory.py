"""The message when memory runs out: the peak, the settings that need most memory, what to change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from vesselseg.machine import GIB
from vesselseg.training.memory_plan.changes import possible_changes
from vesselseg.training.run_log import peak_memory_gib


def out_of_memory_message(config: Mapping[str, Any], error: BaseException) -> str:
    """One message for a torch.OutOfMemoryError, with possible changes, cheapest first."""
    where = "GPU" if torch.cuda.is_available() else "main"
    lines = [f"out of {where} memory; this process held {peak_memory_gib():.2f} GiB at its peak{_capacity()}"]
    first_line = (str(error).strip().splitlines() or [""])[0]
    if first_line:
        lines.append(f"  torch says: {first_line}")
    lines.append("  settings of this config that need most memory:")
    lines += [f"    {line}" for line in costly_settings(config)]
    lines.append("  what to change, cheapest first (--cfg-options KEY=VALUE):")
    lines += [f"    {number}. {line}" for number, line in enumerate(remedies(config), start=1)]
    return "\n".join(lines)


def costly_settings(config: Mapping[str, Any]) -> list[str]:
    """Settings with their values, most memory first."""
    sa2va, zero = config["model"]["sa2va"], config["strategy"].get("zero_optimization", {})
    lora = sa2va.get("lora") or {}
    dataset = config["train_dataset"]
    offload = {part: bool(zero.get(f"offload_{part}")) for part in ("optimizer", "param")}
    return [
        f"model.sa2va.base={sa2va['base']} (weights on every GPU{', partitioned' if zero.get('stage') == 3 else ''})",
        f"schedule.micro_batch={config['schedule']['micro_batch']} (activations grow with it)",
        f"model.sa2va.gradient_checkpointing={sa2va.get('gradient_checkpointing', False)}",
        f"model.sa2va.sam2.image_size={sa2va['sam2']['image_size']} (SAM2's activations grow with its square)",
        f"model.sa2va.max_tiles={sa2va.get('max_tiles')}, train_dataset.max_length={dataset.get('max_length')} "
        "(tokens per conversation)",
        f"model.sa2va.lora.r={lora.get('r')} (trainable weights, gradients, optimizer states)",
        f"strategy.zero_optimization.stage={zero.get('stage', 0)}, optimizer on the CPU: {offload['optimizer']}, "
        f"parameters on the CPU: {offload['param']}",
    ]


def remedies(config: Mapping[str, Any]) -> list[str]:
    """Changes that this config does not contain yet, cheapest first: those of the memory plan, and others."""
    changes = possible_changes(config, int(os.environ.get("WORLD_SIZE", "1")))
    return [
        "close other programs that use this card (nvidia-smi lists them)",
        *(f"{change.options} ({change.cost})" for change in changes),
        "a smaller base model, such as InternVL3-2B",
        "vesselseg plan shows what each of these would save",
    ]


def _capacity() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.max_memory_reserved() / GIB
    return f" (allocated; {reserved:.2f} reserved) of {total / GIB:.2f}, {free / GIB:.2f} free now"
