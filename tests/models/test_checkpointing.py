"""Which layers are recomputed, where their inputs wait, and that neither changes what is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import shaken_model
from vesselseg.errors import UserError
from vesselseg.models import checkpointing
from vesselseg.models.checkpointing import kept_on_host, layers_to_recompute


def learned(base: Path, **changes: object) -> tuple[dict[str, Tensor], list[int]]:
    """Gradients by name, and how often each decoder layer ran."""
    model = shaken_model(base, fused=False, **changes).train()
    runs = [0] * len(model.language_model.model.layers)
    for number, layer in enumerate(model.language_model.model.layers):
        # A hook before the layer: recomputing ends early, as soon as it has what the backward pass needs.
        layer.self_attn.register_forward_pre_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    sum(losses_of(model, batch_of(processor_of(model, base), 0)).values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, runs


@pytest.mark.parametrize(("setting", "runs"), [(True, [2, 2]), (1, [2, 1]), (2, [2, 2]), (0, [1, 1]), (False, [1, 1])])
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.slow
def test_the_first_layers_run_twice_and_learn_the_same(
    tiny_base: Path, setting: bool | int, runs: list[int], on_host: bool
) -> None:
    plain, once = learned(tiny_base)
    assert once == [1, 1]
    found, counted = learned(tiny_base, gradient_checkpointing=setting, activations_on_host=on_host)
    assert counted == runs
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_only_the_layers_inputs_wait_in_main_memory(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, ...]] = []
    to_host = checkpointing._to_host

    def watched(tensor: Tensor) -> tuple[torch.device, Tensor]:
        sent.append(tuple(tensor.shape))
        return to_host(tensor)

    monkeypatch.setattr(checkpointing, "_to_host", watched)
    learned(tiny_base, gradient_checkpointing=True, activations_on_host=True)
    inputs = [shape for shape in sent if 0 not in shape]
    assert len(inputs) == 2 and all(shape[-1] == 64 for shape in inputs)  # hidden size


@pytest.mark.parametrize("setting", [-1, 3])
def test_more_layers_than_there_are_is_an_error(tiny_base: Path, setting: int) -> None:
    with pytest.raises(UserError, match=f"gradient_checkpointing is {setting}; expected True, False or how many"):
        shaken_model(tiny_base, gradient_checkpointing=setting)
    assert layers_to_recompute(True, 28) == 28 and layers_to_recompute(False, 28) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing to move to main memory")
def test_what_waits_leaves_the_gpu() -> None:
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    start = torch.randn(4096, 64, device="cuda")
    _ = start @ weight.detach()  # the first product takes a workspace and keeps it
    before = torch.cuda.memory_allocated()
    with kept_on_host():
        value = (start * 2) @ weight
    kept = torch.cuda.memory_allocated() - before - value.numel() * 4
    assert kept < start.numel() * 4 / 2
    value.sum().backward()
    expected = (start * 2).T @ torch.ones_like(value)
    torch.testing.assert_close(weight.grad, expected)


def test_the_fused_path_sends_its_inputs_as_well(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    to_host = checkpointing._to_host

    def watched(tensor: Tensor) -> tuple[torch.device, Tensor]:
        sent.append(tensor.shape[-1])
        return to_host(tensor)

    monkeypatch.setattr(checkpointing, "_to_host", watched)
    found = []
    for on_host in (False, True):
        model = shaken_model(tiny_base, fused=True, gradient_checkpointing=True, activations_on_host=on_host).train()
        sum(losses_of(model, batch_of(processor_of(model, tiny_base), 0)).values()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert sent.count(64) == (2 if on_host else 0)  # hidden size, once a layer
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
