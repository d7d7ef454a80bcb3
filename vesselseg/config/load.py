"""Load a config file: override known keys only, check all of it before anything is built, complete it, write it.

Configs are Python files in mmengine's pure style. A leaf starts from the files of ``_base_`` and holds only
differences, written as ``schedule.update(epochs=1)`` or ``model.sa2va.base = "..."``. Defaults are declared in
signatures and dataclasses alone; a loaded config contains them. A value that several parts need is set in one place
(see ``HOMES``), from which `expand` passes it to optimizer, DeepSpeed, dataset and loader.
"""

from __future__ import annotations

import copy
import importlib
import pprint
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vesselseg.config.bases import base_problems
from vesselseg.config.check import accepted, check_sections, check_types, complete, flatten
from vesselseg.config.overrides import unknown_setting
from vesselseg.config.settings import RUN, SECTIONS, Run, read_section, section_fields
from vesselseg.config.source_text import check_text
from vesselseg.errors import ConfigError
from vesselseg.suggest import nearest_paths, suggestion

# Keys that every config must have; those of `Run` may be omitted.
KEYS = {
    "data_root": "dataset folder made by vesselseg prepare",
    "model": "dict(type=TrainingModel, ...)",
    "train_dataset": "dict(type=training_dataset, ...)",
    "strategy": "dict(type=VesselStrategy, ...): DeepSpeed's settings",
    **dict.fromkeys(SECTIONS, "see vesselseg/config/settings.py"),
}
ZERO_STAGES = (1, 2, 3)

# A value that several parts need, or that the run decides, is set in one place: {path where it must not be set: home}.
HOMES = {
    "model.sa2va.device": "nothing: every process has its own GPU",
    "model.sa2va.dtype": "precision",
    "model.sa2va.layer_devices": "nothing: it is for predicting; zero3.py shares a model among GPUs",
    "model.sa2va.construction": "strategy",
    "model.sa2va.assign": "strategy",
    "train_dataset.data_root": "data_root",
    "train_dataset.model_base": "model.sa2va.base",
    "train_dataset.sam_image_size": "model.sa2va.sam2.image_size",
    "train_dataset.max_tiles": "model.sa2va.max_tiles",
    "train_dataset.seed": "seed",
    "strategy.gradient_clipping": "schedule.clip",
    "strategy.gradient_accumulation_steps": "schedule.accumulation",
    "strategy.train_micro_batch_size_per_gpu": "schedule.micro_batch",
    "strategy.bf16": "precision",
    "strategy.fp16": "precision",
    "strategy.amp": "precision",
    "strategy.precision": "precision",
    "strategy.exclude_frozen_parameters": "nothing: checkpoints never hold frozen weights",
    "strategy.work_dir": "--work-dir",
}


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply overrides ({"schedule.lr": 1e-4}), check all of it and add all defaults.

    Raises ConfigError with every problem at once: unknown top-level keys, unknown override paths, unknown arguments,
    bases that disagree, assignments that drop a base's keys, invalid values. Types stay names; nothing is built.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; configs are in the folder configs/")
    check_text(path)
    try:
        values = Config.fromfile(path, lazy_import=True).to_dict()
        problems = base_problems(path)
    except ConfigError:
        raise
    except Exception as error:  # a config is a program: whatever it raises is about its own text
        raise ConfigError(f"{path}: not readable as a config: {type(error).__name__}: {error}") from error
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    problems += import_custom_modules(values.get("custom_imports"))
    problems += apply_overrides(values, overrides or {})
    problems += check_config(values)
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ConfigError(f"{path}: {len(dict.fromkeys(problems))} problem(s)\n  {listed}")
    return Config(_completed(values), filename=str(path))


def import_custom_modules(settings: Any) -> list[str]:
    """Import the modules of ``custom_imports = dict(imports=["my_loss"])``, whose decorators register what they define.

    Modules are found like any others, and in the current folder. Returns one sentence per module that cannot be
    imported.
    """
    if settings is None:
        return []
    if not isinstance(settings, Mapping) or not isinstance(settings.get("imports"), (list, tuple)):
        return [f"custom_imports must be dict(imports=[module, ...]), found {settings!r}"]
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    problems = []
    for name in settings["imports"]:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of the user's may raise anything
            problems.append(f"custom_imports: cannot import {name!r}: {type(error).__name__}: {error}")
    return problems


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a checked config with all defaults, sections and top-level values included."""
    complete(values, without=HOMES)
    sections = {name: asdict(read_section(values, name)) for name in SECTIONS}
    return {**asdict(Run()), **values, **sections}


def check_config(values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a config's values, one sentence each."""
    problems = []
    for key in values:
        if key not in KEYS and key not in RUN:
            problems.append(f"unknown key {key!r}{_hint(key, values)}")
    missing = [key for key in KEYS if key not in values]
    problems += [f"missing key {key!r} ({KEYS[key]}); use the files of configs/_base_ as bases" for key in missing]
    for path, home in HOMES.items():
        if _lookup(values, path) is not None:
            problems.append(f"{path}: this value's home is {home}; set it there")
    problems += check_sections(values)
    problems += _feature_problems(values) + _model_problems(values)
    stage = _lookup(values, "strategy.zero_optimization.stage")
    if "strategy" in values and stage not in ZERO_STAGES:
        problems.append(
            f"strategy.zero_optimization.stage must be 1, 2 or 3, found {stage!r}: checkpoints hold the "
            "optimizer state in ZeRO's layout; use runtime/zero2.py, also on one GPU"
        )
    problems += check_types({key: value for key, value in values.items() if key in KEYS or key in RUN})
    return problems + Run(**{key: value for key, value in values.items() if key in RUN}).problems()


