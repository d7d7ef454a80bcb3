"""Frozen linear layers in 4 bits: what they compute, which they are, and that nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.errors import UserError, WeightsError
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.models.build import build_model
from vesselseg.models.lora import checkpoint_state, count_parameters, merge_lora, trainable_state
from vesselseg.models.quantised import (
    NF4_BYTES,
    Int8Linear,
    Nf4Linear,
    draw_weights,
    frozen_weight,
    mark_for_quantising,
)
from vesselseg.models.sa2va import Sa2VA

NF4_STEP = 0.153  # half of the widest gap between two of NF4's sixteen values, of the largest weight of a block


def packed_layer(outputs: int = 256, inputs: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Nf4Linear, Tensor]:
    layer = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
    weight = layer.weight.data.clone()
    layer.__class__ = Nf4Linear
    layer.pack(weight)
    return layer, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_is_near_the_weight_in_an_eighth_of_its_bytes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, weight = packed_layer(dtype=dtype)
    dense = frozen_weight(layer)
    assert (dense.dtype, dense.shape) == (dtype, weight.shape)
    largest = weight.float().reshape(-1, 64).abs().amax(1, keepdim=True)
    assert ((dense - weight).float().reshape(-1, 64).abs() <= 1.1 * NF4_STEP * largest).all()
    assert not torch.equal(dense, weight)
    scales = layer.scales
    parts = (layer.weight, scales.absmax, scales.state2.absmax)
    assert sum(part.numel() * part.element_size() for part in parts) == NF4_BYTES * weight.numel()
    plain = nn.Linear(3, 2)
    assert frozen_weight(plain) is plain.weight


def test_outputs_and_gradients_are_those_of_the_unpacked_weight() -> None:
    torch.manual_seed(0)
    layer, _ = packed_layer()
    dense = nn.Linear(64, 256)
    dense.weight.data, dense.bias.data = frozen_weight(layer), layer.bias.data
    inputs, gradient = torch.randn(2, 5, 64), torch.randn(2, 5, 256)
    found, expected = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    output = layer(found)
    torch.testing.assert_close(output, dense(expected))
    output.backward(gradient)
    dense(expected).backward(gradient)
    torch.testing.assert_close(found.grad, expected.grad)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(inputs), output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_in_8_bits_is_off_by_half_a_step_of_its_row(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 256, dtype=dtype).requires_grad_(False)
    weight, inputs = layer.weight.data.clone(), torch.randn(2, 5, 64, dtype=dtype)
    weight[3] = 0
    layer.__class__ = Int8Linear
    layer.pack(weight)
    assert layer.weight.dtype == torch.int8 and layer.weight.shape == weight.shape
    dense = layer.weight.float() * layer.scales.unsqueeze(1)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((dense - weight.float()).abs() <= 0.5001 * step).all() and not torch.equal(dense, weight.float())
    expected = nn.functional.linear(inputs.float(), dense, layer.bias.float())
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    moved = nn.Sequential(layer).to(dtype).to("cpu")
    torch.testing.assert_close(moved(inputs).float(), expected, atol=tolerance, rtol=tolerance)


def test_moving_and_casting_a_model_leaves_packed_weights_alone() -> None:
    layer, _ = packed_layer()
    before = frozen_weight(layer)
    nn.Sequential(layer).bfloat16().to("cpu")
    assert layer.weight.dtype == torch.uint8 and layer.scales.state2.absmax.dtype == torch.float32
    assert torch.equal(frozen_weight(layer), before)


def quantised_layers(model: Sa2VA) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Nf4Linear)}


def test_the_blocks_linears_are_quantised_and_nothing_else(base: Path) -> None:
    plain = build_model(**model_arguments(base))
    model = build_model(**model_arguments(base, quantise="nf4"))
    found = quantised_layers(model)
    assert len(found) == 2 * 7 and all(name.startswith("language_model.model.layers.") for name in found)
    expected = plain.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in found and leaf == "weight":
            exact = Nf4Linear(*reversed(expected[name].shape), bias=False)
            exact.pack(expected[name])
            assert torch.equal(frozen_weight(model.get_submodule(owner)), frozen_weight(exact)), name
        elif "lora_A" not in name and not name.startswith(model.randomly_initialised):
            assert torch.equal(value, expected[name]), name
    assert count_parameters(model) == count_parameters(plain)
    assert trainable_state(model).keys() == trainable_state(plain).keys()
    assert checkpoint_state(model).keys() == checkpoint_state(plain).keys()


@pytest.mark.parametrize("fused", [False, True])
def test_adapters_on_4_bits_learn_as_on_the_same_weights_unpacked(base: Path, fused: bool) -> None:
    model = shaken_model(base, quantise="nf4", fused=fused).train()
    losses = losses_of(model, batch_of(processor_of(model, base), 0))
    sum(losses.values()).backward()
    dense = shaken_model(base, fused=False).train()
    dense.load_state_dict(trainable_state(model), strict=False)
    for name in quantised_layers(model):
        dense.get_submodule(name).weight.data = frozen_weight(model.get_submodule(name))
    expected = losses_of(dense, batch_of(processor_of(dense, base), 0))
    sum(expected.values()).backward()
    torch.testing.assert_close(losses["loss_lm"], expected["loss_lm"], rtol=1e-4, atol=1e-5)
    for name in trainable_state(model):
        if "lora_" in name:
            own, other = model.get_parameter(name).grad, dense.get_parameter(name).grad
            assert own is not None and (own - other).norm() < 0.02 * other.norm() + 1e-6, name


def test_random_weights_are_drawn_layer_by_layer(base: Path) -> None:
    torch.manual_seed(0)
    model = build_model(**model_arguments(base, quantise="nf4", random_weights=True))
    drawn = build_model(**model_arguments(base, random_weights=True))
    assert not any(value.is_meta for value in model.state_dict().values())
    assert count_parameters(model) == count_parameters(drawn)
    for name in ("language_model.lm_head.weight", "vision_model.encoder.layer.1.mlp.fc1.weight"):
        assert model.get_parameter(name).std() == pytest.approx(float(drawn.get_parameter(name).std()), rel=0.1)
    layer = model.get_submodule(sorted(quantised_layers(model))[0])
    assert frozen_weight(layer).std() == pytest.approx(0.02, rel=0.1)
    norm = model.language_model.model.norm.weight
    assert torch.equal(norm, torch.ones_like(norm))
    batch = batch_of(processor_of(model, base), 0)
    assert all(torch.isfinite(loss) for loss in losses_of(model, batch).values())


def test_no_layer_is_dense_beside_the_one_that_is_packed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole in bf16, the language model of 14 B parameters would fill the card that it is quantised for."""
    dense: list[int] = []
    pack = Nf4Linear.pack

    def watched(layer: Nf4Linear, weight: Tensor) -> None:
        pack(layer, weight)
        layers = [module for module in language.modules() if isinstance(module, Nf4Linear)]
        dense.append(sum(not module.weight.is_meta and module.scales is None for module in layers))

    model = build_model(**model_arguments(base, quantise="nf4", trainable={"llm": "frozen"}))
    language = model.language_model.to("meta")
    for module in language.modules():
        if isinstance(module, Nf4Linear):
            module.__class__, module.scales = nn.Linear, None
            module.weight = nn.Parameter(torch.empty(module.out_features, module.in_features, device="meta"))
    mark_for_quantising(language)
    monkeypatch.setattr(Nf4Linear, "pack", watched)
    draw_weights(language, lambda name: "cpu", torch.float32)
    assert dense == [0] * 14


