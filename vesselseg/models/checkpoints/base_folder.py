"""A base folder, whose weights a training starts from: its layout, config, tokenizer and tensors.

The layout is detected from config.json, never from the folder's name.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.prompts import TEMPLATES
from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints import hf_layout, published_layout
from vesselseg.models.checkpoints.folder_schema import HfLayout, Published, check_content
from vesselseg.models.checkpoints.hub import local_folder
from vesselseg.models.checkpoints.json_files import read_json_object
from vesselseg.models.checkpoints.resolved_names import shown
from vesselseg.models.checkpoints.shards import WeightStream, stream_folder
from vesselseg.models.checkpoints.tokenizer_files import read_tokenizer
from vesselseg.models.sa2va_config import IMAGE_TOKENS, LANGUAGE_MODELS, NEW_TOKENS, Sa2VAConfig


@dataclass(frozen=True)
class BaseFolder:
    """A base folder whose config and tokenizer have been read; `stream` reads its weights."""

    path: Path
    layout: str
    """`internvl` (published), `internvl_hf` (transformers' own) or `sa2va` (with SAM2's mask decoder)"""
    config: Sa2VAConfig
    tokenizer: PreTrainedTokenizerBase
    """with the five new tokens, which are added if the folder has none"""
    image_token_id: int
    """of <IMG_CONTEXT>, the placeholder of an image token"""
    has_new_tokens: bool
    """whether the five tokens were in the folder's vocabulary and tables already"""
    fields: dict[str, Any]
    """config.json unchanged, kept when a model is exported; empty for transformers' own layout"""

    def stream(self, tensors: WeightStream | None = None) -> WeightStream:
        """Every tensor under our names; new tokens' rows are copied from the tables, or start at the tables' mean.

        tensors: replace the folder's own, under its names (see `stream_headers`).
        """
        for name, tensor in tensors or stream_folder(self.path):
            if self.layout == "internvl_hf":
                renamed = iter([(hf_layout.hf_name_to_ours(name), tensor)])
            else:
                renamed = published_layout.to_ours(name, tensor, self.config)
            for ours, piece in renamed:
                yield ours, piece
                if ours in (published_layout.EMBEDDING, published_layout.HEAD):
                    table = "embedding" if ours == published_layout.EMBEDDING else "head"
                    yield f"new_tokens.{table}", self._new_rows(piece)
                if ours == published_layout.EMBEDDING and self.config.text().tie_word_embeddings:
                    yield published_layout.HEAD, piece
                    yield "new_tokens.head", self._new_rows(piece)

    def _new_rows(self, table: Tensor) -> Tensor:
        start = int(self.config.new_token_start or 0)
        if self.has_new_tokens or table.is_meta:
            return table[start : start + len(NEW_TOKENS)]
        return mean_rows(table[:start], len(NEW_TOKENS))


