"""`vesselseg convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from vesselseg.cli.parameters import show_messages
from vesselseg.config.files import find_config
from vesselseg.errors import UserError


def convert(
    paths: list[str],
    *,
    out: Annotated[Path, Parameter(name=("--out", "--save-path"))],
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    images: Path | None = None,
    check: int = 4,
    base: str | None = None,
    force: Annotated[bool, Parameter(help="replace an existing folder")] = False,
) -> None:
    """Turn a training checkpoint into a Hugging Face folder that needs nothing of the training framework.

    vesselseg convert CONFIG CHECKPOINT --out OUT [--dtype float32|bfloat16] [--images FOLDER]
    vesselseg convert CHECKPOINT --out OUT

    A checkpoint of vesselseg carries its config; where CONFIG is given, its data
    folder provides the check images. One of the published Sa2VA code (iter_N.pth)
    holds weights only: CONFIG gives base folder, SAM2 file, LoRA alpha and data.

    Args:
        paths: config (optional), checkpoint
        out: folder to write
        dtype: of the stored weights (default: as trained)
        images: folder with images to check on (default: the validation split)
        check: how many images to check on
        base: the base folder, if it has moved since training
    """
    if len(paths) > 2:
        raise UserError(f"expected CONFIG CHECKPOINT or CHECKPOINT, found {len(paths)} paths")
    config, checkpoint = find_config(paths[0]) if len(paths) == 2 else None, Path(paths[-1])
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} does not exist; name a checkpoint, e.g. work_dirs/RUN/best.pth")
    from vesselseg.training.console import quieten_imports

    quieten_imports()
    import torch

    from vesselseg.export.check_images import find_check_images
    from vesselseg.export.convert import convert as export
    from vesselseg.models.checkpoints.training_file import read_training_file

    show_messages()
    model_config = read_model_config(config) if config else None
    content = read_training_file(checkpoint, model_config)
    trained_in = next(iter(content["state_dict"].values())).dtype
    stored = dtype or str(trained_in).removeprefix("torch.")
    pictures = find_check_images(content, config, images, check)
    print(f"{checkpoint}: threshold {content['threshold']:.2f}, writing {stored}, checking on {len(pictures)} image(s)")
    found = export(
        checkpoint, out, pictures, dtype=getattr(torch, stored), base=base, force=force, model_config=model_config
    )
    print(
        f"{out}: written; probabilities before and after differ by at most {found.probability:.1e}, "
        f"mask pixels by {found.mask_pixels:.4%}"
    )


def read_model_config(config: Path) -> dict[str, Any]:
    """`model.sa2va` of a config file; mmengine is needed only where a config is read."""
    from vesselseg.training.console import muted

    with muted():
        from vesselseg.config.load import load_config
    sa2va: dict[str, Any] = load_config(config)["model"]["sa2va"].to_dict()
    return sa2va
