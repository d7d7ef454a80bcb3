"""A folder that `vesselseg distill` wrote -> its predictor."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch

from vesselseg.errors import WeightsError
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.checkpoints.folder_schema import Prompted, check_content
from vesselseg.models.checkpoints.json_files import read_json_object
from vesselseg.models.checkpoints.load import load_weights
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.prompted_config import MODEL_TYPE, PromptedSAM2Config
from vesselseg.models.prompted_sam2 import build_prompted, own_names, place

_FIELDS = set(inspect.signature(PromptedSAM2Config.__init__).parameters) - {"self", "kwargs"}


def is_prompted_folder(folder: Path) -> bool:
    """Whether a folder contains a model with fixed phrases."""
    try:
        return read_json_object(folder / "config.json").get("model_type") == MODEL_TYPE
    except (OSError, WeightsError):  # said by who reads it as another folder
        return False


def load_prompted(folder: Path, device: torch.device | str, dtype: torch.dtype) -> PromptedPredictor:
    """Raises WeightsError if the folder is damaged."""
    path = folder / "config.json"
    content = read_json_object(path)
    check_content(Prompted, content, path)
    fields = {name: value for name, value in content.items() if name in _FIELDS and value is not None}
    try:
        model = build_prompted(PromptedSAM2Config(**fields))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a valid SAM2 configuration ({error}); distil the model again") from None
    load_weights(model, own_names(stream_folder(folder)), str(folder))
    return PromptedPredictor(place(model, device, dtype).eval().requires_grad_(False))