def mean_rows(table: Tensor, count: int, chunk: int = 8192) -> Tensor:
    """`count` rows at the mean of a table (rows, hidden), plus noise.

    With the mean, a new token's initial logit is not an outlier (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"); noise of a tenth of the table's standard deviation makes the rows different.
    """
    # Summed in chunks, so that there is no copy of the whole table in float64.
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = torch.zeros(table.shape[1], dtype=torch.float64)
    for part in table.split(chunk):
        total += part.double().sum(0)
        squares += part.double().square().sum(0)
    mean = total / len(table)
    deviation = (squares / len(table) - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (mean + 0.1 * deviation * noise).to(table.dtype)


def read_base_folder(path: str | Path) -> BaseFolder:
    """Read config and tokenizer of a folder; raises WeightsError if a training cannot start from it.

    path: a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub (see `hub`).
    """
    folder = local_folder(path)
    content = _read_config(folder)
    layout, config = _layout(folder, content)
    tokenizer = _read_tokenizer(folder, config)
    present = [token in tokenizer.get_vocab() for token in NEW_TOKENS]
    if not all(present):
        tokenizer.add_tokens([token for token in NEW_TOKENS if token not in tokenizer.get_vocab()], special_tokens=True)
    named = cast(list[int], tokenizer.convert_tokens_to_ids([*NEW_TOKENS, IMAGE_TOKENS[2]]))
    ids, image_token_id = named[:-1], named[-1]
    _check_vocabulary(folder, tokenizer, ids, int(config.llm_config["vocab_size"]), all(present))
    config.new_token_start = ids[0]
    fields = {} if layout == "internvl_hf" else content
    return BaseFolder(folder, layout, config, tokenizer, image_token_id, all(present), fields)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(
            f"{path} does not exist. The base must be a folder with config.json, tokenizer and weights, e.g. a "
            "download of OpenGVLab/InternVL3-8B; set it in the config or with --cfg-options; for a "
            "checkpoint whose base has moved, with --base"
        ) from None


_LLM_FIELDS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_VISION_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _layout(folder: Path, content: dict[str, Any]) -> tuple[str, Sa2VAConfig]:
    """Nothing of the content reaches transformers before it is checked, and then only what is known by name."""
    path, kind = folder / "config.json", content.get("model_type")
    if kind == "internvl" and "text_config" in content and "vision_config" in content:
        check_content(HfLayout, content, path)
        _check_family(path, content["text_config"])
        return "internvl_hf", hf_layout.config_from_hf(content)
    if not all(isinstance(content.get(name), dict) for name in ("llm_config", "vision_config")):
        raise WeightsError(
            f"{path}: model_type {shown(kind)} without llm_config and vision_config; "
            "expected an InternVL, InternVL -hf or Sa2VA folder"
        )
    lacking = [f"llm_config.{name}" for name in _LLM_FIELDS if name not in content["llm_config"]]
    lacking += [f"vision_config.{name}" for name in _VISION_FIELDS if name not in content["vision_config"]]
    if lacking:
        raise WeightsError(f"{path}: lacks {', '.join(lacking)}; download it again")
    _check_supported(path, content)
    check_content(Published, content, path)
    fields = {key: value for key, value in content.items() if key in _FIELDS and value is not None}
    architecture = " ".join(content.get("architectures") or [])
    sa2va = kind == "sa2va_chat" or "Sa2VA" in architecture
    return ("sa2va" if sa2va else "internvl"), Sa2VAConfig(**fields)


# what a model's configuration is made of; the rest of config.json is only kept (`BaseFolder.fields`)
_FIELDS = {*inspect.signature(Sa2VAConfig.__init__).parameters, "tie_word_embeddings"} - {"self", "kwargs"}
_ONLY = {"ps_version": ("v2",), "select_layer": (-1,), "pad2square": (False,)}


def _check_supported(path: Path, content: dict[str, Any]) -> None:
    """Families that this package has no class for, and settings of InternVL's first versions."""
    _check_family(path, content["llm_config"])
    wrong = [
        f"{key} = {shown(content[key])}" for key, values in _ONLY.items() if content.get(key, values[0]) not in values
    ]
    if wrong:
        raise WeightsError(f"{path}: {', '.join(wrong)}; expected {_ONLY}. Take a newer base")
    if content.get("template") is not None and content["template"] not in list(TEMPLATES):
        raise WeightsError(f"{path}: template {shown(content['template'])}; supported are {', '.join(TEMPLATES)}")


def _check_family(path: Path, text: Any) -> None:
    kind = text.get("model_type", "qwen2") if isinstance(text, dict) else text  # transformers leaves out its default
    if not isinstance(kind, str) or kind not in LANGUAGE_MODELS:
        raise WeightsError(
            f"{path}: its language model is {shown(kind)}; supported are {', '.join(LANGUAGE_MODELS)} (InternVL 2.5, "
            "InternVL3 and Sa2VA of these). Take another base"
        )


def _read_tokenizer(folder: Path, config: Sa2VAConfig) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(folder, str(config.llm_config["model_type"]))
    missing = [token for token in IMAGE_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        raise WeightsError(
            f"{folder}: the tokenizer lacks {', '.join(missing)}; it is not the one of an InternVL model"
        )
    return tokenizer


def _check_vocabulary(
    folder: Path, tokenizer: PreTrainedTokenizerBase, ids: list[int], rows: int, present: bool
) -> None:
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise WeightsError(
            f"{folder}: the new tokens {NEW_TOKENS} have ids {ids}; expected consecutive ones in this order"
        )
    needed = ids[-1] + 1 if present else ids[0]
    if rows < needed:
        raise WeightsError(
            f"{folder}: the tokenizer holds {len(tokenizer)} tokens, but vocab_size in config.json is {rows} (needed: "
            f"{needed}); tokenizer and weights are of different models"
        )
