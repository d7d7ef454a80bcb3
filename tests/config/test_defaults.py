"""A default is declared once: configs/_base_ holds no value that a signature or dataclass declares already."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from vesselseg.config.check import own_defaults, typed_nodes
from vesselseg.config.load import load_config
from vesselseg.config.settings import SECTIONS, Run
from vesselseg.registry import resolve

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASES = sorted((CONFIGS / "_base_").rglob("*.py"))
ZERO = "strategy.zero_optimization."
# What a base sets differently from the default, and why.
REASONS = {
    "model.sa2va.sam2.checkpoint": "fine-tuning starts from SAM2's published weights; a model of its own from none",
    "model.sa2va.max_tiles": "an angiogram of 512 pixels fits one tile; the published limit of 12 is for chat",
    "model.sa2va.gradient_checkpointing": "recipes are for 24 GB; predicting builds the same model without it",
    "model.sa2va.embedding_on_host": "saves 1 GiB and no time in training; predicting needs the table on the GPU",
    f"{ZERO}stage": "DeepSpeed's default is 0, whose checkpoints cannot be resumed on other numbers of processes",
    f"{ZERO}overlap_comm": "ZeRO-2 reduces few gradients: a second bucket costs memory and saves no time",
    f"{ZERO}reduce_bucket_size": "DeepSpeed's 5e8 elements take 2 GiB; the trainable weights fit 2e7",
    f"{ZERO}allgather_bucket_size": "as reduce_bucket_size",
    f"{ZERO}stage3_prefetch_bucket_size": "holds one decoder layer of an 8B model; offload: less GPU memory",
    f"{ZERO}stage3_max_live_parameters": "offload: less GPU memory",
    f"{ZERO}stage3_max_reuse_distance": "frees a layer before the next pass over it",
    f"{ZERO}offload_optimizer.device": "the file's purpose",
    f"{ZERO}offload_optimizer.pin_memory": "copies to and from the GPU do not wait",
    f"{ZERO}offload_param.device": "the file's purpose",
    f"{ZERO}offload_param.pin_memory": "copies to and from the GPU do not wait",
    "features.store": "the file's purpose",
    **dict.fromkeys(
        (
            f"train_dataset.augment.{name}"
            for name in (
                *("horizontal_flip", "rotation", "scale", "translation", "aspect", "elastic", "contrast"),
                *("gamma", "inverted_gamma", "noise", "bias_field", "blur", "low_resolution"),
            )
        ),
        "training from scratch, where orientation carries information: docs/results.md",
    ),
}


def declared(target: Any) -> dict[str, Any]:
    """Defaults of a class or function, those of DeepSpeed's pydantic models and their aliases included."""
    target = resolve(target)
    if not hasattr(target, "model_fields"):
        return own_defaults(target)
    fields = target.model_fields.items()
    return {name: field.default for key, field in fields for name in (key, field.alias) if name}


def set_values(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, declared default) of every single value that a base file sets."""
    for path, node, target in typed_nodes(values):
        single = declared(target).keys() & {key for key, value in node.items() if not isinstance(value, Mapping)}
        yield from ((f"{path}.{key}", node[key], declared(target)[key]) for key in single)
    for section, dataclass in {**SECTIONS, "": Run}.items():
        node = values.get(section, {}) if section else values
        for key, default in own_defaults(dataclass).items():
            if key in node:
                yield f"{section}.{key}".lstrip("."), node[key], default


@pytest.mark.parametrize("path", BASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_base_repeats_no_default_and_every_difference_has_a_reason(path: Path) -> None:
    values = Config.fromfile(path, lazy_import=True).to_dict()
    for name, value, default in set_values(values):
        if name.endswith("pin_memory"):  # False in DeepSpeed 0.18, True from 0.19 on
            continue
        assert value != default, f"{path.name}: {name} repeats its default {default!r}; remove it"
        assert name in REASONS, f"{path.name}: {name} is {value!r}, its default {default!r}; give the reason here"


def test_every_reason_is_of_a_value_that_a_base_sets() -> None:
    names = {name for path in BASES for name, _, _ in set_values(Config.fromfile(path, lazy_import=True).to_dict())}
    assert set(REASONS) == names


def test_a_loaded_config_contains_all_defaults() -> None:
    config = load_config(CONFIGS / "internvl3_8b_4x24gb.py")
    assert dict(config["schedule"]) == {**inspect_defaults(SECTIONS["schedule"]), "micro_batch": 8, "accumulation": 1}
    assert (config["precision"], config["seed"], config["load_from"]) == ("auto", 0, None)
    model = config["model"]
    assert (model["loss"]["dice"], model["sa2va"]["lora"]["dropout"], model["sa2va"]["attention"]) == (0.5, 0.0, "sdpa")
    assert (config["train_dataset"]["split"], config["train_dataset"]["augment"]["rotation"]) == ("train", 10.0)
    assert config["strategy"]["whole_layers"] is True and "precision" not in config["strategy"]
    assert "device" not in model["sa2va"] and "seed" not in config["train_dataset"]


def inspect_defaults(dataclass: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(dataclass).parameters.items()}
