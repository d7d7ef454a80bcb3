"""A training checkpoint -> a Hugging Face folder, compared with the checkpoint before it appears."""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from vesselseg.errors import UserError
from vesselseg.export.model_card import write_model_card
from vesselseg.export.remote_code import AUTO_MAP, write_remote_code
from vesselseg.inference.predictor import Prediction
from vesselseg.inference.processor import processor_for
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.losses.total import standard_arguments
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.training_file import base_of, build_from_training_file
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.lora import merge_lora
from vesselseg.output_folder import whole_folder

logger = logging.getLogger(__name__)

MARKER = "config.json"  # identifies an earlier export; --force replaces no other folder
TOLERANCE = 1e-3  # largest allowed difference of probabilities between checkpoint and folder, both in float32


@dataclass(frozen=True)
class ConversionCheck:
    """Comparison of two models on the check images."""

    images: int
    probability: float  # largest difference
    mask_pixels: float  # fraction that differs


def convert(
    checkpoint: Path,
    out: Path,
    images: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    force: bool = False,
    model_config: dict[str, Any] | None = None,
) -> ConversionCheck:
    """Write the folder next to `out` and move it there once it has passed the check.

    images: real images that checkpoint and folder are compared on. dtype: of the stored weights; with bf16 the merged
    weights are rounded before the comparison, so that rounding does not count as a difference. model_config: arguments
    of `build_model` for a checkpoint of the published code, which contains none. Raises UserError if `out` exists, the
    checkpoint does not fit its base, or the check fails.
    """
    if not images:
        raise UserError("no image to compare checkpoint and folder on; name some with --images FOLDER")
    with whole_folder(out, force, MARKER) as building:
        return _write_and_check(checkpoint, building, images, dtype, base, model_config)


def _write_and_check(
    checkpoint: Path,
    folder: Path,
    images: Sequence[Path],
    dtype: torch.dtype,
    base: str | None,
    model_config: dict[str, Any] | None,
) -> ConversionCheck:
    model, content = build_from_training_file(checkpoint, base=base, model_config=model_config)
    model.eval()
    source = read_base_folder(base_of(content, checkpoint, base))
    tokenizer = source.tokenizer
    opened = [_open(path) for path in images]
    predictor = Sa2VAPredictor(model, processor_for(model.config, tokenizer), model.config.threshold)
    if dtype == torch.float32:
        before = _predict(predictor, opened)
        merge_lora(model)
    else:
        merge_lora(model)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()
        before = _predict(predictor, opened)
    model.config.training_loss = training_loss(content)
    write_published_folder(model, tokenizer, folder, dtype=dtype, extra={"auto_map": AUTO_MAP}, kept=source.fields)
    write_remote_code(folder)
    write_model_card(folder, model, content)
    del model, predictor  # frees memory for the exported model
    check = compare(before, _predict_exported(folder, opened))
    if check.probability > TOLERANCE:
        raise UserError(
            f"{checkpoint}: the exported folder gives different results: probabilities differ by up to "
            f"{check.probability:.2e} (allowed {TOLERANCE:.0e}), and {check.mask_pixels:.3%} of mask pixels differ. "
            "Nothing was written; please report this"
        )
    return check


def training_loss(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TotalLoss in the config text of a checkpoint; {} if it has none.

    Custom losses are omitted: an exported folder trains without the file that registers them.
    """
    for statement in ast.parse(checkpoint.get("config") or "").body:
        if isinstance(statement, ast.Assign) and [ast.unparse(name) for name in statement.targets] == ["model"]:
            return standard_arguments(ast.literal_eval(statement.value).get("loss"))
    return {}


def _predict(predictor: Sa2VAPredictor, images: Sequence[Image.Image]) -> list[Prediction]:
    phrase = predictor.model.config.default_phrase
    return [predictor.predict([image], [[phrase]])[0] for image in images]


def _predict_exported(folder: Path, images: Sequence[Image.Image]) -> list[Prediction]:
    """Load the folder as a user does, with its own code, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    return _predict(model.predictor(tokenizer), images)


def compare(before: Sequence[Prediction], after: Sequence[Prediction]) -> ConversionCheck:
    """The differences between two lists of predictions of the same images."""
    differences = [float(np.abs(a.probabilities - b.probabilities).max()) for a, b in zip(before, after)]
    pixels = [float((a.masks != b.masks).mean()) for a, b in zip(before, after)]
    return ConversionCheck(len(before), max(differences), float(np.mean(pixels)))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); name other images with --images") from None
