"""A leaf config for given weights, data and GPUs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vesselseg.config.load import load_config
from vesselseg.dataset.manifest import read_split
from vesselseg.errors import UserError
from vesselseg.machine import GIB
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.inspection import SAM2_FILE, Inspection, inspect
from vesselseg.models.quantised import NF4_BYTES

SAM2_PARAMETERS = 224_000_000  # SAM2-L, added to a base that holds none
# The choice is made before there is a config for `memory_plan`, from these figures: what the plan gives for the largest
# base of each choice, rounded up. A test plans the chosen configs.
WORKING_GIB = 6.0  # activations, adapters with their optimizer states, CUDA context
WITHOUT_OPTIMIZER_GIB = 4.0  # the same with the optimizer states on the CPU
ENCODING_GIB = 2.0  # of encoders, in addition to all weights, while features are computed and stored
GATHERED_GIB = 2.0  # layers that ZeRO-3 has gathered
STEPS_PER_EPOCH = 10  # least number of optimizer steps, down to an accumulation of 1
IMAGES_PER_STEP = 32  # as in the recipes of configs/
MICRO_BATCH = 4  # with stored features, more images of one tile cost little memory
STORED_MB = 10.3  # features of one 512x512 image with SAM2 at 1024
STORE_LIMIT_GB = 60.0


@dataclass(frozen=True)
class RecipeRequest:
    """The user's request. gpus: processes, 0 for one on the CPU. gpu_gib: memory of each. sam2: file, or None."""

    base: str
    data: Path
    gpus: int
    gpu_gib: float
    sam2: str | None


@dataclass(frozen=True)
class Sizes:
    """Parameters of a frozen model: encoders (vision tower, SAM2), decoder blocks of the language model, the rest."""

    encoders: int
    blocks: int
    rest: int

    @property
    def bf16_gib(self) -> float:
        """All weights in bf16."""
        return (self.encoders + self.blocks + self.rest) * 2 / GIB

    @property
    def nf4_gib(self) -> float:
        """With the blocks in 4 bits and without the encoders, which are moved off the GPU."""
        return (self.blocks * NF4_BYTES + self.rest * 2) / GIB

    @property
    def encoders_gib(self) -> float:
        """The encoders in bf16."""
        return self.encoders * 2 / GIB


@dataclass(frozen=True)
class Choice:
    """runtime: file of configs/_base_/runtime. quantise: the frozen language model in 4 bits. reason: one sentence."""

    runtime: str
    quantise: bool
    reason: str


def choose_runtime(sizes: Sizes, gpus: int, gpu_gib: float) -> Choice:
    """The first runtime that fits, fastest first.

    ZeRO-2 keeps the frozen weights on every GPU: in bf16, with the optimizer on the CPU, or in 4 bits; ZeRO-3
    partitions them; the last choice keeps them in main memory, from which every layer is copied in every step.
    """
    weights, working = sizes.bf16_gib, WORKING_GIB
    if weights + working <= gpu_gib:
        return Choice("zero2", False, f"{weights:.1f} GiB of bf16 weights and {working:.0f} GiB for training fit")
    large = f"{weights:.1f} GiB of bf16 weights"
    if weights + WITHOUT_OPTIMIZER_GIB <= gpu_gib:
        return Choice("zero2_offload", False, f"{large} leave no memory for the optimizer, which stays on the CPU")
    if max(sizes.nf4_gib + working, sizes.nf4_gib + sizes.encoders_gib + ENCODING_GIB) <= gpu_gib:
        return Choice("zero2", True, f"{large} do not fit; {sizes.nf4_gib:.1f} GiB in 4 bits do, without the encoders")
    if gpus > 1 and weights / gpus + working + GATHERED_GIB <= gpu_gib:
        return Choice("zero3", False, f"{large} do not fit; a partition of {weights / gpus:.1f} GiB on each GPU does")
    return Choice("zero3_offload", False, f"{large} do not fit; they stay in main memory")


