"""Checkpoints: what trains as one file for everyone, and DeepSpeed's shards beside it for resuming.

``iter_N.pth`` holds the trained weights, the model's settings, the whole config, the data's fingerprint, versions and
the threshold; torch.load(weights_only=True) reads it. ``iter_N.resume/`` holds optimizer shards, random states and
counters. Both are written under another name and renamed when they are complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from vesselseg.engine.micro_steps import Progress
from vesselseg.errors import UserError
from vesselseg.models.checkpoints.training_file import checkpoint_tensors, load_trainable, read_training_file
from vesselseg.models.lora import checkpoint_state
from vesselseg.models.sa2va import Sa2VA

PACKAGES = ("vesselseg", "torch", "torchvision", "transformers", "peft", "sam2", "deepspeed", "mmengine", "xtuner")
UNFINISHED = ".unfinished"
SHARDS = "deepspeed"
STATE_FILE = "state.json"


@dataclass
class RunState:
    """Everything that counts up during a run.

    best_dice, threshold: of the validation with the highest Dice so far, None and 0.5 before the first one.
    """

    progress: Progress = field(default_factory=Progress)
    best_dice: float | None = None
    threshold: float = 0.5


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for a resumed run to go on exactly."""

    world_size: int
    images: int
    micro_batch: int
    accumulation: int
    seed: int
    data_fingerprint: str
    zero_stage: int

    def check(self, saved: Mapping[str, Any], folder: Path) -> None:
        """Raise UserError listing every difference from what a checkpoint was written with."""
        own = asdict(self)
        wrong = [f"{name}: {saved.get(name)} there, {own[name]} now" for name in own if saved.get(name) != own[name]]
        if wrong:
            listed = "\n  ".join(wrong)
            raise UserError(
                f"{folder} cannot be resumed: the samples and optimizer shards would not fit\n  {listed}\n"
                "Start with the same settings, or start a new run from its weights with --cfg-options "
                f"load_from={weights_file(folder)}"
            )


def weights_file(resume_folder: Path) -> Path:
    """iter_N.resume -> iter_N.pth."""
    return resume_folder.with_suffix(".pth")


def find_checkpoints(work_dir: Path) -> dict[int, Path]:
    """Complete resumable checkpoints of a work folder by iteration, oldest first."""
    found = {}
    for folder in Path(work_dir).glob("iter_*.resume"):
        match = re.fullmatch(r"iter_(\d+)\.resume", folder.name)
        if match and (folder / STATE_FILE).is_file() and weights_file(folder).is_file():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def trained_state(model: Sa2VA) -> dict[str, Tensor]:
    """What a checkpoint must hold, by name, on the CPU; a collective call where weights are partitioned (ZeRO-3).

    Every tensor has a storage of its own: DeepSpeed's are views of large flat ones, which torch.save would write whole.
    """
    with _gathered(model):
        return {name: value.to("cpu", copy=True).contiguous() for name, value in checkpoint_state(model).items()}


def checkpoint_elements(model: Sa2VA) -> int:
    """Numbers that a checkpoint of the model holds, partitioned (ZeRO-3) ones counted whole."""
    names = checkpoint_state(model).keys()
    entries = {name: value for name, value in model.state_dict(keep_vars=True).items() if name in names}
    return sum(int(getattr(value, "ds_numel", value.numel())) for value in entries.values())


def load_trained(model: Sa2VA, path: Path) -> None:
    """Put a checkpoint's weights, our own or of the published code, into a model; raises WeightsError."""
    state, kind = checkpoint_tensors(model, read_training_file(path, model_config={}), str(path))
    with _gathered(model, state.keys(), modifier_rank=0), torch.no_grad():
        load_trainable(model, state, str(path), **kind)


def _gathered(model: Sa2VA, further: Collection[str] = (), modifier_rank: int | None = None) -> AbstractContextManager:
    """What a checkpoint holds, and further entries, whole on every process while the context lasts."""
    names = checkpoint_state(model).keys() | set(further)
    partitioned = [
        value for name, value in model.state_dict(keep_vars=True).items() if name in names and hasattr(value, "ds_id")
    ]
    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=modifier_rank, enabled=bool(partitioned))


def write_weights(path: Path, state: Mapping[str, Tensor], **facts: Any) -> None:
    """Write one checkpoint file, whole or not at all. facts: plain values only."""
    temporary = path.with_name(path.name + UNFINISHED)
    with temporary.open("wb") as file:
        torch.save({"state_dict": dict(state), **facts, "versions": package_versions()}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_resume(folder: Path, engine: Any, state: RunState, identity: RunIdentity) -> None:
    """Write iter_N.resume; every process calls it."""
    temporary = folder.with_name(folder.name + UNFINISHED)
    if process_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag=SHARDS, save_latest=False, exclude_frozen_parameters=True)
    torch.save(random_state(), temporary / f"random_{process_rank()}.pt")
    torch.distributed.barrier()
    if process_rank() == 0:
        content = {"run": asdict(state), "identity": asdict(identity)}
        (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    torch.distributed.barrier()


def read_run_state(folder: Path, identity: RunIdentity) -> RunState:
    """Counters of a checkpoint; raises UserError where it cannot go on exactly."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        run = content["run"]
        state = RunState(Progress(**run["progress"]), run["best_dice"], run["threshold"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a complete checkpoint to resume from ({error})") from None
    identity.check(content["identity"], folder)
    return state


def restore(folder: Path, engine: Any) -> None:
    """Weights, optimizer and this process's random state from iter_N.resume."""
    loaded, _ = engine.load_checkpoint(str(folder), tag=SHARDS, load_module_strict=False)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed finds no checkpoint in it; resume from another one")
    random = torch.load(folder / f"random_{process_rank()}.pt", weights_only=True)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def random_state() -> dict[str, Tensor]:
    """torch's generators; data draws from generators of its own, seeded by (seed, epoch, index)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def prune(work_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted write left behind."""
    checkpoints = find_checkpoints(work_dir)
    for folder in list(checkpoints.values())[:-keep]:
        shutil.rmtree(folder)
        weights_file(folder).unlink(missing_ok=True)
    for leftover in Path(work_dir).glob(f"*{UNFINISHED}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def process_rank() -> int:
    """This process's number among all."""
    return torch.distributed.get_rank()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a checkpoint means."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
