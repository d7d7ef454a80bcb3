"""The fused language model computes what transformers and peft compute, with the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import LORA, shaken_model
from vesselseg.errors import UserError
from vesselseg.models import fused_decoder, kernels
from vesselseg.models.fused_linear import AdaptedLinear, adapted, adapted_mlp, collect
from vesselseg.models.host_embedding import HostEmbedding, embedding_to_host
from vesselseg.models.sa2va import Sa2VA


def learned(model: Sa2VA, base: Path, *numbers: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients, in float64: rounding grows a hundredfold on its way through a mask decoder."""
    model.double()
    losses = losses_of(model, batch_of(processor_of(model, base), *numbers))
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_same(found: tuple[dict[str, Tensor], ...], expected: tuple[dict[str, Tensor], ...]) -> None:
    for own, other in zip(found, expected):
        assert own.keys() == other.keys()
        for name, value in own.items():
            error, size = (value - other[name]).norm(), other[name].norm()
            assert error < 1e-6 * size + 1e-9, f"{name}: error {error:.2g} of {size:.2g}"  # a key's bias learns nothing


@pytest.mark.parametrize("numbers", [(), (0,), (1, 1)], ids=["different lengths", "one", "equal lengths"])
@pytest.mark.parametrize("checkpointing", [False, True, 1])
@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_plain_path(
    base: Path, checkpointing: bool | int, numbers: tuple[int, ...]
) -> None:
    plain = learned(shaken_model(base, fused=False).train(), base, *numbers)
    model = shaken_model(base, fused=True, gradient_checkpointing=checkpointing).train()
    assert model.decoder is not None and model.decoder.recomputed == (
        2 if checkpointing is True else int(checkpointing)
    )
    assert_same(learned(model, base, *numbers), plain)
    assert sum("lora_" in name for name in plain[1]) == 2 * 7 * 2  # every layer's adapters learned


def test_the_plain_path_is_not_called(tiny_base: Path) -> None:
    model = shaken_model(tiny_base, fused=True)
    model.language_model.model.forward = None  # type: ignore[assignment]
    learned(model, tiny_base, 0)


