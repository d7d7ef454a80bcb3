"""Training checkpoints `iter_N.pth` of the published code -> our names.

mmengine's file contains `state_dict`: adapters of every linear layer of the language model, whole tables of embedding
and head (the rows of the five new tokens last), `mlp1`, the mask decoder and `text_hidden_fcs`. Everything else is read
from the base folder and SAM2's own file. The file does not contain the adapters' alpha: a config must set it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.load import raise_for_keys
from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD, to_ours
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sa2va_config import Sa2VAConfig

logger = logging.getLogger(__name__)

_MLLM = "mllm.model."
_WRAPPING = re.compile(r"base_model\.model\.|base_layer\.|modules_to_save\.default\.")
_ADAPTER = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.weight$")
_UNUSED = re.compile(r"\.original_module\.")  # peft's copy of a table before training
NEW_ROWS = {EMBEDDING: "new_tokens.embedding", HEAD: "new_tokens.head"}


def is_published_training(content: Any) -> bool:
    """Whether a file's content is a training checkpoint of the published code, judged by its keys."""
    state = content.get("state_dict") if isinstance(content, dict) else None
    return isinstance(state, dict) and any(str(name).startswith(_MLLM) for name in state)


def published_to_ours(state: dict[str, Tensor], model: Sa2VA, source: str) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names.

    Tables are returned without the new tokens' rows, which have entries of their own, and without padding after them.
    Raises WeightsError if tables, adapters or SAM2 do not match the model.
    """
    _check_adapters(state, model, source)
    if "grounding." in model.randomly_initialised:
        raise WeightsError(
            f"{source}: holds SAM2's mask decoder only, and neither base folder nor sam2.checkpoint gives the rest; "
            "set model.sa2va.sam2.checkpoint to the file that it was trained with, e.g. weights/sam2_hiera_large.pt"
        )
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not _UNUSED.search(name):
            ours.update(_renamed(name, tensor, model.config))
    for table, rows in NEW_ROWS.items():
        if table in ours:
            ours[table], ours[rows] = _split_table(table, ours[table], model, source)
    return ours


def required_names(model: Sa2VA) -> set[str]:
    """Names that such a checkpoint must contain. `mlp1` may be missing if it was frozen: the base contains it."""
    wanted = ("seg_projector.", "grounding.sam2.sam_mask_decoder.")
    names = {name for name in model.state_dict() if "lora_" in name or name.startswith(wanted)}
    return names | set(NEW_ROWS.values())


def _renamed(name: str, tensor: Tensor, config: Sa2VAConfig) -> Iterator[tuple[str, Tensor]]:
    plain = _WRAPPING.sub("", name.removeprefix(_MLLM))
    adapter = _ADAPTER.match(plain)
    if adapter is None:
        yield from to_ours(plain, tensor, config)
        return
    layer, letter = adapter.groups()
    if letter == "A":  # a fused projection has one A for all of its parts
        pieces = ((target, tensor) for target in _targets(layer, config))
    else:
        pieces = ((ours, piece) for ours, piece in to_ours(f"{layer}.weight", tensor, config))
    for target, piece in pieces:
        yield f"{target.removesuffix('.weight')}.lora_{letter}.default.weight", piece


def _targets(layer: str, config: Sa2VAConfig) -> list[str]:
    if layer.endswith(".attention.wqkv"):
        owner = layer.removesuffix("attention.wqkv")
        return [f"{owner}self_attn.{part}_proj.weight" for part in "qkv"]
    return [name for name, _ in to_ours(f"{layer}.weight", Tensor(), config)]


def _check_adapters(state: dict[str, Tensor], model: Sa2VA, source: str) -> None:
    ranks = {len(value) for name, value in state.items() if ".lora_A." in name}
    own = {
        module.r["default"]: module.lora_alpha["default"]  # type: ignore[index]
        for module in model.language_model.modules()
        if hasattr(module, "lora_alpha")
    }
    rank = max(ranks, default=0)
    if ranks and set(own) != ranks:
        found = f"lora.r = {next(iter(own))}" if own else "no adapters"
        raise WeightsError(
            f"{source}: its adapters have rank {', '.join(map(str, sorted(ranks)))}, the model has {found}; set "
            f'model.sa2va.trainable.llm="lora", model.sa2va.lora.r={rank} and the alpha that it was trained with'
        )
    for r, alpha in own.items():
        logger.info("%s does not hold LoRA's alpha: %g from the config is used (scale %g)", source, alpha, alpha / r)


def _split_table(name: str, table: Tensor, model: Sa2VA, source: str) -> tuple[Tensor, Tensor]:
    start, count = model.new_tokens.start, model.new_tokens.count
    rows = (start + count, max(start + count, int(model.config.llm_config["vocab_size"])))
    if len(table) not in rows:
        found = f"{name} is {tuple(table.shape)}, expected {rows[0]} rows ({start} of the base and {count} new ones)"
        raise_for_keys(source, misshapen=[found])
    return table[:start], table[start : start + count]
