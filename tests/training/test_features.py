"""Features of frozen encoders: computed once, the same as computed every time, and never those of something else."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.samples import losses_of
from tests.tiny import SAM2, shaken_model
from tests.training.conftest import IMAGES, write_data
from vesselseg.config.load import load_config
from vesselseg.config.settings import Features
from vesselseg.dataset.collate import collate
from vesselseg.dataset.feature_store import FEATURES_VERSION, FeatureStore, digest
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import UserError
from vesselseg.inference.processor import Processor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.vessel_head import VesselHead
from vesselseg.models.vessel_head_options import VesselHeadOptions
from vesselseg.training.feature_filling import (
    Filling,
    Share,
    check_space,
    encoders_on_device,
    fill,
    move_encoders,
    shared_view_names,
)
from vesselseg.training.feature_filling import store_key as key_of
from vesselseg.training.training_data import training_dataset

TRAIN = IMAGES["train"]
VARIANTS = 2
HEAD = VesselHeadOptions(channels=(8, 8), object_channels=(4,))
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A job of one process."""
    meet = tmp_path_factory.mktemp("job") / "meet"
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Sa2VA:
    return shaken_model(tiny_base)


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """A dataset folder that a test may change."""
    return write_data(tmp_path / "data")


def dataset_of(data: Path, base: Path, **changes: Any) -> VesselDataset:
    augment = {"horizontal_flip": 0.5, "rotation": 10.0}
    settings = {"sam_image_size": SAM2["image_size"], "augment": augment, "variants": VARIANTS, "limit": 5, **changes}
    return training_dataset(data, base, **settings)


def filled(model: Sa2VA, dataset: VesselDataset, folder: Path, variants: int = VARIANTS) -> FeatureStore:
    """The store, filled, and the data set reading from it."""
    settings = Features("disk", str(folder), variants)
    store = FeatureStore(folder, key_of(model, dataset))
    store.create()
    names = shared_view_names(dataset, variants)
    fill(model, dataset, store, names, settings, workers=0)
    dataset.use_features(store, names)
    return store


class Encoded:
    """How many images the encoder has seen since it was asked last."""

    def __init__(self, model: Sa2VA) -> None:
        self.images = 0
        model.grounding.sam2.image_encoder.register_forward_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[torch.Tensor], __: Any) -> None:
        self.images += len(inputs[0])

    def now(self) -> int:
        images, self.images = self.images, 0
        return images


@pytest.fixture(scope="module")
def encoded(model: Sa2VA) -> Encoded:
    return Encoded(model)


