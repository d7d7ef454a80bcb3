"""report.html of a dataset folder: the report as a page, with overlays for a visual check of the labels."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import image_path
from vesselseg.imaging.overlay import draw_overlay
from vesselseg.imaging.rasterise import rasterise
from vesselseg.prepare.findings import FINDING_KINDS
from vesselseg.prepare.prepare_image import overlay_size
from vesselseg.prepare.report import PreparationResult
from vesselseg.reports.html import jpeg_data_uri, render

OVERLAYS = 12
READINGS = 3  # images of each doubtful reading of masks
_BINS = 12


def write_report_page(folder: Path, report: dict[str, Any], prepared: PreparationResult) -> None:
    """Write ``folder/report.html``; images/ must be complete."""
    chosen = choose_overlays(prepared)
    page = render(
        "prepare.html.j2",
        report=report,
        kinds=FINDING_KINDS,
        findings=prepared.findings,
        histogram=histogram(list(report["fractions"].values())),
        overlays=[_overlay(folder, number, prepared) for number in chosen],
        readings=[_readings(folder, number, prepared) for number in doubtful(prepared)],
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def choose_overlays(prepared: PreparationResult, count: int = OVERLAYS) -> list[int]:
    """Indices of images for inspection: those with least and most vessel, some with findings, others at random."""
    fractions = [result.fraction for result in prepared.usable]
    by_fraction = sorted(range(len(fractions)), key=lambda number: (fractions[number], number))
    if len(by_fraction) <= count:
        return by_fraction
    rng = random.Random(prepared.options.seed)
    picked = by_fraction[:2] + by_fraction[-2:]
    changed = [number for number, result in enumerate(prepared.usable) if result.findings]
    for pool, wanted in ((changed, count // 3), (by_fraction, count)):
        left = [number for number in pool if number not in picked]
        picked += rng.sample(left, min(len(left), wanted, count - len(picked)))
    return [number for number in by_fraction if number in picked]


def doubtful(prepared: PreparationResult, count: int = READINGS) -> list[int]:
    """Indices of images whose masks have two readings, those in which both differ most first; few of each kind."""
    differing: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, result in enumerate(prepared.usable):
        if result.readings:
            one, other = (rasterise([mask], *mask["size"]) for _, mask in result.readings)
            titles = tuple(title for title, _ in result.readings)
            differing[titles].append((-int((one != other).sum()), number))
    return [number for several in differing.values() for _, number in sorted(several)[:count]]


def histogram(fractions: list[float], bins: int = _BINS) -> dict[str, list[Any]]:
    """Counts and bin edges (labels in percent) of a histogram of vessel fractions, each 0..1."""
    top = max(max(fractions, default=0.0), 0.01)
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0) if s * bins >= top)
    count = max(4, int(np.ceil(top / step - 1e-9)))
    bars, edges = np.histogram(fractions, bins=count, range=(0, count * step))
    return {"bars": bars.tolist(), "edges": [f"{100 * edge:.3g}" for edge in edges]}


def _overlay(folder: Path, number: int, prepared: PreparationResult) -> dict[str, Any]:
    record, result = prepared.records[number], prepared.usable[number]
    width, height = overlay_size(result.size)
    masks = np.array([rasterise([mask], height, width) for mask in result.overlay_masks])  # (objects, height, width)
    return {
        "uri": jpeg_data_uri(draw_overlay(_shown(folder, number, prepared), masks)),
        "image": record.image,
        "phrases": ", ".join(dict.fromkeys(record.phrases)),
        "fraction": result.fraction,
        "empty": not any(record.regions),
        "split": next(name for name, images in prepared.splits.items() if record.image in images),
        "notes": sorted({finding.title for finding in result.findings}),
    }


def _readings(folder: Path, number: int, prepared: PreparationResult) -> dict[str, Any]:
    """Both readings of an image's mask, the one that is used first."""
    image = _shown(folder, number, prepared)
    drawn = [
        (title, jpeg_data_uri(draw_overlay(image, rasterise([mask], *mask["size"])[None])))
        for title, mask in prepared.usable[number].readings
    ]
    return {"image": prepared.records[number].image, "drawn": drawn}


def _shown(folder: Path, number: int, prepared: PreparationResult) -> np.ndarray:
    """(height, width, 3) uint8 of a stored image at the size of its overlay."""
    with Image.open(image_path(folder, prepared.records[number])) as opened:
        image = np.array(opened.convert("RGB"))
    size = overlay_size(prepared.usable[number].size)
    enlarged = size[0] > prepared.usable[number].size[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA)
