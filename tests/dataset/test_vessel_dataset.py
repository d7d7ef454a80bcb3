from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.tiny import SAM2
from vesselseg.dataset.augment import Augment
from vesselseg.dataset.batch import IGNORE_LABEL, EncodedViews, Example
from vesselseg.dataset.collate import collate
from vesselseg.dataset.feature_store import FeatureStore
from vesselseg.dataset.manifest import Record, write_manifest
from vesselseg.dataset.prompts import QUESTIONS
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import ManifestError
from vesselseg.inference.processor import Processor, processor_for
from vesselseg.models.checkpoints.base_folder import read_base_folder

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
BAR = [40.0, 5.0, 60.0, 5.0, 60.0, 8.0, 40.0, 8.0]
RECORDS = [
    Record("one.png", ((SQUARE,),), ("blood vessel",)),
    Record("several.png", ((SQUARE,), (BAR,), (SQUARE, BAR)), ("blood vessel", "catheter", "all of it")),
    Record("negative.png", ((),), ("catheter",)),
    Record("nothing.png", (), ()),
    Record("grey.png", ((BAR,),), ("blood vessel",)),
    Record("deep.png", ((BAR,),), ("blood vessel",)),
    Record("clip/long.png", ((SQUARE,),), ("blood vessel",)),
]
WIDTH, HEIGHT = 80, 50


