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
from vesselseg.config.load import ConfigError
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.fine_masks import KINDS
from vesselseg.models.lora import count_parameters
from vesselseg.models.sam2_grounding import SAM2Grounding
from vesselseg.training.memory_plan.activations import activations_of
from vesselseg.training.memory_plan.images import training_images
from vesselseg.training.memory_plan.live_bytes import held_by
from vesselseg.training.memory_plan.plan import Target, plan_memory
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import shapes_of

FINE = "model.sa2va.sam2.fine_masks"
VESSEL_LOSSES = {"boundary": 2.0, "tversky": 0.5, "cldice": 0.5}


def masks_planned(base: Path, **options: Any) -> int:
    config = tiny(base, **{"schedule.micro_batch": 4, **options})
    shapes = shapes_of(config["model"]["sa2va"])
    return activations_of(Setup(config, 1), shapes, training_images(config, shapes.processor)).masks


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
def test_what_masks_and_losses_really_keep_is_what_is_counted(kind: str) -> None:
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


def test_pixels_are_not_in_a_store(base: Path) -> None:
    frozen = {f"model.sa2va.trainable.{name}": False for name in ("vision", "sam2_encoder")}
    tiny(base, **{FINE: "features", "features.store": "disk", **frozen})
    with pytest.raises(ConfigError, match=r'keeps no pictures, which model\.sa2va\.sam2\.fine_masks="pixels" reads'):
        tiny(base, **{FINE: "pixels", "features.store": "disk", **frozen})
