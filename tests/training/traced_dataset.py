"""A training data set that writes down what it hands out and can spoil one sample."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vesselseg.dataset.batch import Example
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.training.training_data import training_dataset


class Traced(Dataset):
    """The data set given, with one line "epoch index image" per example in FOLDER/RANK.txt."""

    def __init__(
        self, dataset: VesselDataset, trace: str, poison: tuple[int, int] | None, dies_after: int | None, dies_by: int
    ) -> None:
        self.left = dies_after
        self.dies_by = dies_by
        self.dataset = dataset
        self.path = Path(trace) / f"{os.environ['RANK']}.txt"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.poison = poison

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int] | int) -> Example:
        if self.left is not None and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            if self.left == 0:
                os.kill(os.getpid(), self.dies_by)
            self.left -= 1
        example = self.dataset[item]
        with self.path.open("a") as file:
            epoch, index = item if isinstance(item, tuple) else (0, item)
            file.write(f"{epoch} {index} {example.image_id}\n")
        if item == self.poison:
            example.sam_image[:] = float("nan")
        return example


def traced_dataset(
    data_root: str,
    model_base: str,
    sam_image_size: int,
    trace: str,
    split: str = "train",
    max_length: int = 512,
    max_tiles: int | None = 1,
    augment: dict[str, Any] | None = None,
    vary_questions: bool = True,
    seed: int = 0,
    limit: int | None = None,
    variants: int | None = None,
    poison: tuple[int, int] | None = None,
    dies_after: int | None = None,
    dies_by: int = int(signal.SIGKILL),
) -> Traced:
    """poison: (epoch, index) whose picture is NaN.

    dies_after: the last process sends itself the signal `dies_by` after so many examples.
    """
    dataset = training_dataset(
        data_root,
        model_base,
        sam_image_size,
        split,
        max_length,
        max_tiles,
        augment,
        vary_questions,
        seed,
        limit,
        variants,
    )
    return Traced(dataset, trace, tuple(poison) if poison else None, dies_after, dies_by)
