"""The small model as a folder: Hugging Face files, graphs for other runtimes, a script for them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from vesselseg.distill import graphs
from vesselseg.errors import UserError
from vesselseg.export.remote_code import source, write_remote_code
from vesselseg.inference.load import load_predictor
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.prompted_config import MODEL_TYPE, PromptedSAM2Config
from vesselseg.models.prompted_sam2 import PromptedSAM2, PromptHead, build_prompted, published_names
from vesselseg.models.sam2_grounding import SAM2Grounding

ENTRY = "vesselseg.export.hf_prompted_model"
AUTO_MAP = {
    "AutoConfig": "prompted_config.PromptedSAM2Config",
    "AutoModel": "hf_prompted_model.VesselSegSAM2Model",
}
SCRIPT = "predict_onnx.py"
TOLERANCE = 1e-3  # largest difference of a probability between two forms of the model in float32


@dataclass(frozen=True)
class FormCheck:
    """One form of the model against the one that was measured, over the check images: the largest difference of a
    probability, and the part of mask pixels that differ. bytes: of its file.
    """

    file: str
    probability: float
    mask_pixels: float
    bytes: int


def small_model(config: PromptedSAM2Config, grounding: SAM2Grounding, head: PromptHead) -> PromptedSAM2:
    """A model of these parts in float32 and main memory, with a SAM2 of its own whose parts for videos are left out."""
    model = build_prompted(config)
    entries = PromptedSAM2(config, grounding, head).state_dict()
    model.load_state_dict({name: entries[name].float().cpu() for name in model.state_dict()})
    return model.eval().requires_grad_(False)


def write_model(model: PromptedSAM2, folder: Path) -> None:
    """config.json, model.safetensors and the code that reads them."""
    config = model.config
    content = {
        "architectures": ["VesselSegSAM2Model"],
        "model_type": MODEL_TYPE,
        "dtype": "float32",
        "phrases": config.phrases,
        "head_width": config.head_width,
        "grounding_config": config.grounding_config,
        "threshold": config.threshold,
        "mask_temperature": config.mask_temperature,
        "training_images": config.training_images,
        "auto_map": AUTO_MAP,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    state = {name: tensor.contiguous() for name, tensor in published_names(model.state_dict()).items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_remote_code(folder, ENTRY)


def write_graphs(model: PromptedSAM2, folder: Path) -> None:
    """model.onnx, model_int8.onnx, model.pt2, predict_onnx.py."""
    graphs.write_onnx(model, folder / graphs.ONNX)
    graphs.write_int8(folder / graphs.ONNX, folder / graphs.ONNX_INT8)
    graphs.write_program(model, folder / graphs.PROGRAM)
    (folder / SCRIPT).write_text(source("vesselseg.distill.predict_onnx"), encoding="utf-8")


def check_forms(model: PromptedSAM2, folder: Path, pictures: Sequence[Image.Image]) -> list[FormCheck]:
    """Every form in the folder against the model. Raises UserError where one in float32 answers differently."""
    expected = _probabilities(PromptedPredictor(model), pictures)
    forms: dict[str, Any] = {
        "model.safetensors": load_predictor(folder, device="cpu", dtype=torch.float32),
        graphs.PROGRAM: ProgramPredictor(model, folder / graphs.PROGRAM),
        graphs.ONNX: graphs.OnnxPredictor(model, folder / graphs.ONNX),
        graphs.ONNX_INT8: graphs.OnnxPredictor(model, folder / graphs.ONNX_INT8),
    }
    checks = []
    for file, predictor in forms.items():
        found = _probabilities(predictor, pictures)
        away = max(float(np.abs(a - b).max()) for a, b in zip(found, expected))
        cut = model.config.threshold
        pixels = float(np.mean([((a > cut) != (b > cut)).mean() for a, b in zip(found, expected)]))
        checks.append(FormCheck(file, away, pixels, (folder / file).stat().st_size))
        if file != graphs.ONNX_INT8 and away > TOLERANCE:
            raise UserError(
                f"{file} answers differently from the model that was measured: probabilities differ by up to "
                f"{away:.2e} (allowed {TOLERANCE:.0e}). Nothing was written; please report this"
            )
    return checks


class ProgramPredictor(graphs.GraphPredictor):
    """The `torch.export` program in place of the network."""

    def __init__(self, model: PromptedSAM2, path: Path) -> None:
        super().__init__(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own way to read the file
            self.program = torch.export.load(str(path)).module()

    def run_graph(self, squares: torch.Tensor) -> torch.Tensor:
        """All phrases' logits."""
        logits: torch.Tensor = self.program(squares)
        return logits.detach()


def _probabilities(predictor: PromptedPredictor, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    return [predictor.predict([picture], [predictor.phrases])[0].probabilities for picture in pictures]
