"""A drawn cine run with known truth: a tree that beats and breathes, and contrast agent that fills and leaves it.

Nothing but heart, breathing, agent and quantum noise changes from frame to frame; the masks come from the geometry.
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
VISIBLE = 0.3  # share of the full contrast from which a piece of vessel belongs to the mask
_BEATS, _BREATHS = 1.2, 0.27  # per second
_BEAT, _BREATH = 0.012, 0.02  # of the image side, at most
# In parts of the run: the agent leaves the catheter, has reached the tree's end, stays, and is washed out.
_START, _FILL, _STAY, _WASH, _FRONT = 0.05, 0.25, 0.42, 0.16, 0.02


@dataclass(frozen=True)
class Cine:
    """frames: (frames, side, side) uint8. masks: (frames, side, side) bool, True where a vessel holds agent."""

    frames: np.ndarray
    masks: np.ndarray


def draw_cine(frames: int, size: int = 256, seed: int = 0) -> Cine:
    """The same seed draws the same run. Raises UserError for a number or size that cannot be drawn."""
    if frames < 1 or size < 64:
        raise UserError(f"expected at least 1 frame and a size of at least 64; found {frames} and {size}")
    of_run = np.random.default_rng((seed, 0))
    anatomy = draw_anatomy(of_run)
    chest, wires = draw_chest(of_run, size), draw_wires(of_run, size)
    contrast, beat = of_run.uniform(0.5, 0.8), draw_bend(of_run, _BEAT)
    distances = _distances(anatomy)
    pictures, masks = [], []
    for number in range(frames):
        seconds = number / RATE
        breath = _BREATH * np.sin(2 * np.pi * _BREATHS * seconds)
        moved = bend(anatomy, _at(beat, seconds, breath))
        filling = [_filling(distance, number / frames) for distance in distances]
        catheter = draw_catheter(np.random.default_rng((seed, 1)), moved.catheter, size)
        behind = _lowered(chest, breath * size) + wires + catheter
        agent = contrast * _filling_map(moved, filling, size)
        noise = np.random.default_rng((seed, 3, number))
        pictures.append(expose(np.random.default_rng((seed, 2)), behind, moved, agent, noise))
        masks.append(_mask(moved, filling, size))
    return Cine(np.stack(pictures), np.stack(masks))


def write_cine(out: Path, frames: int, size: int = 256, seed: int = 0) -> None:
    """A drawn run as out/frames/000.png, ... and out/masks/000.png, ..., 255 where a vessel holds agent."""
    cine = draw_cine(frames, size, seed)
    for name, pictures in (("frames", cine.frames), ("masks", cine.masks.astype(np.uint8) * 255)):
        (out / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            write_png(out / name / f"{number:03d}.png", picture)


def _at(beat: Bend, seconds: float, breath: float) -> Bend:
    """The heart contracts quickly and relaxes slowly; breathing moves it along the picture's height."""
    phase = (seconds * _BEATS) % 1
    contraction = float(np.sin(np.pi * phase**0.6) ** 2)
    return replace(beat, waves=beat.waves * contraction, shift=beat.shift * contraction + [0, breath])


def _lowered(chest: np.ndarray, pixels: float) -> np.ndarray:
    shift = np.array([[1, 0, 0], [0, 1, pixels]], dtype=np.float64)
    return cv2.warpAffine(chest, shift, chest.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def _distances(anatomy: Anatomy) -> list[np.ndarray]:
    """Per branch (points,): the way of the agent from the catheter along the tree, 1 where it is longest."""
    ways: list[np.ndarray] = []
    for branch in anatomy.branches:
        steps = np.linalg.norm(np.diff(branch.centre, axis=0), axis=1)
        own = np.concatenate([[0], np.cumsum(steps)])
        if ways:  # a branch begins on one drawn before it
            places = np.concatenate([before.centre for before in anatomy.branches[: len(ways)]])
            parent = np.linalg.norm(places - branch.centre[0], axis=1).argmin()
            own = own + np.concatenate(ways)[parent]
        ways.append(own)
    longest = max(float(way[-1]) for way in ways)
    return [way / longest for way in ways]


def _filling(distance: np.ndarray, time: float) -> np.ndarray:
    """Share of the full contrast, 0 to 1, at places so far along the tree; time: 0 to 1 over the run.

    It rises when the front arrives, stays, and falls exponentially: proximal pieces fill and empty first.
    """
    since = time - (_START + _FILL * distance)
    risen = 1 / (1 + np.exp(-np.clip(since / _FRONT, -50, 50)))
    return np.asarray(risen * np.exp(-np.maximum(since - _STAY, 0) / _WASH))


def _filling_map(anatomy: Anatomy, filling: list[np.ndarray], side: int) -> np.ndarray:
    """(side, side) float32: the filling of the vessel at and around each pixel."""
    share = np.zeros((side, side), dtype=np.float32)
    for branch, filled in zip(anatomy.branches, filling):
        tube = branch.in_pixels(side)
        for centre, width, value in zip(np.round(tube.centre).astype(int).tolist(), tube.width, filled):
            cv2.circle(share, centre, int(width * 0.75) + 2, float(value), -1)
    return cv2.GaussianBlur(share, (0, 0), side / 256)


def _mask(anatomy: Anatomy, filling: list[np.ndarray], side: int) -> np.ndarray:
    regions = []
    for branch, filled in zip(anatomy.branches, filling):
        for visible, run in groupby(enumerate(filled >= VISIBLE), key=itemgetter(1)):
            places = [place for place, _ in run]
            if visible and len(places) > 1:
                piece = replace(branch, centre=branch.centre[places], width=branch.width[places])
                regions.append(piece.in_pixels(side).outline().reshape(-1).tolist())
    return rasterise(regions, side, side) > 0
