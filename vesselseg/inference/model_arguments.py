"""The options of every tool that loads a model to predict with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vesselseg.errors import UserError
from vesselseg.inference.flips import FLIPS
from vesselseg.run_tool import positive

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong arguments are answered without it
    from vesselseg.inference.predictor import Predictor

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Loading:
    """How a model is loaded; see `load_predictor`, except dtype: a key of DTYPES, or None."""

    device: str = "auto"
    dtype: str | None = None
    quantise: str | None = None
    base: str | None = None

    def predictor(self, model: str | Path) -> Predictor:
        """The predictor of a model or checkpoint; raises WeightsError, UserError, also where memory runs out."""
        if self.base is not None and Path(model).suffix != ".pth":
            raise UserError(
                f"--base {self.base} says where the base folder of a checkpoint (.pth) lies now, and {model} is none: "
                "a model folder holds all of its weights; leave --base out"
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

    def _too_large(self, model: str | Path, told: list[str], gpus: int) -> str:
        fewer_bits = "" if self.quantise == "nf4" else "--quantise nf4 (a quarter of bf16's memory), "
        several = "" if self.device == "split" or gpus < 2 else f"--device split (over {gpus} GPUs), "
        return (
            f"{model}: memory ran out while it was loaded ({told[0] if told else 'no word from the system'}). "
            f"What helps: {fewer_bits}{several}ending other programs that use this memory, or a smaller model"
        )


AS_IT_IS = Loading()


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype, --quantise and --base."""
    group = parser.add_argument_group("how the model is loaded")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 ..., split: over all GPUs (default: auto)"
    )
    group.add_argument("--dtype", choices=DTYPES, help="type to compute in (default: bf16 on a GPU, fp32 on a CPU)")
    group.add_argument(
        "--quantise", choices=("nf4", "int8"), help="the language model in 4 or 8 bits: less memory, nearly the same"
    )
    group.add_argument("--base", help="a checkpoint's base folder, if it has moved since training")


def add_refining_arguments(parser: argparse.ArgumentParser) -> None:
    """--tta, --min-component and --fill-holes: what is done beside asking the model once; eval.py tells their worth."""
    add_tta_argument(parser)
    parser.add_argument("--min-component", type=positive, metavar="PIXELS", default=0, help="drop smaller components")
    parser.add_argument("--fill-holes", type=positive, metavar="PIXELS", default=0, help="fill holes up to this size")


def add_tta_argument(parser: argparse.ArgumentParser) -> None:
    """--tta."""
    parser.add_argument("--tta", choices=(FLIPS,), help="average the answers over the mirrored image: 4 x the time")


def loading_of(arguments: argparse.Namespace) -> Loading:
    """What these options say."""
    return Loading(arguments.device, arguments.dtype, arguments.quantise, arguments.base)


def load_chosen(model: str, arguments: argparse.Namespace) -> Predictor:
    """The predictor of a model, as these options ask for it."""
    return loading_of(arguments).predictor(model)
