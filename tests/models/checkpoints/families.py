"""Tiny base folders of both language-model families, in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vesselseg.models.tiny_base import tiny_config, tiny_tokenizer


def write_internlm2_base(folder: Path, vocabulary: int | None = None) -> dict[str, Tensor]:
    """InternViT with RMSNorm and QK norm and InternLM2, written by the published names; returns the tensors.

    vocabulary: of a tokenizer that lies in the folder already; None writes one of Qwen2's kind.
    """
    if vocabulary is None:
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        vocabulary = len(tokenizer)
    shapes = tiny_config(vocabulary, 64, 2, 112)
    vision = {**shapes.vision_config, "norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    text = {
        **shapes.llm_config,
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    config = {"model_type": "internvl_chat", "llm_config": text, "vision_config": vision, "force_image_size": 112}
    config |= {"template": "internvl2_5", "max_dynamic_patch": 6}
    (folder / "config.json").write_text(json.dumps(config))
    state = internlm2_state(vocabulary)
    save_file(state, folder / "model.safetensors")
    return state


def internlm2_state(
    vocabulary: int, hidden: int = 64, layers: int = 2, heads: int = 4, groups: int = 2
) -> dict[str, Tensor]:
    """Every tensor of the folder above, random."""
    draw = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, hidden),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (hidden,),
        "vision_model.embeddings.position_embedding": (1, 65, hidden),
        "mlp1.0.weight": (4 * hidden,),
        "mlp1.0.bias": (4 * hidden,),
        "mlp1.1.weight": (hidden, 4 * hidden),
        "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden),
        "mlp1.3.bias": (hidden,),
        "language_model.model.tok_embeddings.weight": (vocabulary, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.output.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        vision, text = f"vision_model.encoder.layers.{layer}.", f"language_model.model.layers.{layer}."
        shapes |= {
            f"{vision}attn.qkv.weight": (3 * hidden, hidden),
            f"{vision}attn.q_norm.weight": (hidden,),
            f"{vision}attn.k_norm.weight": (hidden,),
            f"{vision}attn.proj.weight": (hidden, hidden),
            f"{vision}attn.proj.bias": (hidden,),
            f"{vision}norm1.weight": (hidden,),
            f"{vision}norm2.weight": (hidden,),
            f"{vision}mlp.fc1.weight": (2 * hidden, hidden),
            f"{vision}mlp.fc1.bias": (2 * hidden,),
            f"{vision}mlp.fc2.weight": (hidden, 2 * hidden),
            f"{vision}mlp.fc2.bias": (hidden,),
            f"{vision}ls1": (hidden,),
            f"{vision}ls2": (hidden,),
            f"{text}attention.wqkv.weight": (hidden * (heads + 2 * groups) // heads, hidden),
            f"{text}attention.wo.weight": (hidden, hidden),
            f"{text}attention_norm.weight": (hidden,),
            f"{text}ffn_norm.weight": (hidden,),
            f"{text}feed_forward.w1.weight": (2 * hidden, hidden),
            f"{text}feed_forward.w2.weight": (hidden, 2 * hidden),
            f"{text}feed_forward.w3.weight": (2 * hidden, hidden),
        }
    return {name: torch.randn(*shape, generator=draw) * 0.1 for name, shape in shapes.items()}
