"""A synthetic cine run with ground truth: heartbeat, breathing, and contrast agent that fills and leaves the tree.

Only heartbeat, breathing, agent and quantum noise change between frames; masks are computed from the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import cv2
import numpy as np

from vesselseg.errors import UserError
from vesselseg.imaging.rasterise import rasterise
from vesselseg.synthetic.anatomy import Anatomy, Bend, bend, draw_anatomy, draw_bend
from vesselseg.synthetic.angiograms import write_png
from vesselseg.synthetic.xray import draw_catheter, draw_chest, draw_wires, expose

RATE = 15  # frames per second
VISIBLE = 0.3  # fraction of the full contrast from which a part of a vessel belongs to the mask
_BEATS, _BREATHS = 1.2, 0.27  # frequencies per second
_BEAT, _BREATH = 0.012, 0.02  # maximum displacements, fractions of the image side
# Fractions of the run: start of injection, time to fill the tree, plateau, time constant of washout, width of front.
_START, _FILL, _STAY, _WASH, _FRONT = 0.05, 0.25, 0.42, 0.16, 0.02


@dataclass(frozen=True)
class Cine:
    """frames: (frames, side, side) uint8. masks: (frames, side, side) bool, True in filled vessels."""

    frames: np.ndarray
    masks: np.ndarray


def draw_cine(frames: int, size: int = 256, seed: int = 0) -> Cine:
    """A run of `frames` images of size x size; the same seed gives the same run.

    Raises UserError for a number of frames or size that is too small.
    """
    if frames < 1 or size < 64:
        raise UserError(f"expected at least 1 frame and a size of at least 64; found {frames} and {size}")
    run_rng = np.random.default_rng((seed, 0))
    anatomy = draw_anatomy(run_rng)
    chest, wires = draw_chest(run_rng, size), draw_wires(run_rng, size)
    contrast, beat = run_rng.uniform(0.5, 0.8), draw_bend(run_rng, _BEAT)
    distances = _distances(anatomy)
    images, masks = [], []
    for number in range(frames):
        seconds = number / RATE
        breath = _BREATH * np.sin(2 * np.pi * _BREATHS * seconds)
        moved = bend(anatomy, _at(beat, seconds, breath))
        filling = [_filling(distance, number / frames) for distance in distances]
        catheter = draw_catheter(np.random.default_rng((seed, 1)), moved.catheter, size)
        background = _lowered(chest, breath * size) + wires + catheter
        agent = contrast * _filling_map(moved, filling, size)
        noise = np.random.default_rng((seed, 3, number))
        images.append(expose(np.random.default_rng((seed, 2)), background, moved, agent, noise))
        masks.append(_mask(moved, filling, size))
    return Cine(np.stack(images), np.stack(masks))


def write_cine(out: Path, frames: int, size: int = 256, seed: int = 0) -> None:
    """Write a run as out/frames/000.png, ... and out/masks/000.png, ..., 255 in filled vessels."""
    cine = draw_cine(frames, size, seed)
    for name, images in (("frames", cine.frames), ("masks", cine.masks.astype(np.uint8) * 255)):
        (out / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            write_png(out / name / f"{number:03d}.png", image)


def _at(beat: Bend, seconds: float, breath: float) -> Bend:
    """The displacement at a time: fast contraction, slow relaxation, and a vertical shift by breathing."""
    phase = (seconds * _BEATS) % 1
    contraction = float(np.sin(np.pi * phase**0.6) ** 2)
    return replace(beat, waves=beat.waves * contraction, shift=beat.shift * contraction + [0, breath])


def _lowered(chest: np.ndarray, pixels: float) -> np.ndarray:
    """The chest (side, side), shifted down."""
    shift = np.array([[1, 0, 0], [0, 1, pixels]], dtype=np.float64)
    return cv2.warpAffine(chest, shift, chest.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def _distances(anatomy: Anatomy) -> list[np.ndarray]:
    """Per branch (points,): distance from the catheter along the tree, 0..1 of the longest path."""
    ways: list[np.ndarray] = []
    for branch in anatomy.branches:
        steps = np.linalg.norm(np.diff(branch.centre, axis=0), axis=1)
        own = np.concatenate([[0], np.cumsum(steps)])
        if ways:  # a branch begins on an earlier one
            places = np.concatenate([before.centre for before in anatomy.branches[: len(ways)]])
            parent = np.linalg.norm(places - branch.centre[0], axis=1).argmin()
            own = own + np.concatenate(ways)[parent]
        ways.append(own)
    longest = max(float(way[-1]) for way in ways)
    return [way / longest for way in ways]


def _filling(distance: np.ndarray, time: float) -> np.ndarray:
    """Fraction of the full contrast, 0..1, at points with these distances. time: 0..1 over the run.

    It rises with the front, stays constant and decays exponentially: proximal parts fill and empty first.
    """
    since = time - (_START + _FILL * distance)
    risen = 1 / (1 + np.exp(-np.clip(since / _FRONT, -50, 50)))
    return np.asarray(risen * np.exp(-np.maximum(since - _STAY, 0) / _WASH))


def _filling_map(anatomy: Anatomy, filling: list[np.ndarray], side: int) -> np.ndarray:
    """(side, side) float32: the filling of the nearest vessel, 0 far from vessels."""
    share = np.zeros((side, side), dtype=np.float32)
    for branch, filled in zip(anatomy.branches, filling):
        tube = branch.in_pixels(side)
        for centre, width, value in zip(np.round(tube.centre).astype(int).tolist(), tube.width, filled):
            cv2.circle(share, centre, int(width * 0.75) + 2, float(value), -1)
    return cv2.GaussianBlur(share, (0, 0), side / 256)


def _mask(anatomy: Anatomy, filling: list[np.ndarray], side: int) -> np.ndarray:
    """(side, side) bool: parts of vessels with at least VISIBLE contrast."""
    regions = []
    for branch, filled in zip(anatomy.branches, filling):
        for visible, run in groupby(enumerate(filled >= VISIBLE), key=itemgetter(1)):
            places = [place for place, _ in run]
            if visible and len(places) > 1:
                piece = replace(branch, centre=branch.centre[places], width=branch.width[places])
                regions.append(piece.in_pixels(side).outline().reshape(-1).tolist())
    return rasterise(regions, side, side) > 0
