"""Load a config file, override known keys only, check it as a whole before anything is built, and write what ran.

Configs are Python files in mmengine's pure style. A leaf starts from the files of ``_base_`` and holds only
differences, written as ``schedule.update(epochs=1)`` or ``model.sa2va.base = "..."``. Every value that two parts need
has one home (see ``HOMES``); `expand` hands it on to optimizer, DeepSpeed, data set and loader.
"""

from __future__ import annotations

import ast
import copy
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vesselseg.config.bases import base_problems
from vesselseg.config.check import accepted, check_sections, check_types, flatten, nearest
from vesselseg.config.settings import SECTIONS, section_fields
from vesselseg.errors import UserError
from vesselseg.suggest import suggestion

KEYS = {
    "data_root": "dataset folder made by tools/prepare_data.py",
    "model": "dict(type=TrainingModel, ...)",
    "train_dataset": "dict(type=VesselDataset, ...)",
    "strategy": "dict(type=VesselStrategy, ...): DeepSpeed's settings",
    "precision": "auto, bf16 or fp32",
    "seed": "whole number that seeds everything",
    "load_from": "what a new run starts from: a checkpoint .pth, an exported or published folder, or None",
    **dict.fromkeys(SECTIONS, "see vesselseg/config/settings.py"),
}
PRECISIONS = ("auto", "bf16", "fp32")
ZERO_STAGES = (1, 2, 3)

# A value that two parts need is set in one place only: {where it must not be set: its home}.
HOMES = {
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
    "strategy.exclude_frozen_parameters": "nothing: checkpoints never hold frozen weights",
    "strategy.work_dir": "--work-dir",
}


class ConfigError(UserError):
    """A config that cannot run; the message lists everything that is wrong with it."""


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply overrides ({"schedule.lr": 1e-4}) and check all of it.

    Raises ConfigError with every problem at once: unknown top-level keys, unknown override paths, arguments that no
    signature takes, bases that disagree, assignments that drop a base's keys, values without sense. Types stay dotted
    names; nothing is built.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; configs are in the folder configs/")
    try:
        values = Config.fromfile(path, lazy_import=True).to_dict()
        problems = base_problems(path)
    except ConfigError:
        raise
    except Exception as error:  # a config is a program: whatever it raises is about its own text
        raise ConfigError(f"{path}: not readable as a config: {type(error).__name__}: {error}") from error
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    problems += apply_overrides(values, overrides or {})
    problems += check_config(values)
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ConfigError(f"{path}: {len(dict.fromkeys(problems))} problem(s)\n  {listed}")
    return Config(values, filename=str(path))


def check_config(values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a config's values, one sentence each."""
    problems = []
    for key in values:
        if key not in KEYS:
            problems.append(f"unknown key {key!r}{_hint(key, values)}")
    missing = [key for key in KEYS if key not in values]
    problems += [f"missing key {key!r} ({KEYS[key]}); take the files of configs/_base_ as bases" for key in missing]
    for path, home in HOMES.items():
        if _lookup(values, path) is not None:
            problems.append(f"{path}: this value's home is {home}; set it there")
    problems += check_sections(values)
    problems += _feature_problems(values) + _switch_problems(values)
    stage = _lookup(values, "strategy.zero_optimization.stage")
    if "strategy" in values and stage not in ZERO_STAGES:
        problems.append(
            f"strategy.zero_optimization.stage must be 1, 2 or 3, found {stage!r}: checkpoints hold the "
            "optimizer's state as ZeRO lays it out; take runtime/zero2.py, on one GPU too"
        )
    problems += check_types({key: value for key, value in values.items() if key in KEYS})
    if values.get("precision", "auto") not in PRECISIONS:
        problems.append(f"precision must be one of {', '.join(PRECISIONS)}, found {values['precision']!r}")
    if not isinstance(values.get("seed", 0), int):
        problems.append(f"seed must be a whole number, found {values['seed']!r}")
    return problems


def apply_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Set dotted paths in place; returns one sentence per path that nothing reads."""
    problems = []
    known = known_paths(values)
    # Another type takes other arguments, so types are set before what is given to them.
    for path, value in sorted(overrides.items(), key=lambda item: not item[0].endswith("type")):
        if path not in known:
            problems.append(f"--cfg-options {path}: no such setting{_hint(path, values)}")
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
    """Every dotted path that is set or that a signature takes."""
    paths = set(KEYS) | set(flatten(values)) | accepted(values)
    for section in SECTIONS:
        paths |= {f"{section}.{name}" for name in section_fields(section)}
    return paths - set(HOMES)


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """["schedule.lr=1e-4", ...] as given to --cfg-options; values are Python literals, anything else is text."""
    wrong = [item for item in items if "=" not in item or item.startswith("=")]
    if wrong:
        raise ConfigError(f"--cfg-options takes KEY=VALUE, found {', '.join(map(repr, wrong))}")
    return {key: parse_value(text) for key, text in (item.split("=", 1) for item in items)}


def parse_value(text: str) -> Any:
    """One value of --cfg-options: a Python literal, true, false, none, or text as it stands."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def config_text(config: Mapping[str, Any]) -> str:
    """The config as a Python file without bases that `load_config` reads."""
    lines = ['"""What ran: all bases and overrides in one file; start it again with tools/dist.sh train."""', ""]
    values = config.to_dict() if isinstance(config, Config) else dict(config)
    for key, value in values.items():
        lines += [f"{key} = {pprint.pformat(value, width=110, sort_dicts=False)}"]
    return "\n".join(lines) + "\n"


def expand(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hand the values that several parts need to each of them.

    Returns ``model``, ``train_dataset`` and ``strategy`` as dicts with a ``type``, complete but for what only the
    machine decides (precision, devices).
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
    """What stored features do not go together with."""
    store = _lookup(values, "features.store")
    if store is None:
        return []
    problems = [
        f"features.store={store!r} keeps what frozen encoders compute, but model.sa2va.trainable.{name} is True: that "
        "changes with every step; set one of the two otherwise"
        for name in ("vision", "sam2_encoder")
        if _lookup(values, f"model.sa2va.trainable.{name}")
    ]
    if _lookup(values, "model.sa2va.sam2.fine_masks") == "pixels":
        problems.append(
            f'features.store={store!r} keeps no pictures, which model.sa2va.sam2.fine_masks="pixels" reads; take '
            '"features", or features.store=None'
        )
    if _lookup(values, "train_dataset.variants") is not None:
        problems.append("train_dataset.variants: this value's home is features.variants where features are stored")
    return problems


def _switch_problems(values: Mapping[str, Any]) -> list[str]:
    """Switches of the model that do not go together."""
    sa2va = "model.sa2va."
    quantised, lora = _lookup(values, f"{sa2va}quantise"), _lookup(values, f"{sa2va}trainable.llm") in (None, "lora")
    problems = []
    if quantised and _lookup(values, "strategy.zero_optimization.stage") == 3:
        problems.append(f"{sa2va}quantise: weights in 4 bits cannot be shared out (ZeRO-3); take runtime/zero2.py")
    if quantised and _lookup(values, f"{sa2va}trainable.llm") == "full":
        problems.append(f'{sa2va}quantise: weights in 4 bits cannot train; set {sa2va}trainable.llm="lora"')
    if _lookup(values, f"{sa2va}activations_on_host") and not _lookup(values, f"{sa2va}gradient_checkpointing"):
        problems.append(
            f"{sa2va}activations_on_host: for recomputed layers only; set {sa2va}gradient_checkpointing=True"
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
    return suggestion(nearest(path, known_paths(values)))
