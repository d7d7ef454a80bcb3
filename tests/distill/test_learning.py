"""What stands in for the language model: what it learns from, how, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distill.conftest import FEATURE_BYTES, PHRASE
from tests.evaluation.drawn_data import Drawn
from vesselseg.distill import learning, teaching
from vesselseg.distill.learning import Teaching, candidates, mean_head
from vesselseg.distill.measuring import Figures, compared, objections, scatter, winner
from vesselseg.distill.teaching import Lesson, collect, lesson_records
from vesselseg.inference.predictor import Predictor

BATCHES_AND_SEEDS = [(2, 0), (3, 0), (2, 1), (2, 2), (2, 3)]


def lesson(seed: int, images: int = 60) -> Lesson:
    """Vectors that follow one channel of the features."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(images, 256, 2, 2, generator=generator)
    prompts = torch.full((images, 256), 0.5) + 3 * cells[:, :16].mean(dim=(1, 2, 3))[:, None]
    none = torch.zeros(0, dtype=torch.int64)
    return Lesson(cells, prompts, torch.arange(images), torch.zeros(images, dtype=torch.int64), none, [], [])


def test_the_head_learns_vectors_that_depend_on_the_image(teacher: Predictor) -> None:
    train, choosing = lesson(0, 400), lesson(1)
    found = candidates(Teaching(train, choosing, teacher.grounding, phrases=1, minutes=60))  # patience ends it
    mean, head = next(found), next(found)
    torch.testing.assert_close(mean.head.base, train.prompts.mean(dim=0, keepdim=True))
    with torch.no_grad():
        distances = [
            float((one.head(choosing.cells)[:, 0] - choosing.prompts).square().sum(1).mean()) for one in (mean, head)
        ]
    assert distances[1] < 0.5 * distances[0], distances
    assert head.course and scatter(train) > 0.5


def test_vectors_without_scatter_leave_the_mean(teacher: Predictor) -> None:
    same = replace(lesson(0), prompts=torch.full((60, 256), 0.5))
    found = candidates(Teaching(same, same, teacher.grounding, phrases=1, minutes=60))
    mean, head = next(found), next(found)
    torch.testing.assert_close(head.head(same.cells), mean.head(same.cells), atol=1e-3, rtol=0)
    assert mean.constant and not head.constant
    assert scatter(same) == 0


def test_the_lesson_is_what_the_language_model_says(teacher: Predictor, data: Drawn) -> None:
    records = lesson_records(data.folder, "val", (PHRASE,))
    found = collect(teacher, data.folder, records, (PHRASE,), batch=2)
    for number, record in enumerate(records):
        image = Image.fromarray(data.image(record)).convert("RGB")
        inputs = teacher.build_inputs([image], [["Please segment blood vessel in this image."]])
        with torch.no_grad():
            alone = teacher.prompts(inputs, teacher.encode(inputs))
        torch.testing.assert_close(found.prompts[number], alone[0], atol=1e-4, rtol=1e-4)
    assert found.kept.tolist() == list(range(len(records))) and len(found.features) == len(found.labels) == len(records)
    assert found.labels[0].shape == (1, 32, 32) and 0 < float(found.labels[0].mean()) < 0.5


def test_where_features_do_not_fit_the_seed_draws_the_images(
    teacher: Predictor, data: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are learnt with the features and labels of the drawn images, and of no others."""
    records = lesson_records(data.folder, "train", (PHRASE,))
    whole = collect(teacher, data.folder, records, (PHRASE,), batch=2)
    monkeypatch.setattr(teaching, "FEATURE_BYTES", 2 * FEATURE_BYTES)
    drawn_by = [collect(teacher, data.folder, records, (PHRASE,), batch, seed) for batch, seed in BATCHES_AND_SEEDS]
    for found in drawn_by:
        assert len(found.kept) == len(found.features) == len(found.labels) == 2 < len(records)
        for number, features, labels in zip(found.kept.tolist(), found.features, found.labels):
            torch.testing.assert_close(features.embedding, whole.features[number].embedding, atol=1e-2, rtol=1e-2)
            assert torch.equal(labels, whole.labels[number])
    drawn_images = [found.kept.tolist() for found in drawn_by]
    assert drawn_images[0] == drawn_images[1]  # whatever the batch
    assert len({tuple(images) for images in drawn_images}) > 1, drawn_images
    aim = learning.to_draw_masks(teacher.grounding)
    head = mean_head(whole, 1)
    with torch.no_grad():
        some, same = (float(aim.loss(head, *of)) for of in ((drawn_by[0], torch.arange(2)), (whole, drawn_by[0].kept)))
    assert some == pytest.approx(same, rel=1e-2)


def test_the_minutes_end_a_training_after_the_epoch_in_which_they_are_over(teacher: Predictor) -> None:
    found = candidates(Teaching(lesson(0), lesson(1), teacher.grounding, phrases=1, minutes=1e-9))
    ended = [next(found) for _ in range(2)][1]
    assert ended.ended_by == "minutes" and len(ended.course) == 1


def figures(name: str, dice: list[float], teacher: Figures | None = None) -> Figures:
    found = Figures(name, "", 0.5, np.array(dice))
    return found if teacher is None else compared(found, teacher, [str(number) for number in range(len(dice))])


def test_a_model_that_loses_too_much_is_said_so() -> None:
    big = figures("language model", [0.8, 0.7, 0.9, 0.8] * 10)
    same, worse = figures("head", [0.8, 0.7, 0.9, 0.8] * 10, big), figures("mean", [0.75, 0.65, 0.9, 0.8] * 10, big)
    assert list(objections(same, same, [], 0.0, (200, 40), constant=True)) == []
    assert list(objections(same, same, [], 0.9, (200, 40), constant=True)) == []
    found = " ".join(objections(worse, worse, [], 0.9, (20, 10), constant=True))
    assert "The loss of Dice may be 0.03" in found and "differ from image to image" in found
    assert "learnt from 20 images" in found and "measured on 10 images" in found
    assert "image to image" not in " ".join(objections(worse, worse, [], 0.9, (20, 10), constant=False))
    assert "In 8 bits the loss of Dice may be" in " ".join(objections(same, worse, [], 0.0, (200, 40), constant=True))


def test_the_simplest_of_equals_is_taken() -> None:
    good = figures("a", [0.8, 0.8])
    assert winner([good, figures("b", [0.801, 0.801])]) == 0
    assert winner([good, figures("b", [0.85, 0.85])]) == 1


def test_the_mean_is_of_each_phrase() -> None:
    one = lesson(0, 4)
    phrases = torch.tensor([0, 0, 1, 1])
    head = mean_head(replace(one, phrase_of_item=phrases), 2)
    torch.testing.assert_close(head.base.data[1], one.prompts[2:].mean(dim=0))
