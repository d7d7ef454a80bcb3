"""A dataset folder of synthetic angiograms without findings, and helpers that modify it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesselseg.dataset.manifest import Record, read_manifest, read_splits, write_manifest
from vesselseg.inspect.checks.check import check_dataset
from vesselseg.prepare.report import write_splits
from vesselseg.synthetic.angiograms import draw_angiogram

SIDE = 128
PATIENTS, FRAMES = 16, 2


@dataclass(frozen=True)
class Folder:
    """Images pNN_fN.png of patients p00 .. p15, two frames each: p00-p11 train, p12-p13 val, p14-p15 test."""

    path: Path

    @property
    def records(self) -> dict[str, Record]:
        return {record.image: record for record in read_manifest(self.path)}

    @property
    def splits(self) -> dict[str, list[str]]:
        return read_splits(self.path)

    def image(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.path / "images" / name))

    def change(self, name: str, **changes: Any) -> None:
        self.change_all({name: changes})

    def change_all(self, changes: dict[str, dict[str, Any]]) -> None:
        records = self.records
        write_manifest(self.path, [replace(record, **changes.get(name, {})) for name, record in records.items()])

    def repaint(self, name: str, paint: Callable[[np.ndarray], np.ndarray]) -> None:
        Image.fromarray(paint(self.image(name))).save(self.path / "images" / name)

    def add(self, name: str, pixels: np.ndarray, split: str, like: str, **changes: Any) -> None:
        """A further image with the labels of another."""
        Image.fromarray(pixels).save(self.path / "images" / name)
        record = replace(self.records[like], image=name, **{"group": name, **changes})
        write_manifest(self.path, [*self.records.values(), record])
        self.list(name, split)

    def list(self, name: str, *splits: str) -> None:
        """Put an image into these splits alone."""
        listed = {split: [n for n in names if n != name] for split, names in self.splits.items()}
        for split in splits:
            listed[split].append(name)
        write_splits(self.path, listed)

    def codes(self) -> dict[str, set[str]]:
        """What a check finds: code -> the images that it names."""
        found: dict[str, set[str]] = {}
        for finding in check_dataset(self.path, workers=1).findings:
            found.setdefault(finding.code, set()).update(finding.images)
        return found


def brighter(pixels: np.ndarray) -> np.ndarray:
    """The same image as from another export."""
    return np.clip(pixels * 1.15 + 8, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "drawn"
    (path / "images").mkdir(parents=True)
    records, splits = [], {"train": [], "val": [], "test": []}
    for patient in range(PATIENTS):
        split = "train" if patient < 12 else "val" if patient < 14 else "test"
        for frame in range(FRAMES):
            pixels, tubes = draw_angiogram(SIDE, 5, patient, frame)
            name = f"p{patient:02d}_f{frame}.png"
            Image.fromarray(pixels).save(path / "images" / name)
            regions = tuple([float(value) for value in tube.outline().ravel()] for tube in tubes)
            records.append(Record(name, (regions,), ("blood vessel",), f"p{patient:02d}"))
            splits[split].append(name)
    write_manifest(path, records)
    (path / "splits.json").write_text(json.dumps(splits))
    return path


@pytest.fixture
def folder(drawn_once: Path, tmp_path: Path) -> Folder:
    shutil.copytree(drawn_once, tmp_path / "drawn")
    return Folder(tmp_path / "drawn")
