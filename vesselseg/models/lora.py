"""LoRA adapters through peft: attach and merge them; choose, save and count the parameters that train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vesselseg.errors import UserError
from vesselseg.models.hub_kernels import without_hub_kernels
from vesselseg.models.merging import is_adapted, merged_weight
from vesselseg.models.quantised import PackedLinear, number_of_weights
from vesselseg.models.sa2va import Sa2VA

TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear layer of the language model's blocks (Hu et al. 2021).

    r: rank. alpha: the update is scaled by alpha / r. dropout: on the adapter's input, 0 to 1; 0.1 makes a step a fifth
    slower and needs 0.8 GiB at 8B.
    modules_to_save: which of `embed_tokens` and `lm_head` train as whole tables, in addition to the adapters (1.09 G
    parameters at 8B for both; the rows of the new tokens train in any case).
    """

    r: int = 64
    alpha: int = 128
    dropout: float = 0.0
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.modules_to_save if name not in TABLES]
        if unknown:
            raise UserError(f"lora.modules_to_save holds {', '.join(unknown)}; it takes {' and '.join(TABLES)}")


@dataclass(frozen=True)
class Trainable:
    """Which parts train."""

    llm: str = "lora"
    """the language model: `lora`, `full` or `frozen`"""
    new_tokens: bool = True
    """embedding and head rows of the five new tokens"""
    projector: bool = False
    """the layers between vision tower and language model (27.5 M parameters at 8B)"""
    seg_projector: bool = True
    """the layers between language model and SAM2 (13.8 M parameters at 8B)"""
    mask_decoder: bool = True
    """SAM2's mask decoder, and fine masks or vessel head"""
    high_res_convs: bool = True
    """SAM2's conv_s0 and conv_s1, together with the mask decoder (25 k parameters); frozen, they are part of the image
    encoder, whose features are then a fifth as large"""
    sam2_encoder: bool = False
    """SAM2's image encoder and prompt encoder"""
    vision: bool = False
    """InternVL's vision tower"""

    def __post_init__(self) -> None:
        if self.llm not in ("lora", "full", "frozen"):
            raise ValueError(f"trainable.llm is {self.llm!r}; expected lora, full or frozen")


def attach_lora(model: Sa2VA, lora: Lora) -> None:
    """Add adapters to every linear layer of the language model's blocks; the head gets none."""
    blocks = model.language_model.model.layers
    names = sorted(
        {name.rsplit(".", 1)[-1] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    )
    peft, sizes = _peft(), {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    config = peft.LoraConfig(**sizes, target_modules=names, bias="none")
    # peft initialises B with zeros, so that the model's output does not change at first.
    peft.inject_adapter_in_model(config, model.language_model.model)
    for name, parameter in model.language_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)  # peft creates adapters in float32


def merge_lora(model: nn.Module) -> None:
    """Replace every adapted layer, in place, by one with weight W + (alpha / r) B A; W must not be quantised."""
    for name, module in list(model.named_modules()):
        if is_adapted(module):
            layer = module.get_base_layer()
            if isinstance(layer, PackedLinear):
                raise ValueError(f"{name} is quantised; build the model without quantise and merge into that")
            read = {
                adapter: (module.scaling[adapter], module.lora_A[adapter].weight, module.lora_B[adapter].weight)
                for adapter in module.active_adapters
            }
            layer.weight.data = merged_weight(layer.weight, read)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, layer)


def _peft() -> Any:
    """Import peft where it is needed: with bitsandbytes, which it imports, that takes seconds."""
    with without_hub_kernels():
        import peft

    return peft


