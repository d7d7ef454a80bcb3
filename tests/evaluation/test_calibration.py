"""Calibration figures against torchmetrics, scikit-learn and a fit on the raw pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import binary_calibration_error

from vesselseg.evaluation.calibration import LogitHistogram, calibrated
from vesselseg.evaluation.errors import EvaluationError


def _pixels(seed: int, sharpness: float = 1.0, shape: tuple[int, int] = (120, 150)) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are ``sharpness`` times those that the truth is drawn from."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-2.5, 2.5, shape)
    truth = generator.random(shape) < expit(logits)
    return expit(sharpness * logits).astype(np.float32), truth


def _counted(*pixels: tuple[np.ndarray, np.ndarray]) -> LogitHistogram:
    histogram = LogitHistogram()
    for probabilities, truth in pixels:
        histogram.add(probabilities, truth)
    return histogram


def _ece(probabilities: np.ndarray, truth: np.ndarray) -> float:
    found = binary_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(truth.astype(int)), n_bins=15)
    return float(found)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_figures_equal_those_of_other_libraries(sharpness: float) -> None:
    first, second = _pixels(1, sharpness), _pixels(2, sharpness, (64, 40))
    found = _counted(first, second).reliability()
    probabilities, truth = (np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(first, second))
    assert found.pixels == truth.size == found.counts.sum()
    assert found.ece == pytest.approx(_ece(probabilities, truth), abs=1e-3)
    assert found.brier == pytest.approx(np.mean((probabilities - truth) ** 2), abs=5e-6)
    assert found.nll == pytest.approx(
        log_loss(truth, np.clip(probabilities, 1e-6, 1 - 1e-6).astype(np.float64)), abs=1e-5
    )


def test_bins_of_the_diagram_by_hand() -> None:
    probabilities = np.array([[0.02, 0.05, 0.5, 0.5, 0.5, 0.99]], np.float32)
    truth = np.array([[False, False, True, True, False, True]])
    found = _counted((probabilities, truth)).reliability()
    assert found.edges[1] == pytest.approx(1 / 15)
    assert found.counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1]
    assert found.confidence[[0, 7, 14]] == pytest.approx([0.035, 0.5, 0.99])
    assert found.frequency[[0, 7, 14]] == pytest.approx([0, 2 / 3, 1])
    assert np.isnan(found.confidence[1])
    assert np.isnan(found.frequency[1])
    assert found.ece == pytest.approx((2 * 0.035 + 3 * (2 / 3 - 0.5) + 0.01) / 6)


def test_visible_pixels_are_chosen_before_the_temperature() -> None:
    probabilities, truth = _pixels(3)
    histogram = _counted((probabilities, truth))
    chosen = probabilities >= 0.01
    for temperature in (1.0, 1.7):
        found = histogram.reliability(temperature, visible=True)
        cooled = expit(logit(probabilities[chosen].astype(np.float64)) / temperature).astype(np.float32)
        assert found.pixels == chosen.sum() < truth.size
        assert found.ece == pytest.approx(_ece(cooled, truth[chosen]), abs=1e-3)
        assert found.brier == pytest.approx(np.mean((cooled - truth[chosen]) ** 2), abs=5e-6)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.8])
def test_the_temperature_is_that_of_the_raw_pixels(sharpness: float) -> None:
    probabilities, truth = _pixels(4, sharpness, (300, 300))
    logits = logit(probabilities.astype(np.float64))

    def nll(temperature: float) -> float:
        cooled = logits / temperature
        return float(np.mean(np.logaddexp(0, cooled) - truth * cooled))

    expected = minimize_scalar(nll, bounds=(0.1, 5), method="bounded").x
    histogram = _counted((probabilities, truth))
    found = histogram.fit_temperature()
    assert found == pytest.approx(expected, abs=2e-3)
    assert found == pytest.approx(sharpness, rel=0.03)
    assert histogram.reliability(found).nll == pytest.approx(nll(found), abs=1e-5)
    assert histogram.reliability(found).ece < 0.005


def test_certain_pixels_cost_much_but_not_infinitely_much() -> None:
    probabilities, truth = np.array([[0.0, 1.0, 0.0, 1.0]], np.float32), np.array([[False, True, True, False]])
    found = _counted((probabilities, truth)).reliability()
    assert found.ece == pytest.approx(0.5, abs=1e-5)
    assert found.nll == pytest.approx(-np.log(1e-6) / 2, rel=1e-3)


def test_nothing_visible_is_undefined() -> None:
    found = _counted((np.full((3, 3), 0.001, np.float32), np.eye(3, dtype=bool))).reliability(visible=True)
    assert found.pixels == 0
    assert np.isnan([found.ece, found.brier, found.nll]).all()


def test_a_temperature_needs_both_classes() -> None:
    probabilities = np.full((4, 4), 0.3, np.float32)
    with pytest.raises(EvaluationError, match="has no vessel pixel"):
        _counted((probabilities, np.zeros((4, 4), bool))).fit_temperature()
    with pytest.raises(EvaluationError, match="has no background pixel"):
        _counted((probabilities, np.ones((4, 4), bool))).fit_temperature()


def test_a_threshold_keeps_its_masks_under_a_temperature() -> None:
    probabilities, _ = _pixels(5)
    cooled = expit(logit(probabilities.astype(np.float64)) / 1.7)
    assert ((probabilities > 0.27) == (cooled > calibrated(0.27, 1.7))).mean() > 0.9999


def test_histograms_add_up() -> None:
    together, one, two = _counted(_pixels(6), _pixels(7)), _counted(_pixels(6)), _counted(_pixels(7))
    one.merge(two)
    assert one.reliability().nll == pytest.approx(together.reliability().nll, rel=1e-12)
    assert (one.counts == together.counts).all()