def apply_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Set dotted paths in place; returns one sentence per unknown path."""
    problems = []
    known = known_paths(values)
    # Another type has other arguments, so types are set before their arguments.
    for path, value in sorted(overrides.items(), key=lambda item: not item[0].endswith("type")):
        if path not in known:
            problems.append(unknown_setting(path, _hint(path, values)))
            continue
        *parents, last = path.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
        if last == "type":
            known = known_paths(values)
    return problems


def known_paths(values: Mapping[str, Any]) -> set[str]:
    """Every dotted path that is set or that a signature accepts."""
    paths = set(KEYS) | RUN | set(flatten(values)) | accepted(values)
    for section in SECTIONS:
        paths |= {f"{section}.{name}" for name in section_fields(section)}
    return paths - set(HOMES)


def config_text(config: Mapping[str, Any]) -> str:
    """The config as a Python file without bases that `load_config` reads."""
    lines = ['"""This run\'s config: bases, overrides and defaults in one file, for tools/dist.sh train."""', ""]
    values = config.to_dict() if isinstance(config, Config) else dict(config)
    for key, value in values.items():
        lines += [f"{key} = {pprint.pformat(value, width=110, sort_dicts=False)}"]
    return "\n".join(lines) + "\n"


def expand(config: Mapping[str, Any]) -> dict[str, Any]:
    """Pass the values that several parts need to each of them.

    Returns ``model``, ``train_dataset`` and ``strategy`` as dicts with a ``type``; only precision and devices, which
    the machine decides, are missing.
    """
    values = copy.deepcopy(config.to_dict() if isinstance(config, Config) else dict(config))
    schedule = values["schedule"]
    sa2va = values["model"]["sa2va"]
    dataset = {
        **values["train_dataset"],
        "data_root": values["data_root"],
        "model_base": sa2va["base"],
        "sam_image_size": sa2va["sam2"]["image_size"],
        "max_tiles": sa2va.get("max_tiles"),
        "seed": values["seed"],
    }
    if values["features"]["store"] is not None:
        dataset["variants"] = values["features"]["variants"]
    strategy = {
        **values["strategy"],
        "gradient_clipping": schedule["clip"],
        "gradient_accumulation_steps": schedule["accumulation"],
        "train_micro_batch_size_per_gpu": schedule["micro_batch"],
        "exclude_frozen_parameters": True,
    }
    return {"model": values["model"], "train_dataset": dataset, "strategy": strategy}


def _feature_problems(values: Mapping[str, Any]) -> list[str]:
    """Settings that stored features exclude."""
    store = _lookup(values, "features.store")
    if store is None:
        return []
    problems = [
        f"features.store={store!r} keeps the outputs of frozen encoders, but model.sa2va.trainable.{name} is True and "
        "changes them in every step; change one of the two"
        for name in ("vision", "sam2_encoder")
        if _lookup(values, f"model.sa2va.trainable.{name}")
    ]
    if _lookup(values, "train_dataset.variants") is not None:
        problems.append("train_dataset.variants: this value's home is features.variants where features are stored")
    return problems


def _model_problems(values: Mapping[str, Any]) -> list[str]:
    """Settings of the model that exclude each other."""
    sa2va = "model.sa2va."
    quantised, lora = _lookup(values, f"{sa2va}quantise"), _lookup(values, f"{sa2va}trainable.llm") in (None, "lora")
    problems = []
    if _lookup(values, "schedule.ema") and _lookup(values, "strategy.zero_optimization.stage") == 3:
        problems.append("schedule.ema: partitioned weights (ZeRO-3) are not averaged; use runtime/zero2.py, or ema=0")
    if quantised and _lookup(values, "strategy.zero_optimization.stage") == 3:
        problems.append(f"{sa2va}quantise: weights in 4 bits cannot be partitioned (ZeRO-3); use runtime/zero2.py")
    if quantised and _lookup(values, f"{sa2va}trainable.llm") == "full":
        problems.append(f'{sa2va}quantise: weights in 4 bits cannot train; set {sa2va}trainable.llm="lora"')
    if _lookup(values, f"{sa2va}activations_on_host") and not _lookup(values, f"{sa2va}gradient_checkpointing"):
        problems.append(
            f"{sa2va}activations_on_host: works for recomputed layers only; set {sa2va}gradient_checkpointing=True"
        )
    if _lookup(values, f"{sa2va}lora.modules_to_save") and not lora:
        problems.append(f'{sa2va}lora.modules_to_save: tables train with {sa2va}trainable.llm="lora" only')
    return problems


def _lookup(values: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values


def _hint(path: str, values: Mapping[str, Any]) -> str:
    if path in HOMES:
        return f"; its home is {HOMES[path]}"
    return suggestion(nearest_paths(path, known_paths(values)))
