"""Post-processing, mirrored copies, and what each switch is measured to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.drawn_data import Drawn
from vesselseg.dataset.manifest import read_manifest
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.evaluator import evaluate, predict_cases
from vesselseg.evaluation.metrics import METRICS
from vesselseg.evaluation.options import EvaluationOptions
from vesselseg.evaluation.prediction_sources import ModelSource, PredictionSource, open_predictions
from vesselseg.inference.flips import flipped_copies, mean_over_flips
from vesselseg.inference.post_processing import PostProcessing


def test_components_go_before_holes_are_filled() -> None:
    ring = np.pad(np.pad(np.zeros((1, 1), bool), 1, constant_values=True), 2)
    assert not PostProcessing(min_component=9, fill_holes=1).apply(ring).any()
    assert PostProcessing(min_component=8, fill_holes=1).apply(ring).sum() == 9
    assert PostProcessing().enabled_steps() == {}


class _Slanted:
    """A model that sees brightness, plus what depends on the place: more to the right, less below."""

    threshold = 0.5

    def predict(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[object]:
        answers = []
        for image, listed in zip(images, phrases):
            grey = np.asarray(image.convert("L"), dtype=np.float32) / 512 + 0.25
            slant = np.linspace(-0.2, 0.2, image.width)[None] - np.linspace(-0.05, 0.05, image.height)[:, None]
            values = np.stack([grey + slant.astype(np.float32)] * len(listed))
            answers.append(type("Answer", (), {"probabilities": values}))
        return answers


def _slanted(drawn: Drawn) -> PredictionSource:
    return ModelSource(Path("model"), _Slanted(), read_manifest(drawn.folder))  # type: ignore[arg-type]


def test_flips_undo_what_depends_on_the_place(drawn: Drawn) -> None:
    source, record = _slanted(drawn), drawn.records("test")[0]
    with Image.open(drawn.folder / "images" / record.image) as image:
        plain = source.probabilities([record], [image])
        averaged = mean_over_flips(
            plain, (source.probabilities([record], copies) for copies in flipped_copies([image]))
        )
    grey = drawn.image(record).astype(np.float32) / 512 + 0.25
    assert averaged[0].shape == (1, 72, 96)
    assert averaged[0].dtype == np.float32
    assert np.abs(plain[0][0] - grey).max() > 0.2
    np.testing.assert_allclose(averaged[0][0], grey, atol=1e-6)


def test_flips_are_searched_reported_and_measured(drawn: Drawn) -> None:
    source = _slanted(drawn)
    plain = evaluate(drawn.folder, "test", source, "auto")
    flips = evaluate(drawn.folder, "test", source, "auto", options=EvaluationOptions(tta="flips"))
    assert flips.test_time == "flips"
    assert flips.baseline_threshold == plain.threshold.value != flips.threshold.value
    effect = next(one for one in flips.ablations if one.metric == "mcc")
    assert (effect.option, effect.items) == ("flips", 5)
    assert effect.means == pytest.approx((plain.summary["mcc"].mean, flips.summary["mcc"].mean))
    assert effect.difference == pytest.approx(effect.means[1] - effect.means[0])
    assert effect.wins + effect.ties + effect.losses == 5
    for case in predict_cases(flips, source, flips.items[:1]):
        assert case.prediction.sum() == case.scored.predicted_pixels


def test_flips_need_a_model(drawn: Drawn, probability_folder: Path) -> None:
    source = open_predictions(probability_folder, read_manifest(drawn.folder))
    with pytest.raises(EvaluationError, match="--tta"):
        evaluate(drawn.folder, "test", source, 0.3, options=EvaluationOptions(tta="flips"))


@pytest.fixture
def spotted(drawn: Drawn, mask_folder: Path) -> Path:
    """The mask folder with a false spot of 4 pixels and a hole of one in every mask."""
    for record in drawn.records("test"):
        mask = np.array(Image.open(mask_folder / record.image))
        mask[:2, :2] = 255
        row, column = np.argwhere(_inside(mask > 0))[0]
        mask[row, column] = 0
        Image.fromarray(mask).save(mask_folder / record.image)
    return mask_folder


def _inside(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def test_each_step_alone_and_all_together(drawn: Drawn, spotted: Path) -> None:
    source = open_predictions(spotted, read_manifest(drawn.folder))
    without = evaluate(drawn.folder, "test", source)
    steps = {"min_component": 5, "fill_holes": 1}
    both = evaluate(drawn.folder, "test", source, options=EvaluationOptions(post_processing=PostProcessing(**steps)))
    assert both.post_processing == steps
    assert not without.ablations
    effects = {(one.option, one.metric): one for one in both.ablations}
    together = "min_component + fill_holes"
    assert {switch for switch, _ in effects} == {*steps, together}
    for name, size in steps.items():
        alone = evaluate(
            drawn.folder, "test", source, options=EvaluationOptions(post_processing=PostProcessing(**{name: size}))
        )
        for metric in ("dice", "precision", "recall", "betti_0_error"):
            means = without.summary[metric].mean, alone.summary[metric].mean
            assert effects[name, metric].means == pytest.approx(means)
        assert [one.option for one in alone.ablations] == [name] * len(alone.ablations)
    assert effects["min_component", "precision"].wins == 5
    assert effects["min_component", "recall"].ties == 5
    assert effects["min_component", "betti_0_error"].difference == -1
    assert effects["min_component", "betti_0_error"].wins == 5
    assert effects["fill_holes", "betti_1_error"].difference == -1
    assert effects[together, "dice"].means[1] == pytest.approx(both.summary["dice"].mean)
    assert ("fill_holes", "roc_auc") not in effects
    for case in predict_cases(both, source, both.items):
        assert case.prediction.sum() == case.scored.predicted_pixels


def test_what_is_measured_covers_every_metric(drawn: Drawn, probability_folder: Path) -> None:
    source = open_predictions(probability_folder, read_manifest(drawn.folder))
    found = evaluate(drawn.folder, "test", source, 0.5, options=EvaluationOptions(post_processing=PostProcessing(3)))
    defined = {name for name in METRICS if found.summary[name].items}
    assert {one.metric for one in found.ablations} == defined
    ranking = next(one for one in found.ablations if one.metric == "roc_auc")
    assert (ranking.difference, ranking.p) == (0, None)  # post-processing leaves probabilities as they are
