"""Write a Sa2VA folder in the published layout: config.json, safetensors shards, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD, from_ours
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sa2va_config import Sa2VAConfig

SHARD_SIZE = "5GB"


def write_published_folder(
    model: Sa2VA, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype, extra: dict[str, Any]
) -> None:
    """Write a model without adapters. extra: further entries of config.json. The folder must exist."""
    state = published_state(model, dtype)
    save_torch_state_dict(state, folder, max_shard_size=SHARD_SIZE, metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library creates them readable by their owner only
    tokenizer.save_pretrained(folder)
    vocabulary = published_rows(model)
    content = {**config_content(model.config, vocabulary, dtype), "image_token_id": model.image_token_id, **extra}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def published_state(model: Sa2VA, dtype: torch.dtype) -> dict[str, Tensor]:
    """Our state dict -> published names, the new tokens' rows put into the tables."""
    ours = {name: value.detach().to("cpu", dtype) for name, value in model.state_dict().items()}
    rows = {EMBEDDING: ours.pop("new_tokens.embedding"), HEAD: ours.pop("new_tokens.head")}
    for table, new in rows.items():
        ours[table] = put_rows(ours[table], new, model.new_tokens.start)
    return {name: value.contiguous() for name, value in from_ours(ours, model.config).items()}


def put_rows(table: Tensor, rows: Tensor, start: int) -> Tensor:
    """table with `rows` at `start`, longer where they reach past its end; rows behind them are kept."""
    return torch.cat([table[:start], rows, table[start + len(rows) :]])


def published_rows(model: Sa2VA) -> int:
    """Rows of the written tables."""
    return max(int(model.config.llm_config["vocab_size"]), model.new_tokens.start + model.new_tokens.count)


def config_content(config: Sa2VAConfig, vocabulary: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json in the published fields."""
    llm = {**config.llm_config, "vocab_size": vocabulary, "tie_word_embeddings": False}
    return {
        "architectures": ["VesselSegModel"],
        "model_type": config.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "hidden_size": llm["hidden_size"],
        "llm_config": llm,
        "vision_config": config.vision_config,
        "grounding_config": config.grounding_config,
        "template": "internlm2_chat" if llm["model_type"] == "internlm2" else "qwen_chat",
        "force_image_size": config.force_image_size,
        "dynamic_image_size": config.dynamic_image_size,
        "min_dynamic_patch": config.min_dynamic_patch,
        "max_dynamic_patch": config.max_dynamic_patch,
        "use_thumbnail": config.use_thumbnail,
        "downsample_ratio": config.downsample_ratio,
        "ps_version": "v2",
        "select_layer": -1,
        "pad2square": False,
        "tie_word_embeddings": False,
        "new_token_start": config.new_token_start,
        "threshold": config.threshold,
        "default_phrase": config.default_phrase,
    }
