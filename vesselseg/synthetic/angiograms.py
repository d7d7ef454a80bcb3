"""Drawn coronary angiograms with LabelMe labels, for the demo and the tests.

Label and picture come from the same geometry. Ribs, catheter, leads and wires look like vessels to a line filter and
are not labelled. Files are named ``p003_f1.json``: patient and frame, so that ``--group-regex '(p[0-9]+)_'`` works.
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
    """Write count PNG files and their LabelMe JSON into the folder ``out``; returns the JSON paths.

    size: pixels of each side. frames: pictures per patient, which show the same anatomy at another moment.
    progress: whether to show a bar. The same seed draws the same set.
    Raises UserError for a count, size or number of frames that cannot be drawn.
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
    """The picture (size, size) uint8 and its vessels in pixels."""
    of_patient = np.random.default_rng((seed, patient))
    anatomy = draw_anatomy(of_patient)
    background = draw_chest(of_patient, size) + draw_wires(of_patient, size)
    contrast = of_patient.uniform(0.42, 0.8)
    of_frame = np.random.default_rng((seed, patient, frame))
    moved = move(anatomy, of_frame)
    background = background + draw_catheter(np.random.default_rng((seed, patient, 1_000_000)), moved.catheter, size)
    image = expose(of_frame, background, moved, contrast * of_frame.uniform(0.8, 1.1))
    return image, _in_pixels(moved, size)


def angiogram_labels(image_name: str, tubes: Iterable[Tube], size: int) -> dict[str, Any]:
    """The content of a LabelMe file: one polygon per branch."""
    outlines = (tube.thinned(_stride(tube)).outline() for tube in tubes)
    return labelme_content(image_name, size, size, [LabelledPolygon(LABEL, outline.tolist()) for outline in outlines])


def _in_pixels(anatomy: Anatomy, size: int) -> tuple[Tube, ...]:
    return tuple(branch.in_pixels(size) for branch in anatomy.branches)


def _stride(tube: Tube) -> int:
    step = float(np.linalg.norm(tube.centre[1] - tube.centre[0]))
    return max(1, round(_CLICK / max(step, 1e-6)))


def write_png(path: Path, image: np.ndarray) -> None:
    """A picture (height, width) uint8 as a PNG file."""
    # not cv2.imwrite: it cannot write to names with other than the system's letters everywhere
    _, content = cv2.imencode(".png", image)
    path.write_bytes(content.tobytes())
