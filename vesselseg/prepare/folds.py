"""Cross-validation folds by group, stored in the dataset folder; every tool accepts a fold as a dataset folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vesselseg.dataset.manifest import FOLDS, SPLITS, Record, dataset_home, image_path, read_manifest
from vesselseg.output_folder import whole_folder
from vesselseg.prepare.splits import SplitError, fold_groups, merge_groups, split_groups

FOLDS_FILE = "folds.json"
Splits = dict[str, list[str]]


def make_folds(data: Path, folds: int = 5, val: float = 0.1, seed: int = 0, force: bool = False) -> list[Splits]:
    """Write ``data/folds/1/splits.json`` .. ``data/folds/K/splits.json`` and return their content.

    Every image is in the test split of exactly one fold; the fraction ``val`` of the remaining images of a fold is its
    validation split. Groups are never divided, and files with the same bytes count as one group. The same data and seed
    give the same folds. Raises SplitError, ManifestError, UserError (folds exist, without force).
    """
    data = Path(data)
    if dataset_home(data) != data:
        raise SplitError(f"{data} is a fold itself; give its dataset folder, {dataset_home(data)}")
    if not 0 < val < 1:
        raise SplitError(f"--val {val:g}: expected a fraction above 0 and below 1")
    records = read_manifest(data)
    splits = split_folds([record.image for record in records], _groups(data, records), folds, val, seed)
    with whole_folder(data / FOLDS, force, FOLDS_FILE) as building:
        for number, one in enumerate(splits, start=1):
            (building / str(number)).mkdir()
            text = json.dumps(one, ensure_ascii=False, indent=1)
            (building / str(number) / "splits.json").write_text(text, encoding="utf-8")
        facts = {"folds": folds, "val": val, "seed": seed, "images": len(records)}
        (building / FOLDS_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return splits


def split_folds(images: Sequence[str], groups: Sequence[str], folds: int, val: float, seed: int) -> list[Splits]:
    """Image names in train, val and test of every fold. groups: per image. Raises SplitError."""
    test_fold = fold_groups(groups, folds, seed)
    splits = []
    for number in range(1, folds + 1):
        rest = [index for index, fold in enumerate(test_fold) if fold != number]
        names = split_groups([groups[index] for index in rest], (1 - val, val, 0.0), seed + number)
        one: Splits = {name: [images[index] for index, n in zip(rest, names) if n == name] for name in SPLITS}
        one["test"] = [image for image, fold in zip(images, test_fold) if fold == number]
        if not one["val"]:
            raise SplitError(
                f"--folds {folds}: fold {number} has one group outside its test split, so none is left for validation; "
                "use fewer folds or more groups"
            )
        splits.append(one)
    return splits


def _groups(data: Path, records: Sequence[Record]) -> list[str]:
    """The group of each record; groups that share a file with the same bytes are merged."""
    same = defaultdict(list)
    for index, record in enumerate(records):
        same[hashlib.sha256(image_path(data, record).read_bytes()).digest()].append(index)
    repeated = [indices for indices in same.values() if len(indices) > 1]
    return merge_groups([record.group_key for record in records], repeated)
