"""Pixels about which the labels say nothing: from the dataset folder to the loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesselseg.dataset.augment import Augment
from vesselseg.dataset.batch import UNKNOWN, Batch
from vesselseg.dataset.feature_store import _packed
from vesselseg.dataset.image_views import ImageViews
from vesselseg.dataset.manifest import Record, read_manifest, write_manifest
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import ManifestError
from vesselseg.imaging.rasterise import encode
from vesselseg.imaging.regions import Fill
from vesselseg.losses.total import TotalLoss

VESSEL = np.zeros((32, 48), np.uint8)
VESSEL[8:16, 4:44] = 1
IGNORED = np.zeros_like(VESSEL)
IGNORED[20:28, 8:40] = 1


def dataset(folder: Path, fill: Fill = "labelme", augment: Augment | None = None) -> VesselDataset:
    (folder / "images").mkdir(parents=True)
    Image.fromarray(VESSEL * np.uint8(90)).save(folder / "images" / "a.png")
    write_manifest(folder, [Record("a.png", ((encode(VESSEL),),), ("vessel",), fill=fill, ignore=(encode(IGNORED),))])
    (folder / "splits.json").write_text(json.dumps({"train": ["a.png"], "val": [], "test": []}))
    views = ImageViews(tile_size=28, sam_size=64)
    return VesselDataset(folder, "train", views=views, tokens=None, tokens_per_tile=1, augment=augment)


@pytest.mark.parametrize(("fill", "dtype"), [("labelme", torch.int8), ("coverage", torch.float32)])
def test_masks_mark_unknown_pixels(tmp_path: Path, fill: Fill, dtype: torch.dtype) -> None:
    masks = dataset(tmp_path, fill).view(0, 0).masks
    assert masks.shape == (1, *VESSEL.shape) and masks.dtype == dtype
    assert np.array_equal(masks[0].numpy() == UNKNOWN, IGNORED > 0)
    assert np.array_equal(masks[0].numpy() == 1, VESSEL > 0)
    form, stored = _packed(masks)
    assert form == "plain" and torch.equal(stored, masks)


def test_unknown_pixels_are_augmented_with_the_image(tmp_path: Path) -> None:
    flip = Augment(horizontal_flip=0, vertical_flip=1, rotation=0, scale=0, translation=0, brightness=0, contrast=0)
    masks = dataset(tmp_path, augment=flip).view(0, 0).masks
    assert np.array_equal(masks[0].numpy() == UNKNOWN, IGNORED[::-1] > 0)


def test_the_name_of_stored_features_depends_on_them(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    before = data.view_name(0, 0)
    data.records[0] = dataclasses.replace(data.records[0], ignore=())
    assert data.view_name(0, 0) != before


CELLS = {"boundary": 1.0, "tversky": 1.0, "thin_weight": 1.0}
LOSSES = {"area": CELLS, "full": {**CELLS, "cldice": 1.0, "skeleton_recall": 1.0}}


@pytest.mark.parametrize("target", ["area", "full"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_no_loss_and_no_gradient_where_the_label_is_unknown(target: str, dtype: torch.dtype) -> None:
    labels = torch.from_numpy(VESSEL).to(dtype)[None].masked_fill(torch.from_numpy(IGNORED > 0), UNKNOWN)
    loss = TotalLoss(mask_target=target, **LOSSES[target])  # type: ignore[arg-type]
    nothing = torch.empty(0)
    batch = Batch(("a",), nothing, (1,), nothing, (), (), (labels,), (1,))
    answers = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    size = VESSEL.shape if target == "full" else (16, 24)
    values, gradients = [], []
    for there in (-8.0, 8.0):  # what the model predicts in the ignored pixels
        logits = torch.zeros(1, *VESSEL.shape)
        logits[:, IGNORED > 0] = there
        logits = logits[:, :: VESSEL.shape[0] // size[0], :: VESSEL.shape[1] // size[1]].clone().requires_grad_()
        total = sum(loss(logits, *answers, batch).values())
        total.backward()  # type: ignore[union-attr]
        values.append(total.item())  # type: ignore[union-attr]
        assert logits.grad is not None
        gradients.append(logits.grad)
    assert values[0] == pytest.approx(values[1])
    unknown = torch.from_numpy(IGNORED > 0)[:: 32 // size[0], :: 48 // size[1]]
    assert not gradients[1][0][unknown].any() and gradients[1][0][~unknown].any()


def test_a_manifest_with_broken_ignored_regions_is_refused(tmp_path: Path) -> None:
    entry = {"image": "a.png", "mask": [], "text": [], "ignore": [[1, 2]]}
    (tmp_path / "annotations.json").write_text(json.dumps([entry]))
    with pytest.raises(ManifestError, match="ignore"):
        read_manifest(tmp_path)
