"""Pairs of small masks: random, drawn, empty, full, of one pixel, at the border."""

from __future__ import annotations

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def random_pairs(count: int, seed: int = 7) -> list[Pair]:
    """Noise of every density, 0 and 1 among them, in sizes from 1 x 1."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        shape = tuple(generator.integers(1, 24, size=2))
        density = generator.choice([0.0, 0.02, 0.3, 0.9, 1.0], size=2)
        pairs.append((generator.random(shape) < density[0], generator.random(shape) < density[1]))
    return pairs


def drawn_pairs(count: int, seed: int = 11) -> list[Pair]:
    """Vessels of 1 to 12 pixels as truth, some leaving the image; shifted, with gaps and islands as prediction."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        canvas = np.zeros((48, 64), np.uint8)
        for _ in range(generator.integers(1, 4)):
            points = generator.integers((-4, -4), (68, 52), size=(4, 2)).astype(np.int32)
            cv2.polylines(canvas, [points], False, 1, int(generator.integers(1, 13)))
        truth = canvas.astype(bool)
        prediction = np.roll(truth, generator.integers(-2, 3, size=2), axis=(0, 1))
        prediction[:, 20 : 20 + generator.integers(0, 6)] = False
        prediction[4:7, 50:55] |= generator.random() < 0.5
        pairs.append((prediction, truth))
    return pairs


def special_pairs() -> list[Pair]:
    """Every pair of: empty, full, one pixel inside, one in a corner, the border's ring, a line along an edge."""
    empty = np.zeros((9, 12), bool)
    pixel, corner, ring, edge = (empty.copy() for _ in range(4))
    pixel[4, 5] = corner[0, 0] = True
    ring[[0, -1]] = ring[:, [0, -1]] = edge[:, -1] = True
    kinds = [empty, ~empty, pixel, corner, ring, edge]
    return [(prediction, truth) for prediction in kinds for truth in kinds]


def all_pairs(random: int = 60, drawn: int = 25) -> list[Pair]:
    return [*special_pairs(), *random_pairs(random), *drawn_pairs(drawn)]


def both_hold_something(pairs: list[Pair]) -> list[Pair]:
    return [(prediction, truth) for prediction, truth in pairs if prediction.any() and truth.any()]
