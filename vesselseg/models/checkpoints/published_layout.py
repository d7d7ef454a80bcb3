"""Names of weights in the published InternVL and Sa2VA folders <-> ours.

Published folders contain `vision_model.*`, `mlp1.*`, `language_model.*` and, in Sa2VA's, `text_hidden_fcs.*` and
`grounding_encoder.sam2_model.*`. Attention of the vision tower is stored fused (qkv), InternLM2's as wqkv.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vesselseg.models.sa2va_config import Sa2VAConfig

# Renames that hold in both directions: (published, ours). Anchored at whole dotted parts.
_VISION = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
)
_VISION_LAYER = (
    ("attn.proj.", "attention.projection_layer."),
    ("attn.q_norm.", "attention.q_norm."),
    ("attn.k_norm.", "attention.k_norm."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("mlp.", "mlp."),
    ("ls1", "lambda_1"),
    ("ls2", "lambda_2"),
)
_HEADS = (
    ("mlp1.0.", "projector.norm."),
    ("mlp1.1.", "projector.linear_1."),
    ("mlp1.3.", "projector.linear_2."),
    ("text_hidden_fcs.0.", "seg_projector.linear_1."),
    ("text_hidden_fcs.2.", "seg_projector.linear_2."),
)
_INTERNLM2_LAYER = (
    ("attention.wo.", "self_attn.o_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
)
_INTERNLM2 = (
    ("language_model.model.tok_embeddings.", "language_model.model.embed_tokens."),
    ("language_model.output.", "language_model.lm_head."),
)
_LAYER = re.compile(r"^(language_model\.model\.layers\.\d+\.|vision_model\.encoder\.layers?\.\d+\.)(.+)$")
_SAM2_PUBLISHED, _SAM2_OURS = "grounding_encoder.sam2_model.", "grounding.sam2."

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


def to_ours(name: str, tensor: Tensor, config: Sa2VAConfig) -> Iterator[tuple[str, Tensor]]:
    """One published tensor -> our tensor, or three if it is a fused q, k, v. Unknown names are returned unchanged."""
    layer = _LAYER.match(name)
    if layer and layer.group(1).startswith("vision_model"):
        yield from _vision_layer_to_ours(layer.group(1).replace(".layers.", ".layer."), layer.group(2), tensor)
    elif layer and layer.group(2).startswith("attention.wqkv."):
        kind = layer.group(2).rsplit(".", 1)[1]
        for part, piece in zip("qkv", _split_or_whole(tensor, config)):
            yield f"{layer.group(1)}self_attn.{part}_proj.{kind}", piece
    elif layer:
        yield layer.group(1) + _rename(layer.group(2), _INTERNLM2_LAYER), tensor
    elif name.startswith("vision_model."):
        yield "vision_model." + _rename(name[len("vision_model.") :], _VISION), tensor
    elif name.startswith(_SAM2_PUBLISHED):
        yield _SAM2_OURS + re.sub(r"\.g_weight$", ".gamma", name[len(_SAM2_PUBLISHED) :]), tensor
    else:
        yield _rename(_rename(name, _HEADS), _INTERNLM2), tensor


def from_ours(state: dict[str, Tensor], config: Sa2VAConfig) -> dict[str, Tensor]:
    """Our state dict -> published names, with q, k, v fused again; the inverse of `to_ours` for every tensor."""
    return {
        name: join([state[source] for source in sources], sources[0], config)
        for name, sources in published_sources(state, config).items()
    }


def published_sources(names: Iterable[str], config: Sa2VAConfig) -> dict[str, tuple[str, ...]]:
    """Published name -> our names of its parts, in our order: three if it is a fused q, k, v, else one."""
    fused_llm = config.llm_config.get("model_type") == "internlm2"
    published: dict[str, tuple[str, ...]] = {}
    for name in names:
        parts = _fusable(name, fused_llm)
        if parts is None:
            published[_from_ours_name(name, fused_llm)] = (name,)
        elif parts[0] == "q":
            published[parts[1]] = tuple(name.replace("q_proj", f"{letter}_proj") for letter in "qkv")
    return published


def join(tensors: Sequence[Tensor], first: str, config: Sa2VAConfig) -> Tensor:
    """One published tensor from its parts. first: our name of the first part."""
    if len(tensors) == 1:
        return tensors[0]
    q, k, v = tensors
    return torch.cat(list(tensors)) if first.startswith("vision_model.") else fuse_wqkv(q, k, v, config)


def split_wqkv(wqkv: Tensor, config: Sa2VAConfig) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's fused projection -> q, k, v. Rows are ordered by key/value head: its queries, its key, its value."""
    groups, per_group, head_dim = _attention_shape(config)
    # (key/value heads, queries + 2, head width, ...)
    parts = wqkv.reshape(groups, per_group + 2, head_dim, *wqkv.shape[1:])
    q, k, v = parts[:, :per_group], parts[:, per_group], parts[:, per_group + 1]
    return q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)


