"""Write a Sa2VA folder in the published layout: config.json, safetensors shards, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vesselseg.dataset.prompts import chat_template
from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD, join, published_sources
from vesselseg.models.checkpoints.resolved_names import holds_text, without_dropped
from vesselseg.models.checkpoints.tokenizer_writing import save_tokenizer
from vesselseg.models.merging import MergedState
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sa2va_config import LANGUAGE_FIELDS, Sa2VAConfig

SHARD_BYTES = 5_000_000_000
# Classes by llm_config.model_type; InternLM2's is published with the weights, not part of transformers.
ARCHITECTURES = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "internlm2": "InternLM2ForCausalLM"}

# Names whose texts and objects are kept from a base's config.json; `resolved_names` has checked those that mean code.
KEPT = {
    *LANGUAGE_FIELDS,
    "architectures",
    "model_type",
    "attn_implementation",
    "norm_type",
    "dtype",
    "torch_dtype",
    "ps_version",
    "template",
    "transformers_version",
}


@dataclass(frozen=True)
class Piece:
    """One tensor of the folder: its published name, our names of its parts, its type and size."""

    name: str
    sources: tuple[str, ...]
    dtype: torch.dtype
    bytes: int


def write_published_folder(
    model: Sa2VA,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    dtype: torch.dtype,
    extra: dict[str, Any],
    kept: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model, its adapters merged, one shard in memory at a time. The folder must exist.

    dtype: of the weights. Buffers that a cast would change (SAM2's position matrix, drawn in float32) keep their type;
    readers of such folders cast to the requested type anyway.
    tokenizer: None if it is written elsewhere. extra: further entries of config.json. kept: fields of the base's
    config.json, which are kept unless ours replace them. state: replaces the model's state dict if its weights are
    partitioned.
    """
    entries = MergedState(model, state)
    shards = plan_shards(published_pieces(model, dtype, entries), shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards):
        save_file(dict(_tensors(model, entries, shard)), str(folder / name), metadata={"format": "pt"})
        (folder / name).chmod(0o644)
    if len(shards) > 1:
        _write_json(folder / "model.safetensors.index.json", _index(names, shards))
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    content = _kept(kept or {})
    content |= config_content(model.config, published_rows(model), dtype)
    _write_json(folder / "config.json", {**content, "image_token_id": model.image_token_id, **extra})


def published_state(model: Sa2VA, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole state of a small model under published names, with the new tokens' rows in the tables."""
    entries = MergedState(model)
    return dict(_tensors(model, entries, published_pieces(model, dtype, entries)))


def published_pieces(model: Sa2VA, dtype: torch.dtype, entries: MergedState | None = None) -> list[Piece]:
    """The tensors of the folder, in the model's order; reads no weights, only buffers."""
    entries = MergedState(model) if entries is None else entries
    buffers = {name for name, _ in model.named_buffers()}
    names = [name for name in entries if not name.startswith("new_tokens.")]
    pieces = []
    for name, sources in published_sources(names, model.config).items():
        elements = sum(entries.plain(source).numel() for source in sources)
        if sources[0] in (EMBEDDING, HEAD):
            elements = published_rows(model) * entries.plain(sources[0]).shape[1]
        stored = dtype
        if sources[0] in buffers and _changes(entries.plain(sources[0]), dtype):
            stored = entries.plain(sources[0]).dtype
        pieces.append(Piece(name, sources, stored, elements * stored.itemsize))
    return pieces


def plan_shards(pieces: list[Piece], limit: int) -> list[list[Piece]]:
    """Distribute pieces over shards, in order, each of at most `limit` bytes unless one piece is larger."""
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.bytes
    return shards


def put_rows(table: Tensor, rows: Tensor, start: int) -> Tensor:
    """The table with `rows` at `start`, extended if they reach past its end; rows after them are kept."""
    return torch.cat([table[:start], rows, table[start + len(rows) :]])


def published_rows(model: Sa2VA) -> int:
    """Number of rows of the written tables."""
    return max(int(model.config.llm_config["vocab_size"]), model.new_tokens.start + model.new_tokens.count)


def config_content(config: Sa2VAConfig, vocabulary: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json in the published fields."""
    llm = {**_kept(config.llm_config), "vocab_size": vocabulary, "tie_word_embeddings": False}
    llm["architectures"] = llm.get("architectures") or [ARCHITECTURES[llm["model_type"]]]
    vision = {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", **_kept(config.vision_config)}
    return {
        "architectures": ["VesselSegModel"],
        "model_type": config.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "hidden_size": llm["hidden_size"],
        "llm_config": llm,
        "vision_config": vision,
        "grounding_config": config.grounding_config,
        "template": _template(config),
        "force_image_size": config.force_image_size,
        "dynamic_image_size": config.dynamic_image_size,
        "min_dynamic_patch": config.min_dynamic_patch,
        "max_dynamic_patch": config.max_dynamic_patch,
        "use_thumbnail": config.use_thumbnail,
        "downsample_ratio": config.downsample_ratio,
        "ps_version": "v2",
        "select_layer": -1,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": False,
        "new_token_start": config.new_token_start,
        "threshold": config.threshold,
        "mask_temperature": config.mask_temperature,
        "default_phrase": config.default_phrase,
        "training_loss": config.training_loss,
        "training_images": config.training_images,
    }


def _kept(part: dict[str, Any]) -> dict[str, Any]:
    """The entries of an object in the base's config.json that go into the new one: known names, and unknown numbers.

    A text under a name that this version does not know could name code for a later transformers.
    """
    names = [name for name in part if name.isidentifier() and name not in ("self", "cls")]
    return without_dropped({name: part[name] for name in names if name in KEPT or not holds_text(part[name])})


def _template(config: Sa2VAConfig) -> str:
    """The chat template's name in the published code, which does not know InternVL's own, `internvl2_5`."""
    if chat_template(config.template) != chat_template("qwen_chat"):
        return config.template
    return "internlm2_chat" if config.llm_config["model_type"] == "internlm2" else "qwen_chat"


def _changes(tensor: Tensor, dtype: torch.dtype) -> bool:
    return not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _tensors(model: Sa2VA, entries: MergedState, pieces: list[Piece]) -> Iterator[tuple[str, Tensor]]:
    rows = {EMBEDDING: "new_tokens.embedding", HEAD: "new_tokens.head"}
    for piece in pieces:
        parts = [entries[source].detach().to("cpu", piece.dtype) for source in piece.sources]
        source = piece.sources[0]
        if source in rows:
            parts = [put_rows(parts[0], entries[rows[source]].detach().to("cpu", piece.dtype), model.new_tokens.start)]
        yield piece.name, join(parts, source, model.config).contiguous()


def _index(names: list[str], shards: list[list[Piece]]) -> dict[str, Any]:
    weight_map = {piece.name: name for name, shard in zip(names, shards) for piece in shard}
    return {
        "metadata": {"total_size": sum(piece.bytes for shard in shards for piece in shard)},
        "weight_map": weight_map,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
