"""Checkpoints: one file with the trained weights, and a folder next to it to resume from.

``iter_N.pth`` contains the trained weights, the model's settings, the whole config, the data's fingerprint, versions
and the threshold; torch.load(weights_only=True) reads it. ``iter_N.resume/`` contains optimizer state, random states
and counters, none of which depends on the number of processes. Both are written under another name and renamed when
they are complete. The first process writes; all processes read, so several nodes need a shared work folder.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from vesselseg.errors import UserError
from vesselseg.models.checkpoints.training_file import checkpoint_tensors, load_trainable, read_training_file
from vesselseg.models.lora import checkpoint_state
from vesselseg.models.sa2va import Sa2VA
from vesselseg.output_folder import UNFINISHED, flush_to_disk, whole_file
from vesselseg.training.optimizer_state import read_optimizer_state, write_optimizer_state
from vesselseg.training.plan import ResumeOffset
from vesselseg.training.train_step import Progress
from vesselseg.training.weight_average import WeightAverage, restore_average

PACKAGES = ("vesselseg", "torch", "torchvision", "transformers", "peft", "sam2", "deepspeed", "mmengine", "xtuner")
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.pt"
AVERAGE_FILE = "average.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Sizes:
    """Number of processes and batch sizes: they determine the images per iteration and per optimizer step."""

    world_size: int = 1
    micro_batch: int = 1
    accumulation: int = 1

    def __str__(self) -> str:
        return f"{self.world_size} process(es) x micro-batch {self.micro_batch} x accumulation {self.accumulation}"


@dataclass
class RunState:
    """Counters of a run.

    best_dice, threshold: of the validation with the highest Dice so far, None and 0.5 before the first one.
    sizes: of the current iterations. offset: the part of the run that was done with other sizes.
    """

    progress: Progress = field(default_factory=Progress)
    best_dice: float | None = None
    threshold: float = 0.5
    sizes: Sizes = field(default_factory=Sizes)
    offset: ResumeOffset = field(default_factory=ResumeOffset)

    @property
    def images_seen(self) -> int:
        """Position in the stream of images."""
        new = self.progress.iteration - self.offset.iterations
        return self.offset.images + new * self.sizes.world_size * self.sizes.micro_batch

    def change_sizes(self, sizes: Sizes) -> bool:
        """Use other sizes from here on; returns whether they differ. The run continues at the same image."""
        changed = sizes != self.sizes
        if changed:
            self.offset = ResumeOffset(self.progress.iteration, self.images_seen, self.progress.optimizer_steps)
            self.sizes = sizes
        return changed


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed run must have in common with its checkpoint: the images and their order."""

    images: int
    seed: int
    data_fingerprint: str

    def check(self, saved: Mapping[str, Any], folder: Path) -> None:
        """Raise UserError listing every difference from a checkpoint's identity."""
        own = asdict(self)
        wrong = [
            f"{name}: {saved.get(name)} in the checkpoint, {own[name]} now"
            for name in own
            if saved.get(name) != own[name]
        ]
        if wrong:
            listed = "\n  ".join(wrong)
            raise UserError(
                f"{folder} cannot be resumed: images would be missed or repeated\n  {listed}\n"
                "Start with the same data and seed, or start a new run from its weights with --cfg-options "
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
    """The tensors of a checkpoint by name, on the CPU; a collective call where weights are partitioned (ZeRO-3).

    Every tensor is copied: DeepSpeed's are views of large flat buffers, which torch.save would write completely.
    """
    with _gathered(model):
        return {name: value.to("cpu", copy=True).contiguous() for name, value in checkpoint_state(model).items()}


def checkpoint_elements(model: Sa2VA) -> int:
    """Elements in a checkpoint of the model; partitioned weights (ZeRO-3) count with their full size."""
    names = checkpoint_state(model).keys()
    entries = {name: value for name, value in model.state_dict(keep_vars=True).items() if name in names}
    return sum(int(getattr(value, "ds_numel", value.numel())) for value in entries.values())


def load_trained(model: Sa2VA, path: Path) -> None:
    """Load a checkpoint's weights, ours or the published code's, into a model; raises WeightsError."""
    content = read_training_file(path, model_config={})
    state, kind = checkpoint_tensors(model, content, str(path))
    with _gathered(model, state.keys(), modifier_rank=0), torch.no_grad():
        load_trainable(model, state, str(path), **kind)
    model.config.add_training_images(content.get("training_images", ""))


def _gathered(model: Sa2VA, further: Collection[str] = (), modifier_rank: int | None = None) -> AbstractContextManager:
    """Gather a checkpoint's entries and further ones completely on every process within the context."""
    names = checkpoint_state(model).keys() | set(further)
    partitioned = [
        value for name, value in model.state_dict(keep_vars=True).items() if name in names and hasattr(value, "ds_id")
    ]
    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=modifier_rank, enabled=bool(partitioned))


