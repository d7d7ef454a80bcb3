"""A training checkpoint `.pth`: the parameters that train, and what is needed to use them.

Checkpoints of this package contain plain types and tensors only, so that they are loaded without running code:
`state_dict` (see `checkpoint_state`), `model_config` (arguments of `build_model`), `threshold`, `data_fingerprint`,
`training_images`, `config`, `versions`, `meta`. Those of the published code (see `published_training`) contain no
settings. The two kinds are distinguished by their content.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model, check_attention
from vesselseg.models.checkpoints.folder_schema import BuildSettings, check_content
from vesselseg.models.checkpoints.hub import cached_folder
from vesselseg.models.checkpoints.load import raise_for_keys
from vesselseg.models.checkpoints.pickles import load_pickle, state_dict_of
from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD
from vesselseg.models.checkpoints.published_training import is_published_training, published_to_ours, required_names
from vesselseg.models.lora import checkpoint_state
from vesselseg.models.sa2va import Sa2VA

logger = logging.getLogger(__name__)

REQUIRED = ("state_dict", "model_config", "threshold")
UNCHOSEN_THRESHOLD = 0.5  # the published code's; no validation split chose it


def read_training_file(path: Path, model_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of a checkpoint; raises WeightsError if the file is not a checkpoint or is truncated.

    model_config: arguments of `build_model` for a checkpoint of the published code, which contains none; its content
    gets the key `published`. Ignored for checkpoints of this package.
    """
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, not a checkpoint file; DeepSpeed leaves such folders, and the zero_to_fp32.py in it "
            "makes one file of it"
        )
    if not path.exists():
        raise WeightsError(f"{path} does not exist; checkpoints are the files iter_N.pth and best.pth of a work folder")
    content = load_pickle(path)
    if is_published_training(content):
        return _published_content(content, path, model_config)
    missing = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise WeightsError(f"{path}: not a checkpoint of vesselseg, it lacks {', '.join(missing)}")
    check_content(BuildSettings, content["model_config"], f"{path}, model_config")
    check_attention(content["model_config"].get("attention", "sdpa"))
    return content


def base_of(content: dict[str, Any], path: Path, base: str | None = None) -> str:
    """The base folder of a checkpoint; raises WeightsError, see `cached_folder`. base: named by the user instead."""
    if base is not None:
        return base
    named = str(content["model_config"]["base"])
    return named if content.get("published") else cached_folder(named, str(path))


def load_trainable(
    model: Sa2VA,
    state: dict[str, Tensor],
    source: str,
    *,
    required: Collection[str] | None = None,
    first_rows: Collection[str] = (),
) -> None:
    """Copy a checkpoint's tensors into a model; raises WeightsError, and copies nothing, if they do not match.

    required: names that must be present; default: all names in a checkpoint of this model. first_rows: tables of which
    the checkpoint contains only the first rows. Further entries of the model are loaded, too: those that differ from
    the base's are listed in `model.changed_by_load`, and so are part of later checkpoints.
    """
    targets = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    kept = checkpoint_state(model).keys()
    shapes = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(targets[name].shape)}"
        for name, tensor in state.items()
        if name in targets and _expected(targets[name], tensor, name in first_rows) != tuple(tensor.shape)
    ]
    missing = (kept if required is None else set(required)) - state.keys()
    unexpected = [name for name in state if name not in targets]
    raise_for_keys(source, missing=sorted(missing), unexpected=sorted(unexpected), misshapen=shapes)
    if _unties(model, state):  # the model has one entry more now
        targets = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    for name, tensor in state.items():
        target = targets[name][: len(tensor)] if name in first_rows else targets[name]
        if name not in kept:
            _note_change(model, name, target, tensor, source)
        target.copy_(tensor)


def load_checkpoint(model: Sa2VA, content: dict[str, Any], source: str) -> None:
    """Load a checkpoint of either kind (see `read_training_file`) into a model; raises WeightsError."""
    state, kind = checkpoint_tensors(model, content, source)
    load_trainable(model, state, source, **kind)


