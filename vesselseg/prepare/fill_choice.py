"""Which fill of polygons their makers used, by masks that they exported of the same pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vesselseg.errors import UserError
from vesselseg.imaging.label_shapes import LabelFileError
from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.regions import FILLS, Fill, Region
from vesselseg.imaging.source_files import list_source_files
from vesselseg.prepare.prepare_image import ImageResult
from vesselseg.prepare.readers.masks import read_mask

MOST = 40  # pictures that are compared
WORST = 0.3  # of the masks' pixels: where even the best fill differs by more, the masks are of something else


@dataclass(frozen=True)
class FillChoice:
    """The fill that agrees best with the makers' masks."""

    fill: Fill
    pictures: int
    """that were compared"""
    differing: dict[Fill, float]
    """pixels that are in one mask only, relative to the pixels of the makers' masks, by fill"""

    def describe(self) -> str:
        """One line for the summary and the report."""
        shares = ", ".join(f"{fill} {share:.1%}" for fill, share in self.differing.items())
        return f"{self.fill}, by the makers' masks of {self.pictures} pictures (pixels that differ: {shares})"


def choose_fill(results: Sequence[ImageResult], masks: Path) -> FillChoice:
    """Compare the polygons of prepared pictures with masks in a folder, by the names of the pictures.

    A picture counts if it was not rescaled, its regions are polygons, and exactly one mask has its name and size.
    What is vessel in a mask is decided by its values (`imaging.mask_values`). Raises UserError where no picture counts,
    or where no fill gives these masks.
    """
    if not masks.is_dir():
        raise UserError(f"--fill-masks {masks} is not a folder; name the one with the masks that the makers exported")
    by_name = defaultdict(list)
    for name in list_source_files(masks).images:
        by_name[_name_of(PurePosixPath(name))].append(masks / name)
    wrong, total, compared = dict.fromkeys(FILLS, 0), 0, 0
    for result in results:
        candidates = by_name.get(_name_of(result.origin or PurePosixPath(result.file)), [])
        polygons = _polygons(result)
        expected = _union(candidates[0], result.size) if len(candidates) == 1 and polygons else None
        if expected is None or not expected.any():
            continue
        height, width = expected.shape
        for fill in FILLS:
            wrong[fill] += int((rasterise(polygons, height, width, fill) != expected).sum())
        total, compared = total + int(expected.sum()), compared + 1
        if compared == MOST:
            break
    if not compared:
        raise UserError(
            f"--fill-masks {masks}: no picture has polygons and one mask of its own name and size there; expected "
            f"NAME.png or NAME_mask.png for pictures like {results[0].file if results else 'NAME.png'}"
        )
    shares = {fill: count / total for fill, count in wrong.items()}
    choice = FillChoice(min(FILLS, key=shares.__getitem__), compared, shares)
    if shares[choice.fill] > WORST:
        raise UserError(
            f"--fill-masks {masks}: no fill gives these masks: {choice.describe()}; are they of the same labels?"
        )
    return choice


def _name_of(path: PurePosixPath | Path) -> str:
    return path.stem.casefold().removesuffix("_mask").removesuffix("-mask")


def _polygons(result: ImageResult) -> list[Region]:
    """All regions of the first observer; none where one of them is a mask, which no fill changes."""
    regions = [region for regions in result.record.regions for region in regions] if result.record else []
    rescaled = any(finding.code == "rescaled" for finding in result.findings)
    return [] if rescaled or any(isinstance(region, dict) for region in regions) else regions


def _union(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """(height, width) bool, or None for a mask that is not readable or of another size (width, height)."""
    try:
        mask = read_mask(path)
    except LabelFileError:
        return None
    return mask.union if mask.size == size else None
