"""Whether probabilities are frequencies: reliability, ECE, Brier, and one temperature that brings them closer.

All of it comes from one histogram of logits per split, so memory does not depend on the number of pixels. Pixels of all
items are pooled: a large image weighs more than a small one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.scores import Reliability

BINS = 15
"""Bins of the reliability diagram and of the ECE, of equal width over 0..1, as Guo et al. have them."""
VISIBLE = 0.01
"""Pixels of less than this probability are background that no one doubts: left out of the second set of figures."""
TEMPERATURES = (0.05, 20.0)
_FLOOR = 1e-6  # a 16-bit file holds 0 below it; without a floor one such pixel of vessel would cost infinitely much
_STEP = 0.005  # width of a bin of logits
_FIRST = logit(VISIBLE) - _STEP * np.ceil((logit(VISIBLE) - logit(_FLOOR)) / _STEP)  # so that VISIBLE is an edge
_LOGITS = int(np.ceil((logit(1 - _FLOOR) - _FIRST) / _STEP))
_VISIBLE_FROM = round((logit(VISIBLE) - _FIRST) / _STEP)


class LogitHistogram:
    """Pixels per logit, background and vessel apart: (2, bins) counts and the sum of the logits in each bin."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, _LOGITS), np.int64)
        self.sums = np.zeros(_LOGITS)

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count one item; probabilities: (height, width) float32 in 0..1, truth: (height, width) bool."""
        values = logit(np.clip(probabilities.ravel().astype(np.float64), _FLOOR, 1 - _FLOOR))
        bins = np.clip(((values - _FIRST) / _STEP).astype(np.int64), 0, _LOGITS - 1)
        vessel = np.bincount(bins[truth.ravel()], minlength=_LOGITS)
        everything = np.bincount(bins, minlength=_LOGITS)
        self.counts += np.stack([everything - vessel, vessel])
        self.sums += np.bincount(bins, weights=values, minlength=_LOGITS)

    def merge(self, other: LogitHistogram) -> None:
        """Take in another one's pixels."""
        self.counts += other.counts
        self.sums += other.sums

    def reliability(self, temperature: float = 1.0, visible: bool = False) -> Reliability:
        """Figures of the probabilities sigmoid(logit / temperature).

        visible: only pixels whose probability before the temperature is VISIBLE or more, so that the pixels stay the
        same ones. They are chosen by the prediction alone: choosing by the truth would bend the frequencies.
        """
        start = _VISIBLE_FROM if visible else 0
        logits, counts = self._logits()[start:] / temperature, self.counts[:, start:]
        probabilities, pixels = expit(logits), counts.sum(axis=0)
        bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        per_bin = np.bincount(bins, weights=pixels, minlength=BINS)
        total = int(pixels.sum())
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(bins, weights=pixels * probabilities, minlength=BINS) / per_bin
            frequency = np.bincount(bins, weights=counts[1], minlength=BINS) / per_bin
        gaps = np.nansum(np.abs(confidence - frequency) * per_bin)
        squares = (counts[0] * probabilities**2 + counts[1] * (1 - probabilities) ** 2).sum()
        return Reliability(
            pixels=total,
            edges=np.linspace(0, 1, BINS + 1),
            counts=per_bin.astype(np.int64),
            confidence=confidence,
            frequency=frequency,
            ece=float(gaps / total) if total else float("nan"),
            brier=float(squares / total) if total else float("nan"),
            nll=_nll(logits, counts),
        )

    def fit_temperature(self) -> float:
        """The temperature in TEMPERATURES with the lowest mean negative log-likelihood over all pixels.

        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Above 1 probabilities move towards 0.5.
        Raises EvaluationError where vessel or background is missing: the likelihood then has no lowest point.
        """
        if not self.counts.sum(axis=1).all():
            lacking = "background" if self.counts[1].any() else "vessel"
            raise EvaluationError(
                f"--calibrate: the validation split holds no pixel of {lacking}, so no temperature fits"
            )
        logits = self._logits()
        low, high = np.log(TEMPERATURES)
        found = minimize_scalar(
            lambda value: _nll(logits / np.exp(value), self.counts),
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-5},
        )
        return float(np.exp(found.x))

    def _logits(self) -> NDArray[np.float64]:
        """Mean logit of the pixels in each bin, its middle where there is none: (bins,)."""
        pixels = self.counts.sum(axis=0)
        middle = _FIRST + _STEP * (np.arange(_LOGITS) + 0.5)
        return np.where(pixels > 0, self.sums / np.maximum(pixels, 1), middle)


def calibrated(probability: float, temperature: float) -> float:
    """What a probability between 0 and 1, both excluded, becomes under a temperature."""
    return float(expit(logit(probability) / temperature))


def _nll(logits: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats; logits: (bins,), counts: (2, bins) background and vessel."""
    total = counts.sum()
    if not total:
        return float("nan")
    return float((counts[0] * np.logaddexp(0, logits) + counts[1] * np.logaddexp(0, -logits)).sum() / total)
