"""Prompt heads in place of the language model: targets, training, scores."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distill.conftest import FEATURE_BYTES, PHRASE
from tests.evaluation.drawn_data import Drawn
from vesselseg.distill import targets, train_heads
from vesselseg.distill.targets import DistillationTargets, compute_targets, select_records
from vesselseg.distill.train_heads import HeadTraining, mean_head, train_candidates
from vesselseg.distill.validation import (
    ModelScore,
    prompt_scatter,
    rejection_reasons,
    select_candidate,
    with_difference,
)
from vesselseg.inference.predictor import Predictor
from vesselseg.models.vessel_head import VesselHead
from vesselseg.models.vessel_head_options import VesselHeadOptions

BATCHES_AND_SEEDS = [(2, 0), (3, 0), (2, 1), (2, 2), (2, 3)]


def make_targets(seed: int, images: int = 60) -> DistillationTargets:
    """Targets whose prompts depend on some channels of the features."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(images, 256, 2, 2, generator=generator)
    prompts = torch.full((images, 256), 0.5) + 3 * cells[:, :16].mean(dim=(1, 2, 3))[:, None]
    none = torch.zeros(0, dtype=torch.int64)
    return DistillationTargets(
        cells, prompts, torch.arange(images), torch.zeros(images, dtype=torch.int64), none, [], []
    )


@pytest.mark.slow
def test_the_head_learns_vectors_that_depend_on_the_image(teacher: Predictor) -> None:
    train, validation = make_targets(0, 400), make_targets(1)
    found = train_candidates(
        HeadTraining(train, validation, teacher.grounding, phrases=1, minutes=60)
    )  # patience ends it
    mean, head = next(found), next(found)
    torch.testing.assert_close(mean.head.base, train.prompts.mean(dim=0, keepdim=True))
    with torch.no_grad():
        distances = [
            float((one.head(validation.cells)[:, 0] - validation.prompts).square().sum(1).mean())
            for one in (mean, head)
        ]
    assert distances[1] < 0.5 * distances[0], distances
    assert head.losses and prompt_scatter(train) > 0.5


def test_vectors_without_scatter_leave_the_mean(teacher: Predictor) -> None:
    same = replace(make_targets(0), prompts=torch.full((60, 256), 0.5))
    found = train_candidates(HeadTraining(same, same, teacher.grounding, phrases=1, minutes=60))
    mean, head = next(found), next(found)
    torch.testing.assert_close(head.head(same.cells), mean.head(same.cells), atol=1e-3, rtol=0)
    assert mean.is_constant and not head.is_constant
    assert prompt_scatter(same) == 0


def test_targets_are_the_prompts_of_the_language_model(teacher: Predictor, data: Drawn) -> None:
    records = select_records(data.folder, "val", (PHRASE,))
    found = compute_targets(teacher, data.folder, records, (PHRASE,), batch=2)
    for number, record in enumerate(records):
        image = Image.fromarray(data.image(record)).convert("RGB")
        inputs = teacher.build_inputs([image], [["Please segment blood vessel in this image."]])
        with torch.no_grad():
            alone = teacher.prompts(inputs, teacher.encode(inputs))
        torch.testing.assert_close(found.prompts[number], alone[0], atol=1e-4, rtol=1e-4)
    assert found.kept.tolist() == list(range(len(records))) and len(found.features) == len(found.labels) == len(records)
    assert found.labels[0].shape == (1, 32, 32) and 0 < float(found.labels[0].mean()) < 0.5


def test_masks_of_a_vessel_head_are_matched_at_its_own_side(teacher: Predictor, data: Drawn) -> None:
    seeing = copy.copy(teacher)
    seeing.grounding = copy.deepcopy(teacher.grounding)
    seeing.grounding.vessel_head = VesselHead(VesselHeadOptions(channels=(8, 8), object_channels=(4,), side=64), 128)
    seeing.grounding.eval()
    records = select_records(data.folder, "val", (PHRASE,))[:2]
    found = compute_targets(seeing, data.folder, records, (PHRASE,), batch=2)
    assert found.labels[0].shape == (1, 64, 64) and found.features[0].view is not None
    objective, head = train_heads.match_masks(seeing.grounding), mean_head(found, phrases=1)
    objective.loss(head, found, torch.arange(2)).backward()
    assert head.base.grad.any()


