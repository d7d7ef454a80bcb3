"""What finer masks and vessel losses take: planned on the meta device, kept by a real forward pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import SAM2
from tests.training.test_memory_plan import kept_bytes, tiny
from vesselseg.errors import ConfigError
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.fine_masks import KINDS
from vesselseg.models.lora import count_parameters
from vesselseg.models.sam2_grounding import SAM2Grounding
from vesselseg.models.vessel_head import VesselHead
from vesselseg.models.vessel_head_options import read_options
from vesselseg.training.memory_plan.activations import activations_of
from vesselseg.training.memory_plan.cards import card_named
from vesselseg.training.memory_plan.images import training_images
from vesselseg.training.memory_plan.live_bytes import held_by
from vesselseg.training.memory_plan.plan import FEATURES, Target, plan_memory
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import shapes_of

FINE = "model.sa2va.sam2.fine_masks"
HEAD = "model.sa2va.sam2.vessel_head"
SMALL_HEAD: dict[str, Any] = {"channels": [8, 16, 16], "object_channels": [8, 8]}
VESSEL_LOSSES = {"boundary": 2.0, "tversky": 0.5, "cldice": 0.5}


def masks_planned(base: Path, **options: Any) -> int:
    config = tiny(base, **{"schedule.micro_batch": 4, **options})
    shapes = shapes_of(config["model"]["sa2va"])
    return activations_of(Setup(config, 1), shapes, training_images(config, shapes.processor)).masks


@pytest.mark.slow
def test_finer_masks_and_further_losses_take_more(base: Path) -> None:
    plain, features, pixels = (masks_planned(base, **{FINE: kind}) for kind in (None, *KINDS))
    assert plain < features < pixels
    further = {f"model.loss.{name}": weight for name, weight in VESSEL_LOSSES.items()}
    assert masks_planned(base, **further) > 2 * plain  # ten erosions of every mask at its full size


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_counted_among_the_parameters(base: Path, kind: str) -> None:
    config = tiny(base, **{FINE: kind})
    kept = {key: config["model"]["sa2va"][key] for key in ("base", "sam2", "lora", "trainable", "max_tiles")}
    counts = count_parameters(build_model(**kept, fused=False))
    head = counts["fine masks"]
    assert head.trainable > 100_000 and head.frozen == 0
    plan = plan_memory(config, Target(1, None))
    assert plan.trainable == sum(count.trainable for count in counts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_what_masks_and_losses_keep(kind: str) -> None:
    torch.manual_seed(0)
    grounding = SAM2Grounding({**SAM2, "fine_masks": kind})
    loss = TotalLoss(lm=0.0, mask_target="full", **VESSEL_LOSSES)

    def learn(device: str) -> Tensor:
        features = grounding.encode(torch.zeros(2, 3, 128, 128, device=device))
        prompts = torch.zeros(2, 256, device=device)
        logits = grounding.decode(features, prompts, torch.arange(2, device=device))
        batch: Any = SimpleNamespace(objects_per_image=(2,), masks=(torch.zeros(2, 96, 96, device=device),))
        answers = torch.zeros(1, 4, device=device), torch.zeros(1, dtype=torch.int64, device=device)
        return torch.stack(list(loss(logits, *answers, batch).values())).sum()

    grounding.sam2.image_encoder.requires_grad_(False)
    real = kept_bytes(lambda: learn("cpu"), [*grounding.parameters(), *grounding.buffers()])
    grounding.to("meta")
    counted, outcome = held_by(lambda: learn("meta"))
    assert outcome.requires_grad
    assert counted.left == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_a_recomputed_head_takes_less_and_a_wider_one_more(base: Path) -> None:
    def planned(**options: Any) -> int:
        return masks_planned(base, **{HEAD: {**SMALL_HEAD, **options}})

    plain, whole = masks_planned(base), planned(at_once=None)
    assert plain < planned(at_once=1) < planned(at_once=2) < whole < planned(at_once=None, channels=[16, 16, 16])
    assert planned(at_once=None, side=64) < whole
    # Partitioned weights: nothing of the head is computed again.
    shared = {"strategy.zero_optimization.stage": 3, HEAD: {**SMALL_HEAD, "at_once": 1}}
    assert masks_planned(base, **shared) == whole


@pytest.mark.slow
def test_the_vessel_head_is_counted_in_parameters_features_and_time(base: Path) -> None:
    frozen = {f"model.sa2va.trainable.{name}": False for name in ("vision", "sam2_encoder")}
    for store in (None, "disk"):
        plain, head = (
            tiny(base, **{"schedule.micro_batch": 4, "features.store": store, HEAD: options, **frozen})
            for options in (None, SMALL_HEAD)
        )
        target = Target(1, 2**34, card_named("RTX 3090"))
        without, plan = plan_memory(plain, target), plan_memory(head, target)
        side = head["model"]["sa2va"]["sam2"]["image_size"]
        built = VesselHead(read_options(SMALL_HEAD), side)
        assert plan.trainable - without.trainable == sum(parameter.numel() for parameter in built.parameters())
        pixels = 4 * 3 * side**2 * (1 if store else 2)
        assert plan.phases["masks"][FEATURES] - without.phases["masks"][FEATURES] == pixels
        assert plan.host.disk - without.host.disk == (plan.images.count * 3 * side**2 if store else 0)
        assert plan.time.flops > without.time.flops and plan.time.iteration > without.time.iteration


@pytest.mark.parametrize("at_once", [None, 1])
def test_the_plan_counts_what_the_vessel_head_keeps(at_once: int | None) -> None:
    torch.manual_seed(0)
    options = {**SMALL_HEAD, "at_once": at_once}
    grounding = SAM2Grounding({**SAM2, "vessel_head": options}).requires_grad_(False)
    grounding.vessel_head.requires_grad_(True)

    def learn(device: str) -> Tensor:
        features = grounding.encode(torch.zeros(2, 3, 128, 128, device=device))
        prompts = torch.zeros(3, 256, device=device)
        return grounding.decode(features, prompts, torch.tensor([0, 1, 1], device=device), (1, 2)).square().sum()

    real = kept_bytes(lambda: learn("cpu"), [*grounding.parameters(), *grounding.buffers()])
    grounding.to("meta")
    counted, outcome = held_by(lambda: learn("meta"))
    assert outcome.requires_grad and counted.left == pytest.approx(real, rel=0.1)


def test_a_head_that_cannot_be_built_is_refused_with_the_config(base: Path) -> None:
    wrong = {HEAD: {"channels": [8, 8], "norm": "batch", "wide": 1}, FINE: "pixels"}
    with pytest.raises(ConfigError) as caught:
        tiny(base, **wrong)
    message = str(caught.value)
    assert f"{FINE} and {HEAD} both refine SAM2's answer; set one to None" in message
    assert f"{HEAD}.wide: VesselHeadOptions takes no 'wide'" in message and "2 problem(s)" in message
    with pytest.raises(ConfigError, match=r"vessel_head\.norm is 'batch'; expected 'group' or 'instance'"):
        tiny(base, **{HEAD: {"norm": "batch"}})
    with pytest.raises(ConfigError, match="vessel_head must be a dict of options"):
        tiny(base, **{HEAD: True})
