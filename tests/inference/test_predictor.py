from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.samples import SPECIMENS, batch_of, processor_of
from tests.tiny import picture, shaken_model
from vesselseg.dataset.image_views import logits_to_image
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor

IMAGES = [picture(number, width, height) for number, (width, height, _) in enumerate(SPECIMENS)]
PHRASES = [list(phrases) for _, _, phrases in SPECIMENS]


@pytest.fixture(scope="module")
def predictor(tiny_base: Path) -> Sa2VAPredictor:
    model = shaken_model(tiny_base)
    return Sa2VAPredictor(model, processor_of(model, tiny_base), threshold=0.4)


@pytest.fixture
def encoder_batches(predictor: Sa2VAPredictor) -> Iterator[list[int]]:
    """Number of square views that SAM2's image encoder received, per call."""
    seen: list[int] = []
    encoder: nn.Module = predictor.model.grounding.sam2.image_encoder
    handle = encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


def test_many_images_and_phrases_as_one_by_one(predictor: Sa2VAPredictor) -> None:
    together = predictor.predict(IMAGES, PHRASES)
    assert len(together) == len(IMAGES)
    for image, phrases, prediction in zip(IMAGES, PHRASES, together):
        assert prediction.phrases == tuple(phrases)
        assert prediction.probabilities.shape == (len(phrases), image.height, image.width)
        for number, phrase in enumerate(phrases):
            alone = predictor.predict([image], [[phrase]])[0]
            np.testing.assert_allclose(prediction.probabilities[number], alone.probabilities[0], atol=1e-4)
        assert prediction.probabilities.std() > 1e-3


def test_a_temperature_divides_the_logits(predictor: Sa2VAPredictor) -> None:
    plain = predictor.predict([IMAGES[0]], [["blood vessel"]])[0]
    cooled = Sa2VAPredictor(predictor.model, predictor.processor, 0.4, temperature=2.0).predict(
        [IMAGES[0]], [["blood vessel"]]
    )[0]
    logits = np.log(plain.probabilities / (1 - plain.probabilities))
    np.testing.assert_allclose(cooled.probabilities, 1 / (1 + np.exp(-logits / 2)), atol=1e-5)
    assert (cooled.masks == (cooled.probabilities > 0.4)).all()
    with pytest.raises(ValueError, match="temperature"):
        Sa2VAPredictor(predictor.model, predictor.processor, 0.4, temperature=0.0)


def test_the_phrase_matters(predictor: Sa2VAPredictor) -> None:
    found = predictor.predict([IMAGES[0]], [["blood vessel", "catheter"]])[0].probabilities
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_training_and_prediction_see_the_same_logits(predictor: Sa2VAPredictor, tiny_base: Path) -> None:
    """The same question and answer, through the batch that training reads."""
    with torch.no_grad():
        logits = predictor.model(batch_of(predictor.processor, 0)).mask_logits
    image = IMAGES[0]
    expected = logits_to_image(logits, predictor.processor.views.sam_size, image.height, image.width).sigmoid()
    found = predictor.predict([image], [PHRASES[0]])[0].probabilities
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_each_image_is_encoded_once(predictor: Sa2VAPredictor, encoder_batches: list[int]) -> None:
    predictor.predict(IMAGES, PHRASES)
    assert encoder_batches == [len(IMAGES)]


def test_types_and_range(predictor: Sa2VAPredictor) -> None:
    prediction = predictor.predict([IMAGES[0]], [["vessel"]])[0]
    assert prediction.probabilities.dtype == np.float32
    assert prediction.masks.dtype == np.bool_
    assert prediction.probabilities.min() >= 0 and prediction.probabilities.max() <= 1


def test_a_mask_holds_the_pixels_above_the_threshold(predictor: Sa2VAPredictor) -> None:
    stored = predictor.predict([IMAGES[0]], [["vessel"]])[0]
    assert stored.threshold == predictor.threshold == 0.4
    np.testing.assert_array_equal(stored.masks, stored.probabilities > 0.4)
    middle = float(
        np.sort(stored.probabilities.ravel())[9000]
    )  # a value that occurs: the mask holds pixels above it, not at it
    custom = predictor.predict([IMAGES[0]], [["vessel"]], threshold=middle)[0]
    assert custom.threshold == middle
    np.testing.assert_array_equal(custom.masks, stored.probabilities > middle)
    np.testing.assert_array_equal(custom.probabilities, stored.probabilities)
    assert 0.3 < custom.masks.mean() < 0.7
    again = stored.with_threshold(middle)
    np.testing.assert_array_equal(again.masks, custom.masks)
    assert again.threshold == middle


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 35, float("nan")])
def test_a_threshold_is_a_probability(predictor: Sa2VAPredictor, threshold: float) -> None:
    for call in (
        lambda: predictor.predict([IMAGES[0]], [["vessel"]], threshold=threshold),
        lambda: Sa2VAPredictor(predictor.model, predictor.processor, threshold),
        lambda: predictor.predict([IMAGES[0]], [["vessel"]])[0].with_threshold(threshold),
    ):
        with pytest.raises(ValueError, match=r"the threshold is .*expected a probability between 0 and 1"):
            call()


