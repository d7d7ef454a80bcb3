"""check.html: every finding with pictures, the worst first; what splits look like; how far observers agree."""

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
from vesselseg.inspect.checks.result import Check
from vesselseg.reports.html import jpeg_data_uri, render

_SIDE = 240  # pixels of a thumbnail
_SHOWN, _IMAGES = 8, 4  # findings of a kind with pictures, pictures of a finding
_SHOW_NOTHING = {"missing_image", "unreadable_image", "bad_region", "unknown_in_split", "unused_file"}


def check_page(check: Check, changes: Sequence[str]) -> str:
    """The page; reads the images that it shows."""
    places = {record.image: place for place, record in enumerate(check.measured.records)}
    kinds = [
        {
            "code": code,
            "kind": findings[0].kind,
            "findings": findings,
            "shown": _shown(check.measured, findings, places),
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


def _shown(measured: MeasuredDataset, findings: Sequence[CheckFinding], places: dict[str, int]) -> list[dict[str, Any]]:
    """Those findings of one kind that have pictures; the others stand in the table alone."""
    with_pictures = [one for one in findings if one.images and one.code not in _SHOW_NOTHING][:_SHOWN]
    shown = []
    for finding in with_pictures:
        usable = [places[i] for i in finding.images if i in places and measured.facts[places[i]].problem is None]
        pictures = [_picture(measured, place, finding.code) for place in usable[:_IMAGES]]
        shown.append({"reason": finding.reason, "pictures": pictures, "more": len(finding.images) - len(pictures)})
    return shown


def _picture(measured: MeasuredDataset, place: int, code: str) -> dict[str, Any]:
    record = measured.records[place]
    return {
        "uri": jpeg_data_uri(_thumbnail(measured, place, code)),
        "image": record.image,
        "splits": ", ".join(measured.splits_of[record.image]) or "no split",
        "group": record.group,
        "share": measured.facts[place].share,
    }


def _thumbnail(measured: MeasuredDataset, place: int, code: str) -> np.ndarray:
    """The picture with its masks, small; specks are ringed, a further observer's drawing is blue."""
    record = measured.records[place]
    image = np.asarray(read_image(image_path(measured.folder, record)))
    masks = record_masks(record, *image.shape[:2])
    union = masks.max(axis=0, initial=0)
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
            if area in measured.facts[place].specks:
                cv2.circle(overlay, (round(x * scale), round(y * scale)), 8, (250, 210, 40), 1, cv2.LINE_AA)
    return overlay


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Smaller without losing thin vessels and specks: a pixel is set if any of those it stands for is."""
    if size[0] >= mask.shape[1]:
        return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    return (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.25).astype(np.uint8)


def _agreement(measured: MeasuredDataset) -> list[dict[str, Any]]:
    """Rows of the table, the lowest Dice first."""
    rows = [
        {"image": facts.image, "phrase": one.phrase, "observer": one.observer, "dice": one.dice, "kappa": one.kappa}
        for facts in measured.facts
        for one in facts.agreement
    ]
    return sorted(rows, key=lambda row: row["dice"])
