"""Sections of a config: one frozen dataclass each, which declares the defaults and checks the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """Length of the run, batch size, and AdamW's settings; optimizer, DeepSpeed and loader all read them from here."""

    epochs: int = 3  # passes over the training images
    lr: float = 2e-5  # peak learning rate
    weight_decay: float = 0.05  # of AdamW
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's decay rates of the gradient's mean and square
    warmup_ratio: float = 0.1  # share of the optimizer steps with a linear warm-up; a cosine to zero follows
    accumulation: int = 8  # iterations per optimizer step
    micro_batch: int = 1  # images per process and iteration
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.0  # decay per optimizer step of averaged weights, which are validated and saved; 0: no average
    max_iters: int | None = None  # stop after N iterations, where the learning rate ends at zero too; None: all epochs

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        found = _not_positive_integers(self, "epochs", "accumulation", "micro_batch")
        found += _not_numbers(self, "lr", "weight_decay", "warmup_ratio", "clip", "ema")
        if found:
            return found
        if self.lr <= 0:
            found.append(f"lr must be above 0, found {self.lr!r}")
        if not 0 <= self.warmup_ratio < 1:
            found.append(f"warmup_ratio must be at least 0 and below 1, found {self.warmup_ratio!r}")
        if not 0 <= self.ema < 1:
            found.append(f"ema must be at least 0 and below 1, found {self.ema!r}")
        if self.clip <= 0:
            found.append(f"clip must be above 0, found {self.clip!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas must be two numbers of at least 0 and below 1, found {self.betas!r}")
        if self.max_iters is not None:
            found += _not_positive_integers(self, "max_iters")
        return found


@dataclass(frozen=True)
class Loader:
    """num_workers: loading processes per training process; prefetch: micro-batches that each keeps ready."""

    num_workers: int = 2
    prefetch: int = 2

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        found = _not_positive_integers(self, "prefetch")
        if not _is_integer(self.num_workers, 0):
            found.append(f"num_workers must be a whole number of at least 0, found {self.num_workers!r}")
        return found


@dataclass(frozen=True)
class Validation:
    """interval: iterations between validations, None for none; the last iteration always validates.

    split: which split of the dataset folder. max_images: only the first N, None for all. metrics: registered functions
    that are logged too, each of (mask, truth), both (height, width) bool, at the best threshold; NaN where undefined.
    """

    interval: int | None = 200
    split: str = "val"
    max_images: int | None = None
    metrics: Sequence[str] = ()

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        given = [name for name in ("interval", "max_images") if getattr(self, name) is not None]
        found = _not_positive_integers(self, *given)
        if self.split not in ("train", "val", "test"):
            found.append(f"split must be train, val or test, found {self.split!r}")
        if isinstance(self.metrics, str) or not all(isinstance(name, str) for name in self.metrics):
            found.append(f"metrics must be a list of registered names, found {self.metrics!r}")
        return found


@dataclass(frozen=True)
class Checkpoint:
    """interval: iterations between checkpoints (the last iteration always writes one), None for no checkpoints.

    keep: how many of the newest are kept.
    """

    interval: int | None = 200
    keep: int = 2

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        return _not_positive_integers(self, *(["keep"] if self.interval is None else ["interval", "keep"]))


@dataclass(frozen=True)
class Logging:
    """interval: iterations between log lines; tensorboard: also write TensorBoard files."""

    interval: int = 10
    tensorboard: bool = True

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        found = _not_positive_integers(self, "interval")
        if not isinstance(self.tensorboard, bool):
            found.append(f"tensorboard must be True or False, found {self.tensorboard!r}")
        return found


PRECISIONS = ("auto", "bf16", "fp32")
STORES = (None, "disk", "memory")


@dataclass(frozen=True)
class Features:
    """Stored features: the frozen encoders' outputs for the training images, computed once before training.

    store: None (computed in every iteration), `disk`, or `memory` (a folder in /dev/shm, removed after the run).
    folder: parent folder of the stores on disk. variants: augmented views per image; epoch e uses view e % variants.
    """

    store: str | None = None
    folder: str = "work_dirs/features"
    variants: int = 1

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        found = _not_positive_integers(self, "variants")
        if self.store not in STORES:
            found.append(f"store must be None, 'disk' or 'memory', found {self.store!r}")
        if not isinstance(self.folder, str) or not self.folder:
            found.append(f"folder must name a folder, found {self.folder!r}")
        return found


@dataclass(frozen=True)
class Run:
    """Top-level values of a config.

    precision: `auto` (bf16 on a GPU, fp32 on a CPU), `bf16` or `fp32`. seed: of weights, data order and augmentation.
    load_from: initial weights of a new run: a checkpoint .pth, an exported or published folder, or None.
    custom_imports: dict(imports=[module, ...]), modules that register classes and functions of your own.
    custom_hooks: dict(type=..., ...) of further hooks, as in mmengine.
    """

    precision: str = "auto"
    seed: int = 0
    load_from: str | None = None
    custom_imports: Mapping[str, Any] | None = None
    custom_hooks: Sequence[Mapping[str, Any]] = ()

    def problems(self) -> list[str]:
        """Invalid values, one sentence each."""
        found = []
        if self.precision not in PRECISIONS:
            found.append(f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        if not isinstance(self.seed, int):
            found.append(f"seed must be a whole number, found {self.seed!r}")
        if not all(isinstance(hook, Mapping) and "type" in hook for hook in self.custom_hooks):
            found.append(f"custom_hooks must be a list of dict(type=..., ...), found {self.custom_hooks!r}")
        return found


RUN = frozenset(field.name for field in fields(Run))
SECTIONS: dict[str, type[Any]] = {
    "schedule": Schedule,
    "loader": Loader,
    "validation": Validation,
    "checkpoint": Checkpoint,
    "logging": Logging,
    "features": Features,
}


def section_fields(section: str) -> set[str]:
    """Names of a section's settings."""
    return {field.name for field in fields(SECTIONS[section])}


def read_section(config: Mapping[str, Any], section: str) -> Any:
    """A section of a checked config as its dataclass."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config[section].items()}
    return SECTIONS[section](**values)


def _is_integer(value: Any, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _not_positive_integers(section: Any, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [
        f"{name} must be a whole number above 0, found {v!r}" for name, v in values.items() if not _is_integer(v, 1)
    ]


def _not_numbers(section: Any, *names: str) -> list[str]:
    values = {name: getattr(section, name) for name in names}
    return [
        f"{name} must be a number of at least 0, found {value!r}"
        for name, value in values.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf")
    ]
