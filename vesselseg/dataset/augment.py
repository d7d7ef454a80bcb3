"""Random augmentation of an image together with its masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vesselseg.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Ranges of random changes, each drawn uniformly; 0 or False disables a change.

    Raises UserError for values out of range.
    """

    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    quarter_turns: bool = False  # rotate by a random multiple of 90 degrees
    rotation: float = 10.0  # degrees, from [-rotation, rotation]
    scale: float = 0.1  # factor, from [1 - scale, 1 + scale]
    translation: float = 0.05  # fraction of width and height, from [-translation, translation]
    brightness: float = 0.1  # added fraction of the full range, from [-brightness, brightness]
    contrast: float = 0.2  # factor around the mean, from [1 - contrast, 1 + contrast]
    gamma: float = 0.0  # exponent, log-uniform from [1 / (1 + gamma), 1 + gamma]
    noise: float = 0.0  # largest standard deviation of Gaussian noise, fraction of the full range

    def __post_init__(self) -> None:
        problems = [f"{name} is {value}, expected 0 or more" for name, value in vars(self).items() if value < 0]
        problems += [
            f"{name} is {getattr(self, name)}, expected at most 1"
            for name in ("horizontal_flip", "vertical_flip", "contrast")
            if getattr(self, name) > 1
        ]
        if self.scale >= 1:
            problems.append(f"scale is {self.scale}, expected less than 1: the image would vanish")
        if problems:
            raise UserError("augment: " + "; ".join(problems))

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply the same geometric changes to image and masks, and intensity changes to the image.

        image: (height, width, 3) uint8. masks: (objects, height, width) uint8, 0 or 1. Returns both with the same
        dtypes; odd numbers of quarter turns swap height and width.
        """
        image, masks = self._flip(image, masks, generator)
        if self.rotation or self.scale or self.translation:
            image, masks = self._warp(image, masks, generator)
        return self._intensity(image, generator), masks

    def _flip(self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator) -> tuple:
        if generator.random() < self.horizontal_flip:
            image, masks = image[:, ::-1], masks[:, :, ::-1]  # (height, width, 3), (objects, height, width)
        if generator.random() < self.vertical_flip:
            image, masks = image[::-1], masks[:, ::-1]
        if self.quarter_turns:
            turns = int(generator.integers(4))
            image, masks = np.rot90(image, turns, (0, 1)), np.rot90(masks, turns, (1, 2))
        return np.ascontiguousarray(image), np.ascontiguousarray(masks)

    def _warp(self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator) -> tuple:
        height, width = image.shape[:2]
        angle = generator.uniform(-self.rotation, self.rotation)
        factor = generator.uniform(1 - self.scale, 1 + self.scale)
        matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), angle, factor)
        shift = generator.uniform(-self.translation, self.translation, 2) * np.array([width, height])
        matrix = np.hstack([matrix[:, :2], matrix[:, 2:] + shift[:, None]])  # (2, 3) affine
        size = (width, height)
        # Reflection instead of black borders, from which the model could learn where an image ends.
        image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        warped = [
            cv2.warpAffine(m, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101) for m in masks
        ]
        return image, np.stack(warped) if warped else masks  # (objects, height, width)

    def _intensity(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Contrast, brightness and gamma as one lookup table, then noise. image: (height, width, 3) uint8.

        All channels get the same changes, so that grey angiograms stay grey.
        """
        contrast = generator.uniform(1 - self.contrast, 1 + self.contrast)
        brightness = generator.uniform(-self.brightness, self.brightness) * 255
        exponent = (1 + self.gamma) ** generator.uniform(-1, 1)
        sigma = generator.uniform(0, self.noise) * 255
        mean = image.mean()
        levels = np.clip((np.arange(256) - mean) * contrast + mean + brightness, 0, 255)
        table = (255 * (levels / 255) ** exponent).round().astype(np.uint8)  # (256,)
        changed = cv2.LUT(image, table)
        if sigma:
            noise = generator.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(sigma)
            changed = cv2.add(changed, cv2.merge([noise.round()] * 3), dtype=cv2.CV_8U)
        return changed
