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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from vesselseg.cli import UserError
from vesselseg.engine.micro_steps import Progress
from vesselseg.models.checkpoints.load import Assign, raise_for_keys

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
                f"{folder} cannot be resumed: the samples and optimizer shards would not fit\n  {listed}\nStart with the "
                f"same settings, or start a new run from its weights with --cfg-options load_from={weights_file(folder)}"
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


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name, on the CPU; a collective call where weights are partitioned (ZeRO-3).

    Every tensor has a storage of its own: DeepSpeed's are views of large flat ones, which torch.save would write whole.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                state[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return state


def load_trained(model: nn.Module, path: Path, assign: Assign | None = None) -> None:
    """Put a checkpoint's weights into a model whose trainable names and shapes must be the same."""
    state = read_weights(path)["state_dict"]
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in trainable.items()}
    raise_for_keys(
        str(path),
        missing=[name for name in trainable if name not in state],
        unexpected=[name for name in state if name not in trainable],
        misshapen=[
            f"{name} is {tuple(state[name].shape)}, expected {shapes[name]}"
            for name in trainable
            if name in state and tuple(state[name].shape) != shapes[name]
        ],
    )
    with torch.no_grad():
        for name, parameter in trainable.items():
            if assign is not None:
                assign(parameter, state[name])
            else:
                parameter.copy_(state[name])


def read_weights(path: Path) -> dict[str, Any]:
    """The content of an iter_N.pth; raises UserError if it is none."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; expected a checkpoint such as work_dirs/NAME/iter_100.pth or best.pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a file that is no checkpoint in many ways
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not readable as a checkpoint: {first_line}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path}: holds no state_dict; expected a checkpoint that tools/dist.sh train has written")
    return content


def write_weights(path: Path, state: Mapping[str, Tensor], **facts: Any) -> None:
    """Write one checkpoint file, whole or not at all. facts: plain values only."""
    temporary = path.with_name(path.name + UNFINISHED)
    with temporary.open("wb") as file:
        torch.save({"state_dict": dict(state), **facts, "versions": package_versions()}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy, whole or not at all."""
    temporary = target.with_name(target.name + UNFINISHED)
    shutil.copyfile(source, temporary)
    temporary.replace(target)


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