def set_trainable(model: Sa2VA, trainable: Trainable, tables: Sequence[str] = ()) -> None:
    """Set requires_grad of every parameter; adapters, and whole tables of these names, train with llm="lora" only."""
    model.requires_grad_(False)
    if trainable.llm == "full":
        model.language_model.requires_grad_(True)
    if trainable.llm == "lora":
        for name, parameter in model.language_model.named_parameters():
            parameter.requires_grad_("lora_" in name or name.split(".")[-2] in tables)
    model.new_tokens.requires_grad_(trainable.new_tokens)
    model.projector.requires_grad_(trainable.projector)
    model.seg_projector.requires_grad_(trainable.seg_projector)
    sam2 = model.grounding.sam2
    sam2.sam_mask_decoder.requires_grad_(trainable.mask_decoder)
    for head in (model.grounding.fine_masks, model.grounding.vessel_head):
        if head is not None:
            head.requires_grad_(trainable.mask_decoder)
    for convolution in (sam2.sam_mask_decoder.conv_s0, sam2.sam_mask_decoder.conv_s1):
        convolution.requires_grad_(trainable.mask_decoder and trainable.high_res_convs)
    if trainable.sam2_encoder:
        sam2.image_encoder.requires_grad_(True)
        sam2.sam_prompt_encoder.requires_grad_(True)
        sam2.no_mem_embed.requires_grad_(True)
    model.vision_model.requires_grad_(trainable.vision)
    _freeze_what_no_mask_uses(model)


def _freeze_what_no_mask_uses(model: Sa2VA) -> None:
    """Freeze parts that the forward pass does not use: they would get optimizer states but no gradients."""
    sam2 = model.grounding.sam2
    unused = (
        sam2.sam_mask_decoder.iou_prediction_head,
        sam2.sam_mask_decoder.pred_obj_score_head,
        sam2.sam_mask_decoder.output_hypernetworks_mlps[0],  # the single-mask head; the three candidates are 1 to 3
        sam2.sam_prompt_encoder.mask_downscaling,
        sam2.sam_prompt_encoder.point_embeddings,
    )
    for module in unused:
        module.requires_grad_(False)
    head = model.grounding.vessel_head
    if head is not None and not head.options.sam2:
        sam2.requires_grad_(False)
        if not head.options.modulated:
            model.seg_projector.requires_grad_(False)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def checkpoint_state(model: Sa2VA) -> dict[str, Tensor]:
    """What a checkpoint must contain: the parameters that train, and what cannot be read again from the base's files.

    The latter are random initial weights, including frozen ones and buffers (e.g. SAM2's position matrix and IoU head),
    and frozen parts in which a checkpoint that the training started from differed from the base.
    """
    not_in_base = {
        name: value.detach()
        for name, value in model.state_dict(keep_vars=True).items()
        if name.startswith(model.randomly_initialised) or name in model.changed_by_load
    }
    return {**not_in_base, **trainable_state(model)}


# (part, prefix of its parameters' names), of which the first match counts. Adapters are found by "lora_" anywhere.
PARTS = (
    ("LoRA", "lora_"),
    ("new tokens", "new_tokens."),
    ("vision tower", "vision_model."),
    ("projector", "projector."),
    ("seg projector", "seg_projector."),
    ("SAM2 mask decoder", "grounding.sam2.sam_mask_decoder."),
    ("SAM2 image encoder", "grounding.sam2.image_encoder."),
    ("fine masks", "grounding.fine_masks."),
    ("vessel head", "grounding.vessel_head."),
    ("SAM2 rest", "grounding."),
    ("language model", "language_model."),
)


@dataclass
class PartCount:
    """Parameters of one part of the model."""

    trainable: int = 0
    frozen: int = 0


def count_parameters(model: nn.Module) -> dict[str, PartCount]:
    """Trainable and frozen parameters by part. Partitioned parameters (ZeRO-3) count in full."""
    counts = {part: PartCount() for part, _ in PARTS}
    for name, parameter in model.named_parameters():
        part = next((part for part, mark in PARTS if mark in name and (mark == "lora_" or name.startswith(mark))), None)
        elements = number_of_weights(parameter)
        count = counts.setdefault(part or "other", PartCount())
        if parameter.requires_grad:
            count.trainable += elements
        else:
            count.frozen += elements
    return {part: count for part, count in counts.items() if count.trainable or count.frozen}
