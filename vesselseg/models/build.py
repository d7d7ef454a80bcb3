"""Build a Sa2VA from a base folder: the shapes, the weights, the adapters, and what of it trains."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from vesselseg.errors import UserError
from vesselseg.models.assemble import assemble
from vesselseg.models.checkpointing import layers_to_recompute, recompute_layers
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.checkpoints.load import Assign, Place, load_sam2_file, load_weights
from vesselseg.models.checkpoints.shards import folder_names
from vesselseg.models.fused_decoder import FusedDecoder, wants_fused
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable
from vesselseg.models.quantised import KINDS, draw_weights, mark_for_quantising, require_quantising
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.split_layers import LayerSplit, split_layers
from vesselseg.models.vessel_head_options import read_options

logger = logging.getLogger(__name__)

# What an InternVL folder does not hold: it starts fresh, or comes from SAM2's own file.
NOT_IN_INTERNVL = r"^(seg_projector|grounding)\."
# Parts beside SAM2, by their names in `sam2`: a base folder may hold one, and gets a fresh one where it does not.
HEADS = {"fine_masks": "grounding.fine_masks.", "vessel_head": "grounding.vessel_head."}


def build_model(
    base: str,
    sam2: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    trainable: dict[str, Any] | None = None,
    *,
    max_tiles: int | None = None,
    gradient_checkpointing: bool | int = False,
    activations_on_host: bool = False,
    quantise: str | None = None,
    attention: str = "sdpa",  # transformers' implementation: sdpa, eager or flash_attention_2
    fused: bool | str = "auto",
    embedding_on_host: bool = False,
    random_weights: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "float32",
    layer_devices: Sequence[torch.device] = (),
    construction: Callable[[], AbstractContextManager] | None = None,
    assign: Assign | None = None,
) -> Sa2VA:
    """Read a base folder and make the model that trains.

    base: folder of an InternVL or Sa2VA model, or its name on the hub.
    sam2: `variant`, `version`, `image_size`, `trunk` (sizes), one of `fine_masks` (a kind of `FineMasks`) and
    `vessel_head` (options of `VesselHead`), and `checkpoint`, a file of SAM2's; without one, an InternVL base gets a
    SAM2 with random weights, and says so. A base that holds a SAM2 of its own keeps it, with its sizes: only
    `image_size` and, where it holds none, a head are taken then.
    lora, trainable: fields of `Lora` and `Trainable`.
    max_tiles: InternVL tiles per image without the thumbnail, in training and prediction alike; None: the base's limit.
    gradient_checkpointing: True, False, or how many decoder layers, from the first on, are recomputed in the backward
    pass. activations_on_host: what these keep waits in main memory.
    quantise: None, `nf4` or, without adapters, `int8`: the frozen linear layers of the language model's blocks in 4 or
    8 bits (see `quantised`).
    fused: compute the adapted language model with `fused_decoder`: True, False or `auto` (on a GPU, weights not
    partitioned). embedding_on_host: wish that the frozen embedding table goes to main memory (`embedding_to_host`),
    which whoever loads further weights does afterwards.
    random_weights: take shapes and tokenizer from the folder and no weights (for measuring memory and speed).
    layer_devices: GPUs that share the decoder layers, `device` first (see `split_layers`); none: all on `device`.
    construction, assign: for partitioned weights (ZeRO-3): context to construct the big parts in, and how to fill them.
    Raises WeightsError where folder, file and model do not fit, UserError where settings do not go together.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    folder = read_base_folder(base)
    sam2_file = _settle_sam2(folder, sam2 or {}, random_weights)
    folder.config.max_dynamic_patch = min(max_tiles or folder.config.max_dynamic_patch, folder.config.max_dynamic_patch)
    trainable_parts, adapters = Trainable(**(trainable or {})), Lora(**(lora or {}))
    partitioned = construction is not None
    _check_quantise(quantise, trainable_parts, partitioned, device)
    empty = not partitioned and (not random_weights or quantise is not None or bool(layer_devices))
    with _place(device, dtype):
        model = _construct(folder, attention, empty, construction)
    split = _split(model, layer_devices, device, dtype, quantise)
    if quantise:
        mark_for_quantising(model.language_model, quantise)
    if not random_weights:
        _load(model, folder, sam2_file, split.place, dtype, assign)
    elif empty:
        _draw(model, split, dtype)
    if split.layers:
        split.connect(model.language_model.model)
    if trainable_parts.llm == "lora":
        attach_lora(model, adapters)
    recomputed = _recompute(model, gradient_checkpointing, partitioned, activations_on_host)
    if partitioned and model.grounding.vessel_head is not None:
        # Reentrant checkpoints, which partitioned weights need, would reduce a gradient once for every few images.
        model.grounding.vessel_head.at_once = None
    set_trainable(model, trainable_parts, adapters.modules_to_save)
    kind = model.language_model.config.model_type
    if trainable_parts.llm == "lora" and wants_fused(fused, torch.device(device), partitioned, kind):
        model.decoder = FusedDecoder(model.language_model.model, recomputed, activations_on_host)
    model.embedding_on_host = embedding_on_host
    return model


