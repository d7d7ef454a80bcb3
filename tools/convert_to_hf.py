"""Turn a training checkpoint into a Hugging Face folder that needs nothing of the training framework.

usage: python tools/convert_to_hf.py CONFIG CHECKPOINT --save-path OUT [--dtype float32|bfloat16] [--images FOLDER]
       python tools/convert_to_hf.py CHECKPOINT --save-path OUT

A checkpoint of vesselseg carries its own config; where CONFIG is given, its data folder provides the check images.
One of the published Sa2VA code (iter_N.pth) holds weights only: CONFIG gives base folder, SAM2 file, LoRA alpha, data.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from vesselseg.errors import UserError
from vesselseg.export.check_images import find_check_images
from vesselseg.export.convert import convert
from vesselseg.models.checkpoints.training_file import read_training_file
from vesselseg.run_tool import run_tool
from vesselseg.training.console import quieten_imports

quieten_imports()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> int:
    """Parse arguments, convert, say what was checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="CONFIG CHECKPOINT", help="config (optional), checkpoint"
    )
    parser.add_argument("--save-path", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the stored weights; default: as trained")
    parser.add_argument("--images", type=Path, help="folder with images to check on; default: the validation split")
    parser.add_argument("--check", type=int, default=4, help="how many images to check on")
    parser.add_argument("--base", help="the base folder, if it has moved since training")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vesselseg").setLevel(logging.INFO)
    if len(args.paths) > 2:
        raise UserError(f"expected CONFIG CHECKPOINT or CHECKPOINT, found {len(args.paths)} paths")
    config, checkpoint = args.paths[0] if len(args.paths) == 2 else None, args.paths[-1]
    model_config = _model_config(config) if config else None
    content = read_training_file(checkpoint, model_config)
    trained_in = next(iter(content["state_dict"].values())).dtype
    dtype = args.dtype or str(trained_in).removeprefix("torch.")
    images = find_check_images(content, config, args.images, args.check)
    print(f"{checkpoint}: threshold {content['threshold']:.2f}, writing {dtype}, checking on {len(images)} image(s)")
    check = convert(
        checkpoint,
        args.save_path,
        images,
        dtype=DTYPES[dtype],
        base=args.base,
        force=args.force,
        model_config=model_config,
    )
    print(
        f"{args.save_path}: written; probabilities before and after differ by at most {check.probability:.1e}, "
        f"mask pixels by {check.mask_pixels:.4%}"
    )
    return 0


def _model_config(config: Path) -> dict[str, Any]:
    from vesselseg.training.console import muted, quieten_imports  # mmengine is needed only where a config is read

    quieten_imports()
    with muted():
        from vesselseg.config.load import load_config
    return load_config(config)["model"]["sa2va"].to_dict()


if __name__ == "__main__":
    run_tool(main)
