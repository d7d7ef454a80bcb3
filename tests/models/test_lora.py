from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import LORA, model_arguments, shaken_model
from vesselseg.errors import UserError, WeightsError
from vesselseg.models.assemble import assemble
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.training_file import load_trainable
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.lora import (
    Lora,
    Trainable,
    attach_lora,
    checkpoint_state,
    count_parameters,
    merge_lora,
    set_trainable,
    trainable_state,
)
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sa2va_config import Sa2VAConfig

OFF = {
    "llm": "frozen",
    "new_tokens": False,
    "projector": False,
    "seg_projector": False,
    "mask_decoder": False,
    "sam2_encoder": False,
    "vision": False,
}
# switch -> where the parameters that it trains lie
SWITCHES: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"llm": "lora"}, "language_model."),
    "full": ({"llm": "full"}, "language_model."),
    "new_tokens": ({"new_tokens": True}, "new_tokens."),
    "projector": ({"projector": True}, "projector."),
    "seg_projector": ({"seg_projector": True}, "seg_projector."),
    "mask_decoder": ({"mask_decoder": True}, "grounding.sam2.sam_mask_decoder."),
    "sam2_encoder": ({"sam2_encoder": True}, "grounding.sam2."),
    "vision": ({"vision": True}, "vision_model."),
}


def gradients(model: Sa2VA, base: Path) -> dict[str, torch.Tensor]:
    """After one backward pass through every loss: gradients by name, of those that got one."""
    sum(losses_of(model, batch_of(processor_of(model, base))).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_trains_its_part_and_nothing_else(tiny_base: Path, switch: str) -> None:
    choice, prefix = SWITCHES[switch]
    model = shaken_model(tiny_base, trainable={**OFF, **choice})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(prefix) for name in trained)
    found = gradients(model, tiny_base)
    assert found.keys() == trained, "a parameter trains that no loss reaches, or the other way round"
    assert any(gradient.any() for gradient in found.values())


def test_whole_tables_train_beside_the_adapters(tiny_base: Path) -> None:
    """As the recipe does that others use; their gradients are full, and a checkpoint holds and needs them."""
    lora = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
    model = shaken_model(tiny_base, lora=lora)
    tables = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    plain = trainable_state(build_model(**model_arguments(tiny_base))).keys()
    found = gradients(model, tiny_base)
    assert found.keys() == plain | tables == trainable_state(model).keys()
    for name in tables:
        assert found[name].shape == model.get_parameter(name).shape and found[name].any()
    other = shaken_model(tiny_base, seed=1, lora=lora)
    state = {name: value.clone() for name, value in checkpoint_state(model).items()}
    load_trainable(other, state, "here")
    assert all(torch.equal(other.get_parameter(name), model.get_parameter(name)) for name in tables)
    with pytest.raises(WeightsError, match=r"1 missing: language_model\.lm_head\.weight"):
        load_trainable(other, {name: v for name, v in state.items() if "lm_head" not in name}, "here")
    with pytest.raises(UserError, match=r"lora\.modules_to_save holds q_proj; it takes embed_tokens and lm_head"):
        Lora(modules_to_save=["q_proj"])


def test_all_switches_at_once(tiny_base: Path) -> None:
    everything = {name: True for name in OFF if name != "llm"} | {"llm": "lora"}
    model = shaken_model(tiny_base, trainable=everything)
    found = gradients(model, tiny_base)
    assert found.keys() == trainable_state(model).keys()
    # A drawn SAM2 prefers one candidate mask; the heads of the other two wait for an image that prefers theirs.
    still = {name for name, gradient in found.items() if not gradient.any()}
    assert all("output_hypernetworks_mlps" in name for name in still), still
    counts = count_parameters(model)
    assert counts["language model"].trainable == 0 and counts["vision tower"].frozen == 0
    assert sum(c.trainable + c.frozen for c in counts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(c.trainable for c in counts.values()) == sum(value.numel() for value in trainable_state(model).values())


def test_adapters_are_on_every_linear_of_the_blocks_and_nowhere_else(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base))
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    expected = {
        f"language_model.model.layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
        )
    }
    assert adapted == expected
    adapter = model.get_submodule("language_model.model.layers.0.self_attn.q_proj")
    assert adapter.scaling["default"] == 2.0  # alpha 8 over rank 4
    assert adapter.lora_A["default"].weight.shape[0] == 4


