"""X-ray model of synthetic angiograms: attenuation by chest, catheter, wires and vessels.

All parts add to an absorption map; the image is exp(-absorption) (Beer-Lambert law), blurred, with detector noise.
"""

from __future__ import annotations

import cv2
import numpy as np

from vesselseg.synthetic.anatomy import Anatomy, Tube, bezier

_FINE = 2  # supersampling of tubes
_SHIFT = 4  # fractional bits of OpenCV coordinates
_LAYERS = (1.0, 0.88, 0.74, 0.56, 0.34)  # fractions of a tube's width; their sum approximates its round profile


def draw_chest(rng: np.random.Generator, side: int) -> np.ndarray:
    """Absorption (side, side) float32 of a chest: soft tissue, spine, ribs, diaphragm. No part is labelled."""
    absorption = np.full((side, side), rng.uniform(0.35, 0.6), dtype=np.float32)
    absorption += 0.16 * _clouds(rng, side, 4) + 0.05 * _clouds(rng, side, 12) + 0.02 * _clouds(rng, side, 32)
    if rng.random() < 0.6:
        absorption += _spine(rng, side)
    for _ in range(rng.integers(2, 6)):
        absorption += _rib(rng, side)
    if rng.random() < 0.75:
        absorption += _diaphragm(rng, side)
    return absorption


def draw_wires(rng: np.random.Generator, side: int) -> np.ndarray:
    """Absorption (side, side) float32 of ECG leads, a guide wire and sternal wires. None is labelled."""
    absorption = np.zeros((side, side), dtype=np.float32)
    for _ in range(rng.integers(1, 4)):
        points = _edge_to_edge(rng)
        width = rng.uniform(1.4, 3.2) / 256
        absorption += rng.uniform(0.15, 0.45) * _line(points, width, side)
        if rng.random() < 0.4:
            absorption += rng.uniform(0.1, 0.3) * _disc(points[60], rng.uniform(0.012, 0.03), side)
    for _ in range(rng.integers(0, 3)):
        absorption += rng.uniform(0.3, 0.6) * _loop(rng, side)
    return absorption


def draw_catheter(rng: np.random.Generator, catheter: Tube, side: int) -> np.ndarray:
    """Absorption (side, side) float32 of the catheter: filled with contrast agent, or with a brighter lumen."""
    full = tube_profile([catheter], side)
    if rng.random() < 0.65:
        return np.asarray(rng.uniform(0.45, 0.85) * full, dtype=np.float32)
    inner = tube_profile([Tube(catheter.centre, catheter.width * 0.6)], side)
    return np.asarray(rng.uniform(0.5, 0.8) * (full - 0.5 * inner), dtype=np.float32)


def expose(
    rng: np.random.Generator,
    absorption: np.ndarray,
    anatomy: Anatomy,
    contrast: float | np.ndarray,
    noise: np.random.Generator | None = None,
) -> np.ndarray:
    """The image (side, side) uint8 of vessels with contrast agent in front of a background.

    absorption: (side, side) of the background. contrast: of all vessels, or (side, side) per pixel. noise: generator
    of the quantum noise, by default rng, so that images can share everything else.
    """
    side = absorption.shape[0]
    filled = tube_profile(list(anatomy.branches), side)
    uneven = 1 + 0.2 * _clouds(rng, side, 5)  # agent and blood mix unevenly
    light = np.exp(-(absorption + contrast * filled * uneven))  # (side, side), transmitted fraction
    light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.5, 0.85) * side / 256)
    light = light * _vignette(rng, side)
    light = _normalise(light, rng)
    light += _grain(rng, noise or rng, side) * np.sqrt(np.maximum(light, 0.02))
    return np.asarray(np.clip(np.round(255 * _collimate(rng, light)), 0, 255), dtype=np.uint8)