def random_layer(inputs: int, outputs: int, rank: int, bias: bool) -> AdaptedLinear:
    base = nn.Linear(inputs, outputs, bias=bias).double().requires_grad_(False)
    a, b = torch.randn(rank, inputs).double() * 0.3, torch.randn(outputs, rank).double() * 0.3
    return AdaptedLinear(base, nn.Parameter(a), nn.Parameter(b), 1.7)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_can_add_up_where_they_are_collected(dropout: float) -> None:
    torch.manual_seed(0)
    layers = [random_layer(5, 4, 2, True), random_layer(5, 3, 1, False)]
    inputs = torch.randn(3, 5).double()
    parameters = [p for layer in layers for p in (layer.a, layer.b)]
    found = []
    for collecting in (False, True):
        for parameter in parameters:
            parameter.grad = None
            if collecting:
                collect(parameter, torch.ones_like(parameter))
        torch.manual_seed(1)
        torch.cat(adapted(inputs.requires_grad_(), layers, dropout), dim=1).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in parameters])
    for plain, collected in zip(*found):
        torch.testing.assert_close(collected, plain + 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_derivatives(dropout: float) -> None:
    torch.manual_seed(0)
    layers = [random_layer(5, 4, 2, True), random_layer(5, 3, 1, False)]
    gate, up, down = (random_layer(*sizes, 2, False) for sizes in ((5, 6), (5, 6), (6, 5)))
    parameters = [p for layer in (*layers, gate, up, down) for p in (layer.a, layer.b)]

    def run(inputs: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same entries are dropped in every call
        mixed = torch.cat(adapted(inputs, layers, dropout), dim=1)
        return torch.cat([mixed, adapted_mlp(inputs, gate, up, down, dropout)], dim=1)

    inputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (inputs, *parameters))


def test_dropout_is_an_adapters_own_and_unbiased() -> None:
    torch.manual_seed(0)
    layer = random_layer(50, 4, 3, False)
    inputs = torch.randn(2, 50).double()
    whole = adapted(inputs, [layer])[0]
    draws = torch.stack([adapted(inputs, [layer], 0.5)[0] for _ in range(4000)])
    assert draws.std(0).min() > 0.1
    torch.testing.assert_close(draws.mean(0), whole, atol=0.3, rtol=0.0)
    frozen = AdaptedLinear(layer.base, layer.a, nn.Parameter(torch.zeros_like(layer.b)), 1.0)
    assert torch.equal(adapted(inputs, [frozen], 0.5)[0], layer.base(inputs))  # the frozen product drops nothing


def test_dropout_rests_while_predicting_and_is_recomputed_alike(tiny_base: Path) -> None:
    dropping: dict[str, Any] = {"lora": {**LORA, "dropout": 0.5}, "fused": True}
    model = shaken_model(tiny_base, **dropping)
    plain = learned(shaken_model(tiny_base, fused=False), tiny_base, 0)
    assert_same(learned(model, tiny_base, 0), plain)
    found = []
    for checkpointing in (False, True):
        model = shaken_model(tiny_base, gradient_checkpointing=checkpointing, **dropping).train()
        torch.manual_seed(5)
        found.append(learned(model, tiny_base, 0))
    assert_same(found[0], found[1])
    assert (found[0][0]["loss_lm"] - plain[0]["loss_lm"]).abs() > 1e-4


def test_predictions_with_an_embedding_table_on_the_host(tiny_base: Path) -> None:
    plain = learned(shaken_model(tiny_base, fused=False), tiny_base)
    model = shaken_model(tiny_base, fused=True)
    table = model.language_model.model.embed_tokens.weight
    assert embedding_to_host(model)
    assert isinstance(model.language_model.get_input_embeddings(), HostEmbedding)
    assert all(parameter is not table for parameter in model.parameters())
    assert_same(learned(model, tiny_base), plain)


def test_a_table_that_a_checkpoint_needs_or_the_head_shares_stays(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    model.changed_by_load = ("language_model.model.embed_tokens.weight",)
    assert not embedding_to_host(model)
    model.changed_by_load = ()
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    assert not embedding_to_host(model)
    assert not embedding_to_host(shaken_model(tiny_base, trainable={"llm": "full"}))


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    wants = fused_decoder.wants_fused
    assert not wants("auto", cpu, False) and wants(True, cpu, False)
    assert not wants("auto", gpu, True) and not wants(False, gpu, False)
    assert not wants("auto", gpu, False, "qwen3") and wants(True, cpu, False, "llama")
    with pytest.raises(UserError, match="works with qwen2 and llama, not qwen3"):
        wants(True, cpu, False, "qwen3")
    monkeypatch.setattr(fused_decoder, "missing_for_triton", lambda: None)
    assert wants("auto", gpu, False) and not caplog.records
    with pytest.raises(UserError, match="ZeRO-3"):
        wants(True, gpu, True)
    with pytest.raises(UserError, match="expected True, False or 'auto'"):
        wants("yes", cpu, False)
    monkeypatch.undo()
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="C compiler"):
        wants(True, gpu, False)
    assert wants("auto", gpu, False) and "C compiler" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a CUDA device")
def test_kernels_on_a_gpu_give_what_torch_gives() -> None:
    torch.manual_seed(0)
    gate, up, weight = torch.randn(33, 64), torch.randn(33, 64), torch.rand(64)
    heads, angles = torch.randn(33, 4, 16), torch.randn(33, 8).repeat(1, 2)

    def results(device: str) -> list[Tensor]:
        one, two, scale, places = gate.to(device), up.to(device), weight.to(device), angles.to(device)
        turned = kernels.rotate(heads.to(device), heads.to(device), places.cos(), places.sin())
        slopes = kernels.swiglu_gradient(one.clone(), two.clone(), two)
        return [kernels.rms_norm(one, scale, 1e-6), kernels.swiglu(one, two), *slopes, *turned]

    for found, expected in zip(results("cuda"), results("cpu")):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)
