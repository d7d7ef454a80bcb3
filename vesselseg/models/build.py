"""Build a Sa2VA from a base folder: the shapes, the weights, the adapters, and what of it trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from vesselseg.models.assemble import assemble
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.checkpoints.load import Assign, load_sam2_file, load_weights
from vesselseg.models.checkpoints.shards import folder_names
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable
from vesselseg.models.sa2va import Sa2VA

logger = logging.getLogger(__name__)

# What an InternVL folder does not hold: it starts fresh, or comes from SAM2's own file.
NOT_IN_INTERNVL = r"^(seg_projector|grounding)\."


def build_model(
    base: str,
    sam2: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    trainable: dict[str, Any] | None = None,
    *,
    max_tiles: int | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
    random_weights: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "float32",
    construction: Callable[[], AbstractContextManager] | None = None,
    assign: Assign | None = None,
) -> Sa2VA:
    """Read a base folder and make the model that trains.

    base: folder of an InternVL or Sa2VA model, or its name on the hub.
    sam2: `variant`, `version`, `image_size`, `trunk` (sizes), and `checkpoint`, a file of SAM2's; without one, an
    InternVL base gets a SAM2 with random weights, and says so. A base that holds a SAM2 of its own keeps it, with its
    sizes: only `image_size` is taken then.
    lora, trainable: fields of `Lora` and `Trainable`.
    max_tiles: InternVL tiles per image without the thumbnail, in training and prediction alike; None: the base's limit.
    random_weights: take shapes and tokenizer from the folder and no weights (for measuring memory and speed).
    construction, assign: for partitioned weights (ZeRO-3): context to construct the big parts in, and how to fill them.
    Raises WeightsError where folder, file and model do not fit.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    folder = read_base_folder(base)
    sam2_file = _settle_sam2(folder, sam2 or {})
    folder.config.max_dynamic_patch = min(max_tiles or folder.config.max_dynamic_patch, folder.config.max_dynamic_patch)
    switches = Trainable(**(trainable or {}))
    empty = construction is None and not random_weights
    with _place(device, dtype):
        with init_empty_weights(include_buffers=False) if empty else (construction or contextlib.nullcontext)():
            vision = build_vision_tower(folder.config, attention)
            language = build_language_model(folder.config, attention)
        model = assemble(folder.config, vision, language, folder.image_token_id)
    model.grounding.sam2.sam_prompt_encoder.pe_layer.float()  # positions are computed in float32
    if not random_weights:
        _load(model, folder, sam2_file, device, dtype, assign)
    if switches.llm == "lora":
        attach_lora(model, Lora(**(lora or {})))
    if gradient_checkpointing:
        # Partitioned weights are gone when a non-reentrant checkpoint compares what it recomputes with what it saved.
        reentrant = construction is not None
        language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    set_trainable(model, switches)
    return model


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


def _settle_sam2(folder: BaseFolder, sam2: dict[str, Any]) -> str | None:
    """Put SAM2's sizes into the folder's config; returns the file that its weights come from, if any."""
    settings = {name: value for name, value in sam2.items() if name != "checkpoint"}
    if not _holds_sam2(folder):
        folder.config.grounding_config = {**folder.config.grounding_config, **settings}
        return sam2.get("checkpoint")
    if "grounding_config" in folder.fields:
        settings = {name: value for name, value in settings.items() if name == "image_size"}
    folder.config.grounding_config = {**folder.config.grounding_config, **settings}
    if sam2.get("checkpoint"):
        logger.info("%s holds a SAM2 of its own: sam2.checkpoint is not read", folder.path)
    return None


def _load(
    model: Sa2VA,
    folder: BaseFolder,
    sam2_file: str | None,
    device: torch.device | str,
    dtype: torch.dtype,
    assign: Assign | None,
) -> None:
    holds_masks = _holds_sam2(folder)
    load_weights(
        model,
        folder.stream(),
        str(folder.path),
        may_miss="" if holds_masks else NOT_IN_INTERNVL if folder.layout != "sa2va" else r"^grounding\.",
        device=device,
        dtype=dtype,
        assign=assign,
    )
    if folder.config.text().tie_word_embeddings:
        model.language_model.tie_weights()  # filled name by name, embedding and head are two copies of one table
    if folder.layout != "sa2va":
        model.drawn_at_random += ("seg_projector.", "new_tokens.")
    if sam2_file:
        load_sam2_file(model.grounding.sam2, Path(sam2_file))
    elif not holds_masks:
        model.drawn_at_random += ("grounding.",)


def _holds_sam2(folder: BaseFolder) -> bool:
    return folder.layout == "sa2va" and any(name.startswith("grounding_encoder.") for name in folder_names(folder.path))