def _split_or_whole(wqkv: Tensor, config: Sa2VAConfig) -> tuple[Tensor, ...]:
    """q, k, v; a tensor with a wrong shape is returned unchanged, so that loading reports it with all other errors."""
    groups, per_group, head_dim = _attention_shape(config)
    fits = wqkv.dim() > 0 and len(wqkv) == groups * (per_group + 2) * head_dim
    return split_wqkv(wqkv, config) if fits else (wqkv,) * 3


def fuse_wqkv(q: Tensor, k: Tensor, v: Tensor, config: Sa2VAConfig) -> Tensor:
    """The inverse of `split_wqkv`."""
    groups, per_group, head_dim = _attention_shape(config)
    rest = q.shape[1:]
    parts = [
        q.reshape(groups, per_group, head_dim, *rest),
        k.reshape(groups, 1, head_dim, *rest),
        v.reshape(groups, 1, head_dim, *rest),
    ]
    return torch.cat(parts, dim=1).flatten(0, 2)


def _attention_shape(config: Sa2VAConfig) -> tuple[int, int, int]:
    llm = config.llm_config
    heads, groups = llm["num_attention_heads"], llm["num_key_value_heads"]
    return groups, heads // groups, llm["hidden_size"] // heads


def _vision_layer_to_ours(prefix: str, rest: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if rest.startswith("attn.qkv."):
        kind = rest.rsplit(".", 1)[1]
        for part, piece in zip("qkv", tensor.chunk(3)):
            yield f"{prefix}attention.{part}_proj.{kind}", piece
    else:
        yield prefix + _rename(rest, _VISION_LAYER), tensor


def _fusable(name: str, fused_llm: bool) -> tuple[str, str] | None:
    """(letter, published name) if this tensor is part of a fused one, else None."""
    vision = re.match(r"^vision_model\.encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(\w+)$", name)
    if vision:
        return vision.group(2), f"vision_model.encoder.layers.{vision.group(1)}.attn.qkv.{vision.group(3)}"
    llm = re.match(r"^(language_model\.model\.layers\.\d+\.)self_attn\.([qkv])_proj\.(\w+)$", name)
    if llm and fused_llm:
        return llm.group(2), f"{llm.group(1)}attention.wqkv.{llm.group(3)}"
    return None


def _from_ours_name(name: str, fused_llm: bool) -> str:
    layer = _LAYER.match(name)
    if layer and layer.group(1).startswith("vision_model"):
        return layer.group(1).replace(".layer.", ".layers.") + _rename(layer.group(2), _swap(_VISION_LAYER))
    if layer:
        return layer.group(1) + (_rename(layer.group(2), _swap(_INTERNLM2_LAYER)) if fused_llm else layer.group(2))
    if name.startswith("vision_model."):
        return "vision_model." + _rename(name[len("vision_model.") :], _swap(_VISION))
    if name.startswith(_SAM2_OURS):
        return _SAM2_PUBLISHED + re.sub(r"\.gamma$", ".g_weight", name[len(_SAM2_OURS) :])
    name = _rename(name, _swap(_HEADS))
    return _rename(name, _swap(_INTERNLM2)) if fused_llm else name


def _swap(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((ours, published) for published, ours in pairs)


def _rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name
