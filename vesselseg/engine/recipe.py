"""A leaf config made from weights, data and the GPUs at hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vesselseg.config import load_config
from vesselseg.data.manifest import read_split
from vesselseg.errors import UserError
from vesselseg.models.checkpoints.inspection import SAM2_FILE, Inspection, inspect

SAM2_PARAMETERS = 224_000_000  # SAM2-L, added to a base that holds none
WORKING_GIB = 6.0  # activations, adapters with their optimizer states, CUDA itself, at one image of one tile
WITHOUT_OPTIMIZER_GIB = 4.0  # the same with the optimizer states on the CPU
STEPS_PER_EPOCH = 10  # at least so many optimizer steps, down to an accumulation of 1
ACCUMULATION = 8  # that of configs/_base_/schedules


@dataclass(frozen=True)
class Wish:
    """What the user names. gpus: processes, 0 for one on the CPU. gpu_gib: memory of each. sam2: file, or None."""

    base: str
    data: Path
    gpus: int
    gpu_gib: float
    sam2: str | None


def choose_runtime(parameters: int, gpu_gib: float) -> tuple[str, str]:
    """(file of configs/_base_/runtime, why) for a frozen model of so many parameters in bf16 on each GPU.

    ZeRO-2 keeps the frozen weights on every GPU, so they must fit with 6 GiB to spare, or with 4 where the optimizer
    goes to the CPU; else ZeRO-3 keeps them in main memory.
    """
    weights = parameters * 2 / 2**30
    if weights + WORKING_GIB <= gpu_gib:
        return "zero2", f"{weights:.1f} GiB of bf16 weights and {WORKING_GIB:.0f} GiB to work in fit"
    if weights + WITHOUT_OPTIMIZER_GIB <= gpu_gib:
        return (
            "zero2_offload",
            f"{weights:.1f} GiB of bf16 weights leave no room for the optimizer, which goes to the CPU",
        )
    return "zero3_offload", f"{weights:.1f} GiB of bf16 weights do not fit; they stay in main memory"


def choose_accumulation(images: int, processes: int) -> int:
    """Iterations per optimizer step: 8, or fewer where an epoch would have less than 10 steps."""
    return max(1, min(ACCUMULATION, images // (processes * STEPS_PER_EPOCH)))


def write_leaf(wish: Wish, out: Path, force: bool = False) -> str:
    """Write the config and read it back; returns why it is as it is. Raises UserError for what cannot be trained."""
    if not (out.parent / "_base_").is_dir():
        raise UserError(f"{out}: a leaf lies beside the folder _base_ that it starts from; write it to configs/")
    if out.suffix != ".py" or not out.stem.isidentifier():
        raise UserError(f"{out}: a config's name is letters, digits and underscores with .py behind")
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file or add --force to replace it")
    text, reason = leaf(wish)
    out.write_text(text, encoding="utf-8")
    load_config(out)
    return reason


def leaf(wish: Wish) -> tuple[str, str]:
    """The config's text and why it is as it is."""
    base = _base(wish)
    train, validation = read_split(wish.data, "train"), read_split(wish.data, "val")
    if not train:
        raise UserError(f"{wish.data}: no training images; make the dataset folder with tools/prepare_data.py")
    own_sam2 = any(part.startswith("SAM2") for part in base.parameters)
    runtime, reason = choose_runtime(base.total + (0 if own_sam2 else SAM2_PARAMETERS), wish.gpu_gib)
    if wish.gpus == 0:
        runtime, reason = "zero2", "on the CPU nothing is shared out"
    settings = [
        f"data_root = {quoted(wish.data)}",
        f"model.sa2va.base = {quoted(wish.base)}",
        _sam2_setting(wish, own_sam2),
    ]
    accumulation = choose_accumulation(len(train), max(1, wish.gpus))
    if accumulation != ACCUMULATION:
        settings.append(f"schedule.accumulation = {accumulation}")
    if not validation:
        settings.append("validation.interval = None")
    where = f"{wish.gpus} GPU(s) of {wish.gpu_gib:g} GiB" if wish.gpus else "the CPU"
    name = re.sub(r"[^\w .@+-]", "_", Path(wish.base).name)
    title = f'"""{name} on {where}: {len(train)} training images, {runtime}."""'
    bases = ("datasets.vessel", "models.internvl3", "runtime.default", f"runtime.{runtime}", "schedules.adamw_3e")
    imports = [f"    from ._base_.{name} import *" for name in bases]
    lines = [title, "", "from mmengine.config import read_base", "", "with read_base():", *imports, "", *settings]
    return "\n".join(lines) + "\n", reason


def _base(wish: Wish) -> Inspection:
    base = inspect(wish.base)
    if base.problem:
        raise UserError(base.problem)
    if not base.kind.startswith(("InternVL", "Sa2VA")):
        raise UserError(f"{wish.base}: a {base.kind}, not a model folder; name the folder that it belongs to")
    return base


def _sam2_setting(wish: Wish, own_sam2: bool) -> str:
    if own_sam2 or wish.sam2 is None:
        return "model.sa2va.sam2.checkpoint = None"
    if not Path(wish.sam2).is_file():
        raise UserError(
            f"{wish.sam2} does not exist, and {wish.base} holds no SAM2: get sam2_hiera_large.pt (on the hub in "
            "facebook/sam2-hiera-large), name another file with --sam2, or --sam2 none for random weights"
        )
    found = inspect(wish.sam2)
    if found.kind != SAM2_FILE or found.problem:
        raise UserError(found.problem or f"{wish.sam2}: a {found.kind}, not a SAM2 file")
    variant, version = (quoted(found.details[name]) for name in ("variant", "version"))
    return f"model.sa2va.sam2.update(checkpoint={quoted(wish.sam2)}, variant={variant}, version={version})"


def quoted(value: object) -> str:
    """A value as a Python string."""
    return json.dumps(str(value), ensure_ascii=False)