def test_the_seed_draws_the_images_whose_features_fit(
    teacher: Predictor, data: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training on masks uses the features and labels of the drawn images only."""
    records = select_records(data.folder, "train", (PHRASE,))
    whole = compute_targets(teacher, data.folder, records, (PHRASE,), batch=2)
    monkeypatch.setattr(targets, "MAX_FEATURE_BYTES", 2 * FEATURE_BYTES)
    drawn_by = [
        compute_targets(teacher, data.folder, records, (PHRASE,), batch, seed) for batch, seed in BATCHES_AND_SEEDS
    ]
    for found in drawn_by:
        assert len(found.kept) == len(found.features) == len(found.labels) == 2 < len(records)
        for number, features, labels in zip(found.kept.tolist(), found.features, found.labels):
            torch.testing.assert_close(features.embedding, whole.features[number].embedding, atol=1e-2, rtol=1e-2)
            assert torch.equal(labels, whole.labels[number])
    drawn_images = [found.kept.tolist() for found in drawn_by]
    assert drawn_images[0] == drawn_images[1]  # independent of the batch size
    assert len({tuple(images) for images in drawn_images}) > 1, drawn_images
    objective = train_heads.match_masks(teacher.grounding)
    head = mean_head(whole, 1)
    with torch.no_grad():
        some, same = (
            float(objective.loss(head, *of)) for of in ((drawn_by[0], torch.arange(2)), (whole, drawn_by[0].kept))
        )
    assert some == pytest.approx(same, rel=1e-2)


def test_the_time_limit_ends_training_after_the_current_epoch(teacher: Predictor) -> None:
    found = train_candidates(HeadTraining(make_targets(0), make_targets(1), teacher.grounding, phrases=1, minutes=1e-9))
    ended = [next(found) for _ in range(2)][1]
    assert ended.ended_by == "minutes" and len(ended.losses) == 1


def make_score(name: str, dice: list[float], teacher: ModelScore | None = None) -> ModelScore:
    found = ModelScore(name, "", 0.5, np.array(dice))
    return found if teacher is None else with_difference(found, teacher, [str(number) for number in range(len(dice))])


def test_reasons_to_reject_a_student() -> None:
    teacher = make_score("language model", [0.8, 0.7, 0.9, 0.8] * 10)
    same, worse = (
        make_score("head", [0.8, 0.7, 0.9, 0.8] * 10, teacher),
        make_score("mean", [0.75, 0.65, 0.9, 0.8] * 10, teacher),
    )
    assert list(rejection_reasons(same, same, [], 0.0, (200, 40), is_constant=True)) == []
    assert list(rejection_reasons(same, same, [], 0.9, (200, 40), is_constant=True)) == []
    found = " ".join(rejection_reasons(worse, worse, [], 0.9, (20, 10), is_constant=True))
    assert "The loss of Dice may be 0.03" in found and "differ from image to image" in found
    assert "trained on 20 images" in found and "measured on 10 images" in found
    assert "image to image" not in " ".join(rejection_reasons(worse, worse, [], 0.9, (20, 10), is_constant=False))
    assert "In 8 bits the loss of Dice may be" in " ".join(
        rejection_reasons(same, worse, [], 0.0, (200, 40), is_constant=True)
    )


def test_the_simplest_of_equal_candidates_is_selected() -> None:
    good = make_score("a", [0.8, 0.8])
    assert select_candidate([good, make_score("b", [0.801, 0.801])]) == 0
    assert select_candidate([good, make_score("b", [0.85, 0.85])]) == 1


def test_the_mean_is_of_each_phrase() -> None:
    one = make_targets(0, 4)
    phrases = torch.tensor([0, 0, 1, 1])
    head = mean_head(replace(one, phrase_of_item=phrases), 2)
    torch.testing.assert_close(head.base.data[1], one.prompts[2:].mean(dim=0))