def choose_batch(images: int, processes: int, micro_batch: int) -> tuple[int, int]:
    """(micro-batch, accumulation) for 32 images per optimizer step, or fewer for at least 10 steps per epoch."""
    per_step = min(IMAGES_PER_STEP, images // STEPS_PER_EPOCH)
    micro_batch = max(1, min(micro_batch, per_step // processes))
    return micro_batch, max(1, per_step // (processes * micro_batch))


def write_leaf(request: RecipeRequest, out: Path, force: bool = False) -> str:
    """Write the config and load it; returns the reason for the choice. Raises UserError for what cannot be trained."""
    if not (out.parent / "_base_").is_dir():
        raise UserError(f"{out}: a config must be next to the folder _base_ that it starts from; write it to configs/")
    if out.suffix != ".py" or not out.stem.isidentifier():
        raise UserError(f"{out}: a config's name consists of letters, digits and underscores and ends in .py")
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file or add --force to replace it")
    text, reason = leaf(request)
    out.write_text(text, encoding="utf-8")
    load_config(out)
    return reason


def leaf(request: RecipeRequest) -> tuple[str, str]:
    """The config's text and the reason for the choice."""
    base = _base(request)
    train, validation = read_split(request.data, "train"), read_split(request.data, "val")
    if not train:
        raise UserError(f"{request.data}: no training images; create the dataset folder with vesselseg prepare")
    own_sam2 = any(part.startswith("SAM2") for part in base.parameters)
    choice = choose_runtime(_sizes(base, own_sam2), request.gpus, request.gpu_gib)
    if request.gpus == 0:
        choice = Choice("zero2", False, "on the CPU nothing is partitioned")
    stored = _stores(choice, request.gpus, len(train))
    micro_batch, accumulation = choose_batch(len(train), max(1, request.gpus), MICRO_BATCH if stored else 1)
    settings = [
        f"data_root = {quoted(request.data)}",
        f"model.sa2va.base = {quoted(request.base)}",
        _sam2_setting(request, own_sam2),
        *(['model.sa2va.quantise = "nf4"'] if choice.quantise else []),
        *(["model.sa2va.trainable.high_res_convs = False"] if stored else []),
        f"schedule.update(micro_batch={micro_batch}, accumulation={accumulation})",
        *([] if validation else ["validation.interval = None"]),
    ]
    where = f"{request.gpus} GPU(s) of {request.gpu_gib:g} GiB" if request.gpus else "the CPU"
    name = re.sub(r"[^\w .@+-]", "_", Path(request.base).name)
    title = f'"""{name} on {where}: {len(train)} training images, {choice.runtime}."""'
    output = "stored_features" if stored else "default"
    files = ("datasets.vessel", "models.internvl3", f"runtime.{output}", f"runtime.{choice.runtime}")
    imports = [f"    from ._base_.{name} import *" for name in (*files, "schedules.adamw_3e")]
    lines = [title, "", "from mmengine.config import read_base", "", "with read_base():", *imports, "", *settings]
    return "\n".join(lines) + "\n", choice.reason


def _stores(choice: Choice, gpus: int, images: int) -> bool:
    """Whether encoder features are stored: if 4 bits depend on it, else with ZeRO-2 if they fit STORE_LIMIT_GB."""
    return choice.quantise or (
        gpus > 0 and choice.runtime.startswith("zero2") and images * STORED_MB <= STORE_LIMIT_GB * 1000
    )


def _sizes(base: Inspection, own_sam2: bool) -> Sizes:
    text = read_base_folder(base.path).config.text()
    tables = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    blocks = base.parameters["language model"] - tables
    encoders = base.parameters["vision tower"] + (0 if own_sam2 else SAM2_PARAMETERS)
    encoders += sum(count for part, count in base.parameters.items() if part.startswith("SAM2"))
    rest = base.total + (0 if own_sam2 else SAM2_PARAMETERS) - encoders - blocks
    return Sizes(encoders, blocks, rest)


def _base(request: RecipeRequest) -> Inspection:
    base = inspect(request.base)
    if base.problem:
        raise UserError(base.problem)
    if not base.kind.startswith(("InternVL", "Sa2VA")):
        raise UserError(f"{request.base}: a {base.kind}, not a model folder; name its model's folder")
    return base


def _sam2_setting(request: RecipeRequest, own_sam2: bool) -> str:
    if own_sam2 or request.sam2 is None:
        return "model.sa2va.sam2.checkpoint = None"
    if not Path(request.sam2).is_file():
        raise UserError(
            f"{request.sam2} does not exist, and {request.base} contains no SAM2: get sam2_hiera_large.pt (on the "
            "hub in facebook/sam2-hiera-large), name another file with --sam2, or --sam2 none for random weights"
        )
    found = inspect(request.sam2)
    if found.kind != SAM2_FILE or found.problem:
        raise UserError(found.problem or f"{request.sam2}: a {found.kind}, not a SAM2 file")
    variant, version = (quoted(found.details[name]) for name in ("variant", "version"))
    return f"model.sa2va.sam2.update(checkpoint={quoted(request.sam2)}, variant={variant}, version={version})"


def quoted(value: object) -> str:
    """A value as a Python string."""
    return json.dumps(str(value), ensure_ascii=False)
