"""A small dataset folder, and folders of predictions for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.drawn_data import Drawn, picture, vessel
from vesselseg.dataset.manifest import Record, write_manifest
from vesselseg.dataset.record_masks import record_masks


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    folder = tmp_path / "drawn"
    generator = np.random.default_rng(17)
    records = []
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, count in (("train", 4), ("val", 3), ("test", 5)):
        for number in range(count):
            name = f"{split}/case{number}.png"
            record = Record(name, ((vessel(generator),),), ("blood vessel",), f"{split} patient {number // 2}")
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = record_masks(record, 72, 96)[0]
            Image.fromarray(picture(mask, generator)).save(path)
            records.append(record)
            splits[split].append(name)
    write_manifest(folder, records)
    (folder / "splits.json").write_text(json.dumps(splits))
    return Drawn(folder)


@pytest.fixture
def mask_folder(drawn: Drawn, tmp_path: Path) -> Path:
    """The true masks shifted by one pixel, as 0/255 PNGs, for val and test."""
    folder = tmp_path / "masks"
    for split in ("val", "test"):
        for record in drawn.records(split):
            path = folder / record.image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(drawn.truth(record), 1, axis=0).astype(np.uint8) * 255).save(path)
    return folder


@pytest.fixture
def probability_folder(drawn: Drawn, tmp_path: Path) -> Path:
    """Probabilities whose best threshold is near 0.3: 0.34 to 0.6 on vessels, 0.02 to 0.27 elsewhere; as .npy."""
    folder = tmp_path / "probabilities"
    generator = np.random.default_rng(3)
    for split in ("val", "test"):
        for record in drawn.records(split):
            truth = drawn.truth(record)
            inside, outside = generator.uniform(0.34, 0.6, truth.shape), generator.uniform(0.02, 0.27, truth.shape)
            path = (folder / record.image).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.where(truth, inside, outside).astype(np.float32))
    return folder