@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("", "the phrase is empty"),
        (" \n", "the phrase is empty"),
        ("x" * 10_000, "10000 characters; at most 500"),
        ("a [SEG] b", r"'\[SEG\]', a control token of the model"),
        ("<img>", "'<img>', a control token of the model"),
        ("<IMG_CONTEXT>", "a control token of the model"),
        ("<|im_end|>", "a control token of the model"),
    ],
)
def test_phrases_that_are_refused(predictor: Sa2VAPredictor, phrase: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        predictor.predict([IMAGES[0]], [["vessel", phrase]])


def test_whole_questions_are_checked_too(predictor: Sa2VAPredictor) -> None:
    with pytest.raises(ValueError, match="a control token of the model"):
        predictor.probabilities([IMAGES[0]], [["Where is it? [SEG]"]])


def test_lists_that_do_not_pair_up(predictor: Sa2VAPredictor) -> None:
    with pytest.raises(ValueError, match="1 images for 2 lists of phrases"):
        predictor.predict([IMAGES[0]], [["vessel"], ["vessel"]])
    with pytest.raises(ValueError, match=r"phrases holds the text 'vessel'; expected a list per image"):
        predictor.predict([IMAGES[0]], ["vessel"])
    with pytest.raises(ValueError, match="2 images for 1 lists of questions"):
        predictor.probabilities(IMAGES[:2], [["Where is the vessel?"]])
    with pytest.raises(ValueError, match=r"questions holds the text 'Where\?'; expected a list per image"):
        next(predictor.stream([([IMAGES[0]], ["Where?"])]))


def test_no_images(predictor: Sa2VAPredictor, encoder_batches: list[int]) -> None:
    assert predictor.predict([], []) == []
    assert encoder_batches == []


def test_an_image_without_phrases_costs_nothing(predictor: Sa2VAPredictor, encoder_batches: list[int]) -> None:
    found = predictor.predict(IMAGES, [[], ["vessel"], []])
    assert encoder_batches == [1]
    assert [prediction.probabilities.shape[0] for prediction in found] == [0, 1, 0]
    assert found[0].masks.shape == (0, IMAGES[0].height, IMAGES[0].width)
    alone = predictor.predict([IMAGES[1]], [["vessel"]])[0]
    np.testing.assert_allclose(found[1].probabilities, alone.probabilities, atol=1e-5)
    assert [len(prediction.phrases) for prediction in predictor.predict(IMAGES[:2], [[], []])] == [0, 0]


@pytest.mark.parametrize("training", [False, True])
def test_the_models_mode_is_restored(predictor: Sa2VAPredictor, training: bool) -> None:
    predictor.model.train(training)
    try:
        predictor.predict([IMAGES[0]], [["vessel"]])
        assert predictor.model.training == training
        with pytest.raises(ValueError):
            predictor.probabilities([IMAGES[0]], [["<img>"]])
        assert predictor.model.training == training
        assert predictor.model.language_model.training == training
    finally:
        predictor.model.eval()


def test_dropout_is_off_while_predicting(tiny_base: Path) -> None:
    model = shaken_model(tiny_base, lora={"r": 4, "alpha": 8, "dropout": 0.5}).train()
    predictor = Sa2VAPredictor(model, processor_of(model, tiny_base))
    first, second = (predictor.predict([IMAGES[0]], [["vessel"]])[0].probabilities for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "CMYK", "P", "I;16"])
def test_any_image_mode(predictor: Sa2VAPredictor, mode: str) -> None:
    grey = IMAGES[0].convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200) if mode == "I;16" else grey.convert(mode)
    found = predictor.predict([image], [["vessel"]])[0]
    assert found.masks.shape == (1, grey.height, grey.width)
    assert np.isfinite(found.probabilities).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 3)])
def test_any_image_size(predictor: Sa2VAPredictor, size: tuple[int, int]) -> None:
    found = predictor.predict([Image.new("RGB", size)], [["vessel"]])[0]
    assert found.masks.shape == (1, size[1], size[0])
    assert np.isfinite(found.probabilities).all()


def test_an_orientation_tag_changes_nothing(predictor: Sa2VAPredictor, tmp_path: Path) -> None:
    """A mask matches the pixels that were passed in, as numpy sees them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    IMAGES[0].save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        found = predictor.predict([opened], [["vessel"]])[0].probabilities
    np.testing.assert_array_equal(found, predictor.predict([IMAGES[0]], [["vessel"]])[0].probabilities)


def test_bf16_gives_nearly_the_same(predictor: Sa2VAPredictor, tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    half = Sa2VAPredictor(model.bfloat16(), predictor.processor)
    found = half.predict([IMAGES[0]], [["vessel"]])[0].probabilities
    assert found.dtype == np.float32
    expected = predictor.predict([IMAGES[0]], [["vessel"]])[0].probabilities
    assert np.abs(found - expected).mean() < 0.03
