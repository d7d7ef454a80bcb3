from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tests.samples import SPECIMENS, batch_of, losses_of, processor_of
from tests.tiny import shaken_model
from vesselseg.dataset.batch import IGNORE_LABEL, Batch
from vesselseg.models.lora import trainable_state
from vesselseg.models.sa2va import Sa2VA

ENCODERS = {"vision": "vision_model", "sam2_encoder": "grounding.sam2.image_encoder"}


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Sa2VA:
    return shaken_model(tiny_base)


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """(inputs, output) of every call while the context is open."""
    seen: list[tuple[Any, Any]] = []
    handle = module.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(({**kwargs, "args": args}, out)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def answer_tokens(batch: Batch) -> int:
    return sum(int((row != IGNORE_LABEL).sum()) for row in batch.labels)


def test_one_mask_per_object_and_logits_where_labels_are(model: Sa2VA, tiny_base: Path) -> None:
    batch = batch_of(processor_of(model, tiny_base))
    output = model(batch)
    objects = sum(len(phrases) for _, _, phrases in SPECIMENS)
    assert output.mask_logits.shape == (objects, 32, 32)
    labels = answer_tokens(batch)
    assert output.answer_logits.shape[0] == labels == len(output.answer_labels)
    assert output.answer_logits.shape[1] == model.new_tokens.start + 5


@torch.no_grad()
def test_answer_logits_are_the_next_tokens(model: Sa2VA, tiny_base: Path) -> None:
    """Against the language model's own forward pass on every position, shifted by one as transformers shifts."""
    batch = batch_of(processor_of(model, tiny_base))
    with calls_of(model.language_model.model) as seen:
        output = model(batch)
    embeddings = seen[0][0]["inputs_embeds"]
    labels = pad_sequence(batch.labels, batch_first=True, padding_value=IGNORE_LABEL)
    present = pad_sequence([torch.ones_like(row) for row in batch.labels], batch_first=True)
    full = model.language_model(inputs_embeds=embeddings, attention_mask=present).logits
    own = model.new_tokens.logits(model.language_model.lm_head, seen[0][1].last_hidden_state)
    assert torch.equal(own[..., : model.new_tokens.start], full[..., : model.new_tokens.start])
    expected = torch.nn.functional.cross_entropy(own[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    found = torch.nn.functional.cross_entropy(output.answer_logits, output.answer_labels)
    torch.testing.assert_close(found, expected)


def test_the_head_sees_labelled_positions_only(model: Sa2VA, tiny_base: Path) -> None:
    batch = batch_of(processor_of(model, tiny_base))
    with calls_of(model.language_model.lm_head) as seen:
        model(batch)
    assert len(seen) == 1
    assert seen[0][1].shape[0] == answer_tokens(batch) < sum(len(row) for row in batch.labels) / 4


def test_each_image_is_encoded_once(model: Sa2VA, tiny_base: Path) -> None:
    batch = batch_of(processor_of(model, tiny_base))
    with calls_of(model.vision_model) as tiles, calls_of(model.grounding.sam2.image_encoder) as squares:
        model(batch)
    assert sum(call[0]["pixel_values"].shape[0] for call in tiles) == sum(batch.tiles_per_image)
    assert sum(call[0]["args"][0].shape[0] for call in squares) == len(SPECIMENS)


@pytest.mark.parametrize("switch", ENCODERS)
@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_encoder_keeps_no_graph(tiny_base: Path, switch: str, trains: bool) -> None:
    model = shaken_model(tiny_base, trainable={switch: trains}).train()
    with calls_of(model.get_submodule(ENCODERS[switch])) as seen:
        losses_of(model, batch_of(processor_of(model, tiny_base), 0))
    assert {tensor.requires_grad for tensor in tensors(dict(seen[0][1]))} >= {trains}
    assert any(tensor.grad_fn is not None for tensor in tensors(dict(seen[0][1]))) == trains


@torch.no_grad()
def test_a_frozen_encoder_takes_few_images_at_a_time(
    model: Sa2VA, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(processor_of(model, tiny_base))
    whole = model.encode_views(batch.tiles, batch.sam_images)
    monkeypatch.setattr("vesselseg.models.internvl.TILES_AT_ONCE", 2)
    monkeypatch.setattr("vesselseg.models.sam2_grounding.IMAGES_AT_ONCE", 1)
    with calls_of(model.vision_model) as tiles, calls_of(model.grounding.sam2.image_encoder) as squares:
        pieces = model.encode_views(batch.tiles, batch.sam_images)
    assert {call[0]["pixel_values"].shape[0] for call in tiles} == {1, 2}
    assert {call[0]["args"][0].shape[0] for call in squares} == {1}
    for field in fields(whole):
        torch.testing.assert_close(getattr(pieces, field.name), getattr(whole, field.name), msg=field.name)


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("high_res_convs", [False, True])
def test_losses_and_gradients_are_those_of_encoded_views(
    tiny_base: Path, projector: bool, high_res_convs: bool
) -> None:
    switches = {"projector": projector, "high_res_convs": high_res_convs}
    model = shaken_model(tiny_base, trainable=switches).train()
    batch = batch_of(processor_of(model, tiny_base))
    losses = losses_of(model, batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert ("projector.linear_1.weight" in gradients) == projector
    assert ("grounding.sam2.sam_mask_decoder.conv_s0.weight" in gradients) == high_res_convs
    model.zero_grad()
    encoded = model.encode_views(batch.tiles, batch.sam_images)
    assert encoded.patches.shape[-1] == (256 if projector else 64)  # pixel-shuffled, or as the language model reads
    assert (encoded.stride_8.shape[1], encoded.stride_4.shape[1]) == ((256, 256) if high_res_convs else (64, 32))
    nothing = torch.empty(0)
    with calls_of(model.vision_model) as tiles, calls_of(model.grounding.sam2.image_encoder) as squares:
        found = losses_of(model, replace(batch, tiles=nothing, sam_images=nothing, encoded=encoded))
    assert not tiles and not squares
    sum(found.values()).backward()
    for name, loss in losses.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-6, atol=1e-6, msg=name)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_no_keys_and_values_are_kept(model: Sa2VA, tiny_base: Path) -> None:
    with calls_of(model.language_model.model) as seen:
        model(batch_of(processor_of(model, tiny_base), 0))
    assert seen[0][1].past_key_values is None


@torch.no_grad()
def test_a_batch_answers_as_its_images_one_by_one(model: Sa2VA, tiny_base: Path) -> None:
    processor = processor_of(model, tiny_base)
    batch = batch_of(processor)
    assert len({len(row) for row in batch.input_ids}) == len(SPECIMENS)  # padding is at work
    together = model(batch)
    masks = together.mask_logits.split(list(batch.objects_per_image))
    rows = [int((row != IGNORE_LABEL).sum()) for row in batch.labels]
    answers = together.answer_logits.split(rows)
    for number in range(len(SPECIMENS)):
        alone = model(batch_of(processor, number))
        torch.testing.assert_close(masks[number], alone.mask_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(answers[number], alone.answer_logits, atol=1e-4, rtol=1e-4)
    assert together.mask_logits.std() > 1e-2


@torch.no_grad()
def test_later_objects_do_not_change_earlier_ones(model: Sa2VA, tiny_base: Path) -> None:
    batch = batch_of(processor_of(model, tiny_base), 1)
    seg = (batch.input_ids[0] == model.new_tokens.seg_id).nonzero().flatten()
    changed = batch.input_ids[0].clone()
    changed[seg[0] + 1 : seg[1]] = 65
    batch_changed = batch_of(processor_of(model, tiny_base), 1)
    batch_changed.input_ids = (changed,)
    first, second = model(batch).mask_logits, model(batch_changed).mask_logits
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_checkpointing_changes_neither_losses_nor_gradients(tiny_base: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = shaken_model(tiny_base, gradient_checkpointing=checkpointing).train()
        with calls_of(model.language_model.model.layers[0].input_layernorm) as seen:
            losses = losses_of(model, batch_of(processor_of(model, tiny_base)))
            sum(losses.values()).backward()
        assert len(seen) == (2 if checkpointing else 1)  # computed again during backward
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    for name, loss in found[0][0].items():
        torch.testing.assert_close(loss, found[1][0][name])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_type_runs_forward_and_backward(tiny_base: Path, checkpointing: bool) -> None:
    exact = shaken_model(tiny_base)
    half = shaken_model(tiny_base, dtype=torch.bfloat16, gradient_checkpointing=checkpointing).train()
    with torch.no_grad():
        for name, value in trainable_state(exact).items():
            half.get_parameter(name).copy_(value)
        half.grounding.load_state_dict(exact.grounding.state_dict())
    batch = batch_of(processor_of(exact, tiny_base))
    losses = losses_of(half, batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in half.parameters() if p.requires_grad)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected = losses_of(exact, batch)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05), name