def save_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for record in RECORDS:
        path = folder / "images" / record.image
        path.parent.mkdir(parents=True, exist_ok=True)
        width = 400 if "long" in record.image else WIDTH
        values = generator.integers(0, 255, (HEIGHT, width), dtype=np.uint8)
        if "grey" in record.image:
            Image.fromarray(values).save(path)
        elif "deep" in record.image:
            Image.fromarray(values.astype(np.uint16) * 37 + 900).save(path)
        else:
            Image.fromarray(np.stack([values, values // 2, values // 3], -1)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_images(tmp_path)
    write_dataset(tmp_path, RECORDS)
    return tmp_path


def write_dataset(folder: Path, records: list[Record]) -> None:
    write_manifest(folder, records)
    splits = {"train": [record.image for record in records], "val": [], "test": []}
    (folder / "splits.json").write_text(json.dumps(splits))


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> Processor:
    base = read_base_folder(tiny_base)
    base.config.grounding_config = {**base.config.grounding_config, **SAM2}
    return processor_for(base.config, base.tokenizer)


def dataset(folder: Path, processor: Processor, **changes: Any) -> VesselDataset:
    settings = {"views": processor.views, "tokens": processor.tokens, "tokens_per_tile": processor.tokens_per_tile}
    return VesselDataset(folder, "train", **{**settings, **changes})


def same(first: Example, second: Example) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Example)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def segs(example: Example, processor: Processor) -> int:
    return int((example.input_ids == processor.tokenizer.convert_tokens_to_ids("[SEG]")).sum())


def test_a_sample_depends_on_seed_epoch_and_index_only(folder: Path, processor: Processor) -> None:
    augmented = dataset(folder, processor, augment=Augment(noise=0.05), seed=3)
    again = dataset(folder, processor, augment={"noise": 0.05}, seed=3)
    assert again[(5, 1)].input_ids is not None  # another item first: samples do not depend on earlier ones
    for index in (0, 1):
        assert same(augmented[(2, index)], again[(2, index)])
    assert not same(augmented[(2, 1)], augmented[(3, 1)])
    assert not same(augmented[(2, 1)], dataset(folder, processor, augment=Augment(noise=0.05), seed=4)[(2, 1)])
    assert same(augmented[1], augmented[(0, 1)])
    assert same(augmented[-1], augmented[len(RECORDS) - 1])


def test_coverage_labels_are_parts_of_pixels(folder: Path, processor: Processor) -> None:
    half = [40.0, 5.0, 60.0, 5.0, 60.0, 5.5, 40.0, 5.5]
    write_dataset(folder, [Record("grey.png", ((half,),), ("blood vessel",), fill="coverage"), *RECORDS[:1]])
    plain = dataset(folder, processor, augment=None)
    masks = plain[0].masks
    assert masks.dtype == torch.float16 and masks.max() == torch.tensor(128 / 255).half()
    assert masks.float().sum().item() == pytest.approx(20 * 128 / 255, rel=1e-3)
    assert plain[1].masks.dtype == torch.uint8
    turned = dataset(folder, processor, augment=Augment(rotation=20.0))
    found = torch.stack([turned[epoch, 0].masks[0] for epoch in range(5)]).float()
    assert len(found.unique()) > 20 and found.max() <= 1  # interpolated
    batch = collate([plain[0], plain[1]])
    assert [mask.dtype for mask in batch.masks] == [torch.float16, torch.uint8]
    hard = replace(plain.records[0], fill="labelme")
    names = [plain.view_name(0, 0)]
    plain.records[0] = hard
    assert plain.view_name(0, 0) not in names  # stored features of another fill are others


def test_questions_vary_over_epochs_unless_disabled(folder: Path, processor: Processor) -> None:
    varied = dataset(folder, processor)
    assert len({tuple(varied[(epoch, 0)].input_ids.tolist()) for epoch in range(40)}) == len(QUESTIONS)
    fixed = dataset(folder, processor, vary_questions=False)
    assert len({tuple(fixed[(epoch, 1)].input_ids.tolist()) for epoch in range(5)}) == 1
    assert fixed[1].phrases == RECORDS[1].phrases


def test_variants_repeat_images_but_not_questions(folder: Path, processor: Processor) -> None:
    samples = dataset(folder, processor, augment=Augment(), variants=2)
    first, second, third = (samples[(epoch, 0)] for epoch in range(3))
    assert torch.equal(first.sam_image, third.sam_image) and torch.equal(first.masks, third.masks)
    assert not torch.equal(first.sam_image, second.sam_image)
    questions = {tuple(samples[(epoch, 0)].input_ids.tolist()) for epoch in range(0, 40, 2)}
    assert len(questions) == len(QUESTIONS)
    free = dataset(folder, processor, augment=Augment())
    assert torch.equal(free[(1, 0)].sam_image, second.sam_image)  # the first views are those of the first epochs
    assert not torch.equal(free[(2, 0)].sam_image, first.sam_image)


def test_the_name_of_a_view_depends_on_its_content(folder: Path, processor: Processor) -> None:
    augmented, plain = dataset(folder, processor, augment=Augment()), dataset(folder, processor)
    names = {augmented.view_name(index, number) for index in range(3) for number in range(2)}
    names |= {plain.view_name(index, 0) for index in range(3)}
    assert len(names) == 9
    assert plain.view_name(0, 0) == plain.view_name(0, 1)  # without augmentation all views are equal
    before = [plain.view_name(index, 0) for index in range(3)]
    save_as = Image.open(folder / "images" / "one.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    save_as.save(folder / "images" / "one.png")
    after = [plain.view_name(index, 0) for index in range(3)]
    assert after[0] != before[0] and after[1:] == before[1:]
    write_dataset(folder, [RECORDS[0], Record("several.png", ((BAR,),), ("catheter",)), RECORDS[2]])
    assert dataset(folder, processor).view_name(1, 0) != after[1]
    (folder / "images" / "one.png").unlink()
    with pytest.raises(ManifestError, match=r"one\.png: cannot be read as an image"):
        plain.view_name(0, 0)


def test_a_stored_view_replaces_the_image(folder: Path, processor: Processor, tmp_path: Path) -> None:
    samples = dataset(folder, processor, augment=Augment(), variants=2)
    computed = [samples[(epoch, 1)] for epoch in range(3)]
    store = FeatureStore(tmp_path / "features", {})
    store.create()
    names, encoded = {}, []
    for number in range(2):
        view = samples.view(1, number)
        levels = [torch.full((1, 2, 2, 2), float(number + level)) for level in range(3)]
        encoded.append(EncodedViews(view.tiles.mean((1, 2, 3)).view(-1, 1, 1), *levels))
        names[1, number] = samples.view_name(1, number)
        store.write(names[1, number], encoded[number], view.masks, "several.png")
    samples.use_features(store, names)
    for epoch in range(3):
        found = samples[(epoch, 1)]
        assert found.tiles.numel() == found.sam_image.numel() == 0
        assert all(
            torch.equal(value, getattr(found.encoded, name)) for name, value in encoded[epoch % 2].tensors().items()
        )
        assert torch.equal(found.masks, computed[epoch].masks)
        assert torch.equal(found.input_ids, computed[epoch].input_ids) and found.phrases == computed[epoch].phrases
        assert found.tile_count == computed[epoch].tile_count


class Examples(Dataset):
    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


@pytest.mark.parametrize("stored", [False, True])
def test_a_loading_process_returns_the_same_batch(folder: Path, processor: Processor, stored: bool) -> None:
    samples = dataset(folder, processor)
    examples = [samples[index] for index in (0, 1, 6)]
    if stored:
        for number, example in enumerate(examples):
            levels = (torch.randn(1, 4, side, side).bfloat16() for side in (2, 4, 8))
            example.encoded = EncodedViews(torch.randn(number + 1, 4, 16).bfloat16(), *levels)
            example.tiles = example.sam_image = torch.empty(0)
    expected = collate(examples)
    assert expected.tiles_per_image == ((1, 2, 3) if stored else tuple(len(one.tiles) for one in examples))
    (found,) = DataLoader(Examples(examples), batch_size=3, num_workers=1, collate_fn=collate)
    assert torch.equal(found.tiles, expected.tiles) and torch.equal(found.sam_images, expected.sam_images)
    assert found.tiles_per_image == expected.tiles_per_image
    assert (found.encoded is None) == (not stored)
    if stored:
        assert found.encoded.patches.shape == (6, 4, 16) and found.encoded.stride_4.dtype == torch.bfloat16
        for name, value in expected.encoded.tensors().items():
            assert torch.equal(getattr(found.encoded, name), value), name


def test_every_object_keeps_its_phrase_mask_and_seg(folder: Path, processor: Processor) -> None:
    """Objects come in random order; mask, phrase and [SEG] stay aligned."""
    samples = dataset(folder, processor)
    sizes = {"blood vessel": 21 * 21, "catheter": 21 * 4, "all of it": 21 * 21 + 21 * 4}
    orders = set()
    for epoch in range(12):
        example = samples[(epoch, 1)]
        orders.add(example.phrases)
        assert segs(example, processor) == len(example.masks) == 3
        assert [int(mask.sum()) for mask in example.masks] == [sizes[phrase] for phrase in example.phrases]
        text = processor.tokenizer.decode(example.input_ids)
        assert all(phrase in piece for phrase, piece in zip(example.phrases, text.split("[SEG]")))
    assert len(orders) > 2


@pytest.mark.parametrize("index", [2, 3])
def test_a_negative_sample_has_an_empty_mask_and_a_question(folder: Path, processor: Processor, index: int) -> None:
    example = dataset(folder, processor, augment=Augment())[index]
    assert example.phrases == (("catheter",) if index == 2 else ("blood vessel",))
    assert example.masks.shape == (1, HEIGHT, WIDTH) and not example.masks.any()
    assert segs(example, processor) == 1


def test_types_shapes_and_ranges(folder: Path, processor: Processor) -> None:
    for example in (dataset(folder, processor, augment=Augment())[index] for index in range(len(RECORDS))):
        assert example.tiles.dtype == example.sam_image.dtype == torch.float32
        assert example.sam_image.shape == (3, 128, 128)
        assert example.masks.dtype == torch.uint8 and int(example.masks.max()) <= 1
        placeholders = (example.input_ids == processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")).sum()
        assert int(placeholders) == len(example.tiles) * processor.tokens_per_tile
        assert (example.labels != IGNORE_LABEL).any()
        assert torch.isfinite(example.tiles).all() and example.tiles.std() > 0.1


def test_a_grey_image_is_read_as_grey_and_a_16_bit_one_is_scaled(folder: Path, processor: Processor) -> None:
    samples = dataset(folder, processor)
    grey = np.asarray(samples.image(RECORDS[4]))
    assert grey.shape == (HEIGHT, WIDTH, 3) and (grey[..., 0] == grey[..., 2]).all()
    deep = np.asarray(samples.image(RECORDS[5]))
    assert deep.min() == 0 and deep.max() == 255


def test_a_batch_keeps_text_and_masks_of_different_sizes(folder: Path, processor: Processor) -> None:
    samples = dataset(folder, processor)
    examples = [samples[0], samples[1], samples[6]]
    batch = collate(examples)
    assert batch.objects_per_image == (1, 3, 1)
    assert batch.tiles_per_image == tuple(len(example.tiles) for example in examples)
    assert batch.tiles_per_image[2] > 2
    assert batch.masks[2].shape[-2:] == (HEIGHT, 400)
    for row, example in enumerate(examples):
        assert torch.equal(batch.input_ids[row], example.input_ids)
        assert torch.equal(batch.labels[row], example.labels)


def broken_files(folder: Path) -> dict[str, bytes]:
    whole = (folder / "images" / "one.png").read_bytes()
    return {"cut off": whole[: len(whole) // 2], "empty": b"", "no image": b"<html>not found</html>"}


@pytest.mark.parametrize("kind", ["cut off", "empty", "no image", "missing"])
def test_a_broken_image_is_named_and_not_replaced(folder: Path, processor: Processor, kind: str) -> None:
    path = folder / "images" / "one.png"
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(broken_files(folder)[kind])
    samples = dataset(folder, processor)
    with pytest.raises(ManifestError, match=r"one\.png: cannot be read as an image"):
        samples[0]
    assert samples[1].image_id == "several.png"


def test_an_image_too_large_to_decode_is_named(
    folder: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ManifestError, match=r"one\.png: cannot be read"):
        dataset(folder, processor)[0]


def test_an_invalid_phrase_is_named(folder: Path, processor: Processor) -> None:
    write_dataset(folder, [Record("one.png", ((SQUARE,),), ("vessel [SEG]",))])
    with pytest.raises(ManifestError, match=r"one\.png: .*'\[SEG\]'"):
        dataset(folder, processor)[0]


def test_a_conversation_that_is_too_long_is_named(folder: Path, processor: Processor, tiny_base: Path) -> None:
    base = read_base_folder(tiny_base)
    short = processor_for(base.config, base.tokenizer, max_length=60)
    with pytest.raises(ValueError, match=r"several\.png: \d+ tokens .* at most 60 fit"):
        dataset(folder, processor, tokens=short.tokens)[1]


def test_an_empty_split_and_a_limit(folder: Path, processor: Processor) -> None:
    settings = {"views": processor.views, "tokens": processor.tokens, "tokens_per_tile": processor.tokens_per_tile}
    with pytest.raises(ManifestError, match="split 'val' holds no image"):
        VesselDataset(folder, "val", **settings)
    limited = dataset(folder, processor, limit=2)
    assert [example.image_id for example in limited] == ["one.png", "several.png"]
