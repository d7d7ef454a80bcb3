"""Augmentation of image and masks together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from vesselseg.errors import UserError

# The names in `Augment.chances`.
CHANGES = (
    "rotation",
    "scale",
    "aspect",
    "elastic",
    "bias_field",
    "blur",
    "low_resolution",
    "contrast",
    "brightness",
    "gamma",
    "inverted_gamma",
    "noise",
)
_ELASTIC_POINTS, _BIAS_POINTS = 6, 4  # control points per side


@dataclass(frozen=True)
class Augment:
    """Ranges of random changes, each drawn uniformly; 0 or False disables a change.

    Raises UserError for values out of range.
    """

    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    quarter_turns: bool = False  # rotate by a random multiple of 90 degrees
    rotation: float = 10.0  # degrees, from [-rotation, rotation]
    # Factor from [1 - scale, 1 + scale]; with a pair (low, high) log-uniform between both.
    scale: float | tuple[float, float] = 0.1
    translation: float = 0.05  # fraction of width and height, from [-translation, translation]
    brightness: float = 0.1  # added fraction of the full range, from [-brightness, brightness]
    contrast: float = 0.2  # factor around the mean, from [1 - contrast, 1 + contrast]
    gamma: float = 0.0  # exponent, log-uniform from [1 / (1 + gamma), 1 + gamma]
    noise: float = 0.0  # largest standard deviation of Gaussian noise, fraction of the full range
    aspect: float = 0.0  # the width is scaled by exp(-aspect) to exp(aspect), the height by the inverse
    elastic: float = 0.0  # largest standard deviation of a smooth displacement, fraction of width and height
    inverted_gamma: float = 0.0  # as gamma, on the negative
    bias_field: float = 0.0  # largest standard deviation of a smooth field, in standard deviations of the image
    blur: float = 0.0  # largest sigma of a Gaussian filter in pixels; the smallest is half of it
    low_resolution: float = 0.0  # reduce by a factor from [1 - low_resolution, 1] and enlarge again
    # Probability of each change in CHANGES; those without an entry always happen.
    chances: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.scale, list):  # as JSON and config files hold a pair
            object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "chances", dict(self.chances))  # of a config it is mmengine's
        numbers = {name: value for name, value in vars(self).items() if name not in ("scale", "chances")}
        problems = [f"{name} is {value}, expected 0 or more" for name, value in numbers.items() if value < 0]
        problems += [
            f"{name} is {getattr(self, name)}, expected at most 1"
            for name in ("horizontal_flip", "vertical_flip", "contrast")
            if getattr(self, name) > 1
        ]
        problems += _scale_problems(self.scale)
        if self.low_resolution >= 1:
            problems.append(f"low_resolution is {self.low_resolution}, expected less than 1: the image would vanish")
        unknown = sorted(set(self.chances) - set(CHANGES))
        if unknown:
            problems.append(f"chances names {', '.join(unknown)}, expected any of {', '.join(CHANGES)}")
        problems += [f"chances.{name} is {p}, expected 0 to 1" for name, p in self.chances.items() if not 0 <= p <= 1]
        if problems:
            raise UserError("augment: " + "; ".join(problems))

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator, soft: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply the same geometric changes to image and masks, and intensity changes to the image.

        image: (height, width, 3) uint8. masks: (objects, height, width) uint8, 0 or 1, or with `soft` 0 to 255,
        which are interpolated. Returns both with the same dtypes; odd numbers of quarter turns swap height and width.
        """
        image, masks = self._flip(image, masks, generator)
        if self.rotation or self.scale or self.translation or self.aspect or self.elastic:
            image, masks = self._warp(image, masks, generator, cv2.INTER_LINEAR if soft else cv2.INTER_NEAREST)
        return self._intensity(image, generator), masks

    def _draw(self, name: str, generator: np.random.Generator, low: float, high: float, neutral: float = 0.0) -> float:
        """A number from [low, high] with the change's chance, else the neutral one."""
        value = generator.uniform(low, high)
        chance = self.chances.get(name, 1.0)
        return float(value) if chance >= 1 or generator.random() < chance else neutral

    def _flip(self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator) -> tuple:
        if generator.random() < self.horizontal_flip:
            image, masks = image[:, ::-1], masks[:, :, ::-1]  # (height, width, 3), (objects, height, width)
        if generator.random() < self.vertical_flip:
            image, masks = image[::-1], masks[:, ::-1]
        if self.quarter_turns:
            turns = int(generator.integers(4))
            image, masks = np.rot90(image, turns, (0, 1)), np.rot90(masks, turns, (1, 2))
        return np.ascontiguousarray(image), np.ascontiguousarray(masks)

    def _warp(self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator, flags: int) -> tuple:
        """flags: interpolation of the masks."""
        height, width = image.shape[:2]
        matrix = self._matrix(height, width, generator)
        amplitude = self._draw("elastic", generator, 0, self.elastic) if self.elastic else 0.0
        # Reflection instead of black borders, from which the model could learn where an image ends.
        border = cv2.BORDER_REFLECT_101
        if amplitude:
            points = generator.standard_normal((2, _ELASTIC_POINTS, _ELASTIC_POINTS), dtype=np.float32)
            maps = _elastic_maps(matrix, points * np.float32(amplitude), height, width)
            image = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=border)
            warped = [cv2.remap(mask, *maps, flags, borderMode=border) for mask in masks]
        else:
            size = (width, height)
            image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
            warped = [cv2.warpAffine(m, matrix, size, flags=flags, borderMode=border) for m in masks]
        return image, np.stack(warped) if warped else masks  # (objects, height, width)

    def _matrix(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """(2, 3) float64: pixel before -> pixel after."""
        angle = self._draw("rotation", generator, -self.rotation, self.rotation)
        if isinstance(self.scale, tuple):
            factor = math.exp(self._draw("scale", generator, *(math.log(end) for end in self.scale)))
        else:
            factor = self._draw("scale", generator, 1 - self.scale, 1 + self.scale, neutral=1.0)
        matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), angle, factor)
        if self.aspect:
            wider = math.exp(self._draw("aspect", generator, -self.aspect, self.aspect))
            stretch = np.array([wider, 1 / wider])
            middle = np.array([width / 2 - 0.5, height / 2 - 0.5])
            matrix = matrix * stretch[:, None]
            matrix[:, 2] += middle * (1 - stretch)
        shift = generator.uniform(-self.translation, self.translation, 2) * np.array([width, height])
        return np.hstack([matrix[:, :2], matrix[:, 2:] + shift[:, None]])

    def _intensity(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Bias field, blur, low resolution; contrast, brightness and gammas as one lookup table; then noise.

        image: (height, width, 3) uint8. All channels get the same changes, so that grey angiograms stay grey.
        """
        image = self._spatial_intensity(image, generator)
        contrast = self._draw("contrast", generator, 1 - self.contrast, 1 + self.contrast, neutral=1.0)
        brightness = self._draw("brightness", generator, -self.brightness, self.brightness) * 255
        exponent = (1 + self.gamma) ** self._draw("gamma", generator, -1, 1)
        sigma = self._draw("noise", generator, 0, self.noise) * 255
        mean = image.mean()
        levels = np.clip((np.arange(256) - mean) * contrast + mean + brightness, 0, 255)
        if self.inverted_gamma:
            power = (1 + self.inverted_gamma) ** self._draw("inverted_gamma", generator, -1, 1)
            levels = 255 - 255 * ((255 - levels) / 255) ** power
        table = (255 * (levels / 255) ** exponent).round().astype(np.uint8)  # (256,)
        changed = cv2.LUT(image, table)
        if sigma:
            noise = generator.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(sigma)
            changed = cv2.add(changed, cv2.merge([noise.round()] * 3), dtype=cv2.CV_8U)
        return changed

    def _spatial_intensity(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        field_size = self._draw("bias_field", generator, 0, self.bias_field) if self.bias_field else 0.0
        if field_size:
            points = generator.standard_normal((_BIAS_POINTS, _BIAS_POINTS), dtype=np.float32)
            points *= np.float32(field_size * image.std())
            smooth = cv2.resize(points, (width, height), interpolation=cv2.INTER_CUBIC)
            image = cv2.add(image, cv2.merge([smooth] * 3), dtype=cv2.CV_8U)
        sigma = self._draw("blur", generator, self.blur / 2, self.blur) if self.blur else 0.0
        if sigma:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        reduced = 1.0
        if self.low_resolution:
            reduced = self._draw("low_resolution", generator, 1 - self.low_resolution, 1, neutral=1.0)
        if reduced < 1:
            smaller = (max(1, round(width * reduced)), max(1, round(height * reduced)))
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_NEAREST)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        return image


def _scale_problems(scale: float | tuple[float, float]) -> list[str]:
    if not isinstance(scale, tuple):
        problems = [f"scale is {scale}, expected 0 or more"] if scale < 0 else []
        return problems + ([f"scale is {scale}, expected less than 1: the image would vanish"] if scale >= 1 else [])
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        return [f"scale is {scale}, expected a number or a pair of a lowest and a highest factor above 0"]
    return []


def _elastic_maps(matrix: np.ndarray, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel after the change, x and y of the one before: (height, width) float32 each.

    matrix: pixel before -> pixel after. points: (2, n, n) displacements in x and y, fractions of width and height.
    """
    a, b, c, d, e, f = cv2.invertAffineTransform(matrix).astype(np.float32).ravel()
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    dx, dy = (
        cv2.resize(one * np.float32(side), (width, height), interpolation=cv2.INTER_CUBIC)
        for one, side in zip(points, (width, height))
    )
    return dx + (a * x + c) + b * y, dy + (d * x + f) + e * y


NNUNET = Augment(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation=180.0,
    scale=(0.7, 1.4),
    translation=0.0,
    brightness=0.0,
    contrast=0.3,
    gamma=0.5,
    inverted_gamma=0.5,
    noise=0.05,
    blur=1.0,
    low_resolution=0.5,
    chances={
        "rotation": 0.2,
        "scale": 0.2,
        "noise": 0.1,
        "blur": 0.2,
        "contrast": 0.3,
        "low_resolution": 0.25,
        "inverted_gamma": 0.1,
        "gamma": 0.3,
    },
)
"""nnU-Net's list for 2D images: every view of a vessel is as likely as its mirror image and any rotation of it.

Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 4. Its two changes of contrast, one of which clips,
are one here; noise is a fraction of the full range.
"""

ORIENTED = Augment(
    horizontal_flip=0.0,
    rotation=25.0,
    scale=(0.7, 1.4),
    translation=0.08,
    aspect=0.1,
    elastic=0.025,
    brightness=0.1,
    contrast=0.3,
    gamma=0.5,
    inverted_gamma=0.5,
    noise=0.05,
    bias_field=0.5,
    blur=1.0,
    low_resolution=0.5,
    chances={
        "rotation": 0.9,
        "scale": 0.9,
        "elastic": 0.3,
        "bias_field": 0.3,
        "noise": 0.15,
        "blur": 0.3,
        "brightness": 0.4,
        "contrast": 0.4,
        "low_resolution": 0.35,
        "inverted_gamma": 0.15,
        "gamma": 0.45,
    },
)
"""For images whose orientation carries information, such as angiograms: no mirror image, at most 25 degrees.

Which vessels of an angiogram are labelled depends on the view; a mirrored or turned copy would teach the wrong ones.
"""

PRESETS = {"nnunet": NNUNET, "oriented": ORIENTED}
