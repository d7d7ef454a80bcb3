"""Sa2VA with its loss, as what mmengine's runner and DeepSpeed train."""

from __future__ import annotations

from typing import Any, ClassVar

from mmengine.model import BaseModel
from torch import Tensor
from torch.profiler import record_function

from vesselseg.dataset.batch import Batch
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.lora import Lora, Trainable
from vesselseg.registry import LOSSES, MODELS

LOSSES.register_module(module=TotalLoss)


@MODELS.register_module()
class TrainingModel(BaseModel):
    """forward: Batch -> weighted losses.

    sa2va: arguments of `vesselseg.models.build.build_model`. loss: arguments of `vesselseg.losses.total.TotalLoss`.
    device, dtype, construction, assign: where and how the weights are made; the strategy knows, a config does not.
    """

    config_targets: ClassVar[dict[str, Any]] = {
        "sa2va": build_model,
        "sa2va.sam2": frozenset({"variant", "version", "checkpoint", "image_size", "trunk", "fine_masks"}),
        "sa2va.lora": Lora,
        "sa2va.trainable": Trainable,
        "loss": TotalLoss,
    }

    def __init__(self, sa2va: dict[str, Any], loss: dict[str, Any] | None = None, **placement: Any) -> None:
        super().__init__()
        self.sa2va = build_model(**sa2va, **placement)
        self.loss = TotalLoss(**(loss or {}))

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        """The weighted losses by name, scalars; their sum is what is minimised."""
        if mode != "loss":
            raise ValueError(f"TrainingModel answers mode 'loss' only, found {mode!r}; predict with a Predictor")
        output = self.sa2va(batch)
        with record_function("loss"):
            return self.loss(output.mask_logits, output.answer_logits, output.answer_labels, batch)
