"""`vesselseg distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from vesselseg.cli.parameters import AboveZero, Batch, Data, Flat, Force, Loading, Out, show_messages, show_warnings
from vesselseg.distill.options import RESULTS_FILE, DistillOptions
from vesselseg.errors import UserError
from vesselseg.inference.options import DEFAULT_LOADING, LoadOptions
from vesselseg.output_folder import check_output


@dataclass(frozen=True)
class Options(DistillOptions):
    """`DistillOptions`, by the names of the command line."""

    phrases: Annotated[tuple[str, ...], Parameter(name="--phrase")] = DistillOptions.phrases
    minutes: AboveZero = DistillOptions.minutes
    batch: Batch = DistillOptions.batch


def distill(
    model: str,
    data: Data,
    *,
    out: Out,
    options: Annotated[Options, Flat] = Options(),
    force: Force = False,
    loading: Annotated[LoadOptions, Loading] = DEFAULT_LOADING,
) -> None:
    """Make a small model out of a big one: for fixed phrases SAM2 alone, without the language model.

    vesselseg distill work_dirs/mine/hf --data data/NAME --phrase "blood vessel" --out work_dirs/mine/small

    The language model gives SAM2 one vector per image and phrase. Replacements for
    it are trained on the training split and measured on the validation split; the
    winner is written as a Hugging Face folder that eval, predict and serve take,
    with ONNX in float32 and 8 bits and a torch.export program. report.html states
    what is lost and when not to use it.

    Args:
        model: exported model folder, model of the hub, or checkpoint (.pth)
        data: dataset folder with training and validation images
    """
    show_warnings()
    check_output(out, force, RESULTS_FILE)
    try:
        from vesselseg.distill.run import distill as distil
        from vesselseg.distill.run import summary_lines
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'vesselseg[distill]'") from None
    from vesselseg.progress import batch_progress

    show_messages()
    teacher = loading.predictor(model)
    result = distil(teacher, model, data, out, options, force, batch_progress)
    print("\n".join(summary_lines(result)))
    print(f"model: {out}, report: {out / 'report.html'}")
