"""Losses, metrics, datasets, models and hooks from files of the user's own train and validate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import REPOSITORY, rows, small
from vesselseg.config.load import load_config
from vesselseg.errors import ConfigError, UserError
from vesselseg.export.convert import training_loss
from vesselseg.registry import DATASETS, HOOKS, LOSSES, METRICS, MODELS
from vesselseg.training.launch import train
from vesselseg.training.memory_plan.plan import Target, plan_memory

# A module with one of each; registered names are local to this test.
MODULE = """
import numpy as np
from mmengine.hooks import Hook
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.losses.total import TotalLoss
from vesselseg.registry import DATASETS, HOOKS, LOSSES, METRICS, MODELS
from vesselseg.training.training_model import TrainingModel

@LOSSES.register_module()
def squared_error(logits, target):
    return (logits.sigmoid() - target).square().flatten(1).mean(1)

@LOSSES.register_module()
class HalvedLoss(TotalLoss):
    def __init__(self, factor: float = 0.5, **arguments):
        super().__init__(**arguments)
        self.factor = factor
    def forward(self, *arguments):
        return {name: self.factor * value for name, value in super().forward(*arguments).items()}

@METRICS.register_module()
def predicted_share(mask, truth):
    assert mask.shape == truth.shape and mask.dtype == truth.dtype == np.bool_
    return mask.mean()

@DATASETS.register_module()
class InvertedDataset(VesselDataset):
    seen = []
    def view(self, index, number):
        view = super().view(index, number)
        self.seen.append(self.records[index].image)
        view.sam_image = -view.sam_image
        return view

@MODELS.register_module()
class CountingModel(TrainingModel):
    batches = 0
    def forward(self, batch, mode="loss"):
        type(self).batches += 1
        return super().forward(batch, mode)

@HOOKS.register_module()
class NoteHook(Hook):
    notes = []
    def __init__(self, text):
        self.text = text
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.notes.append((self.text, runner.iter))
"""
NAMES = {
    LOSSES: ("squared_error", "HalvedLoss", "focal_loss"),
    METRICS: ("predicted_share", "precision"),
    DATASETS: ("InvertedDataset",),
    MODELS: ("CountingModel",),
    HOOKS: ("NoteHook",),
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    modules = set(sys.modules)
    yield
    for name in {"my_parts", "examples.custom_loss"} & (set(sys.modules) - modules):
        del sys.modules[name]
    for registry, names in NAMES.items():
        for name in names:
            registry.module_dict.pop(name, None)


@pytest.mark.slow
def test_the_example_trains_and_validates(one_process: None, data: Path, base: Path, tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "examples" / "custom_loss_config.py", small(data, base))
    train(config, tmp_path / "run")
    for row in rows(tmp_path / "run", "train"):
        assert row["loss_focal_loss"] > 0
        parts = sum(value for name, value in row.items() if name.startswith("loss_"))
        assert row["loss"] == pytest.approx(parts)
    validations = rows(tmp_path / "run", "val")
    assert len(validations) == 2
    assert all(0 <= row["precision"] <= 1 and 0 <= row["dice"] <= 1 for row in validations)
    assert "precision " in (tmp_path / "run" / "train.log").read_text()


def test_a_dataset_a_model_and_a_hook_of_the_users_own_train(
    one_process: None, data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(MODULE)
    config = tmp_path / "mine.py"
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    config.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from .configs.tiny_cpu import *\n"
        'custom_imports = dict(imports=["my_parts"])\n'
        'custom_hooks = [dict(type="NoteHook", text="step")]\n'
        'model.update(type="CountingModel")\n'
        'model.loss.update(type="HalvedLoss", factor=0.25, terms=dict(squared_error=2.0))\n'
        'train_dataset.update(dataset_class="InvertedDataset")\n'
        'validation.update(metrics=["predicted_share"])\n'
    )
    train(load_config(config, small(data, base)), tmp_path / "run")
    parts = sys.modules["my_parts"]
    assert parts.NoteHook.notes == [("step", 1), ("step", 2)]
    assert parts.CountingModel.batches == 2 and len(parts.InvertedDataset.seen) == 8
    log = rows(tmp_path / "run", "train")
    assert all(row["loss_squared_error"] > 0 for row in log)
    assert all(0 <= row["predicted_share"] <= 1 for row in rows(tmp_path / "run", "val"))
    # The written config runs by itself.
    again = load_config(tmp_path / "run" / "config.py")
    assert again["custom_imports"] == {"imports": ["my_parts"]} and again["model"]["loss"]["factor"] == 0.25


def test_the_memory_plan_leaves_own_losses_out(one_process: None, data: Path, base: Path) -> None:
    def peak(**terms: float) -> float:
        options = {**small(data, base), "model.loss.terms": terms or None}
        config = load_config(REPOSITORY / "examples" / "custom_loss_config.py", options)
        return plan_memory(config, Target(1, 2**34)).peak

    assert peak(focal_loss=5.0) == peak() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.loss.terms": {"focal_los": 1.0}}, "no loss is registered as 'focal_los'; did you mean 'focal_loss'?"),
        ({"validation.metrics": ["precison"]}, "no metric is registered as 'precison'; did you mean 'precision'?"),
        ({"train_dataset.dataset_class": "Mine"}, "no subclass of VesselDataset is registered as 'Mine'"),
    ],
)
def test_a_misspelled_name_is_an_error_before_training(
    one_process: None, data: Path, base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    config = load_config(REPOSITORY / "examples" / "custom_loss_config.py", {**small(data, base), **options})
    with pytest.raises(UserError) as caught:
        train(config, tmp_path / "run", skip_plan=True)
    assert message in str(caught.value) and "custom_imports must name the module" in str(caught.value)


def test_a_module_that_cannot_be_imported_is_reported_with_all_other_problems(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "mine.py").write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from .configs.tiny_cpu import *\n"
        'custom_imports = dict(imports=["no_such_module"])\n'
        'custom_hooks = [dict(type="NoSuchHook")]\n'
        'model.loss.update(type="NoSuchLoss")\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.py")
    message = str(caught.value)
    assert "custom_imports: cannot import 'no_such_module'" in message
    assert "custom_hooks.0.type: cannot import 'NoSuchHook'" in message
    assert "model.loss.type: cannot import 'NoSuchLoss'" in message and "3 problem(s)" in message


def test_an_exported_models_loss_has_no_parts_of_the_users_own() -> None:
    text = json.dumps({"loss": {"bce": 2.0, "terms": {"focal_loss": 1.0}}})
    assert training_loss({"config": f"model = {text}"}) == {"bce": 2.0}
    assert training_loss({"config": 'model = {"loss": {"type": "Mine", "bce": 1.0, "own": 1}}'}) == {"bce": 1.0}
