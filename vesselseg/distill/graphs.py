"""The small model as graphs for other runtimes: ONNX in float32 and in 8 bits, and a `torch.export` program.

Each takes squares (batch, 3, side, side), normalised, and returns mask logits (batch, phrases, side / 4, side / 4),
with fine masks / 2, for any batch.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from vesselseg.inference.predictor import ModelInputs
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.prompted_sam2 import PromptedSAM2

ONNX, ONNX_INT8, PROGRAM = "model.onnx", "model_int8.onnx", "model.pt2"
INPUT, OUTPUT = "squares", "mask_logits"
OPSET = 17
LARGEST_BATCH = 64
QUANTISED = ["MatMul", "Gemm"]  # a product with weights; convolutions and attention stay in float32


def write_onnx(model: PromptedSAM2, path: Path) -> None:
    """The float32 graph; what a user of the file must know stands in its metadata, see ``metadata``."""
    traced, squares = _for_tracing(model)
    with warnings.catch_warnings():
        # Sizes become constants, which they are; and of torch's two exporters this is the one whose graph can be put
        # into 8 bits, alike in torch 2.6 and 2.12.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            traced,
            (squares,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    _with_metadata(path, metadata(model))


def metadata(model: PromptedSAM2) -> dict[str, str]:
    """phrases (JSON), threshold, temperature, side in pixels: what turns a picture into masks with the graph alone."""
    config = model.config
    return {
        "phrases": json.dumps(config.phrases),
        "threshold": str(config.threshold),
        "temperature": str(config.mask_temperature),
        "side": str(model.grounding.image_size),
    }


def write_program(model: PromptedSAM2, path: Path) -> None:
    """A `torch.export` program: `torch.export.load(path).module()(squares)`, torch alone."""
    traced, squares = _for_tracing(model)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    program = torch.export.export(traced, (squares,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
    torch.export.save(program, str(path))


def _for_tracing(model: PromptedSAM2) -> tuple[PromptedSAM2, Tensor]:
    """A float32 copy on the CPU and an example. Its weights count as training: a frozen encoder takes a few images at
    once, which would bake their number into the graph.
    """
    side = model.grounding.image_size
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(True), torch.zeros(2, 3, side, side)


def _with_metadata(path: Path, entries: dict[str, str]) -> None:
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, entries)
    onnx.save(graph, str(path))


def write_int8(source: Path, path: Path) -> None:
    """Weights of the products in 8 bits, a scale per column; what comes into them is scaled anew in every run.

    Fixed scales (static, from training images) and convolutions in 8 bits were not quicker on CPUs with VNNI.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to do what is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_dynamic(
                str(prepared),
                str(path),
                op_types_to_quantize=QUANTISED,
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    finally:
        root.setLevel(level)
    _with_metadata(path, {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props})


class GraphPredictor(PromptedPredictor):
    """A graph in place of the network; everything before and behind it is the one way of all predictors.

    model: what the graph was made from, for its phrases and sizes.
    """

    def run_graph(self, squares: Tensor) -> Tensor:
        """squares: (images, 3, side, side) float32, normalised. Returns all phrases' logits (images, phrases, h, w)."""
        raise NotImplementedError

    def mask_logits(self, prepared: ModelInputs) -> Tensor:
        """As the network's."""
        return self.select_phrases(prepared, self.run_graph(self._normalised(prepared.squares).float().cpu()))


class OnnxPredictor(GraphPredictor):
    """An ONNX file through onnxruntime on the CPU. threads: None takes as many as torch does."""

    def __init__(self, model: PromptedSAM2, path: Path, threads: int | None = None) -> None:
        super().__init__(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run_graph(self, squares: Tensor) -> Tensor:
        """All phrases' logits."""
        return torch.from_numpy(self.session.run(None, {INPUT: squares.numpy()})[0])
