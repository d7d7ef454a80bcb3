"""The student as graphs for other runtimes: ONNX in float32 and in 8 bits, and a `torch.export` program.

Each maps squares (batch, 3, side, side), normalised, to mask logits (batch, phrases, side / 4, side / 4), side / 2 with
fine masks, the head's side with a vessel head, for any batch size.
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
MAX_BATCH = 64  # of the torch.export program
QUANTISED = ["MatMul", "Gemm"]  # matrix products with weights; convolutions and attention stay in float32


def write_onnx(model: PromptedSAM2, path: Path) -> None:
    """Write the float32 graph, with `metadata`."""
    traced, squares = _for_tracing(model)
    with warnings.catch_warnings():
        # The warnings are about sizes that become constants, as intended. Of torch's two exporters only this one gives
        # a graph that onnxruntime can quantise, and the same one from torch 2.6 to 2.12.
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
    """What a user of the graph alone needs.

    phrases (JSON), threshold, temperature, side: of the square view in pixels, mask_square: side of the square through
    which masks are resized to the image.
    """
    config = model.config
    return {
        "phrases": json.dumps(config.phrases),
        "threshold": str(config.threshold),
        "temperature": str(config.mask_temperature),
        "side": str(model.grounding.image_size),
        "mask_square": str(model.grounding.square_side),
    }


def write_program(model: PromptedSAM2, path: Path) -> None:
    """Write a `torch.export` program, used as `torch.export.load(path).module()(squares)`."""
    traced, squares = _for_tracing(model)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = torch.export.export(traced, (squares,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
    torch.export.save(program, str(path))


def _for_tracing(model: PromptedSAM2) -> tuple[PromptedSAM2, Tensor]:
    """A float32 copy on the CPU, and an example input (2, 3, side, side).

    Its weights are trainable, because a frozen encoder splits the batch, which would fix its size in the graph.
    """
    side = model.grounding.image_size
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(True), torch.zeros(2, 3, side, side)


def _with_metadata(path: Path, entries: dict[str, str]) -> None:
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, entries)
    onnx.save(graph, str(path))


def write_int8(source: Path, path: Path) -> None:
    """Quantise the weights of matrix products to 8 bits with a scale per column; inputs are scaled in every run.

    Static input scales from training images and 8-bit convolutions were not faster on CPUs with VNNI.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends the preprocessing that is done here
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
    """Runs a graph instead of the network; pre- and post-processing are those of all predictors.

    model: the source of the graph, for its phrases and sizes.
    """

    def run_graph(self, squares: Tensor) -> Tensor:
        """squares: (images, 3, side, side) float32, normalised. Returns mask logits (images, phrases, h, w)."""
        raise NotImplementedError

    def mask_logits(self, prepared: ModelInputs) -> Tensor:
        """See `Predictor`."""
        return self.select_phrases(prepared, self.run_graph(self._normalised(prepared.squares).float().cpu()))


class OnnxPredictor(GraphPredictor):
    """Runs an ONNX file with onnxruntime on the CPU. threads: by default as many as torch uses."""

    def __init__(self, model: PromptedSAM2, path: Path, threads: int | None = None) -> None:
        super().__init__(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run_graph(self, squares: Tensor) -> Tensor:
        """See `GraphPredictor`."""
        return torch.from_numpy(self.session.run(None, {INPUT: squares.numpy()})[0])