def write_weights(path: Path, state: Mapping[str, Tensor], **facts: Any) -> None:
    """Write one checkpoint file atomically. facts: plain values only."""
    with whole_file(path, durable=True) as temporary:
        torch.save({"state_dict": dict(state), **facts, "versions": package_versions()}, temporary)


def write_resume(
    folder: Path, engine: Any, state: RunState, identity: RunIdentity, average: WeightAverage | None = None
) -> None:
    """Write iter_N.resume; a collective call."""
    temporary = folder.with_name(folder.name + UNFINISHED)
    first = process_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    write_optimizer_state(temporary / OPTIMIZER_FILE, engine)
    random: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(random, random_state())
    if first:
        torch.save(random, temporary / RANDOM_FILE)
        if average is not None:
            average.write(temporary / AVERAGE_FILE)
        content = {"run": asdict(state), "identity": asdict(identity)}
        (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for file in temporary.iterdir():  # before the folder gets its name: a power cut leaves no complete-looking one
            flush_to_disk(file)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    torch.distributed.barrier()


def read_run_state(folder: Path, identity: RunIdentity) -> RunState:
    """Counters of a checkpoint; raises UserError where it cannot be resumed from."""
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        run = content["run"]
        if "behind" in run:  # the key until vesselseg 0.1
            run["offset"] = run.pop("behind")
        parts = {"progress": Progress, "sizes": Sizes, "offset": ResumeOffset}
        state = RunState(**{**run, **{name: kind(**run[name]) for name, kind in parts.items()}})
    except FileNotFoundError:
        raise UserError(
            f"{folder} does not exist on {socket.gethostname()}; the work dir of several nodes must be on a file "
            "system that all of them share, under the same path"
        ) from None
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a complete checkpoint of this version to resume from ({error!r})") from None
    identity.check(content["identity"], folder)
    return state


def restore(folder: Path, engine: Any, average: WeightAverage | None = None) -> None:
    """Optimizer state and this process's random state from iter_N.resume; the weights are in iter_N.pth.

    Of a run with `schedule.ema` iter_N.pth holds averaged weights; the folder holds the average and the others.
    With another number of processes, random states are seeded again, from the run's seed and the iteration.
    """
    read_optimizer_state(folder / OPTIMIZER_FILE, engine)
    if (folder / AVERAGE_FILE).is_file():
        restore_average(folder / AVERAGE_FILE, engine, average)
    saved = torch.load(folder / RANDOM_FILE, weights_only=True)
    if len(saved) != torch.distributed.get_world_size():
        iteration = int(re.sub(r"\D", "", folder.stem) or 0)
        torch.manual_seed((torch.initial_seed() + 1_000_003 * iteration) % 2**63)
        return
    own = saved[process_rank()]
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def random_state() -> dict[str, Tensor]:
    """States of torch's generators; data loading uses its own generators, seeded by (seed, epoch, index)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def prune(work_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and unfinished files of interrupted writes."""
    checkpoints = find_checkpoints(work_dir)
    for folder in list(checkpoints.values())[:-keep]:
        shutil.rmtree(folder)
        weights_file(folder).unlink(missing_ok=True)
    for leftover in Path(work_dir).glob(f"*{UNFINISHED}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def process_rank() -> int:
    """This process's global rank."""
    return torch.distributed.get_rank()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a checkpoint depends on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
