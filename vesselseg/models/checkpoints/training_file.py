"""A training checkpoint `.pth`: what trains, and what is needed to use it.

Plain types and tensors only, so that it opens without running code: `state_dict` (see `checkpoint_state`),
`model_config` (arguments of `build_model`), `threshold`, `data_fingerprint`, `config`, `versions`, `meta`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.load import raise_for_keys
from vesselseg.models.checkpoints.shards import load_pickle
from vesselseg.models.lora import checkpoint_state
from vesselseg.models.sa2va import Sa2VA

REQUIRED = ("state_dict", "model_config", "threshold")


def read_training_file(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; raises WeightsError where the file is none of ours or is cut short."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist; checkpoints are the files iter_N.pth and best.pth of a work folder")
    content = load_pickle(path)
    missing = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise WeightsError(f"{path}: not a checkpoint of vesselseg, it lacks {', '.join(missing)}")
    return content


def load_trainable(model: Sa2VA, state: dict[str, Tensor], source: str) -> None:
    """Copy a checkpoint's tensors into a model that needs exactly these; raises WeightsError otherwise."""
    targets = checkpoint_state(model)
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(target.shape)}"
        for name, target in targets.items()
        if name in state and state[name].shape != target.shape
    ]
    missing, unexpected = targets.keys() - state.keys(), state.keys() - targets.keys()
    raise_for_keys(source, missing=sorted(missing), unexpected=sorted(unexpected), misshapen=shapes)
    for name, target in targets.items():
        target.copy_(state[name])


def build_from_training_file(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, base: str | None = None
) -> tuple[Sa2VA, dict[str, Any]]:
    """The trained model and the checkpoint's content. base: the base folder, where it has moved."""
    content = read_training_file(path)
    arguments = {**content["model_config"], "gradient_checkpointing": False}
    if base is not None:
        arguments["base"] = base
    for key in ("device", "dtype"):
        arguments.pop(key, None)
    if arguments.get("random_weights"):
        raise WeightsError(
            f"{path}: trained with random_weights=True, whose frozen weights no file holds, so it cannot be used; "
            "train from a base folder with weights"
        )
    model = build_model(**arguments, device=device, dtype=dtype)
    load_trainable(model, content["state_dict"], str(path))
    model.config.threshold = float(content["threshold"])
    return model, content