def checkpoint_tensors(
    model: Sa2VA, content: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Collection[str]]]:
    """A checkpoint's tensors under the model's names, and the further arguments of `load_trainable` for it."""
    if not content.get("published"):
        return content["state_dict"], {}
    state = published_to_ours(content["state_dict"], model, source)
    return state, {"required": required_names(model), "first_rows": (EMBEDDING, HEAD)}


def build_from_training_file(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    model_config: dict[str, Any] | None = None,
    quantise: str | None = None,
    layer_devices: Sequence[torch.device] = (),
) -> tuple[Sa2VA, dict[str, Any]]:
    """The trained model and the checkpoint's content.

    base: the base folder, if it has moved. model_config: see `read_training_file`. quantise, layer_devices: see
    `build_model`.
    """
    content = read_training_file(path, model_config)
    # A checkpoint that was trained on 4-bit weights is used with the base's full precision, unless `quantise` is given.
    arguments = {**content["model_config"], "gradient_checkpointing": False, "quantise": quantise}
    if len(layer_devices) > 1:
        arguments["fused"] = False  # it bypasses the hooks that move hidden states between GPUs
    arguments["base"] = base_of(content, path, base)
    for key in ("device", "dtype"):
        arguments.pop(key, None)
    if arguments.get("random_weights"):
        raise WeightsError(
            f"{path}: trained with random_weights=True; its frozen weights are not in any file, so it cannot be used; "
            "train from a base folder with weights"
        )
    model = build_model(**arguments, device=device, dtype=dtype, layer_devices=layer_devices)
    with torch.no_grad():
        load_checkpoint(model, content, str(path))
    model.config.threshold = float(content["threshold"])
    model.config.mask_temperature = 1.0  # the base folder's temperature was fitted to the base's own predictions
    model.config.add_training_images(content.get("training_images", ""))
    return model, content


def _published_content(content: dict[str, Any], path: Path, model_config: dict[str, Any] | None) -> dict[str, Any]:
    if model_config is None:
        raise WeightsError(
            f"{path}: a checkpoint of the published code, which holds no settings. Pass a config with its base folder, "
            "SAM2 file and LoRA alpha: vesselseg convert CONFIG CHECKPOINT --save-path OUT, or load_from "
            "in a config to train on"
        )
    meta = content["meta"] if isinstance(content.get("meta"), dict) else {}
    return {
        "published": True,
        "state_dict": state_dict_of(content, path),
        "model_config": model_config,
        "threshold": UNCHOSEN_THRESHOLD,
        "meta": {"iter": meta["iter"]} if isinstance(meta.get("iter"), int) else {},
    }


def _expected(target: Tensor, tensor: Tensor, first_rows: bool) -> tuple[int, ...]:
    return (min(len(target), len(tensor)), *target.shape[1:]) if first_rows else tuple(target.shape)


def _note_change(model: Sa2VA, name: str, target: Tensor, tensor: Tensor, source: str) -> None:
    changed = target != tensor.to(target)
    if not bool(changed.any()):
        return
    model.changed_by_load = (*model.changed_by_load, name)
    if name in (EMBEDDING, HEAD):
        rows = int(changed.any(dim=1).sum())
        logger.info("%s: %d of %d rows of the base's %s are changed and kept", source, rows, len(target), name)


def _unties(model: Sa2VA, state: dict[str, Tensor]) -> bool:
    """Separate the head from the embedding table if they are shared in the base and differ in the checkpoint."""
    embedding, head = model.language_model.get_input_embeddings(), model.language_model.get_output_embeddings()
    given = [state[name] for name in (EMBEDDING, HEAD) if name in state]
    if head.weight is not embedding.weight or not given or (len(given) == 2 and torch.equal(*given)):
        return False
    if hasattr(head.weight, "ds_id"):
        raise WeightsError(
            "embedding and head are one table in the base and two in the checkpoint, which ZeRO-3 cannot split; take a "
            "config with ZeRO-2"
        )
    head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=embedding.weight.requires_grad)
    model.config.llm_config["tie_word_embeddings"] = False
    return True
