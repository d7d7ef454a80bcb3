"""The student as a folder: Hugging Face files, graphs for other runtimes, and a script that runs them."""

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
from vesselseg.export.remote_code import PROMPTED_AUTO_MAP, PROMPTED_ENTRY, module_source, write_remote_code
from vesselseg.inference.load import load_predictor
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.prompted_config import MODEL_TYPE, PromptedSAM2Config
from vesselseg.models.prompted_sam2 import PromptedSAM2, PromptHead, build_prompted, published_names
from vesselseg.models.sam2_grounding import SAM2Grounding

SCRIPT = "predict_onnx.py"
TOLERANCE = 1e-3  # largest allowed difference of probabilities between float32 forms of the model


@dataclass(frozen=True)
class FormCheck:
    """One exported form of the student compared with the measured model on the check images."""

    file: str
    probability: float  # largest difference of a probability
    mask_pixels: float  # fraction of mask pixels that differ
    bytes: int  # of the file


def build_student(config: PromptedSAM2Config, grounding: SAM2Grounding, head: PromptHead) -> PromptedSAM2:
    """A student from these parts, in float32 and main memory, with a copy of SAM2 without its video parts."""
    model = build_prompted(config)
    entries = PromptedSAM2(config, grounding, head).state_dict()
    model.load_state_dict({name: entries[name].float().cpu() for name in model.state_dict()})
    return model.eval().requires_grad_(False)


def write_model(model: PromptedSAM2, folder: Path) -> None:
    """Write config.json, model.safetensors and the code that loads them."""
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
        "auto_map": PROMPTED_AUTO_MAP,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    state = {name: tensor.contiguous() for name, tensor in published_names(model.state_dict()).items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_remote_code(folder, PROMPTED_ENTRY)


def write_graphs(model: PromptedSAM2, folder: Path) -> None:
    """Write model.onnx, model_int8.onnx, model.pt2 and predict_onnx.py."""
    graphs.write_onnx(model, folder / graphs.ONNX)
    graphs.write_int8(folder / graphs.ONNX, folder / graphs.ONNX_INT8)
    graphs.write_program(model, folder / graphs.PROGRAM)
    (folder / SCRIPT).write_text(module_source("vesselseg.distill.predict_onnx"), encoding="utf-8")


def check_forms(model: PromptedSAM2, folder: Path, images: Sequence[Image.Image]) -> list[FormCheck]:
    """Compare every form in the folder with the model. Raises UserError if a float32 form differs."""
    expected = _probabilities(PromptedPredictor(model), images)
    forms: dict[str, Any] = {
        "model.safetensors": load_predictor(folder, device="cpu", dtype=torch.float32),
        graphs.PROGRAM: ProgramPredictor(model, folder / graphs.PROGRAM),
        graphs.ONNX: graphs.OnnxPredictor(model, folder / graphs.ONNX),
        graphs.ONNX_INT8: graphs.OnnxPredictor(model, folder / graphs.ONNX_INT8),
    }
    checks = []
    for file, predictor in forms.items():
        actual = _probabilities(predictor, images)
        largest = max(float(np.abs(a - b).max()) for a, b in zip(actual, expected))
        threshold = model.config.threshold
        pixels = float(np.mean([((a > threshold) != (b > threshold)).mean() for a, b in zip(actual, expected)]))
        checks.append(FormCheck(file, largest, pixels, (folder / file).stat().st_size))
        if file != graphs.ONNX_INT8 and largest > TOLERANCE:
            raise UserError(
                f"{file} differs from the measured model: probabilities differ by up to {largest:.2e} "
                f"(allowed {TOLERANCE:.0e}). Nothing was written; please report this"
            )
    return checks


class ProgramPredictor(graphs.GraphPredictor):
    """Runs the `torch.export` program."""

    def __init__(self, model: PromptedSAM2, path: Path) -> None:
        super().__init__(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own file format
            self.program = torch.export.load(str(path)).module()

    def run_graph(self, squares: torch.Tensor) -> torch.Tensor:
        """See `GraphPredictor`."""
        logits: torch.Tensor = self.program(squares)
        return logits.detach()


def _probabilities(predictor: PromptedPredictor, images: Sequence[Image.Image]) -> list[np.ndarray]:
    """Per image (phrases, height, width)."""
    return [predictor.predict([image], [predictor.phrases])[0].probabilities for image in images]
