"""Names and shapes of the published InternVL families at full size, written out by hand from their layouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vesselseg.models.sa2va_config import Sa2VAConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """One published size. millions: parameters of its parts, as rounded on the published model cards."""

    kind: str
    hidden: int
    layers: int
    heads: int
    groups: int
    intermediate: int
    vocabulary: int
    big_vision: bool
    millions: dict[str, float]
    scaling: dict[str, Any] | None = field(default=None)


FAMILIES = {
    "InternVL3-2B": Family(
        "qwen2", 1536, 28, 12, 2, 8960, 151674, False, {"vision": 304.01, "projector": 8.66, "language": 1780}
    ),
    "InternVL3-8B": Family(
        "qwen2", 3584, 28, 28, 4, 18944, 151674, False, {"vision": 304.01, "projector": 27.54, "language": 7610}
    ),
    "InternVL3-14B": Family(
        "qwen2", 5120, 48, 40, 8, 13824, 151674, False, {"vision": 304.01, "projector": 47.20, "language": 14770}
    ),
    "InternVL2.5-26B": Family(
        "internlm2",
        6144,
        48,
        48,
        8,
        16384,
        92553,
        True,
        {"vision": 5540, "projector": 116.43, "language": 19860},
        {"type": "dynamic", "factor": 3.0},
    ),
    "InternVL3-38B": Family(
        "qwen2", 5120, 64, 40, 8, 27648, 151674, True, {"vision": 5540, "projector": 91.79, "language": 32760}
    ),
}


def config_of(family: Family) -> Sa2VAConfig:
    """config.json of such a folder."""
    text = {
        "model_type": family.kind,
        "hidden_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.groups,
        "intermediate_size": family.intermediate,
        "vocab_size": family.vocabulary,
        "bias": False,
        "rope_scaling": family.scaling,
    }
    if family.big_vision:
        vision = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800}
        vision |= {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    else:
        vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        vision |= {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
    vision |= {"image_size": 448, "patch_size": 14}
    return Sa2VAConfig(llm_config=text, vision_config=vision, new_token_start=family.vocabulary)


def published_shapes(family: Family) -> Shapes:
    """Every tensor of vision tower, projector, language model and text_hidden_fcs in a published Sa2VA folder."""
    text = _qwen2(family) if family.kind == "qwen2" else _internlm2(family)
    hidden, shuffled = family.hidden, 4 * (3200 if family.big_vision else 1024)
    heads = {
        **_linear("mlp1.1", hidden, shuffled),
        **_linear("mlp1.3", hidden, hidden),
        "mlp1.0.weight": (shuffled,),
        "mlp1.0.bias": (shuffled,),
        **_linear("text_hidden_fcs.0", hidden, hidden),
        **_linear("text_hidden_fcs.2", 256, hidden),
    }
    return {**_vision(family.big_vision), **heads, **text}


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _vision(big: bool) -> Shapes:
    hidden, layers, intermediate = (3200, 45, 12800) if big else (1024, 24, 4096)
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, hidden),
        "vision_model.embeddings.position_embedding": (1, 1025, hidden),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (hidden,),
    }
    for number in range(layers):
        name = f"vision_model.encoder.layers.{number}"
        shapes |= {f"{name}.ls1": (hidden,), f"{name}.ls2": (hidden,)}
        shapes |= _linear(f"{name}.attn.qkv", 3 * hidden, hidden, bias=not big)
        shapes |= _linear(f"{name}.attn.proj", hidden, hidden)
        shapes |= _linear(f"{name}.mlp.fc1", intermediate, hidden)
        shapes |= _linear(f"{name}.mlp.fc2", hidden, intermediate)
        for norm in ("norm1", "norm2"):
            shapes[f"{name}.{norm}.weight"] = (hidden,)
            if not big:
                shapes[f"{name}.{norm}.bias"] = (hidden,)
        if big:
            shapes |= {f"{name}.attn.q_norm.weight": (hidden,), f"{name}.attn.k_norm.weight": (hidden,)}
    return shapes


def _qwen2(family: Family) -> Shapes:
    hidden, keys = family.hidden, family.hidden // family.heads * family.groups
    shapes: Shapes = {
        "language_model.model.embed_tokens.weight": (family.vocabulary, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.lm_head.weight": (family.vocabulary, hidden),
    }
    for number in range(family.layers):
        name = f"language_model.model.layers.{number}"
        for part, rows in {"q": hidden, "k": keys, "v": keys}.items():
            shapes |= _linear(f"{name}.self_attn.{part}_proj", rows, hidden)
        shapes |= _linear(f"{name}.self_attn.o_proj", hidden, hidden, bias=False)
        shapes |= _linear(f"{name}.mlp.gate_proj", family.intermediate, hidden, bias=False)
        shapes |= _linear(f"{name}.mlp.up_proj", family.intermediate, hidden, bias=False)
        shapes |= _linear(f"{name}.mlp.down_proj", hidden, family.intermediate, bias=False)
        shapes |= {f"{name}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def _internlm2(family: Family) -> Shapes:
    hidden, head = family.hidden, family.hidden // family.heads
    shapes: Shapes = {
        "language_model.model.tok_embeddings.weight": (family.vocabulary, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.output.weight": (family.vocabulary, hidden),
    }
    for number in range(family.layers):
        name = f"language_model.model.layers.{number}"
        shapes |= _linear(f"{name}.attention.wqkv", (family.heads + 2 * family.groups) * head, hidden, bias=False)
        shapes |= _linear(f"{name}.attention.wo", hidden, hidden, bias=False)
        shapes |= _linear(f"{name}.feed_forward.w1", family.intermediate, hidden, bias=False)
        shapes |= _linear(f"{name}.feed_forward.w2", hidden, family.intermediate, bias=False)
        shapes |= _linear(f"{name}.feed_forward.w3", family.intermediate, hidden, bias=False)
        shapes |= {f"{name}.{norm}.weight": (hidden,) for norm in ("attention_norm", "ffn_norm")}
    return shapes
