"""What to say when memory runs out: the peak, the settings that cost most, what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vesselseg.engine.run_log import GIB, peak_memory_gib


def out_of_memory_message(config: Mapping[str, Any], error: BaseException) -> str:
    """One message for a torch.OutOfMemoryError, with changes in the order of what they cost."""
    where = "GPU" if torch.cuda.is_available() else "main"
    lines = [f"out of {where} memory; this process held {peak_memory_gib():.2f} GiB at its peak{_capacity()}"]
    first_line = (str(error).strip().splitlines() or [""])[0]
    if first_line:
        lines.append(f"  torch says: {first_line}")
    lines.append("  settings of this config that cost most:")
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
        f"model.sa2va.base={sa2va['base']} (weights on every GPU{' in pieces' if zero.get('stage') == 3 else ''})",
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
    """Changes that this config has not made yet, cheapest first."""
    sa2va, zero = config["model"]["sa2va"], config["strategy"].get("zero_optimization", {})
    micro_batch, accumulation = config["schedule"]["micro_batch"], config["schedule"]["accumulation"]
    found = []
    if micro_batch > 1:
        found.append(
            f"schedule.micro_batch={micro_batch // 2} schedule.accumulation={accumulation * 2} (same images per step)"
        )
    if not sa2va.get("gradient_checkpointing"):
        found.append("model.sa2va.gradient_checkpointing=True (a third slower)")
    if sa2va.get("max_tiles") != 1:
        found.append("model.sa2va.max_tiles=1 (256 language tokens per image; less detail for the language model)")
    found.append("close other programs that use this card (nvidia-smi lists them)")
    if any(zero.get(name, 0) > 5e7 for name in ("reduce_bucket_size", "allgather_bucket_size")):
        found.append("strategy.zero_optimization.reduce_bucket_size=20000000 and allgather_bucket_size likewise")
    if not zero.get("offload_optimizer"):
        found.append("a config with the optimizer on the CPU, such as configs/internvl3_8b_4x24gb_zero2_offload.py")
    if zero.get("stage") != 3:
        found.append("more GPUs and ZeRO-3, such as configs/internvl3_8b_4x24gb_zero3_offload.py (slow)")
    if sa2va["sam2"]["image_size"] > 512:
        found.append("model.sa2va.sam2.image_size=512 (thin vessels are lost first)")
    found.append("a smaller base model, such as InternVL3-2B")
    return found


def _capacity() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.max_memory_reserved() / GIB
    return f" (allocated; {reserved:.2f} reserved) of {total / GIB:.2f}, {free / GIB:.2f} free now"
