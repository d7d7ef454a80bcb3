"""check.html: all findings with images, statistics of the splits, agreement of observers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import cv2
import numpy as np

from vesselseg.dataset.manifest import image_path
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.overlay import draw_overlay
from vesselseg.imaging.read_image import read_image
from vesselseg.inspect.checks.finding_kinds import CheckFinding
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset, summary_of_splits
from vesselseg.inspect.checks.result import CheckResult
from vesselseg.reports.html import jpeg_data_uri, render

_SIDE = 240  # pixels of the longer side of a thumbnail
_SHOWN, _IMAGES = 8, 4  # findings with images per kind, images per finding
_WITHOUT_IMAGES = {"missing_image", "unreadable_image", "bad_region", "unknown_in_split", "unused_file"}


def check_page(check: CheckResult, changes: Sequence[str]) -> str:
    """The page as HTML; reads the images that it shows."""
    indices = {record.image: index for index, record in enumerate(check.measured.records)}
    kinds = [
        {
            "code": code,
            "kind": findings[0].kind,
            "findings": findings,
            "shown": _shown(check.measured, findings, indices),
        }
        for code, findings in ((code, list(found)) for code, found in groupby(check.findings, lambda one: one.code))
    ]
    measured = check.measured
    return render(
        "check.html.j2",
        name=measured.folder.resolve().name,
        fingerprint=measured.fingerprint,
        images=len(measured.records),
        groups=len({record.group_key for record in measured.records}),
        grouped=any(record.group for record in measured.records),
        counts=check.counts,
        kinds=kinds,
        splits=summary_of_splits(measured),
        agreement=_agreement(measured),
        changes=changes,
    )


def _shown(
    measured: MeasuredDataset, findings: Sequence[CheckFinding], indices: dict[str, int]
) -> list[dict[str, Any]]:
    """The findings of one kind that are shown with images; the others are only in the table."""
    with_images = [one for one in findings if one.images and one.code not in _WITHOUT_IMAGES][:_SHOWN]
    shown = []
    for finding in with_images:
        usable = [indices[i] for i in finding.images if i in indices and measured.facts[indices[i]].problem is None]
        images = [_picture(measured, index, finding.code) for index in usable[:_IMAGES]]
        shown.append({"reason": finding.reason, "images": images, "more": len(finding.images) - len(images)})
    return shown


def _picture(measured: MeasuredDataset, index: int, code: str) -> dict[str, Any]:
    record = measured.records[index]
    return {
        "uri": jpeg_data_uri(_thumbnail(measured, index, code)),
        "image": record.image,
        "splits": ", ".join(measured.splits_of[record.image]) or "no split",
        "group": record.group,
        "share": measured.facts[index].share,
    }


def _thumbnail(measured: MeasuredDataset, index: int, code: str) -> np.ndarray:
    """A small image with its mask; specks are circled, the mask of another observer is blue."""
    record = measured.records[index]
    image = np.asarray(read_image(image_path(measured.folder, record)))
    masks = record_masks(record, *image.shape[:2])
    union = masks.max(axis=0, initial=0)  # (height, width)
    drawn = [union]
    if code == "low_agreement" and record.observers:
        other = record_masks(record.with_observer(next(iter(record.observers))), *image.shape[:2])
        drawn.append(other.max(axis=0, initial=0))
    scale = _SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    overlay = draw_overlay(small, np.stack([_shrink(mask, size) for mask in drawn]))
    if code == "specks":
        _, _, boxes, centres = cv2.connectedComponentsWithStats(union, connectivity=8)
        for area, (x, y) in zip(boxes[:, cv2.CC_STAT_AREA], centres):
            if area in measured.facts[index].specks:
                cv2.circle(overlay, (round(x * scale), round(y * scale)), 8, (250, 210, 40), 1, cv2.LINE_AA)
    return overlay


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink a mask (height, width) to size (width, height); a threshold of a quarter preserves thin vessels."""
    if size[0] >= mask.shape[1]:
        return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    return (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.25).astype(np.uint8)


def _agreement(measured: MeasuredDataset) -> list[dict[str, Any]]:
    """Rows of the table, in ascending order of Dice."""
    rows = [
        {"image": facts.image, "phrase": one.phrase, "observer": one.observer, "dice": one.dice, "kappa": one.kappa}
        for facts in measured.facts
        for one in facts.agreement
    ]
    return sorted(rows, key=lambda row: row["dice"])