def tube_profile(tubes: list[Tube], side: int) -> np.ndarray:
    """Projected thickness (side, side) float32 of tubes: 1 at the centre of the widest, 0 outside."""
    depth = np.zeros((side * _FINE, side * _FINE), dtype=np.float32)  # supersampled
    layer = np.zeros(depth.shape, dtype=np.uint8)
    widest = max((float(tube.width.max()) for tube in tubes), default=1.0)
    for part in _LAYERS:
        layer[:] = 0
        for tube in tubes:
            _fill(layer, tube.outline(part), side)
        depth += layer
    depth *= 1 / len(_LAYERS)
    local = _local_width(tubes, depth.shape[0], widest)
    return cv2.resize(depth * local, (side, side), interpolation=cv2.INTER_AREA)


def _local_width(tubes: list[Tube], size: int, widest: float) -> np.ndarray:
    """Width of the tube at each pixel relative to the widest, (size, size), at least 0.45: thin vessels absorb less."""
    local = np.full((size, size), 0.45, dtype=np.float32)
    for tube in tubes:
        points = np.round(tube.centre * size).astype(np.int32)
        for number in range(0, len(points) - 1, 3):
            value = 0.45 + 0.55 * float(tube.width[number]) / widest
            radius = int(tube.width[number] * size * 0.75) + 2
            cv2.circle(local, tuple(points[number].tolist()), radius, value, -1)
    return local