@pytest.mark.parametrize(
    ("switches", "sam2"),
    [
        ({}, {}),
        ({"high_res_convs": False, "projector": True}, {}),
        ({}, {"fine_masks": "pixels"}),
        ({"high_res_convs": False}, {"vessel_head": {"channels": [8, 8, 8], "object_channels": [4, 4], "side": 64}}),
    ],
    ids=["convolutions train", "projector trains", "fine masks", "vessel head"],
)
def test_losses_and_gradients_are_those_of_encoders_that_run_every_time(
    tiny_base: Path, data: Path, tmp_path: Path, switches: dict[str, bool], sam2: dict[str, Any]
) -> None:
    model = shaken_model(tiny_base, trainable=switches, sam2={**SAM2, **sam2}).train()
    counted, found = Encoded(model), []
    for stored in (False, True):
        dataset = dataset_of(data, tiny_base)
        if stored:
            filled(model, dataset, tmp_path)
            assert counted.now() == 5 * VARIANTS and model.training
            assert (dataset[0].encoded.view is not None) == bool(sam2) and not len(dataset[0].sam_image)
        model.zero_grad()
        losses = losses_of(model, collate([dataset[(epoch, index)] for epoch, index in ((0, 0), (3, 2), (1, 3))]))
        sum(losses.values()).backward()
        assert counted.now() == (0 if stored else 3)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        found.append((losses, gradients))
    for computed, read in zip(*found):
        assert list(read) == list(computed)
        for name, value in computed.items():
            torch.testing.assert_close(read[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_second_run_computes_nothing_and_reads_the_same(
    model: Sa2VA, encoded: Encoded, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    first, second = dataset_of(data, tiny_base), dataset_of(data, tiny_base)
    filled(model, first, tmp_path)
    encoded.now()
    filled(model, second, tmp_path)
    assert encoded.now() == 0
    one, other = first[(0, 2)].encoded, second[(0, 2)].encoded
    assert all(torch.equal(value, getattr(other, name)) for name, value in one.tensors().items())


def test_the_features_of_version_2(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Where this fails, what older stores hold is out of date: raise FEATURES_VERSION and note the new figures."""
    dataset = dataset_of(data, tiny_base, limit=1, variants=1)
    store = filled(shaken_model(tiny_base, dtype=torch.float32), dataset, tmp_path, variants=1)
    encoded, masks = store.read(dataset.view_name(0, 0))
    found = {name: float(value.double().abs().mean()) for name, value in encoded.tensors().items()}
    noted = {"patches": 0.1964, "embedding": 0.5208, "stride_8": 0.3911, "stride_4": 0.2704}
    assert FEATURES_VERSION == 2 and found == pytest.approx(noted, rel=1e-3) and int(masks.sum()) == 913


def changed_weights(model: Sa2VA) -> None:
    with torch.no_grad():
        next(model.grounding.sam2.image_encoder.trunk.parameters()).add_(1e-3)


CHANGES: dict[str, Callable[[Sa2VA, pytest.MonkeyPatch], Any]] = {
    "weights": lambda model, _: changed_weights(model),
    "no-memory embedding": lambda model, _: model.grounding.sam2.no_mem_embed.data.add_(1e-3),
    "frozen projector": lambda model, _: model.projector.linear_2.bias.data.add_(1e-3),
    "projector trains": lambda model, _: model.projector.requires_grad_(True),
    "convolutions frozen": lambda model, _: model.grounding.sam2.sam_mask_decoder.conv_s0.requires_grad_(False),
    "type": lambda model, _: model.bfloat16(),
    "the picture is seen": lambda model, _: setattr(model.grounding, "vessel_head", VesselHead(HEAD, 128)),
    "heads": lambda model, _: model.config.vision_config.update(num_attention_heads=1),
    "code": lambda _, patch: patch.setattr("vesselseg.training.feature_filling.FEATURES_VERSION", 999),
    "torch": lambda _, patch: patch.setattr("vesselseg.training.feature_filling.version", lambda name: f"{name} 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_another_model_or_code_has_other_features(
    model: Sa2VA, tiny_base: Path, data: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, dataset = copy.deepcopy(model), dataset_of(data, tiny_base)
    assert key_of(changed, dataset_of(data, tiny_base)) == key_of(model, dataset)
    before = digest(key_of(model, dataset))
    CHANGES[change](changed, monkeypatch)
    assert digest(key_of(changed, dataset)) != before


@pytest.mark.parametrize(
    "change",
    [{"augment": {"horizontal_flip": 0.4, "rotation": 10.0}}, {"augment": None}, {"seed": 1}, {"max_tiles": 1}],
    ids=str,
)
def test_other_pictures_have_features_of_their_own(
    model: Sa2VA, tiny_base: Path, data: Path, change: dict[str, Any]
) -> None:
    assert key_of(model, dataset_of(data, tiny_base)) != key_of(model, dataset_of(data, tiny_base, **change))


def test_irrelevant_settings_do_not_change_the_key(model: Sa2VA, tiny_base: Path, data: Path) -> None:
    before, other = key_of(model, dataset_of(data, tiny_base)), copy.deepcopy(model)
    with torch.no_grad():
        other.seg_projector.linear_1.bias.add_(1.0)
    assert key_of(other, dataset_of(data, tiny_base, vary_questions=False, limit=3, variants=5)) == before


def test_a_changed_image_is_computed_again_and_no_other(
    model: Sa2VA, encoded: Encoded, tiny_base: Path, own_data: Path, tmp_path: Path
) -> None:
    filled(model, dataset_of(own_data, tiny_base), tmp_path)
    encoded.now()
    path = own_data / "images" / "train_1.png"
    Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    stored, computed = dataset_of(own_data, tiny_base), dataset_of(own_data, tiny_base)
    filled(model, stored, tmp_path)
    assert encoded.now() == VARIANTS
    with torch.no_grad():
        for index in (0, 1):
            losses = [losses_of(model, collate([one[(1, index)]])) for one in (stored, computed)]
            torch.testing.assert_close(*losses)


def test_an_interrupted_fill_continues(
    model: Sa2VA, encoded: Encoded, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    encoded.now()
    store = filled(model, dataset_of(data, tiny_base, limit=2), tmp_path)
    (store.folder / "x.host.1.unfinished").write_bytes(b"half")
    assert encoded.now() == 2 * VARIANTS
    filled(model, dataset_of(data, tiny_base), tmp_path)
    assert encoded.now() == 3 * VARIANTS


def test_views_computed_for_the_others_sake_are_not_written(
    model: Sa2VA, tiny_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights in pieces every process runs as often as the one that lacks most."""
    dataset, store, written = dataset_of(data, tiny_base), FeatureStore(tmp_path, {}), []
    store.create()
    write = store.write

    def slow_write(name: str, *rest: Any) -> int:
        written.append(name)
        time.sleep(0.2)
        return write(name, *rest)

    monkeypatch.setattr(store, "write", slow_write)
    Filling(model, dataset, store, Share(["a"], {"a": (0, 0), "b": (1, 0)}, 2, longest=4), workers=0).run()
    assert written == ["a"] and store.holds("a") and not store.holds("b")


def test_a_file_cut_short_is_computed_again_and_an_error_while_training(
    model: Sa2VA, encoded: Encoded, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    dataset = dataset_of(data, tiny_base)
    store = filled(model, dataset, tmp_path)
    expected = dataset[(1, 3)]
    path = store.path(dataset.view_name(3, 1))
    kept = {name: value.clone() for name, value in expected.encoded.tensors().items()}
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(UserError, match=rf"{path}: stored features are damaged or missing"):
        dataset[(1, 3)]
    encoded.now()
    filled(model, dataset, tmp_path)
    assert encoded.now() == 1
    found = dataset[(1, 3)].encoded
    for name, value in kept.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-5, atol=1e-5)


def test_too_little_space_is_an_error_before_anything_is_written(
    model: Sa2VA, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        check_space(tmp_path, 2**60)
    message = str(caught.value)
    assert "features take about 1073741824.0 GiB more" in message and "GiB are free on this disk" in message
    assert "features.variants" in message and "features.store=None" in message
    with pytest.raises(UserError, match=r"free of main memory \(/dev/shm\)"):
        check_space(Path("/dev/shm"), 2**60)


@pytest.mark.parametrize("part", ["vision", "sam2_encoder"])
def test_an_encoder_that_trains_cannot_be_stored(part: str) -> None:
    wrong = {"features.store": "disk", f"model.sa2va.trainable.{part}": True, "train_dataset.variants": 3}
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "internvl3_8b_4x24gb.py", wrong)
    message = str(caught.value)
    assert (
        f"features.store='disk' keeps the outputs of frozen encoders, but model.sa2va.trainable.{part} is True"
        in message
    )
    assert "train_dataset.variants: this value's home is features.variants" in message and "2 problem(s)" in message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the encoders leave a GPU; there is none")
def test_the_encoders_leave_the_gpu_and_come_back_to_predict(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base, trainable={"high_res_convs": False}).cuda()
    dataset = dataset_of(data, tiny_base)
    predictor = Sa2VAPredictor(model, Processor(dataset.views, dataset.tokens, dataset.tokens_per_tile))
    picture = dataset.image(dataset.records[0])
    before = predictor.predict([picture], [["blood vessel"]])[0].probabilities
    filled(model, dataset, tmp_path)
    held = torch.cuda.memory_allocated()
    move_encoders(model, torch.device("cpu"))
    assert torch.cuda.memory_allocated() < held
    assert {parameter.device.type for parameter in model.vision_model.parameters()} == {"cpu"}
    losses = losses_of(model.train(), collate([dataset[0], dataset[1]]).to("cuda"))
    sum(losses.values()).backward()
    with encoders_on_device(model):
        assert torch.allclose(
            torch.tensor(predictor.predict([picture], [["blood vessel"]])[0].probabilities), torch.tensor(before)
        )
    assert {parameter.device.type for parameter in model.vision_model.parameters()} == {"cpu"}
