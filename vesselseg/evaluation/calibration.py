"""Calibration of probabilities: reliability diagram, ECE, Brier score, NLL, and temperature scaling.

Everything is computed from one histogram of logits per split, so memory does not depend on the number of pixels. Pixels
of all items are pooled: a large image weighs more than a small one. Sources: ECE: Naeini et al., AAAI 2015; reliability
diagram and temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Brier score: Brier,
Monthly Weather Review 1950.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.result_types import Reliability

BINS = 15
"""Bins of the reliability diagram and of the ECE, of equal width over 0..1, as in Guo et al."""
VISIBLE = 0.01
"""Pixels below this probability are undisputed background, excluded from the second set of measures."""
TEMPERATURES = (0.05, 20.0)
"""Range of the search."""
_FLOOR = 1e-6  # 16-bit files store smaller probabilities as 0, whose NLL would be infinite for a vessel pixel
_STEP = 0.005  # width of a bin of logits
_FIRST = logit(VISIBLE) - _STEP * np.ceil((logit(VISIBLE) - logit(_FLOOR)) / _STEP)  # makes VISIBLE the edge of a bin
_LOGITS = int(np.ceil((logit(1 - _FLOOR) - _FIRST) / _STEP))
_VISIBLE_FROM = round((logit(VISIBLE) - _FIRST) / _STEP)


class LogitHistogram:
    """Pixel counts by logit, (2, bins): background and vessel; and the sum of the logits in each bin, (bins,)."""

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
        """Add the pixels of another histogram."""
        self.counts += other.counts
        self.sums += other.sums

    def reliability(self, temperature: float = 1.0, visible: bool = False) -> Reliability:
        """Reliability of the probabilities sigmoid(logit / temperature).

        ECE = sum over bins of (pixels in the bin / pixels) * |mean probability - frequency of vessel|.
        Brier = mean of (probability - truth)^2. visible: only pixels with a probability of VISIBLE or more before the
        temperature, so that the set of pixels does not depend on it. The prediction alone selects them: a selection by
        the truth would bias the frequencies.
        """
        start = _VISIBLE_FROM if visible else 0
        logits, counts = self._logits()[start:] / temperature, self.counts[:, start:]
        probabilities, pixels = expit(logits), counts.sum(axis=0)
        bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        # All pixels of a narrow bin of logits share its mean logit, so weighted counts replace single pixels.
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
        """The temperature in TEMPERATURES with the lowest mean NLL over all pixels; above 1 it moves them towards 0.5.

        Raises EvaluationError where vessel or background is missing: the NLL then has no minimum.
        """
        if not self.counts.sum(axis=1).all():
            lacking = "background" if self.counts[1].any() else "vessel"
            raise EvaluationError(
                f"--calibrate: the validation split has no {lacking} pixel, so no temperature can be fitted"
            )
        logits = self._logits()
        # The search is over log T: T and 1 / T are equally strong changes.
        low, high = np.log(TEMPERATURES)
        found = minimize_scalar(
            lambda value: _nll(logits / np.exp(value), self.counts),
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-5},
        )
        return float(np.exp(found.x))

    def _logits(self) -> NDArray[np.float64]:
        """Mean logit of the pixels in each bin, the centre of an empty one: (bins,)."""
        pixels = self.counts.sum(axis=0)
        centre = _FIRST + _STEP * (np.arange(_LOGITS) + 0.5)
        return np.where(pixels > 0, self.sums / np.maximum(pixels, 1), centre)


def calibrated(probability: float, temperature: float) -> float:
    """sigmoid(logit(probability) / temperature); probability: between 0 and 1, both excluded."""
    return float(expit(logit(probability) / temperature))


def _nll(logits: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats; logits: (bins,), counts: (2, bins) background and vessel."""
    total = counts.sum()
    if not total:
        return float("nan")
    return float((counts[0] * np.logaddexp(0, logits) + counts[1] * np.logaddexp(0, -logits)).sum() / total)
