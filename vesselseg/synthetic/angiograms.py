"""Synthetic coronary angiograms with LabelMe labels, for the demo and the tests.

Labels and images are generated from the same geometry. Ribs, catheter, leads and wires are unlabelled and resemble
vessels for a line filter. Files are named by patient and frame, ``p003_f1.json``, for ``--group-regex '(p[0-9]+)_'``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from vesselseg.errors import UserError
from vesselseg.imaging.labelme_writing import LabelledPolygon, labelme_content
from vesselseg.synthetic.anatomy import Anatomy, Tube, draw_anatomy, move
from vesselseg.synthetic.xray import draw_catheter, draw_chest, draw_wires, expose

LABEL = "vessel"
_CLICK = 4  # pixels between the points of an outline


def write_synthetic(
    out: Path, count: int, size: int = 256, seed: int = 0, frames: int = 3, progress: bool = False
) -> list[Path]:
    """Write PNG files and their LabelMe JSON into the folder ``out``; returns the JSON paths.

    count: number of images. size: pixels per side. frames: images per patient, the same anatomy at different phases of
    the heartbeat. progress: show a progress bar. The same seed gives the same images.
    Raises UserError for a count, size or number of frames that is too small.
    """
    if count < 1 or size < 64 or frames < 1:
        raise UserError(
            f"expected count and frames of at least 1 and size of at least 64; found {count}, {frames}, {size}"
        )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number in tqdm(range(count), desc="drawing", unit="image", disable=not progress):
        patient, frame = divmod(number, frames)
        image, tubes = draw_angiogram(size, seed, patient, frame)
        path = out / f"p{patient:03d}_f{frame + 1}.json"
        write_png(path.with_suffix(".png"), image)
        path.write_text(json.dumps(angiogram_labels(path.with_suffix(".png").name, tubes, size)), encoding="utf-8")
        written.append(path)
    return written


def draw_angiogram(size: int, seed: int, patient: int, frame: int) -> tuple[np.ndarray, tuple[Tube, ...]]:
    """An image (size, size) uint8 and its vessels in pixels."""
    patient_rng = np.random.default_rng((seed, patient))
    anatomy = draw_anatomy(patient_rng)
    background = draw_chest(patient_rng, size) + draw_wires(patient_rng, size)
    contrast = patient_rng.uniform(0.42, 0.8)
    frame_rng = np.random.default_rng((seed, patient, frame))
    moved = move(anatomy, frame_rng)
    background = background + draw_catheter(np.random.default_rng((seed, patient, 1_000_000)), moved.catheter, size)
    image = expose(frame_rng, background, moved, contrast * frame_rng.uniform(0.8, 1.1))
    return image, _in_pixels(moved, size)


def angiogram_labels(image_name: str, tubes: Iterable[Tube], size: int) -> dict[str, Any]:
    """The content of a LabelMe file with one polygon per branch."""
    outlines = (tube.thinned(_stride(tube)).outline() for tube in tubes)
    return labelme_content(image_name, size, size, [LabelledPolygon(LABEL, outline.tolist()) for outline in outlines])


def _in_pixels(anatomy: Anatomy, size: int) -> tuple[Tube, ...]:
    return tuple(branch.in_pixels(size) for branch in anatomy.branches)


def _stride(tube: Tube) -> int:
    step = float(np.linalg.norm(tube.centre[1] - tube.centre[0]))
    return max(1, round(_CLICK / max(step, 1e-6)))


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (height, width) uint8 as a PNG file."""
    # Not cv2.imwrite, which on some systems fails for names outside the system's encoding.
    _, content = cv2.imencode(".png", image)
    path.write_bytes(content.tobytes())
