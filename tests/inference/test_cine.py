from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cines import cine_frames, shake_memory
from tests.samples import processor_of
from tests.tiny import SAM2, picture, shaken_model
from vesselseg.errors import UserError
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.predictor import ModelInputs, Prediction
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.prompted_sam2 import PromptedSAM2Config, build_prompted
from vesselseg.models.sam2_grounding import ImageFeatures

PHRASES = ("blood vessel", "catheter")


@pytest.fixture(scope="module")
def predictor(tiny_base: Path) -> Sa2VAPredictor:
    model = shaken_model(tiny_base)
    shake_memory(model.grounding)
    return Sa2VAPredictor(model, processor_of(model, tiny_base), threshold=0.4)


@pytest.fixture
def images_read(predictor: Sa2VAPredictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images that the language model read, per call."""
    seen: list[int] = []
    exact = predictor.prompts

    def counted(inputs: ModelInputs, features: ImageFeatures) -> torch.Tensor:
        seen.append(len(inputs.objects))
        return exact(inputs, features)

    monkeypatch.setattr(predictor, "prompts", counted)
    return seen


def assert_same(first: Sequence[Prediction], second: Sequence[Prediction]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
        assert (one.phrases, one.threshold) == (other.phrases, other.threshold)


def test_frames_are_segmented_as_separate_images(predictor: Sa2VAPredictor) -> None:
    frames = [*cine_frames(4), picture(3, 90, 70)]  # sizes may differ here
    found = list(segment_cine(predictor, frames, PHRASES, batch=2))
    assert_same(found, predictor.predict(frames, [list(PHRASES)] * 5))
    assert found[4].probabilities.shape == (2, 70, 90)
    assert found[0].probabilities.dtype == np.float32 and found[0].masks.dtype == bool


def test_keyframes_everywhere_give_what_frames_give(predictor: Sa2VAPredictor) -> None:
    frames = cine_frames(5)
    assert_same(
        list(segment_cine(predictor, frames, PHRASES, "memory", keyframes=1)),
        list(segment_cine(predictor, frames, PHRASES, "frames")),
    )


@pytest.mark.parametrize(("keyframes", "expected"), [(3, [1, 1, 1]), ([5], [1, 1]), ([0, 1, 2], [3]), ((), [1])])
def test_only_keyframes_are_read_by_the_language_model(
    keyframes: Any, expected: list[int], predictor: Sa2VAPredictor, images_read: list[int]
) -> None:
    assert len(list(segment_cine(predictor, cine_frames(8), PHRASES, "memory", keyframes, batch=3))) == 8
    assert images_read == expected


def test_every_frame_is_encoded_once_however_many_phrases(predictor: Sa2VAPredictor) -> None:
    seen: list[int] = []
    encoder = predictor.grounding.sam2.image_encoder
    handle = encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    list(segment_cine(predictor, cine_frames(6), PHRASES, "memory", 2, batch=3))
    handle.remove()
    assert seen == [3, 3]


@pytest.mark.slow
def test_other_frames_come_from_memory(predictor: Sa2VAPredictor) -> None:
    frames = cine_frames(6)
    own = list(segment_cine(predictor, frames, PHRASES))
    carried = list(segment_cine(predictor, frames, PHRASES, "memory", [0, 4]))
    same = [np.allclose(one.probabilities, two.probabilities, atol=1e-4) for one, two in zip(own, carried)]
    assert same == [True, False, False, False, True, False]


@pytest.mark.slow
def test_the_batch_changes_nothing(predictor: Sa2VAPredictor) -> None:
    frames = cine_frames(7)
    whole = list(segment_cine(predictor, frames, PHRASES, "memory", 3, batch=7))
    for batch in (1, 2, 4):
        assert_same(list(segment_cine(predictor, frames, PHRASES, "memory", 3, batch=batch)), whole)


def test_a_cine_run_is_the_beginning_of_a_longer_one(predictor: Sa2VAPredictor) -> None:
    frames = cine_frames(9)
    longer = list(segment_cine(predictor, frames, PHRASES, "memory", 4))
    assert_same(list(segment_cine(predictor, frames[:5], PHRASES, "memory", 4)), longer[:5])


@pytest.mark.parametrize("mode", ["frames", "memory"])
def test_one_frame(mode: str, predictor: Sa2VAPredictor) -> None:
    frames = cine_frames(1)
    assert_same(list(segment_cine(predictor, frames, PHRASES, mode)), predictor.predict(frames, [list(PHRASES)]))


class RecordedFrames:
    """Frames that record which of them were read."""

    def __init__(self, frames: list[Image.Image]) -> None:
        self.frames, self.seen = frames, list[int]()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> Image.Image:
        self.seen.append(number)
        return self.frames[number]


@pytest.mark.parametrize("mode", ["frames", "memory"])
def test_frames_are_read_one_batch_ahead_and_once(mode: str, predictor: Sa2VAPredictor) -> None:
    frames: Any = RecordedFrames(cine_frames(10))
    predictions: Iterator[Prediction] = segment_cine(predictor, frames, PHRASES, mode, batch=3)
    assert frames.seen == []
    next(predictions)
    for _ in range(6000):  # a thread reads the second batch although no further prediction is requested
        if len(frames.seen) == 6:
            break
        time.sleep(0.01)
    assert frames.seen == list(range(6))
    assert len(list(predictions)) == 9
    assert frames.seen == list(range(10))


def test_threshold_and_temperature(predictor: Sa2VAPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = cine_frames(3)
    plain = list(segment_cine(predictor, frames, PHRASES, "memory"))
    assert {found.threshold for found in plain} == {0.4}
    monkeypatch.setattr(predictor, "temperature", 2.0)
    for one, other in zip(plain, segment_cine(predictor, frames, PHRASES, "memory", threshold=0.7)):
        logits = [np.log(p.astype(np.float64) / (1 - p)) for p in (one.probabilities, other.probabilities)]
        np.testing.assert_allclose(logits[1], logits[0] / 2, atol=1e-3)
        assert other.threshold == 0.7 and (other.masks == (other.probabilities > 0.7)).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": "video"}, "the mode is 'video'; expected frames or memory"),
        ({"phrases": []}, "expected a list of at least one phrase"),
        ({"phrases": "blood vessel"}, "expected a list of at least one phrase"),
        ({"frames": []}, "the cine run has no frames"),
        ({"batch": 0}, "the batch is 0 frames"),
        ({"keyframes": 0}, "keyframes is 0; expected an interval of 1 frame or more"),
        ({"keyframes": [0, 12, -1]}, "keyframes 12, -1: the cine run has frames 0 to 3"),
    ],
)
def test_arguments_that_cannot_be_used(changes: dict[str, Any], expected: str, predictor: Sa2VAPredictor) -> None:
    arguments = {"frames": cine_frames(4), "phrases": PHRASES, "mode": "memory", **changes}
    with pytest.raises(UserError, match=expected):
        segment_cine(predictor, **arguments)


def test_all_problems_are_reported_at_once(predictor: Sa2VAPredictor) -> None:
    with pytest.raises(UserError) as caught:
        segment_cine(predictor, cine_frames(2), [], "memory", [9], batch=-1)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("mode", ["frames", "memory"])
def test_a_phrase_that_is_refused(mode: str, predictor: Sa2VAPredictor) -> None:
    with pytest.raises(ValueError, match="SEG"):
        list(segment_cine(predictor, cine_frames(2), ["vessel [SEG]"], mode))


def test_memory_refuses_frames_of_another_size(predictor: Sa2VAPredictor) -> None:
    frames = [*cine_frames(5), picture(3, 90, 70)]
    predictions = segment_cine(predictor, frames, PHRASES, "memory", batch=2)
    for _ in range(4):
        next(predictions)
    with pytest.raises(UserError, match="frame 5 has 90 x 70 pixels, frame 0 has 150 x 120"):
        next(predictions)


def test_a_memory_that_was_never_trained_is_refused(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    fresh = Sa2VAPredictor(model, processor_of(model, tiny_base))
    with pytest.raises(UserError, match="memory of this model's SAM2 was never trained"):
        segment_cine(fresh, cine_frames(2), PHRASES, "memory")
    assert len(list(segment_cine(fresh, cine_frames(2), PHRASES))) == 2


def test_a_distilled_model_has_frames_and_no_memory() -> None:
    config = PromptedSAM2Config(phrases=list(PHRASES), grounding_config=SAM2)
    distilled = PromptedPredictor(build_prompted(config).eval())
    frames = cine_frames(3)
    assert_same(list(segment_cine(distilled, frames, PHRASES)), distilled.predict(frames, [list(PHRASES)] * 3))
    with pytest.raises(UserError, match="no memory; use mode 'frames'"):
        segment_cine(distilled, frames, PHRASES, "memory")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool, tiny_base: Path) -> None:
    model = shaken_model(tiny_base).train(training)
    shake_memory(model.grounding)
    predictor = Sa2VAPredictor(model, processor_of(model, tiny_base))
    frames = cine_frames(3)
    first, second = (list(segment_cine(predictor, frames, PHRASES, "memory")) for _ in range(2))
    assert_same(first, second)  # no dropout
    assert model.training == model.grounding.training == training
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    # What SAM2 caches between calls can still be used in training.
    attention = model.grounding.sam2.memory_attention.requires_grad_(True)
    tokens = torch.randn(64, 1, 256)
    output = attention(curr=tokens, curr_pos=tokens, memory=torch.randn(64, 1, 64), memory_pos=torch.zeros(64, 1, 64))
    output.sum().backward()
    assert attention.layers[0].linear1.weight.grad is not None
