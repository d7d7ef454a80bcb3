"""Nested parts of a dataset's training images, each a dataset folder that every command takes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from vesselseg.dataset.manifest import dataset_home, read_manifest, read_splits
from vesselseg.errors import UserError


def nested_subsets(images: Sequence[str], groups: Sequence[str], shares: Sequence[float], seed: int) -> list[list[str]]:
    """For every share the first groups of one shuffled order, so that a smaller part lies in every larger one.

    groups: of each image; a group is never divided, so that a part may be larger than its share. The order of images
    is kept. Raises UserError for shares that are not rising, from above 0 to 1, and where two of them give the same
    images.
    """
    if list(shares) != sorted(set(shares)) or not shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise UserError(f"shares {_listed(shares)}: expected rising numbers above 0 and up to 1")
    order = sorted(set(groups))
    random.Random(seed).shuffle(order)
    parts = []
    for share in shares:
        taken: set[str] = set()
        for group in order:
            if sum(one in taken for one in groups) >= share * len(images):
                break
            taken.add(group)
        parts.append([image for image, group in zip(images, groups) if group in taken])
    sizes = [len(part) for part in parts]
    if len(set(sizes)) < len(sizes):
        raise UserError(
            f"shares {_listed(shares)} of {len(images)} images in {len(order)} groups give {sizes} images; expected "
            "different numbers: use fewer or larger shares"
        )
    return parts


def read_training_groups(data: Path) -> tuple[list[str], list[str]]:
    """(images, their groups) of the training split; an image without a group is its own."""
    by_name = {record.image: record.group_key for record in read_manifest(data)}
    images = read_splits(data)["train"]
    return images, [by_name[image] for image in images]


def write_subset(data: Path, splits: Mapping[str, Sequence[str]], folder: Path) -> None:
    """A dataset folder with these splits; all others, labels and pictures are those of `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "annotations.json", "report.json"):
        link, target = folder / name, (dataset_home(data) / name).resolve()
        if target.exists() and not link.is_symlink():
            link.symlink_to(target)
    content = {**read_splits(data), **{name: list(images) for name, images in splits.items()}}
    (folder / "splits.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _listed(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)
