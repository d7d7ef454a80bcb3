"""Sa2VA with its loss, as trained by mmengine's runner and DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.profiler import record_function

from vesselseg.config.check import own_defaults
from vesselseg.dataset.batch import Batch
from vesselseg.errors import UserError
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.lora import Lora, Trainable
from vesselseg.models.sa2va_config import SAM2_LARGE
from vesselseg.models.vessel_head_options import VesselHeadOptions, read_options
from vesselseg.registry import LOSSES, MODELS, registered_names, resolve
from vesselseg.suggest import did_you_mean

LOSSES.register_module(module=TotalLoss)


@dataclass(frozen=True)
class Sam2Settings:
    """Arguments of `model.sa2va.sam2`; a base folder with a SAM2 of its own keeps its variant, version and trunk."""

    checkpoint: str | None = None  # file with SAM2's weights; None: random weights, or those of the base folder
    variant: str = str(SAM2_LARGE["variant"])  # tiny, small, base_plus or large
    version: str = str(SAM2_LARGE["version"])  # 2.0 or 2.1
    image_size: int = int(str(SAM2_LARGE["image_size"]))  # side of SAM2's square view, pixels
    trunk: dict[str, Any] | None = None  # sizes that replace the variant's
    fine_masks: str | None = None  # `features` or `pixels`: masks at twice SAM2's resolution
    vessel_head: dict[str, Any] | None = None  # options of `VesselHeadOptions`: masks at the picture's own side


@MODELS.register_module()
class TrainingModel(BaseModel):
    """forward: Batch -> weighted losses.

    sa2va: arguments of `vesselseg.models.build.build_model`. loss: see `build_loss`.
    placement: device, dtype, construction and assign of `build_model`, which the strategy sets, not a config.
    """

    config_targets: ClassVar[dict[str, Any]] = {
        "sa2va": build_model,
        "sa2va.sam2": Sam2Settings,
        "sa2va.sam2.vessel_head": VesselHeadOptions,
        "sa2va.lora": Lora,
        "sa2va.trainable": Trainable,
        "loss": TotalLoss,
    }

    def __init__(self, sa2va: dict[str, Any], loss: dict[str, Any] | None = None, **placement: Any) -> None:
        super().__init__()
        self.sa2va = build_model(**sa2va, **placement)
        self.loss = build_loss(loss)

    @staticmethod
    def config_problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with the parts that refine SAM2's masks, for the check of a config."""
        sam2 = {**own_defaults(Sam2Settings), **((arguments.get("sa2va") or {}).get("sam2") or {})}
        options, problems = sam2["vessel_head"], []
        if options is None:
            return []
        if sam2["fine_masks"]:
            problems.append(
                "sa2va.sam2.fine_masks and model.sa2va.sam2.vessel_head both refine SAM2's answer; set one to None"
            )
        if not isinstance(options, Mapping):
            return [*problems, "sa2va.sam2.vessel_head must be a dict of options ({} for the defaults), or None"]
        try:
            found = read_options(options).problems(int(sam2["image_size"]))
        except (UserError, TypeError):  # unknown names and values of another type: the check of types lists them
            return problems
        return problems + [f"sa2va.{problem}" for problem in found]

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        """The weighted losses by name, scalars; their sum is minimised."""
        if mode != "loss":
            raise ValueError(f"TrainingModel supports mode 'loss' only, found {mode!r}; predict with a Predictor")
        output = self.sa2va(batch)
        with record_function("loss"):
            return self.loss(output.mask_logits, output.answer_logits, output.answer_labels, batch)


def build_loss(settings: Mapping[str, Any] | None) -> nn.Module:
    """The loss of a config's `model.loss`.

    type: a registered class with TotalLoss's forward, TotalLoss itself by default; other entries are its arguments.
    terms: weights of registered mask losses by name (`{"focal_loss": 0.5}`), functions of (logits, target), both
    (objects, H, W), that return (objects,). Raises UserError for a name that is not registered.
    """
    arguments = dict(settings or {})
    kind = arguments.pop("type", TotalLoss)
    if arguments.get("terms"):
        arguments["terms"] = {name: (_registered_loss(name), weight) for name, weight in arguments["terms"].items()}
    return resolve(kind)(**arguments)


def _registered_loss(name: str) -> Any:
    found = LOSSES.get(name)
    if found is None:
        raise UserError(
            f"model.loss.terms: no loss is registered as {name!r}{did_you_mean(name, registered_names(LOSSES))}; "
            "custom_imports must name the module that registers it"
        )
    return found
