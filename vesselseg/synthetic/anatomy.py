"""Geometry of synthetic angiograms: a tapering vessel tree and the catheter that supplies it, per patient and frame.

Lengths are fractions of the image side, except after ``in_pixels``; y points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

_STEP = 0.006  # distance of adjacent centreline points
_THINNEST = 2.6 / 256  # width of the thinnest vessel
_SHORTEST = 12  # points; a branch that leaves the image earlier is omitted
_ROOT_WIDTH = (7.5 / 256, 10.5 / 256)  # range of widths at the root


@dataclass(frozen=True)
class Tube:
    """A curved tube. centre: (points, 2), x and y of the centreline. width: (points,), in the same unit."""

    centre: np.ndarray
    width: np.ndarray

    def outline(self, part: float = 1.0) -> np.ndarray:
        """Polygon (points, 2) along the left side, around the tip and back on the right. part: of the width, 0..1."""
        normals = _normals(self.centre)
        half = self.width[:, None] * (part / 2)
        left, right = self.centre + normals * half, self.centre - normals * half
        ahead = np.array([normals[-1, 1], -normals[-1, 0]])
        tip = self.centre[-1] + ahead * half[-1]
        return np.concatenate([left, tip[None], right[::-1]])

    def in_pixels(self, side: int) -> Tube:
        """The tube in pixels of an image of side x side."""
        return Tube(self.centre * side, self.width * side)

    def thinned(self, every: int) -> Tube:
        """Every n-th point and the last one: annotators click a point every few pixels."""
        keep = np.unique(np.append(np.arange(0, len(self.width), every), len(self.width) - 1))
        return Tube(self.centre[keep], self.width[keep])


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of a patient: branches of the tree, the main one first, and the catheter, which ends at its root."""

    branches: tuple[Tube, ...]
    catheter: Tube


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random tree with 2 to 4 side branches, growing away from the end of the catheter."""
    mirrored = rng.random() < 0.5
    root = np.array([rng.uniform(0.2, 0.42), rng.uniform(0.12, 0.34)])
    heading = rng.uniform(0.15, 0.95)
    main = _grow(rng, root, heading, rng.uniform(0.62, 0.9), rng.uniform(*_ROOT_WIDTH), _THINNEST)
    branches = [main]
    places = rng.permutation(np.linspace(0.12, 0.68, 5))[: rng.integers(2, 5)]
    side = float(rng.choice([-1.0, 1.0]))
    for place in sorted(places):
        branches.append(_branch(rng, main, place, side))
        side = -side if rng.random() < 0.7 else side
    if len(branches) < 5 and rng.random() < 0.5:
        branches.append(_branch(rng, branches[1], rng.uniform(0.3, 0.6), float(rng.choice([-1.0, 1.0]))))
    visible = [_inside(branch) for branch in branches]
    tubes = [tube for tube in visible if len(tube.width) > _SHORTEST]
    catheter = _draw_catheter(rng, root, heading)
    if mirrored:
        tubes, catheter = [_mirror(tube) for tube in tubes], _mirror(catheter)
    return Anatomy(tuple(tubes), catheter)


@dataclass(frozen=True)
class Bend:
    """A smooth displacement of the plane.

    waves, phases: (2, 2), amplitude and phase of two sine waves per axis. shift: (2,).
    """

    waves: np.ndarray
    phases: np.ndarray
    shift: np.ndarray


def draw_bend(rng: np.random.Generator, amount: float) -> Bend:
    """A random displacement; amplitudes and shift are at most `amount`."""
    waves = rng.uniform(-amount, amount, (2, 2))
    phases = rng.uniform(0, 2 * np.pi, (2, 2))
    return Bend(waves, phases, rng.uniform(-amount, amount, 2))


def bend(anatomy: Anatomy, by: Bend) -> Anatomy:
    """Displace branches and catheter; widths are unchanged."""

    def displaced(tube: Tube) -> Tube:
        moved = tube.centre + by.shift  # (points, 2)
        for axis in (0, 1):
            moved[:, axis] += sum(
                by.waves[axis, k] * np.sin(2 * np.pi * (k + 1) * tube.centre[:, 1 - axis] / 1.4 + by.phases[axis, k])
                for k in (0, 1)
            )
        return replace(tube, centre=moved)

    return Anatomy(tuple(displaced(branch) for branch in anatomy.branches), displaced(anatomy.catheter))


def move(anatomy: Anatomy, rng: np.random.Generator, amount: float = 0.016) -> Anatomy:
    """The anatomy at another phase of the heartbeat: one random smooth displacement of everything."""
    return bend(anatomy, draw_bend(rng, amount))


def smooth_noise(rng: np.random.Generator, count: int, waves: int) -> np.ndarray:
    """Smooth noise (count,) of about -1..1: a sum of sines whose amplitude decreases with frequency."""
    place = np.linspace(0, 1, count)
    total = np.zeros(count)
    for wave in range(1, waves + 1):
        total += rng.normal() / wave * np.sin(2 * np.pi * (wave * place * 0.5 + rng.random()))
    return total


def _grow(
    rng: np.random.Generator, start: np.ndarray, heading: float, length: float, width: float, end_width: float
) -> Tube:
    """A winding tube from `start`. heading: radians, 0 to the right, pi / 2 downwards."""
    count = max(12, int(length / _STEP))
    # Tortuosity increases along the vessel.
    headings = heading + 0.75 * smooth_noise(rng, count, 6) * np.linspace(0.2, 1, count)
    headings += np.linspace(0, rng.uniform(-0.3, 0.9), count)
    steps = _STEP * np.stack([np.cos(headings), np.sin(headings)], axis=1)  # (count, 2)
    centre = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)[:-1]])
    widths = end_width + (width - end_width) * np.linspace(1, 0, count) ** rng.uniform(0.6, 1.1)
    widths *= 1 + 0.06 * smooth_noise(rng, count, 6)
    return Tube(centre, np.maximum(widths, _THINNEST))


def _branch(rng: np.random.Generator, parent: Tube, place: float, side: float) -> Tube:
    number = int(place * (len(parent.width) - 2))
    along = parent.centre[number + 1] - parent.centre[number]
    heading = float(np.arctan2(along[1], along[0])) + side * rng.uniform(0.45, 1.05)
    width = max(parent.width[number] * rng.uniform(0.55, 0.78), _THINNEST * 1.15)
    return _grow(rng, parent.centre[number], heading, rng.uniform(0.24, 0.5) * (1.1 - place * 0.5), width, _THINNEST)


def _inside(tube: Tube) -> Tube:
    """Cut a tube where it first leaves the image."""
    outside = np.flatnonzero(((tube.centre < 0.06) | (tube.centre > 0.94)).any(axis=1))
    end = int(outside[0]) if len(outside) else len(tube.width)
    return Tube(tube.centre[:end], tube.width[:end])


def _draw_catheter(rng: np.random.Generator, root: np.ndarray, heading: float) -> Tube:
    """A catheter of constant width from the upper or left edge to the root, curved like a preformed tip."""
    if rng.random() < 0.7:
        entry = np.array([root[0] + rng.uniform(-0.1, 0.3), -0.03])
    else:
        entry = np.array([-0.03, root[1] + rng.uniform(-0.1, 0.3)])
    tip = np.array([np.cos(heading), np.sin(heading)])
    reach = float(np.linalg.norm(root - entry))
    middle = (entry + root) / 2 + rng.uniform(-0.12, 0.12, 2)
    before = root - tip * reach * rng.uniform(0.3, 0.6)
    centre = bezier([entry, middle, before, root + tip * 0.012])
    width = rng.uniform(5.5, 7.5) / 256
    return Tube(centre, np.full(len(centre), width))


def bezier(controls: Sequence[np.ndarray], count: int = 120) -> np.ndarray:
    """Points (count, 2) of the Bezier curve with these control points, by De Casteljau's algorithm."""
    place = np.linspace(0, 1, count)[:, None]
    points = [np.repeat(np.asarray(control, dtype=np.float64)[None], count, axis=0) for control in controls]
    while len(points) > 1:
        points = [first + place * (second - first) for first, second in pairwise(points)]
    return points[0]


def _mirror(tube: Tube) -> Tube:
    return Tube(tube.centre * [-1, 1] + [1, 0], tube.width)


def _normals(centre: np.ndarray) -> np.ndarray:
    """Unit normals (points, 2) of a centreline (points, 2)."""
    along = np.gradient(centre, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    return np.stack([-along[:, 1], along[:, 0]], axis=1)