def _construct(
    folder: BaseFolder, attention: str, empty: bool, construction: Callable[[], AbstractContextManager] | None
) -> Sa2VA:
    """empty: the big parts on the meta device, without memory, until they are filled."""
    with init_empty_weights(include_buffers=False) if empty else (construction or contextlib.nullcontext)():
        vision = build_vision_tower(folder.config, attention)
        language = build_language_model(folder.config, attention)
    model = assemble(folder.config, vision, language, folder.image_token_id)
    model.grounding.sam2.sam_prompt_encoder.pe_layer.float()  # positions are computed in float32
    return model


def _split(
    model: Sa2VA,
    layer_devices: Sequence[torch.device],
    device: torch.device | str,
    dtype: torch.dtype,
    quantise: str | None,
) -> LayerSplit:
    """Where each decoder layer lies; no layers where one device has them all."""
    if len(layer_devices) < 2:
        return LayerSplit(torch.device(device), ())
    return split_layers(model.vision_model, model.language_model, layer_devices, dtype, quantise)


def _draw(model: Sa2VA, split: LayerSplit, dtype: torch.dtype) -> None:
    """Random weights for the big parts on the meta device."""
    draw_weights(model.vision_model, lambda name: split.main, dtype)
    draw_weights(model.language_model, lambda name: split.place(f"language_model.{name}"), dtype)


def _recompute(model: Sa2VA, setting: bool | int, partitioned: bool, on_host: bool) -> int:
    """Returns how many decoder layers are computed again in the backward pass."""
    recomputed = layers_to_recompute(setting, len(model.language_model.model.layers))
    if recomputed:
        # Partitioned weights are gone when a non-reentrant checkpoint compares what it recomputes with what it saved.
        recompute_layers(model.language_model, recomputed, reentrant=partitioned, on_host=on_host)
    return recomputed


def _check_quantise(
    quantise: str | None, trainable_parts: Trainable, partitioned: bool, device: torch.device | str
) -> None:
    if quantise not in KINDS:
        raise UserError(f"model.sa2va.quantise is {quantise!r}; expected None, 'nf4' or, for predicting, 'int8'")
    if quantise == "int8" and trainable_parts.llm != "frozen":
        raise UserError(
            "weights in 8 bits are for predicting with an exported folder (vesselseg convert makes one of a "
            "checkpoint); with adapters take 'nf4'"
        )
    if quantise and partitioned:
        raise UserError('model.sa2va.quantise="nf4" does not work with partitioned weights (ZeRO-3); take ZeRO-2')
    if quantise and trainable_parts.llm == "full":
        raise UserError(
            'weights in 4 bits cannot train: set model.sa2va.trainable.llm="lora" or model.sa2va.quantise=None'
        )
    if quantise == "nf4":
        require_quantising(device)


