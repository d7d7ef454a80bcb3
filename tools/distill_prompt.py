"""A small model out of a big one: for fixed phrases SAM2 alone, without the language model.

    python tools/distill_prompt.py work_dirs/mine/hf --data data/NAME --phrase "blood vessel" --out work_dirs/mine/small

The language model gives SAM2 one vector per image and phrase. Stand-ins for it are learnt on the training split and
measured on the validation split; the winner is written as a Hugging Face folder that eval.py, predict.py and serve.py
take, with ONNX in float32 and 8 bits and a torch.export program. report.html says what is lost and when not to use it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.inference.model_arguments import add_model_arguments, load_chosen
from vesselseg.output_folder import check_output
from vesselseg.progress import batch_progress
from vesselseg.run_tool import positive, run_tool


def main() -> None:
    """Parse, distil, print."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # The model's libraries take many seconds to import: --help and wrong arguments are answered without them.
    try:
        from vesselseg.distill.distilling import RESULTS_FILE, DistillOptions, distill, summary_lines
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'vesselseg[distill]'") from None
    check_output(arguments.out, arguments.force, RESULTS_FILE)
    logging.getLogger("vesselseg").setLevel(logging.INFO)
    options = DistillOptions(tuple(arguments.phrase), arguments.minutes, arguments.batch, arguments.seed)
    teacher = load_chosen(arguments.model, arguments)
    result = distill(teacher, arguments.model, arguments.data, arguments.out, options, arguments.force, batch_progress)
    print("\n".join(summary_lines(result)))
    print(f"model: {arguments.out}, report: {arguments.out / 'report.html'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported model folder, model of the hub, or checkpoint (.pth)")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder with training and validation images")
    parser.add_argument(
        "--phrase", action="append", default=[], help="what to segment; repeat for several (default: the data's usual)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--minutes", type=_minutes, default=5.0, help="that training may take (default: 5)")
    parser.add_argument("--batch", type=positive, default=4, help="images given to the model at once (default: 4)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the training, and of the choice of images whose masks it learns where not all fit (default: 0)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier distillation in --out")
    add_model_arguments(parser)
    return parser.parse_args()


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


if __name__ == "__main__":
    run_tool(main)
