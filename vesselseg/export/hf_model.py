"""The model class of an exported folder: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

An exported folder contains copies of this file and of its imports, so it needs torch, transformers, sam2, safetensors
and pillow, and no training framework. The weights have Sa2VA's published names. The model can predict and train:
`forward` takes a batch and returns its loss, and `save_pretrained` writes a folder of the same form.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from vesselseg.dataset.batch import IGNORE_LABEL, Batch, EncodedViews
from vesselseg.dataset.prompts import ANSWER, IMAGE_PLACEHOLDER
from vesselseg.inference.predictor import check_threshold
from vesselseg.inference.processor import processor_for
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.losses.total import TotalLoss
from vesselseg.models.assemble import assemble
from vesselseg.models.checkpoints.hub import pretrained_folder
from vesselseg.models.checkpoints.published_layout import EMBEDDING, HEAD, to_ours
from vesselseg.models.checkpoints.resolved_names import check_config_file
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.sa2va_config import NEW_TOKENS, Sa2VAConfig
from vesselseg.models.sam2_grounding import move_buffers

PREFIX = "sa2va."  # of the state dict's names
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass
class TrainingOutput(ModelOutput):
    """Output of `VesselSegModel.forward`."""

    loss: Tensor | None = None  # scalar, the sum of losses; None without labels or masks
    # (all objects, h, h), image after image, before sigmoid; h is `SAM2Grounding.mask_side`
    mask_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None  # weighted losses by name


class VesselSegModel(PreTrainedModel):
    """Sa2VA with merged adapters, for prediction and further training."""

    config_class = Sa2VAConfig  # type: ignore[assignment]
    config: Sa2VAConfig
    base_model_prefix = ""
    main_input_name = "sam_images"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [  # noqa: RUF012 - as in transformers
        "Qwen2DecoderLayer",
        "LlamaDecoderLayer",
        "InternVLVisionLayer",
        "SAM2Grounding",
    ]

    def __init__(self, config: Sa2VAConfig) -> None:
        super().__init__(config)
        vision, language = build_vision_tower(config, "sdpa"), build_language_model(config, "sdpa")
        self.sa2va = assemble(config, vision, language, int(config.image_token_id))
        self.total_loss = TotalLoss(**config.training_loss)
        self._predictors: dict[int, Sa2VAPredictor] = {}
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Not needed: every weight comes from the folder."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> VesselSegModel:
        """Load a local folder or a hub repository; further arguments as in transformers."""
        folder = pretrained_folder(pretrained_model_name_or_path, kwargs)
        check_config_file(folder)
        config = kwargs.pop("config", None) or Sa2VAConfig.from_pretrained(folder)
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", None) or "auto")
        if kwargs["dtype"] == "auto":
            kwargs["dtype"] = config.dtype or torch.float32
        if kwargs.get("device_map") is not None or kwargs.get("quantization_config") is not None:
            from vesselseg.export.hf_loading import resolve_device_map, resolve_quantisation  # needs accelerate

            kwargs["quantization_config"] = chosen = resolve_quantisation(kwargs.get("quantization_config"))
            kwargs["device_map"] = resolve_device_map(kwargs.get("device_map"), config, kwargs["dtype"], chosen)
        model = super().from_pretrained(None, *args, config=config, state_dict=read_weights(folder, config), **kwargs)
        move_buffers(model.sa2va.grounding)
        model.name_or_path = str(folder)
        return model

    def forward(
        self,
        sam_images: Tensor,
        tiles: Tensor,
        input_ids: Sequence[Tensor],
        labels: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        objects_per_image: Sequence[int] | None = None,
        tiles_per_image: Sequence[int] = (),
        image_ids: Sequence[str] = (),
        encoded: EncodedViews | None = None,
    ) -> TrainingOutput:
        """Losses of a batch, with the losses and weights of the training that the folder comes from.

        Takes the fields of a `Batch` by name: `model(**vars(collate(examples)))`. objects_per_image: by default counted
        in the conversations. tiles_per_image and image_ids are accepted, but not needed.
        """
        rows = _to_cpu(input_ids)
        batch = Batch(
            image_ids=tuple(image_ids),
            tiles=tiles,
            tiles_per_image=tuple(tiles_per_image),
            sam_images=sam_images,
            input_ids=rows,
            labels=_ignored_labels(rows) if labels is None else _to_cpu(labels),
            masks=tuple(masks or ()),
            objects_per_image=tuple(objects_per_image or self._count_objects(rows)),
            encoded=encoded,
        )
        output = self.sa2va(batch)
        if labels is None or masks is None:
            return TrainingOutput(mask_logits=output.mask_logits)
        losses = self.total_loss(output.mask_logits, output.answer_logits, output.answer_labels, batch)
        return TrainingOutput(torch.stack(list(losses.values())).sum(), output.mask_logits, losses)

    def _count_objects(self, rows: Sequence[Tensor]) -> list[int]:
        """Number of [SEG] tokens per conversation."""
        return [int((row == self.sa2va.new_tokens.seg_id).sum()) for row in rows]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **_: Any,
    ) -> None:
        """Write an exported folder: published names, merged adapters, model code, and the tokenizer's files.

        A tokenizer that was changed is saved with its own `save_pretrained`, before or afterwards; what transformers 5
        writes then cannot be read by 4.57. state_dict: the weights, if they are partitioned over processes. Other
        arguments of transformers are ignored. Raises ValueError for weights in 4 or 8 bits.
        """
        if not is_main_process:
            return
        if getattr(self, "is_quantized", False):
            raise ValueError(
                "weights in 4 or 8 bits cannot be saved in full precision; save a model that was loaded without "
                "quantization_config"
            )
        folder, origin = Path(save_directory), Path(str(self.name_or_path))
        folder.mkdir(parents=True, exist_ok=True)
        kept = json.loads((origin / "config.json").read_text(encoding="utf-8"))
        code = {"auto_map": kept["auto_map"]}
        state = None if state_dict is None else {name.removeprefix(PREFIX): one for name, one in state_dict.items()}
        dtype = next(self.sa2va.language_model.parameters()).dtype  # of the frozen weights; trained ones may be float32
        write_published_folder(self.sa2va, None, folder, dtype=dtype, extra=code, kept=kept, state=state)
        _copy_code(origin, folder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """See torch; raises ValueError for the weights of a saved folder, which only `from_pretrained` can read."""
        foreign = next((name for name in state_dict if not name.startswith(PREFIX)), None)
        if foreign is not None:
            raise ValueError(
                f"{foreign} is a published name: weights written by save_pretrained have merged adapters and are "
                "loaded by from_pretrained(FOLDER) only. To continue from a Trainer's checkpoint, load its folder"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The language model's token embedding."""
        return self.sa2va.language_model.get_input_embeddings()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, *further: Any, **named: Any
    ) -> None:
        """Recompute the language model's layers; frozen encoders store no activations anyway."""
        self.sa2va.language_model._set_gradient_checkpointing(enable, gradient_checkpointing_func, *further, **named)

    def predict_forward(
        self,
        image: Image.Image,
        text: str = f"{IMAGE_PLACEHOLDER}\nPlease segment the blood vessel.",
        tokenizer: PreTrainedTokenizerBase | None = None,
        threshold: float | None = None,
    ) -> dict[str, Any]:
        """Segment the object that a question requests.

        text: a question, with or without a leading `<image>`. threshold: by default the one stored with the model.
        Returns `prediction`, the text of the answer; `prediction_masks`, a list with one bool array (1, height, width);
        `prediction_probs`, a list with one float32 array of the same shape, 0 to 1.
        """
        if tokenizer is None:
            raise ValueError("predict_forward needs tokenizer=AutoTokenizer.from_pretrained(FOLDER)")
        question = text.replace(IMAGE_PLACEHOLDER, "").strip()
        if not question:
            raise ValueError('text contains no question; e.g. "<image>\\nPlease segment the blood vessel."')
        threshold = self.config.threshold if threshold is None else check_threshold(threshold)
        probabilities: np.ndarray = self.predictor(tokenizer).probabilities([image], [[question]])[0]
        return {
            "prediction": ANSWER + self.predictor(tokenizer).processor.tokens.template.end,
            "prediction_masks": [probabilities > threshold],
            "prediction_probs": [probabilities],
        }

    def predictor(self, tokenizer: PreTrainedTokenizerBase) -> Sa2VAPredictor:
        """The predictor of this model; cached for the last tokenizer."""
        if id(tokenizer) not in self._predictors:
            processor = processor_for(self.config, tokenizer)
            predictor = Sa2VAPredictor(self.sa2va, processor, self.config.threshold, self.config.mask_temperature)
            self._predictors = {id(tokenizer): predictor}
        return self._predictors[id(tokenizer)]


def _to_cpu(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Conversations on the CPU, where the model looks up token positions."""
    return tuple(row.cpu() for row in rows)


def _ignored_labels(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.full_like(row, IGNORE_LABEL) for row in rows)


def _copy_code(origin: Path, folder: Path) -> None:
    if origin.resolve() == folder.resolve():
        return
    for file in origin.glob("*.py"):
        shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer_config.json").is_file():
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)


def read_weights(folder: Path, config: Sa2VAConfig) -> dict[str, Tensor]:
    """The folder's tensors under this class's names, including copies of the new tokens' rows."""
    start, state = int(config.new_token_start or 0), {}
    for name, tensor in stream_folder(folder):
        for ours, piece in to_ours(name, tensor, config):
            state[f"{PREFIX}{ours}"] = piece
            if ours in (EMBEDDING, HEAD):
                rows = "embedding" if ours == EMBEDDING else "head"
                state[f"{PREFIX}new_tokens.{rows}"] = piece[start : start + len(NEW_TOKENS)].clone()
    return state
