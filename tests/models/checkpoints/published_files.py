"""A training checkpoint as the published code writes it, over any model of ours, by names written out here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselseg.models.sa2va import Sa2VA

LANGUAGE = "mllm.model.language_model.base_model.model."
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def base_linear(model: Sa2VA, layer: int, linear: str) -> Tensor:
    """A linear layer's own weight, without its adapter."""
    module = model.language_model.model.layers[layer].get_submodule(linear)
    return getattr(module, "base_layer", module).weight.detach()


def qwen2_state(model: Sa2VA, rank: int, changed_rows: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random adapters and heads, tables in which only `changed_rows` differ from the base's."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.1

    state: dict[str, Tensor] = {}
    for layer in range(len(model.language_model.model.layers)):
        for linear in LINEARS:
            rows, columns = base_linear(model, layer, linear).shape
            name = f"{LANGUAGE}model.layers.{layer}.{linear}"
            state[f"{name}.lora_A.default.weight"] = random(rank, columns)
            state[f"{name}.lora_B.default.weight"] = random(rows, rank)
    start = model.new_tokens.start
    for name, table in {
        f"{LANGUAGE}model.embed_tokens": model.language_model.model.embed_tokens.weight,
        f"{LANGUAGE}lm_head": model.language_model.lm_head.weight,
    }.items():
        rows = torch.cat([table.detach()[:start].clone(), random(5, table.shape[1])])
        rows[list(changed_rows)] += 1
        state[f"{name}.modules_to_save.default.weight"] = rows
    state |= heads_state(model, random)
    return state


def heads_state(model: Sa2VA, random: Any) -> dict[str, Tensor]:
    """mlp1, text_hidden_fcs and the whole mask decoder."""
    state = {}
    for index, module in {0: "norm", 1: "linear_1", 3: "linear_2"}.items():
        for kind in ("weight", "bias"):
            own = model.projector.get_parameter(f"{module}.{kind}")
            state[f"mllm.model.mlp1.{index}.{kind}"] = own.detach() + random(*own.shape)
    for index, module in {0: "linear_1", 2: "linear_2"}.items():
        for kind in ("weight", "bias"):
            state[f"text_hidden_fcs.{index}.{kind}"] = random(
                *model.seg_projector.get_parameter(f"{module}.{kind}").shape
            )
    for name, value in model.grounding.sam2.sam_mask_decoder.state_dict().items():
        published = re.sub(r"\.gamma$", ".g_weight", f"grounding_encoder.sam2_model.sam_mask_decoder.{name}")
        state[published] = value + random(*value.shape)
    return state


def save(state: dict[str, Tensor], path: Path, **further: Any) -> Path:
    """As mmengine saves: weights under `state_dict`, counters under `meta`."""
    torch.save({"meta": {"epoch": 3, "iter": 3672, "experiment_name": "sa2va"}, "state_dict": state, **further}, path)
    return path