@contextlib.contextmanager
def _place(device: torch.device | str, dtype: torch.dtype) -> Any:
    """Construct in this type; SAM2's constructor needs a real device, so everything small is made on the target."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _settle_sam2(folder: BaseFolder, sam2: dict[str, Any], random_weights: bool) -> str | None:
    """Put SAM2's sizes into the folder's config; returns the file that its weights come from, if any."""
    settings = {name: value for name, value in sam2.items() if name != "checkpoint" and value is not None}
    if "vessel_head" in settings:
        settings["vessel_head"] = asdict(read_options(settings["vessel_head"]))  # whole: defaults may change
    _check_head(folder, settings)
    # With random weights the folder may be a config.json and a tokenizer, without a file to look into.
    own = folder.layout == "sa2va" if random_weights else _holds_sam2(folder)
    if not own:
        folder.config.grounding_config = {**folder.config.grounding_config, **settings}
        return sam2.get("checkpoint")
    if "grounding_config" in folder.fields:
        settings = {name: value for name, value in settings.items() if name in ("image_size", *HEADS)}
    folder.config.grounding_config = {**folder.config.grounding_config, **settings}
    if sam2.get("checkpoint"):
        logger.info("%s holds a SAM2 of its own: sam2.checkpoint is not read", folder.path)
    return None


def _load(
    model: Sa2VA,
    folder: BaseFolder,
    sam2_file: str | None,
    device: Place,
    dtype: torch.dtype,
    assign: Assign | None,
) -> None:
    holds_masks = _holds_sam2(folder)
    may_miss = r"^grounding\." if folder.layout == "sa2va" else NOT_IN_INTERNVL
    if holds_masks:
        may_miss = "" if own_head(folder) else "^(" + "|".join(map(re.escape, HEADS.values())) + ")"
    load_weights(
        model,
        folder.stream(),
        str(folder.path),
        may_miss=may_miss,
        device=device,
        dtype=dtype,
        assign=assign,
    )
    if folder.config.text().tie_word_embeddings:
        model.language_model.tie_weights()  # filled name by name, embedding and head are two copies of one table
    if folder.layout != "sa2va":
        model.randomly_initialised += ("seg_projector.", "new_tokens.")
    if sam2_file:
        load_sam2_file(model.grounding.sam2, Path(sam2_file))
    elif not holds_masks:
        model.randomly_initialised += ("grounding.",)
    if not own_head(folder):
        fresh = [prefix for name, prefix in HEADS.items() if getattr(model.grounding, name) is not None]
        model.randomly_initialised += tuple(fresh)


def own_head(folder: BaseFolder) -> str | None:
    """The name in `HEADS` of what a base folder holds beside SAM2."""
    grounding = folder.fields.get("grounding_config") or {}
    return next((name for name in HEADS if grounding.get(name) is not None), None)


def _check_head(folder: BaseFolder, settings: Mapping[str, Any]) -> None:
    """Raise UserError where a base folder holds another head than the one that is asked for."""
    own, asked = own_head(folder), next((name for name in HEADS if name in settings), None)
    if own is None or asked is None:
        return
    kept = folder.fields["grounding_config"][own]
    if own == asked and _same_head(own, kept, settings[asked]):
        return
    words = {"fine_masks": "fine masks of kind", "vessel_head": "a vessel head of"}
    raise UserError(
        f"{folder.path} holds {words[own]} {kept!r}, and model.sa2va.sam2.{asked} is {settings[asked]!r}; "
        "leave it at None, which keeps what the base holds"
    )


def _same_head(name: str, kept: Any, asked: Any) -> bool:
    """Whether the weights of one are those of the other."""
    if name == "fine_masks":
        return bool(kept == asked)
    return read_options(kept).shape() == read_options(asked).shape()


def _holds_sam2(folder: BaseFolder) -> bool:
    return folder.layout == "sa2va" and any(name.startswith("grounding_encoder.") for name in folder_names(folder.path))
