"""Options of loading and running a model, cheap to import: the command line declares them before any work.

torch and transformers take seconds to import; `--help` and errors in arguments do not need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vesselseg.errors import UserError

if TYPE_CHECKING:
    from vesselseg.inference.predictor import Predictor

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
FLIPS = "flips"  # the one kind of test-time augmentation
MODES = ("frames", "memory")  # how the frames of a clip are segmented
DEFAULT_KEYFRAME_INTERVAL = 8  # frames
Keyframes = int | Sequence[int] | None


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; see `load_predictor`."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..., or split: the language model is distributed over all GPUs"""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """data type of the computation (default: bf16 on a GPU, fp32 on a CPU)"""
    quantise: Literal["nf4", "int8"] | None = None
    """quantise the language model to 4 (nf4) or 8 bits (int8): less memory, nearly the same results"""
    base: str | None = None
    """base folder of a checkpoint, if it was moved after training"""

    def predictor(self, model: str | Path) -> Predictor:
        """The predictor of a model or checkpoint; raises WeightsError, or UserError, e.g. if memory runs out."""
        if self.base is not None and Path(model).suffix != ".pth":
            raise UserError(
                f"--base {self.base} is the base folder of a checkpoint (.pth), but {model} is not a checkpoint: "
                "a model folder contains all of its weights; omit --base"
            )
        import torch

        from vesselseg.inference import load
        from vesselseg.inference.out_of_memory import is_out_of_memory

        dtype = getattr(torch, DTYPES[self.dtype]) if self.dtype else None
        try:
            return load.load_predictor(model, self.device, dtype, self.base, self.quantise)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(self._too_large(model, str(error).splitlines(), torch.cuda.device_count())) from None

    def _too_large(self, model: str | Path, reason: list[str], gpus: int) -> str:
        fewer_bits = "" if self.quantise == "nf4" else "--quantise nf4 (a quarter of bf16's memory), "
        several = "" if self.device == "split" or gpus < 2 else f"--device split (over {gpus} GPUs), "
        return (
            f"{model}: memory ran out while it was loaded ({reason[0] if reason else 'the system gave no reason'}). "
            f"Try {fewer_bits}{several}ending other programs that use this memory, or a smaller model"
        )


DEFAULT_LOADING = LoadOptions()


def resolve_keyframes(keyframes: Keyframes) -> int | Sequence[int]:
    """The given keyframes, or the default interval for None."""
    return DEFAULT_KEYFRAME_INTERVAL if keyframes is None else keyframes


def mode_problems(mode: str, flips: bool, keyframes: Keyframes) -> list[str]:
    """Incompatible arguments, found without clip and model."""
    if mode not in MODES:
        return [f"cine: the mode is {mode!r}; expected {' or '.join(MODES)}"]
    if mode == "memory" and flips:
        return ["cine: memory does not support flips; omit --tta, or use mode 'frames' (--cine frames)"]
    if mode == "frames" and keyframes is not None:
        return ["keyframes: only mode 'memory' uses them; add --cine memory, or omit --keyframes"]
    return []
