"""Inspect a weight file or folder: its kind, the sizes of its parts, and what vesselseg can use it for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.checkpoints.hub import local_folder
from vesselseg.models.checkpoints.load import raise_for_keys
from vesselseg.models.checkpoints.pickles import load_pickle, state_dict_of
from vesselseg.models.checkpoints.published_layout import HEAD
from vesselseg.models.checkpoints.published_training import is_published_training
from vesselseg.models.checkpoints.shards import stream_headers, weight_files
from vesselseg.models.checkpoints.training_file import read_training_file
from vesselseg.models.internvl import TileProjector, build_language_model, build_vision_tower
from vesselseg.models.lora import PARTS
from vesselseg.models.sam2_grounding import SAM2Grounding, build_sam2
from vesselseg.models.seg_projector import SegProjector

SAM2_FILE, OURS, PUBLISHED = (
    "SAM2 file",
    "training checkpoint of vesselseg",
    "training checkpoint of the published code",
)
FOLDERS = {
    "internvl": "InternVL folder, published layout",
    "internvl_hf": "InternVL folder, transformers' layout",
    "sa2va": "Sa2VA folder",
}
_TRUNKS = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}  # (width, blocks)


@dataclass(frozen=True)
class Inspection:
    """What is known of a weight file or folder. Texts are for people; `details` has the values for programs."""

    path: str
    kind: str
    """layout of the folder or kind of the file"""
    family: str
    """which model the weights are of"""
    files: int
    size: int
    """bytes on disk"""
    dtypes: dict[str, int]
    """number of parameters by type"""
    parameters: dict[str, int]
    """number of parameters by part of the model"""
    new_tokens: str
    """whether it contains rows for the new tokens"""
    use: str
    """what it can be used for, with commands and settings"""
    problem: str = ""
    """why it cannot be used; empty if it can"""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())


def inspect(path: str | Path) -> Inspection:
    """Inspect a folder, a repository of the hub or a file; raises WeightsError if it cannot be read."""
    place = local_folder(path)
    if place.is_dir():
        return _folder(read_base_folder(place), str(path))
    if not place.exists():
        raise WeightsError(f"{path} does not exist; name a model folder, a repository of the hub or a .pt or .pth file")
    content = load_pickle(place)
    if is_published_training(content):
        return _published(place, read_training_file(place, model_config={}))
    if isinstance(content, dict) and "model_config" in content:
        return _ours(place, read_training_file(place))
    state = state_dict_of(content, place)
    if "image_encoder.trunk.patch_embed.proj.weight" in state:
        return _sam2(place, state)
    raise WeightsError(
        f"{place}: neither a SAM2 file nor a training checkpoint; its first keys are {', '.join(list(state)[:5])}"
    )


def _folder(folder: BaseFolder, named: str) -> Inspection:
    headers = list(stream_headers(folder.path))
    tensors = [pair for pair in folder.stream(iter(headers)) if not pair[0].startswith("new_tokens.")]
    files = weight_files(folder.path)
    holds_sam2 = any(name.startswith("grounding.") for name, _ in tensors)
    text, vision = folder.config.llm_config, folder.config.vision_config
    tied = folder.config.text().tie_word_embeddings
    return Inspection(
        path=named,
        kind=FOLDERS[folder.layout] + (", written by vesselseg" if "threshold" in folder.fields else ""),
        family=f"{text['model_type']}, {text['num_hidden_layers']} layers of {text['hidden_size']}; "
        f"InternViT, {vision['num_hidden_layers']} layers of {vision['hidden_size']}",
        files=len(files),
        size=sum(file.stat().st_size for file in files),
        dtypes=_dtypes(tensor for _, tensor in headers),
        parameters=_by_part({name: value for name, value in tensors if not (tied and name == HEAD)}),
        new_tokens="in vocabulary and tables" if folder.has_new_tokens else "none; added when training starts",
        use=_use_of_folder(folder.layout, holds_sam2),
        problem=_problem(lambda: _check(folder, dict(tensors), holds_sam2)),
        details={"vocabulary": len(folder.tokenizer), "tokens_per_tile": folder.config.tokens_per_tile},
    )


def _use_of_folder(layout: str, holds_sam2: bool) -> str:
    if layout == "sa2va" and holds_sam2:
        return "predicts as it is (vesselseg eval); trains on as model.sa2va.base or load_from, with the SAM2 in it"
    if layout == "sa2va":
        return "trains on as model.sa2va.base, with SAM2 from model.sa2va.sam2.checkpoint: it holds none"
    return (
        "a base to train from (model.sa2va.base): new tokens and seg projector start with new weights, SAM2 is read "
        "from model.sa2va.sam2.checkpoint"
    )


def _check(folder: BaseFolder, found: dict[str, Tensor], holds_sam2: bool) -> None:
    """Raise WeightsError if names or shapes differ from the model that config.json describes."""
    config = folder.config
    hidden = int(config.llm_config["hidden_size"])
    with init_empty_weights():
        parts: dict[str, torch.nn.Module] = {
            "vision_model": build_vision_tower(config, "sdpa"),
            "projector": TileProjector(int(config.vision_config["hidden_size"]), hidden, config.downsample_ratio),
            "language_model": build_language_model(config, "sdpa"),
        }
        if folder.layout == "sa2va":
            parts["seg_projector"] = SegProjector(hidden)
    if holds_sam2 and "grounding_config" not in folder.fields and not _is_large(found):
        # The folder does not say which sizes another SAM2 trunk has; only the rest is checked.
        found = {name: tensor for name, tensor in found.items() if not name.startswith("grounding.")}
    elif holds_sam2:
        parts["grounding"] = SAM2Grounding(config.grounding_config)
    expected = {
        f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
    }
    _compare(expected, found, str(folder.path))


def _is_large(found: dict[str, Tensor]) -> bool:
    prefix = "grounding.sam2."
    return _variant({n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}) == "large"


def _sam2(path: Path, state: dict[str, Tensor]) -> Inspection:
    variant, version = _variant(state), "2.1" if "no_obj_embed_spatial" in state else "2.0"
    settings = {"variant": variant, "version": version, "image_size": 1024}
    return _file(
        path,
        SAM2_FILE,
        state,
        family=f"SAM {version} {variant or 'of an unknown size'}",
        parameters={"SAM2": sum(tensor.numel() for tensor in state.values())},
        new_tokens="does not apply",
        use=f"model.sa2va.sam2.checkpoint, with variant {variant or 'unknown'} and version {version}",
        details={"variant": variant, "version": version},
        problem=_problem(lambda: _compare(build_sam2(settings).state_dict(), state, str(path)))
        if variant
        else "its image encoder has none of the published sizes; give them as model.sa2va.sam2.trunk",
    )


def _variant(state: dict[str, Tensor]) -> str:
    trunk = "image_encoder.trunk."
    blocks = {name.split(".")[3] for name in state if name.startswith(f"{trunk}blocks.")}
    return _TRUNKS.get((len(state[f"{trunk}patch_embed.proj.weight"]), len(blocks)), "")


def _ours(path: Path, content: dict[str, Any]) -> Inspection:
    arguments, meta = content["model_config"], content.get("meta", {})
    lora = arguments.get("lora") or {}
    return _file(
        path,
        OURS,
        content["state_dict"],
        family=f"trained on {arguments['base']}",
        new_tokens="in it, as rows of their own",
        use="with its base folder: predicts (vesselseg eval), exports (vesselseg convert), trains on (load_from)",
        details={
            "base": str(arguments["base"]),
            "lora": {name: lora[name] for name in ("r", "alpha") if name in lora},
            "iteration": meta.get("iter"),
            "validation_dice": meta.get("best_dice"),
            "threshold": content["threshold"],
            "data_fingerprint": content.get("data_fingerprint"),
        },
    )


def _published(path: Path, content: dict[str, Any]) -> Inspection:
    state = content["state_dict"]
    ranks = sorted({len(tensor) for name, tensor in state.items() if ".lora_A." in name})
    tables = [tensor for name, tensor in state.items() if "modules_to_save" in name]
    rows = f"the last 5 of {len(tables[0])} rows of its tables" if tables else "no tables in it"
    return _file(
        path,
        PUBLISHED,
        state,
        family=f"adapters of rank {', '.join(map(str, ranks)) or 'none'}; hidden size "
        f"{tables[0].shape[1] if tables else 'unknown'}",
        new_tokens=rows,
        use="vesselseg convert CONFIG FILE, or load_from; the config gives base folder, SAM2 file and LoRA alpha",
        details={"lora": {"r": ranks[-1] if ranks else None, "alpha": None}, "iteration": content["meta"].get("iter")},
    )


def _file(path: Path, kind: str, state: dict[str, Tensor], **fields: Any) -> Inspection:
    fields.setdefault("parameters", _by_part(state))
    return Inspection(
        path=str(path), kind=kind, files=1, size=path.stat().st_size, dtypes=_dtypes(state.values()), **fields
    )


def _by_part(state: dict[str, Tensor]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, tensor in state.items():
        counts[_part(name)] += tensor.numel()
    return {part: counts[part] for part in (*dict(PARTS), "other") if counts[part]}


def _part(name: str) -> str:
    renames = (("mllm.model.mlp1.", "projector."), ("text_hidden_fcs.", "seg_projector."), ("mllm.model.", ""))
    for old, new in (*renames, ("grounding_encoder.sam2_model.", "grounding.sam2.")):
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    return next((part for part, mark in PARTS if mark in name and (mark == "lora_" or name.startswith(mark))), "other")


def _dtypes(tensors: Iterable[Tensor]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[str(tensor.dtype).removeprefix("torch.")] += math.prod(tensor.shape)
    return dict(counts)


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    raise_for_keys(
        source,
        missing=[name for name in expected if name not in found],
        unexpected=[name for name in found if name not in expected],
        misshapen=[
            f"{name} is {tuple(found[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in found and found[name].shape != value.shape
        ],
    )


def _problem(check: Any) -> str:
    try:
        check()
    except WeightsError as error:
        return str(error)
    return ""