def _fill(layer: np.ndarray, outline: np.ndarray, side: int) -> None:
    points = np.round((outline * side * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(layer, [points], 1, lineType=cv2.LINE_8, shift=_SHIFT)


def _clouds(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth noise (side, side) float32 of about -1..1 with a scale of side / cells pixels."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)  # interpolated to (side, side)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def _line(points: np.ndarray, width: float, side: int) -> np.ndarray:
    """A line of constant width, (side, side) of 0..1; supersampled, so that it may be thinner than a pixel."""
    large = np.zeros((side * 4, side * 4), dtype=np.float32)
    pixels = np.round(points * side * 4 * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(large, [pixels], False, 1.0, max(1, round(width * side * 4)), cv2.LINE_8, shift=_SHIFT)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)


def _spine(rng: np.random.Generator, side: int) -> np.ndarray:
    """A slightly tilted column of vertebrae with brighter discs."""
    rows, columns = _grid(side)
    middle = rng.uniform(0.25, 0.8) + rng.uniform(-0.2, 0.2) * (rows - 0.5)
    half = rng.uniform(0.07, 0.12)
    column = _rise(half - np.abs(columns - middle), 0.008)
    period = rng.uniform(0.16, 0.22)
    discs = 0.75 + 0.25 * np.tanh(4 * np.sin(2 * np.pi * (rows / period + rng.random())) + 2)
    return np.asarray(rng.uniform(0.12, 0.26) * column * discs, dtype=np.float32)


def _rib(rng: np.random.Generator, side: int) -> np.ndarray:
    """A broad, faint, curved band with denser edges, to which edge filters respond."""
    start = np.array([-0.1, rng.uniform(-0.1, 1.0)])
    end = np.array([1.1, start[1] + rng.uniform(-0.35, 0.35)])
    points = bezier([start, (start + end) / 2 + [0, rng.uniform(-0.3, 0.3)], end])
    width = rng.uniform(0.05, 0.09)
    band = _flat_band(points, width, side)
    core = _flat_band(points, width * 0.78, side)
    return np.asarray(rng.uniform(0.05, 0.12) * (band - 0.55 * core), dtype=np.float32)


def _flat_band(points: np.ndarray, width: float, side: int) -> np.ndarray:
    band = np.zeros((side, side), dtype=np.float32)
    pixels = np.round(points * side * 16).astype(np.int32)
    cv2.polylines(band, [pixels], False, 1.0, max(1, round(width * side)), cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(np.minimum(band, 1), (0, 0), 0.005 * side)


def _diaphragm(rng: np.random.Generator, side: int) -> np.ndarray:
    """The dome below the lung: a dense region with one long, sharp edge."""
    rows, columns = _grid(side)
    centre, half = rng.uniform(0.1, 0.9), rng.uniform(0.5, 0.9)
    dome = rng.uniform(0.62, 0.86) + rng.uniform(0.15, 0.5) * ((columns - centre) / half) ** 2
    return np.asarray(rng.uniform(0.18, 0.4) * _rise(rows - dome, rng.uniform(0.004, 0.012)), dtype=np.float32)


def _loop(rng: np.random.Generator, side: int) -> np.ndarray:
    """A sternal wire: a small metal ring seen at an angle."""
    centre = (rng.uniform(0.1, 0.9, 2) * side).astype(int)
    axes = (int(rng.uniform(0.015, 0.035) * side), int(rng.uniform(0.008, 0.02) * side))
    ring = np.zeros((side, side), dtype=np.float32)
    cv2.ellipse(ring, centre.tolist(), axes, rng.uniform(0, 180), 0, 360, 1.0, max(1, side // 170), cv2.LINE_AA)
    return np.minimum(ring, 1)


def _disc(centre: np.ndarray, radius: float, side: int) -> np.ndarray:
    rows, columns = _grid(side)
    distance = np.hypot(columns - centre[0], rows - centre[1])
    return np.asarray(_rise(radius - distance, 0.003), dtype=np.float32)


def _edge_to_edge(rng: np.random.Generator) -> np.ndarray:
    """A slightly curved line across the image, (120, 2)."""
    start, end = (rng.uniform(0, 1, 2), rng.uniform(0, 1, 2))
    if rng.random() < 0.5:
        start[1], end[1] = -0.05, 1.05
    else:
        start[0], end[0] = -0.05, 1.05
    return bezier(
        [start, start + (end - start) * 0.35 + rng.uniform(-0.2, 0.2, 2), end + rng.uniform(-0.2, 0.2, 2), end]
    )


def _vignette(rng: np.random.Generator, side: int) -> np.ndarray:
    """Brightness (side, side) that falls off with the distance from a point near the centre."""
    rows, columns = _grid(side)
    middle = 0.5 + rng.uniform(-0.1, 0.1, 2)
    distance = np.hypot(rows - middle[0], columns - middle[1])
    return np.asarray(1 - rng.uniform(0.15, 0.5) * np.clip(distance, 0, 1) ** 2, dtype=np.float32)


def _normalise(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Automatic brightness and contrast of the scanner."""
    low, high = np.percentile(light, (0.5, 99.5))
    scaled = np.clip((light - low) / max(high - low, 1e-6), -0.05, 1.05)
    floor = rng.uniform(0.08, 0.2)
    return np.asarray(floor + (rng.uniform(0.7, 0.9) - floor) * scaled, dtype=np.float32)


def _grain(rng: np.random.Generator, noise: np.random.Generator, side: int) -> np.ndarray:
    """Quantum noise (side, side), partly correlated between neighbouring pixels."""
    hard = noise.standard_normal((side, side), dtype=np.float32)
    soft = cv2.GaussianBlur(hard, (0, 0), 0.7)
    return np.asarray(rng.uniform(0.015, 0.045) * (0.5 * hard + 1.2 * soft), dtype=np.float32)


def _collimate(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Collimator blades: dark borders on some sides of some images."""
    if rng.random() < 0.6:
        return light
    side = light.shape[0]
    rows, columns = _grid(side)
    opening = np.ones_like(light)
    for distance in (rows, 1 - rows, columns, 1 - columns):
        if rng.random() < 0.5:
            opening *= _rise(distance - rng.uniform(0.01, 0.05), 0.003)
    return np.asarray(0.04 + (light - 0.04) * opening, dtype=np.float32)


def _rise(distance: np.ndarray, softness: float) -> np.ndarray:
    """A sigmoid from 0 at negative to 1 at positive distances."""
    return 0.5 * (1 + np.tanh(distance / (2 * softness)))


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixel centres, 0..1: rows (side, 1) and columns (1, side)."""
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    return place[:, None], place[None, :]
