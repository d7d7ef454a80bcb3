from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor

from tests.models.checkpoints.full_shapes import FAMILIES, Family, config_of, published_shapes
from tests.tiny import SAM2
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.published_layout import from_ours, to_ours
from vesselseg.models.internvl import TileProjector, build_language_model, build_vision_tower
from vesselseg.models.lora import count_parameters
from vesselseg.models.sa2va_config import SAM2_LARGE, Sa2VAConfig
from vesselseg.models.sam2_grounding import SAM2Grounding
from vesselseg.models.seg_projector import SegProjector
from vesselseg.models.tiny_base import tiny_tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def our_state(config: Sa2VAConfig) -> dict[str, Tensor]:
    """The model's entries without the new tokens' rows and SAM2, on the meta device."""
    hidden = config.llm_config["hidden_size"]
    with init_empty_weights():
        parts = {
            "vision_model": build_vision_tower(config, "sdpa"),
            "projector": TileProjector(config.vision_config["hidden_size"], hidden, 0.5),
            "language_model": build_language_model(config, "sdpa"),
            "seg_projector": SegProjector(hidden),
        }
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def test_every_published_key_is_one_of_ours_and_back(family: Family) -> None:
    config, shapes = config_of(family), published_shapes(family)
    published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    pieces = [piece for name, tensor in published.items() for piece in to_ours(name, tensor, config)]
    assert max(Counter(name for name, _ in pieces).values()) == 1
    ours = our_state(config)
    assert {name: tuple(piece.shape) for name, piece in pieces} == {name: tuple(v.shape) for name, v in ours.items()}
    back = from_ours(ours, config)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == shapes


def test_parameter_counts(family: Family) -> None:
    prefixes = {"vision": "vision_model.", "projector": "mlp1.", "language": "language_model."}
    shapes = published_shapes(family)
    found = {
        part: sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix)) / 1e6
        for part, prefix in prefixes.items()
    }
    print(family.kind, family.hidden, {part: f"{count:,.1f} M" for part, count in found.items()})
    for part, published in family.millions.items():
        assert found[part] == pytest.approx(published, abs=0.006 if published < 1000 else 5), part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "millions"), [("tiny", 38.9), ("small", 46.0), ("base_plus", 80.8), ("large", 224.4)]
)
def test_sam2_has_metas_sizes(variant: str, millions: float) -> None:
    """As Meta lists them: 38.9, 46, 80.8 and 224.4 M."""
    grounding = SAM2Grounding({**SAM2_LARGE, "variant": variant})
    total = sum(parameter.numel() for parameter in grounding.parameters()) / 1e6
    assert total == pytest.approx(millions, abs=0.1)
    counts = count_parameters(torch.nn.ModuleDict({"grounding": grounding}))
    assert sum(count.trainable + count.frozen for count in counts.values()) == round(total * 1e6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), [("InternVL3-14B", 275.3), ("InternVL2.5-26B", 327.2)])
def test_large_bases_are_built_with_adapters(name: str, lora: float, tmp_path: Path) -> None:
    """From config.json to what trains, without the weights: the large tower has RMSNorm, QK norm, no QKV bias."""
    family = FAMILIES[name]
    shapes = config_of(family)
    fields = {"model_type": "internvl_chat", "llm_config": shapes.llm_config, "vision_config": shapes.vision_config}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "template": "internvl2_5"}))
    tiny_tokenizer().save_pretrained(tmp_path)
    empty = partial(init_empty_weights, include_buffers=False)
    model = build_model(
        str(tmp_path), SAM2, {"r": 64}, random_weights=True, construction=empty, gradient_checkpointing=True
    )
    counts = count_parameters(model)
    assert counts["LoRA"].trainable / 1e6 == pytest.approx(lora, abs=0.05)
    for part, published in {"vision tower": "vision", "language model": "language"}.items():
        assert counts[part].frozen / 1e6 == pytest.approx(family.millions[published], abs=5)
    attention = model.vision_model.encoder.layer[0].attention
    assert (type(attention.q_norm).__name__ == "InternVLVisionRMSNorm") == family.big_vision
    assert (attention.q_proj.bias is None) == family.big_vision


def test_dynamic_rope_scaling_is_kept() -> None:
    config = config_of(FAMILIES["InternVL2.5-26B"])
    assert config.text().rope_scaling["factor"] == 3.0 and config.text().rope_scaling["type"] == "dynamic"
    assert config.llm_config["rope_scaling"] == {"type": "dynamic", "factor": 3.0}
