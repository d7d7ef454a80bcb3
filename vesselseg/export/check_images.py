"""Select the images that a conversion is checked on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vesselseg.dataset.manifest import dataset_home, image_path, read_split
from vesselseg.errors import UserError


def find_check_images(checkpoint: dict[str, Any], config: Path | None, folder: Path | None, count: int) -> list[Path]:
    """Images of the folder if given, else of the validation (or training) split of the model's training data.

    Raises UserError if there are none.
    """
    if folder is not None:
        suffixes = set(Image.registered_extensions())
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
        if not images:
            raise UserError(f"{folder}: contains no image to check the conversion on")
        return images[:count]
    root = _data_root(checkpoint, config)
    for split in ("val", "train"):
        records = read_split(root, split)
        if records:
            return [image_path(root, record) for record in records[:count]]
    raise UserError(
        f"{root}: no validation or training image to check the conversion on; name some with --images FOLDER"
    )


def _data_root(checkpoint: dict[str, Any], config: Path | None) -> Path:
    if config is not None:
        from vesselseg.config.load import load_config  # mmengine is only needed to read a config

        root = load_config(config).get("data_root")
    else:
        root = checkpoint.get("data_root")
    if root is None or not (dataset_home(root) / "annotations.json").exists():
        raise UserError(
            f"the data folder of this training, {root}, does not exist here; name images to check the conversion on "
            "with --images FOLDER"
        )
    return Path(root)