def test_a_fresh_adapter_changes_nothing_and_a_merged_one_the_same(tiny_base: Path) -> None:
    plain = build_model(**model_arguments(tiny_base, trainable=OFF)).eval()
    torch.manual_seed(0)
    fresh = build_model(**model_arguments(tiny_base)).eval()
    moved = shaken_model(tiny_base)
    ids = torch.arange(20).unsqueeze(0)

    @torch.no_grad()
    def language(model: Sa2VA) -> torch.Tensor:
        return model.language_model.model(input_ids=ids).last_hidden_state

    torch.testing.assert_close(language(fresh), language(plain))
    before = language(moved)
    assert (before - language(plain)).abs().max() > 1e-2
    merge_lora(moved)
    assert not any(isinstance(module, LoraLayer) for module in moved.modules())
    torch.testing.assert_close(language(moved), before, atol=1e-5, rtol=1e-4)
    assert language(moved).shape == before.shape


def test_merging_a_small_update_into_half_type_rounds_once() -> None:
    """Added in bf16, a thousand updates below half a unit in the last place would all vanish."""
    torch.manual_seed(0)
    owner = nn.ModuleDict({"layer": nn.Linear(64, 64, bias=False).bfloat16()})
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=["layer"]), owner)
    adapter = owner["layer"]
    weight = adapter.get_base_layer().weight.data.clone()
    a, b = torch.randn(8, 64) * 0.02, torch.randn(64, 8) * 0.02
    adapter.lora_A["default"].weight.data, adapter.lora_B["default"].weight.data = a, b
    merge_lora(owner)
    assert owner["layer"].weight.dtype == torch.bfloat16
    assert torch.equal(owner["layer"].weight.data, (weight.float() + 2.0 * b @ a).bfloat16())


def test_adapters_have_the_models_type(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base, dtype="bfloat16"))
    assert {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name} == {torch.bfloat16}


def test_a_checkpoint_holds_what_trains_and_what_was_drawn(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base))
    state = checkpoint_state(model)
    assert trainable_state(model).keys() <= state.keys()
    drawn = {name for name in state if name.startswith("grounding.")}
    assert drawn == {name for name in model.state_dict() if name.startswith("grounding.")}
    assert "grounding.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in drawn
    assert not any(name.startswith(("vision_model.", "projector.")) for name in state)
    assert not any("base_layer" in name or "embed_tokens" in name or "lm_head" in name for name in state)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="'LoRA'; expected lora, full or frozen"):
        Trainable(llm="LoRA")


def full_size_8b() -> Sa2VA:
    """InternVL3-8B with adapters of rank 64, on the meta device; the mask decoder has one size for all SAM2s."""
    config = Sa2VAConfig(
        llm_config={
            "model_type": "qwen2",
            "vocab_size": 151674,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
        },
        vision_config={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "qkv_bias": True,
        },
        grounding_config={"variant": "large", "version": "2.0", "image_size": 1024},
        new_token_start=151674,
    )
    with init_empty_weights(include_buffers=False):
        model = assemble(config, build_vision_tower(config, "sdpa"), build_language_model(config, "sdpa"), 0)
        attach_lora(model, Lora(r=64, alpha=128))
    return model


def test_what_trains_at_full_size() -> None:
    """161.5 M of LoRA, 13.8 M between the language model and SAM2, the mask decoder and five rows in two tables."""
    model = full_size_8b()
    set_trainable(model, Trainable(projector=False))
    counts = count_parameters(model)
    blocks = 3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944
    sums = (3584 + 3584) + 2 * (3584 + 512) + (3584 + 3584) + 3 * (3584 + 18944)
    assert counts["LoRA"].trainable == 28 * 64 * sums == 161_480_704
    assert counts["new tokens"].trainable == 2 * 5 * 3584
    assert counts["seg projector"].trainable == 3584 * 3584 + 3584 + 3584 * 256 + 256 == 13_766_400
    decoder = counts["SAM2 mask decoder"]
    assert decoder.trainable + decoder.frozen == 4_215_109
    assert decoder.frozen == 404_261  # IoU, object score and single-mask heads, which no mask uses
    total = sum(count.trainable for count in counts.values())
    assert total + decoder.frozen == 179_498_053
    assert total == 179_093_792
    assert counts["language model"].frozen > 28 * blocks
    set_trainable(model, Trainable(), ["embed_tokens", "lm_head"])
    assert sum(count.trainable for count in count_parameters(model).values()) == total + 2 * 151674 * 3584
    assert (total + decoder.frozen + 2 * 151674 * 3584) / 1e6 == pytest.approx(1266.7, abs=0.05)
    set_trainable(model, Trainable(projector=True))
    # LayerNorm of 4096, 4096 to 3584, 3584 to 3584
    assert count_parameters(model)["projector"].trainable == 2 * 4096 + 4097 * 3584 + 3585 * 3584
