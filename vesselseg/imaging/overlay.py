"""Draw masks over an image."""

from __future__ import annotations

import cv2
import numpy as np

_COLOURS = ((235, 64, 52), (52, 152, 235), (46, 184, 92), (240, 180, 30), (170, 90, 220), (20, 190, 190))


def draw_overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image with tinted and outlined objects, (height, width, 3) uint8.

    image: (height, width, 3) uint8. masks: (objects, height, width) uint8, 0 or 1.
    """
    drawn = image.astype(np.float32)  # (height, width, 3)
    for number, mask in enumerate(masks):
        colour = np.array(_COLOURS[number % len(_COLOURS)], dtype=np.float32)
        drawn[mask > 0] = 0.65 * drawn[mask > 0] + 0.35 * colour
    drawn = drawn.astype(np.uint8)
    for number, mask in enumerate(masks):
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, _COLOURS[number % len(_COLOURS)], 1, cv2.LINE_AA)
    return drawn
