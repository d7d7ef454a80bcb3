"""Coordinate search of the Frangi baseline's parameters by mean Dice over labelled images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.baselines.frangi import FrangiParams, combine_scales, drop_small, preprocess, scale_response
from vesselseg.evaluation.threshold import best_threshold, threshold_counts

Result = tuple[float, FrangiParams]  # mean Dice on the tuning images, and its parameters

_log = logging.getLogger(__name__)

_SIGMAS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_GRID: dict[str, tuple[Any, ...]] = {
    "background": (0.0, 0.02, 0.04, 0.08),
    "clahe": (False, True),
    "gamma": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "beta": (0.25, 0.5, 1.0, 2.0),
    "border": (0.0, 0.02, 0.04, 0.08, 0.12),
    "relative": (False, True),
}
_SMALLEST = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03)  # as fractions of the image
_NEAR = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)  # factors of the best level: dropping small components allows a lower one
_DECADES = 4.0  # levels from 0.0001 to 1 of the largest vesselness
_ROUNDS = 2


def tune_frangi(images: Sequence[NDArray[np.uint8]], truths: Sequence[NDArray[np.bool_]]) -> FrangiParams:
    """The parameters with the highest mean Dice found on images (height, width[, 3]) uint8 with truths, bool.

    Scales are added one by one while Dice increases, and the other parameters are searched one by one, twice; then
    level and smallest together. Deterministic. Raises ValueError without images.
    """
    if not images or len(images) != len(truths):
        raise ValueError(f"expected at least one image and a truth for each, found {len(images)} and {len(truths)}")
    search = _Search(images, truths)
    best = search.score(FrangiParams())
    for _ in range(_ROUNDS):
        before = best
        best = search.best_sigmas(best)
        for name, values in _GRID.items():
            best = search.climb(best, name, values)
        if best[1] == before[1]:
            break
    return search.with_level_and_smallest(best[1])


class _Search:
    """Scores parameters on the tuning images; caches the responses of the last preprocessing, beta and gamma."""

    def __init__(self, images: Sequence[NDArray[np.uint8]], truths: Sequence[NDArray[np.bool_]]) -> None:
        self._images = images
        self._truths = truths
        self._responses: dict[tuple[Any, ...], list[NDArray[np.float32]]] = {}

    def score(self, params: FrangiParams) -> Result:
        """Best mean Dice over all levels, and params with that level; smallest is ignored."""
        strengths = self._strengths(params)
        # Levels are compared on a log scale, as the 99 thresholds of a mapped probability.
        top = max(max(float(strength.max()) for strength in strengths), 1e-6)
        counts = [threshold_counts(_log_scale(s, top), truth) for s, truth in zip(strengths, self._truths)]
        position, dice = best_threshold(np.stack(counts))
        _log.debug("Dice %.4f with %s", dice, params)
        return dice, replace(params, level=top * 10 ** (_DECADES * (position - 1)))

    def climb(self, best: Result, name: str, values: Sequence[Any]) -> Result:
        """Hill climbing over a parameter's ordered values, up and down from the present one."""
        start = values.index(getattr(best[1], name))
        for way in (values[start + 1 :], values[:start][::-1]):
            for value in way:
                found = self.score(replace(best[1], **{name: value}))
                if found[0] <= best[0]:
                    break
                best = found
        return best

    def best_sigmas(self, start: Result) -> Result:
        """Greedy forward selection of scales."""
        best = max((self.score(replace(start[1], sigmas=(sigma,))) for sigma in _SIGMAS), key=lambda pair: pair[0])
        while len(best[1].sigmas) < len(_SIGMAS):
            wider = [
                self.score(replace(best[1], sigmas=tuple(sorted((*best[1].sigmas, sigma)))))
                for sigma in _SIGMAS
                if sigma not in best[1].sigmas
            ]
            found = max(wider, key=lambda pair: pair[0])
            if found[0] <= best[0]:
                break
            best = found
        return max(start, best, key=lambda pair: pair[0])

    def with_level_and_smallest(self, params: FrangiParams) -> FrangiParams:
        """Joint grid search of level, near the one found, and smallest."""
        strengths = self._strengths(params)
        pixels = float(np.mean([truth.size for truth in self._truths]))
        candidates = [
            replace(params, level=params.level * factor, smallest=round(part * pixels))
            for factor in _NEAR
            for part in _SMALLEST
        ]
        scores = [self._mean_dice(strengths, candidate) for candidate in candidates]
        best = int(np.argmax(scores))
        _log.info("tuned on %d images: Dice %.4f with %s", len(self._images), scores[best], candidates[best])
        return candidates[best]

    def _mean_dice(self, strengths: Sequence[NDArray[np.float32]], params: FrangiParams) -> float:
        values = []
        for strength, truth in zip(strengths, self._truths):
            mask = drop_small(strength > params.level, params.smallest)
            total = int(mask.sum()) + int(truth.sum())
            values.append(2 * int((mask & truth).sum()) / total if total else 1.0)
        return float(np.mean(values))

    def _strengths(self, params: FrangiParams) -> list[NDArray[np.float32]]:
        setting = (params.background, params.clahe, params.beta, params.gamma)
        missing = [sigma for sigma in params.sigmas if (setting, sigma) not in self._responses]
        # Filtering dominates the search: only scales of a new setting are computed.
        if missing:
            self._responses = {key: kept for key, kept in self._responses.items() if key[0] == setting}
            preprocessed = [preprocess(image, params) for image in self._images]
            for sigma in missing:
                self._responses[setting, sigma] = [scale_response(grey, sigma, params) for grey in preprocessed]
        per_scale = [self._responses[setting, sigma] for sigma in params.sigmas]
        return [combine_scales(responses, params) for responses in zip(*per_scale)]


def _log_scale(strength: NDArray[np.float32], top: float) -> NDArray[np.float32]:
    """Vesselness mapped to 0..1, logarithmic over _DECADES decades below top: thresholds become log-spaced levels."""
    floor = 10.0**-_DECADES
    return np.clip(1 + np.log10(np.maximum(strength / top, floor)) / _DECADES, 0, 1).astype(np.float32)
