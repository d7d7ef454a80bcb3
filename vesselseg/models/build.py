"""Build a Sa2VA from a base folder: construct it, load the weights, add adapters, choose what trains."""

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
from transformers.utils import is_flash_attn_2_available

from vesselseg.errors import UserError
from vesselseg.models.assemble import assemble
from vesselseg.models.checkpointing import layers_to_recompute, recompute_layers
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.checkpoints.load import Assign, Place, load_sam2_file, load_weights
from vesselseg.models.checkpoints.resolved_names import ATTENTION, shown
from vesselseg.models.checkpoints.shards import folder_names
from vesselseg.models.fused_decoder import FusedDecoder, wants_fused
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable
from vesselseg.models.quantised import KINDS, draw_weights, mark_for_quantising, require_quantising
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.split_layers import LayerSplit, split_layers
from vesselseg.models.vessel_head_options import read_options

logger = logging.getLogger(__name__)

# What an InternVL folder does not contain: random initial weights, or weights from SAM2's own file.
NOT_IN_INTERNVL = r"^(seg_projector|grounding)\."
# Mask heads by their names in `sam2`. A base folder may contain one; otherwise a new one starts with random weights.
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
    """Read a base folder and build the model that trains.

    base: folder of an InternVL or Sa2VA model, or its name on the hub.
    sam2: `variant`, `version`, `image_size`, `trunk` (sizes), one of `fine_masks` (a kind of `FineMasks`) and
    `vessel_head` (options of `VesselHead`), and `checkpoint`, a file of SAM2's; without one, SAM2 has random weights
    with an InternVL base, and the log says so. A base that contains SAM2 keeps it, with its sizes: only `image_size`
    and, if the base has no mask head, a mask head are read from this argument then.
    lora, trainable: fields of `Lora` and `Trainable`.
    max_tiles: InternVL tiles per image without the thumbnail, in training and prediction; None: the base's limit.
    gradient_checkpointing: True, False, or how many decoder layers, counted from the first, are recomputed in the
    backward pass. activations_on_host: keep the inputs of recomputed layers in main memory.
    quantise: None, `nf4` or, without adapters, `int8`: the frozen linear layers of the language model's blocks in 4 or
    8 bits (see `quantised`).
    fused: compute the adapted language model with `fused_decoder`: True, False or `auto` (on a GPU, weights not
    partitioned). embedding_on_host: keep the frozen embedding table in main memory; recorded in the model only, and
    done by `embedding_to_host` after all further weights are loaded.
    random_weights: read sizes and tokenizer from the folder, but no weights (for measuring memory and speed).
    layer_devices: GPUs that share the decoder layers, `device` first (see `split_layers`); none: all on `device`.
    construction, assign: for partitioned weights (ZeRO-3): context to construct the large parts in, and how to fill
    them.
    Raises WeightsError if folder, file and model do not match, UserError if settings contradict each other.
    """
    check_attention(attention)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    folder = read_base_folder(base)
    sam2_file = _settle_sam2(folder, sam2 or {}, random_weights)
    folder.config.max_dynamic_patch = min(max_tiles or folder.config.max_dynamic_patch, folder.config.max_dynamic_patch)
    trainable_parts, adapters = Trainable(**(trainable or {})), Lora(**(lora or {}))
    partitioned = construction is not None
    _check_quantise(quantise, trainable_parts, partitioned, device)
    # On the meta device, large parts need memory only as their weights are loaded: one tensor at a time, which may be
    # quantised or sent to its GPU at once. Random weights without these options are drawn by the constructors.
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
        # Partitioned weights need reentrant checkpoints, which would reduce gradients once per piece of the batch.
        model.grounding.vessel_head.at_once = None
    set_trainable(model, trainable_parts, adapters.modules_to_save)
    kind = model.language_model.config.model_type
    if trainable_parts.llm == "lora" and wants_fused(fused, torch.device(device), partitioned, kind):
        model.decoder = FusedDecoder(model.language_model.model, recomputed, activations_on_host)
    model.embedding_on_host = embedding_on_host
    return model


def check_attention(attention: Any) -> None:
    """Raise UserError for what transformers would look up on the hub: other names, and flash attention that is not
    installed.
    """
    if attention not in ATTENTION:
        raise UserError(f"model.sa2va.attention is {shown(attention)}; expected {', '.join(ATTENTION)}")
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.sa2va.attention='flash_attention_2' needs a GPU and the package flash-attn, which does not work "
            "here; install it or set model.sa2va.attention='sdpa'"
        )


def _construct(
    folder: BaseFolder, attention: str, empty: bool, construction: Callable[[], AbstractContextManager] | None
) -> Sa2VA:
    """The model before weights are loaded. empty: large parts are on the meta device, without memory."""
    with init_empty_weights(include_buffers=False) if empty else (construction or contextlib.nullcontext)():
        vision = build_vision_tower(folder.config, attention)
        language = build_language_model(folder.config, attention)
    model = assemble(folder.config, vision, language, folder.image_token_id)
    model.grounding.sam2.sam_prompt_encoder.pe_layer.float()  # positional encodings need float32
    return model


def _split(
    model: Sa2VA,
    layer_devices: Sequence[torch.device],
    device: torch.device | str,
    dtype: torch.dtype,
    quantise: str | None,
) -> LayerSplit:
    """The device of each decoder layer; no layers if one device has them all."""
    if len(layer_devices) < 2:
        return LayerSplit(torch.device(device), ())
    return split_layers(model.vision_model, model.language_model, layer_devices, dtype, quantise)


def _draw(model: Sa2VA, split: LayerSplit, dtype: torch.dtype) -> None:
    """Random weights for the large parts, which are on the meta device."""
    draw_weights(model.vision_model, lambda name: split.main, dtype)
    draw_weights(model.language_model, lambda name: split.place(f"language_model.{name}"), dtype)


def _recompute(model: Sa2VA, setting: bool | int, partitioned: bool, on_host: bool) -> int:
    """Set up the recomputation of decoder layers in the backward pass; returns their number."""
    recomputed = layers_to_recompute(setting, len(model.language_model.model.layers))
    if recomputed:
        # A non-reentrant checkpoint compares recomputed tensors with saved ones; partitioned weights are released then.
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
    """Construct in this type, on this device: SAM2's constructor does not work on the meta device."""
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
        settings["vessel_head"] = asdict(
            read_options(settings["vessel_head"])
        )  # with all defaults: a later version may change them
    _check_head(folder, settings)
    # With random weights the folder may consist of config.json and tokenizer, without any weight file.
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
        model.language_model.tie_weights()  # loading by name has made two copies of the shared table
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
    """The name in `HEADS` of the mask head in a base folder, or None."""
    grounding = folder.fields.get("grounding_config") or {}
    return next((name for name in HEADS if grounding.get(name) is not None), None)


def _check_head(folder: BaseFolder, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a base folder contains another mask head than the requested one."""
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
    """Whether two heads have the same weights' shapes."""
    if name == "fine_masks":
        return bool(kept == asked)
    return read_options(kept).shape() == read_options(asked).shape()


def _holds_sam2(folder: BaseFolder) -> bool:
    return folder.layout == "sa2va" and any(name.startswith("grounding_encoder.") for name in folder_names(folder.path))