@pytest.mark.slow
def test_a_checkpoint_trained_on_4_bits_is_used_on_the_weights_of_the_base(base: Path, tmp_path: Path) -> None:
    arguments = model_arguments(base, quantise="nf4")
    path = save_checkpoint(shaken_model(base, quantise="nf4"), tmp_path / "best.pth", arguments)
    predictor = load_predictor(path, device="cpu")
    assert quantised_layers(predictor.model) == set()
    picture(0).save(tmp_path / "0.png")
    assert convert(path, tmp_path / "hf", [tmp_path / "0.png"]).probability < 1e-5
    with pytest.raises(ValueError, match="is quantised; build the model without quantise"):
        merge_lora(shaken_model(base, quantise="nf4"))


def test_what_cannot_be_quantised_is_refused(tiny_base: Path) -> None:
    def message(**changes: object) -> str:
        with pytest.raises(UserError) as raised:
            build_model(**model_arguments(tiny_base, **{"quantise": "nf4", **changes}))
        return str(raised.value)

    assert "quantise is 'int4'; expected None, 'nf4' or, for predicting, 'int8'" in message(quantise="int4")
    assert "weights in 8 bits are for predicting with an exported folder" in message(quantise="int8")
    assert "weights in 4 bits cannot train" in message(trainable={"llm": "full"})
    assert "does not work with partitioned weights (ZeRO-3)" in message(construction=torch.no_grad)


def test_a_missing_bitsandbytes_is_told(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'needs bitsandbytes[\s\S]*pip install "bitsandbytes>=0.49,<0.51"'):
        build_model(**model_arguments(tiny_base, quantise="nf4"))
    build_model(**model_arguments(tiny_base))


def test_a_bitsandbytes_without_a_library_for_this_gpu_is_told(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("\n\nCUDA SETUP ERROR\nmore")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", broken)
    with pytest.raises(UserError, match=r"does not work on cpu \(CUDA SETUP ERROR\)[\s\S]*model.sa2va.quantise=None"):
        build_model(**model_arguments(tiny_base, quantise="nf4"))


def test_a_file_that_does_not_fit_is_still_refused(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    state[name] = state[name][:-1].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 misshapen: .*up_proj.weight is \(127, 64\), expected \(128, 64\)"):
        build_model(**model_arguments(tmp_path, quantise="nf4"))
