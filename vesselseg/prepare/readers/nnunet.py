"""nnU-Net's raw folders: names of classes and the ignore label in dataset.json, the channel suffix of images.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from vesselseg.imaging.source_files import SourceFiles

FIRST_CHANNEL = "_0000"
_SETTINGS = "dataset.json"
_KEYS = ("channel_names", "modality", "numTraining", "file_ending")


@dataclass(frozen=True)
class RawFolder:
    """What dataset.json says. names: value -> class; without background. ignore: value of the ignore label."""

    names: dict[str, str] = field(default_factory=dict)
    ignore: tuple[float, ...] = ()


def read_raw_folder(files: SourceFiles) -> RawFolder | None:
    """The only dataset.json of the source; None without one of nnU-Net, or with several."""
    found = [one for name in files.jsons if PurePosixPath(name).name == _SETTINGS if (one := _read(files, name))]
    return found[0] if len(found) == 1 else None


def _read(files: SourceFiles, name: str) -> RawFolder | None:
    try:
        content: Any = json.loads((files.root / name).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not any(key in content for key in _KEYS):
        return None
    values: dict[str, float] = {}
    for label, value in labels.items():
        if str(label).isdecimal():  # of nnU-Net 1: "1": "vessel"
            label, value = value, label
        if isinstance(value, (int, str)) and str(value).isdecimal():
            values[str(label)] = float(value)
    ignore = tuple(value for label, value in values.items() if label == "ignore")
    names = {f"{value:g}": label for label, value in values.items() if value and label != "ignore"}
    return RawFolder(names, ignore)
